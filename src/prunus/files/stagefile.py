"""The file between stages: what was done so far, for the same weights, data, settings and request alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from prunus.errors import ArtifactError, first_line
from prunus.files.resumable import check_fits, check_same_run, read_checked, refusal, write_checked
from prunus.files.steps import Steps
from prunus.runtime.oldnames import OldNames

FORMAT = "prunus-stages-3"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run in stages writes what is done, and whether it goes on from there.

    Attributes:
        path: the file, written after every stage.
        resume: go on from the file if it is there.
        steps: where `compress` keeps what it has finished, of methods without stages too.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> data = [(torch.randn(32, 8), torch.randint(4, (32,)))]
        >>> ways = {"method": prunus.RecursiveBayesianPruning(min_steps=1), "data": data, "loss_fn": F.cross_entropy}
        >>> first = prunus.prune(net, torch.randn(2, 8), checkpoint="stages.pt", **ways)
        >>> again = prunus.prune(net, torch.randn(2, 8), checkpoint=prunus.Checkpoint("stages.pt", resume=True), **ways)
        >>> torch.equal(first.model[0].weight, again.model[0].weight)
        True
    """

    path: str | os.PathLike[str]
    resume: bool = False
    steps: Steps | None = field(default=None, repr=False)

    @classmethod
    def of(cls, given: str | os.PathLike[str] | Checkpoint | None) -> Checkpoint | None:
        """From a path, or as it is."""
        return given if given is None or isinstance(given, Checkpoint) else cls(given)


@dataclass(frozen=True)
class Stage(OldNames):
    """What one stage found.

    Attributes:
        groups: names of the groups whose noise was learned.
        units: units of each before.
        kept: units of each that stayed.
        natural: units of each that the noise itself would have kept; other than `kept` under a budget or at the floor.
        score: the posterior's score of every unit, by group.
        keep_probability: the posterior probability of every unit to be among those that stayed, by group.
        loss: mean loss of the last epoch of the learning.
        error: relative difference between the smaller network and the masked one, folded.
    """

    renamed: ClassVar[Mapping[str, str]] = {"importance": "score", "probability": "keep_probability"}

    groups: tuple[str, ...]
    units: tuple[int, ...]
    kept: tuple[int, ...]
    natural: tuple[int, ...]
    score: Mapping[str, tuple[float, ...]]
    keep_probability: Mapping[str, tuple[float, ...]]
    loss: float
    error: float


@dataclass
class StageState:
    """Where a run in stages stands.

    Attributes:
        kept: group -> units that stayed, of the stages done.
        stages: what they found, in order.
        weights: the state of the network after them.
        error: the worst difference in their proofs.
    """

    kept: dict[str, tuple[int, ...]]
    stages: list[Stage]
    weights: dict[str, Tensor]
    error: float


def save_stages(path: Path, identity: Mapping[str, str], state: StageState) -> None:
    """Write the file; it is whole at any time. Raises ArtifactError if it can't be written; an older one stays."""
    content = {
        "identity": dict(identity),
        "kept": {n: list(k) for n, k in state.kept.items()},
        "stages": [vars(s) for s in state.stages],
        "weights": dict(state.weights),
        "error": state.error,
    }
    write_checked(path, FORMAT, content)


def load_stages(path: Path, identity: Mapping[str, str], order: Sequence[Sequence[str]]) -> StageState:
    """Read the file, if it is of this very run.

    Args:
        path: the file.
        identity: what the run is made from, by kind: model, weights, data, method, ...
        order: names of the groups of each stage.

    Raises:
        ArtifactError: damaged, edited, or of another run; both are named.
    """
    content = read_checked(path, FORMAT)
    try:
        check_same_run(path, content["identity"], identity)
        state = StageState(
            {str(n): tuple(k) for n, k in content["kept"].items()},
            [_stage(s) for s in content["stages"]],
            dict(content["weights"]),
            float(content["error"]),
        )
        _check(state, order)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it cannot be read, a value is missing or impossible: {first_line(error)}"
        raise refusal(path, what) from error
    return state


def resume_weights_(model: nn.Module, state: StageState, path: Path) -> None:
    """Give a cut network the weights of the file, all or none.

    Raises:
        ArtifactError: names, shapes or types differ, or they are not finite.
    """
    check_fits(path, model, state.weights)
    model.load_state_dict(state.weights)


def is_stage_file(path: Path) -> bool:
    """True if this package wrote it."""
    try:
        return path.is_file() and bool(read_checked(path, FORMAT))
    except ArtifactError:
        return False


def _stage(data: Mapping[str, Any]) -> Stage:
    if set(data) != {f.name for f in fields(Stage)}:
        raise ValueError("a stage has other fields")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Stage(**values)


def _check(state: StageState, order: Sequence[Sequence[str]]) -> None:
    """Raise ValueError where the stages are not the first ones of this order, or a number is impossible."""
    done = [tuple(s.groups) for s in state.stages]
    if done != [tuple(names) for names in order[: len(done)]]:
        raise ValueError("its stages are not those of this run")
    if set(state.kept) != {n for names in done for n in names}:
        raise ValueError("it keeps units of other groups")
    for stage in state.stages:
        for name, units, kept, natural in zip(stage.groups, stage.units, stage.kept, stage.natural, strict=True):
            chosen, values = state.kept[name], (*stage.score[name], *stage.keep_probability[name])
            possible = all(type(i) is int and 0 <= i < units for i in chosen) and len(set(chosen)) == len(chosen)
            if not possible or len(chosen) != kept or not 0 < kept <= units or not 0 <= natural <= units:
                raise ValueError(f"impossible units of {name!r}")
            if len(values) != 2 * units or not all(type(v) is float and math.isfinite(v) for v in values):
                raise ValueError(f"impossible scores of {name!r}")
        if not math.isfinite(stage.loss):
            raise ValueError("a loss that is not finite")
