"""What repair looks at: the first examples of the data, and the model captured so that it runs on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import Loader, as_batches
from prunus.errors import DataError
from prunus.graph.grouping import Graph
from prunus.plan.plan import Plan
from prunus.refit.config import RepairConfig
from prunus.runtime.arguments import examples_in
from prunus.runtime.precision import to_device
from prunus.runtime.processes import model_device
from prunus.runtime.seeds import seeded
from prunus.surgery.rewrite import captured_freely, fixed_batch


@dataclass(frozen=True)
class Calibration:
    """What repair looks at.

    Attributes:
        graph: the model captured with a free batch size where its code leaves it free.
        batches: inputs of the model, on its device.
    """

    graph: Graph
    batches: tuple[Any, ...]

    @property
    def examples(self) -> int:
        """How many there are."""
        return sum(map(examples_in, self.batches))

    def first(self, count: int) -> Calibration:
        """The same with no more batches than hold so many examples, and one at least."""
        seen, number = 0, 0
        while number < len(self.batches) and (seen := seen + examples_in(self.batches[number])) <= count:
            number += 1
        return Calibration(self.graph, self.batches[: max(number, 1)])


def calibration(model: nn.Module, plan: Plan, loader: Iterable[Any], config: RepairConfig, seed: int) -> Calibration:
    """The first `config.examples` examples of the data, those of one seed, and the captured model.

    Raises:
        DataError: no batch; or none of the only size that the model runs on.
        TraceError: the model can't be captured.
    """
    with seeded(seed):
        batches = _first(as_batches(loader, model), model, config.examples)
    if not batches:
        raise DataError("loader", "there is no batch in it", "give batches of inputs")
    graph = captured_freely(model, plan, batches[0])
    only = fixed_batch(graph.program.graph, graph.program.graph_signature.user_inputs)
    if only is not None:
        batches = [part for batch in batches for part in _parts(batch, only)]
        if not batches:
            what = f"the model runs on batches of {only} alone, and the loader has smaller ones"
            raise DataError("loader", what, f"give batches of {only} examples or more")
    return Calibration(graph, tuple(batches))


def _first(loader: Loader, model: nn.Module, wanted: int) -> list[Any]:
    loader.set_epoch(0)
    device, batches, seen = model_device(model), [], 0
    for inputs, _ in loader:
        size = examples_in(inputs)
        batches.append(to_device(inputs if size <= wanted - seen else _slice(inputs, 0, wanted - seen), device))
        seen += size
        if seen >= wanted:
            break
    return batches


def _parts(batch: Any, size: int) -> list[Any]:
    return [_slice(batch, start, size) for start in range(0, examples_in(batch) - size + 1, size)]


def _slice(batch: Any, start: int, size: int) -> Any:
    whole = examples_in(batch)

    def part(t: Tensor) -> Tensor:
        return t[start : start + size] if t.dim() and t.shape[0] == whole else t

    return torch.utils._pytree.tree_map_only(Tensor, part, batch)
