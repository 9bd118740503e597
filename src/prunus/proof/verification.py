"""The proof, as what is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MASKED = "masked model"
MASKED_STATISTICS = "masked model whose normalisations take statistics of what stays"
EACH_OTHER = "its own code and the rewritten graph, against each other"


@dataclass(frozen=True)
class Verification:
    """What was proven.

    Attributes:
        max_error: largest difference of any channel of any tensor that was compared, relative to that channel's largest
            number in the reference.
        tolerance: what was allowed.
        inputs: number of input batches compared.
        exact: False if a normalisation takes statistics across units that went, so that what is left can't equal the
            masked model; the reference is then the masked model whose statistics are those of what stays.
        rewritten: True if the captured graph had to take the place of the model's own code.
        reference: what the smaller model was compared with.
        precision: the coarsest floating-point format that either side was computed in.
        batches: examples in each batch.
        compared: tensors that were compared: outputs, and layers where outputs alone say little.
        errors: error of every floating-point tensor among them.
        unseen: layers of which no wrong cut of the inputs would be seen in anything compared: what they read does not
            matter (their weights are zero, or nothing depends on them).
        notes: remarks on what the proof does not say.
    """

    max_error: float
    tolerance: float
    inputs: int
    exact: bool
    rewritten: bool = False
    reference: str = MASKED
    precision: str = "float32"
    batches: tuple[int, ...] = ()
    compared: tuple[str, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def explain(self) -> str:
        """One line about what was proven, and the notes."""
        how = "by its captured graph, rewritten" if self.rewritten else "in its own class"
        told = f"proof: pruned = {self.reference} to {self.max_error:.1e} (of each channel), {how}"
        return "\n".join([told, *(f"note: {note}" for note in self.notes)])

    @property
    def passed(self) -> bool:
        """True if something was compared and the difference is within tolerance."""
        return bool(self.compared) and self.max_error <= self.tolerance
