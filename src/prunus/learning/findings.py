"""What came out of the learning, by the kind of the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from prunus.files.stagefile import Stage
from prunus.posteriors.base import Posterior


class Findings:
    """What a method found out: `Scores` of units, or `Masks` inside weights."""

    method: str


@dataclass(frozen=True)
class Scores(Findings):
    """What a method found about units.

    Attributes:
        values: group name -> score of each unit, fp32 [K], higher = keep.
        posteriors: group name -> learned posterior (empty for criteria).
        method: name of the method.
        history: mean loss of every epoch of the learning.
        cost_exponent: of the method, see `Method.cost_exponent`.
        measured: for an allocation of the scope `measured`: group name -> loss that each unit saves, float64 [K].
        stages: what each stage found, for methods that work in stages.
    """

    values: Mapping[str, Tensor]
    posteriors: Mapping[str, Posterior] = field(default_factory=dict)
    method: str = ""
    history: tuple[float, ...] = ()
    cost_exponent: float = 0.0
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
