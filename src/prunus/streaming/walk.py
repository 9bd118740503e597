"""From the first layer to the last: loaded, repaired, cut, written; then what lies around them, as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.files.fingerprint import data_digest, tree_digest
from prunus.files.shards import Shards, ShardWriter, in_portions
from prunus.files.steps import Steps
from prunus.plan.plan import Plan
from prunus.refit.config import RepairConfig
from prunus.refit.told import Refit
from prunus.runtime.memory import give_memory_back
from prunus.runtime.progress import progress_bar
from prunus.runtime.seeds import seed_of
from prunus.streaming.frame import recorded_calls
from prunus.streaming.layerlist import Call, LayerList
from prunus.streaming.onelayer import check_alike, loaded_layer
from prunus.streaming.step import LayerReport, passed_

STEP = "layers"


@dataclass(frozen=True)
class Walk:
    """What is walked through, and how.

    Attributes:
        frame: the model with its parameters on `meta`, in the format that is computed in.
        listed: its layers.
        shards: its weights.
        names: what they are called there.
        plan: what stays.
        repair: how layers are repaired; None: not at all.
        seed: of the rows that repair looks at.
    """

    frame: nn.Module
    listed: LayerList
    shards: Shards
    names: Mapping[str, str]
    plan: Plan
    repair: RepairConfig | None
    seed: int

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return next(self.frame.parameters()).dtype

    def stored(self, number: int) -> dict[str, str]:
        """The tensors of a layer: name in the model -> name in the shards."""
        return {n: s for n, s in self.names.items() if self.listed.number_of(n) == number}

    def made_from(self, batches: Sequence[Any]) -> dict[str, str]:
        """What the shards that are written depend on; weights by the size and the time of their files."""
        files = [(f, (self.shards.folder / f).stat()) for f in sorted(set(self.shards.files.values()))]
        return {
            "weights": tree_digest([[name, s.st_size, s.st_mtime_ns] for name, s in files]),
            "plan": tree_digest(self.plan.to_json()),
            "data": data_digest(batches),
            "repair": repr(self.repair),
            "seed": str(self.seed),
        }


@dataclass
class _Stand:
    """How far it has come: layers done, and the hidden states behind the last of them in both networks."""

    hidden: tuple[list[Tensor], list[Tensor]]
    reports: list[LayerReport]
    sizes: list[dict[str, int]]


def walked(walk: Walk, batches: Sequence[Any], where: Path, steps: Steps, progress: bool) -> tuple[LayerReport, ...]:
    """Write all shards and their index, from the last finished layer on.

    Args:
        walk: what is walked through.
        batches: inputs to look at.
        where: folder to write into.
        steps: keeps where it stands after every layer.
        progress: show a bar where there is a terminal.

    Returns:
        What became of each layer.
    """
    listed, shards = walk.listed, walk.shards
    calls = recorded_calls(walk.frame, listed, batches, shards, walk.names, walk.dtype)
    for number, of_layer in enumerate(calls):
        check_alike(of_layer, listed.name(number))
    inner = [walk.stored(number) for number in range(listed.count)]
    inside = {s for of_layer in inner for s in of_layer.values()}
    sizes = {n: shards.bytes_of(n) for n in shards.files}
    largest = max(sum(sizes[s] for s in of_layer.values()) for of_layer in inner)
    rest = in_portions([n for n in shards.files if n not in inside], sizes, largest)
    where.mkdir(parents=True, exist_ok=True)
    writer, made_from = ShardWriter(where, listed.count + len(rest)), walk.made_from(batches)
    first = [call.leaves[listed.place[0]] for call in calls[0]]
    stand = _stand(steps.read(STEP, made_from), first)
    if not all((where / writer.name(number + 1)).is_file() for number in range(len(stand.sizes))):
        stand = _stand(None, first)
    for number, held in enumerate(stand.sizes, start=1):
        writer.note(number, held)
    with progress_bar("layers", listed.count, progress) as bar:
        bar.skip(len(stand.reports))
        give_memory_back()  # of the analysis
        for number in range(len(stand.reports), listed.count):
            tensors = _passed(walk, number, calls[number], inner[number], stand)
            writer.write(number + 1, tensors)
            stand.sizes.append({n: t.nbytes for n, t in tensors.items()})
            del tensors
            give_memory_back()  # captured graphs refer to themselves, and hold the layer
            steps.write(STEP, made_from, _as_data(stand))
            bar.advance()
    for number, portion in enumerate(rest, start=listed.count + 1):
        writer.copy(number, shards, portion)
    writer.finish()
    return tuple(stand.reports)


def _passed(
    walk: Walk, number: int, calls: Sequence[Call], inner: Mapping[str, str], stand: _Stand
) -> dict[str, Tensor]:
    """One layer, cut; the stand moves behind it. What is to be stored of it, by name."""
    layer = loaded_layer(walk.frame, walk.listed, number, walk.shards, walk.names, walk.dtype)
    name, dtypes = walk.listed.name(number), walk.shards.dtypes
    formats = {dtypes[s] for s in inner.values() if dtypes[s].is_floating_point}
    report, stand.hidden = passed_(
        layer, walk.listed, number, calls, stand.hidden, walk.plan, walk.repair, seed_of(walk.seed, name),
        max(formats, key=lambda d: d.itemsize),
    )  # fmt: skip
    stand.reports.append(report)
    held = layer.state_dict(prefix=f"{name}.")
    return {s: held[n].detach().to(dtypes[s]) for n, s in inner.items()}


def _as_data(stand: _Stand) -> dict[str, Any]:
    return {
        "hidden": [list(side) for side in stand.hidden],
        "reports": [asdict(report) for report in stand.reports],
        "sizes": stand.sizes,
    }


def _stand(kept: Mapping[str, Any] | None, first: list[Tensor]) -> _Stand:
    """Where an earlier run stood, or the beginning."""
    if kept is None:
        return _Stand((first, first), [], [])
    reports = [
        LayerReport(r["name"], tuple(Refit(**refit) for refit in r["refits"]), r["proof"], r["apart"])
        for r in kept["reports"]
    ]
    return _Stand((kept["hidden"][0], kept["hidden"][1]), reports, list(kept["sizes"]))
