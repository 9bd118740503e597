"""What repair looks at: the first examples of the data, and the model captured so that it runs on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
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
from prunus.runtime.dealing import Share, own_share
from prunus.runtime.precision import to_device
from prunus.runtime.processes import gathered_objects, model_device, rank
from prunus.runtime.seeds import seeded
from prunus.surgery.rewrite import captured_freely, fixed_batch


@dataclass(frozen=True)
class Calibration:
    """What repair looks at.

    Attributes:
        graph: the model captured with a free batch size where its code leaves it free.
        batches: inputs of the model, on its device; this process's part of them.
        shares: which part that is, by batch; of the last ones there may be nothing here.
    """

    graph: Graph
    batches: tuple[Any, ...]
    shares: tuple[Share, ...]

    @property
    def examples(self) -> int:
        """How many there are on all processes together."""
        return sum(share.whole for share in self.shares)

    def first(self, count: int) -> Calibration:
        """The same with no more batches than hold so many examples, and one at least."""
        seen, number = 0, 0
        while number < len(self.shares) and (seen := seen + self.shares[number].whole) <= count:
            number += 1
        number = max(number, 1)
        return Calibration(self.graph, self.batches[:number], self.shares[:number])


def calibration(model: nn.Module, plan: Plan, loader: Iterable[Any], config: RepairConfig, seed: int) -> Calibration:
    """The first `config.examples` examples of the data, those of one seed, and the captured model.

    Processes that share the data look at the examples that one would look at, each at its own.

    Raises:
        DataError: no batch; or none of the only size that the model runs on.
        TraceError: the model can't be captured.
    """
    loader = as_batches(loader, model)
    batches = first_examples(model, loader, config.examples, seed)
    graph = captured_freely(model, plan, batches[0])
    only = fixed_batch(graph.program.graph, graph.program.graph_signature.user_inputs)
    if only is not None:
        batches = [part for batch in batches for part in _parts(batch, only)]
        if not all(gathered_objects(bool(batches))):
            what = f"the model runs on batches of {only} alone, and the loader has smaller ones"
            raise DataError("loader", what, f"give batches of {only} examples or more")
    return Calibration(graph, tuple(batches), _shares([examples_in(b) for b in batches], loader.in_blocks))


def first_examples(
    model: nn.Module, loader: Loader, wanted: int, seed: int, device: torch.device | None = None
) -> list[Any]:
    """Inputs of the first examples of the data, those of one seed, as batches on a device, by default the model's.

    Raises:
        DataError: no batch.
    """
    with seeded(seed):
        batches = _first(loader, device or model_device(model), wanted)
    if not all(gathered_objects(bool(batches))):
        raise DataError("loader", "there is no batch in it", "give batches of inputs")
    return batches


def _first(loader: Loader, device: torch.device, wanted: int) -> list[Any]:
    loader.set_epoch(0)
    batches, seen, given = list[Any](), 0, iter(loader)
    while seen < wanted:
        inputs, _ = next(given, (None, None))
        size = 0 if inputs is None else examples_in(inputs)
        # Of streams each process may have a number of its own.
        sizes = gathered_objects(None if inputs is None else size)
        if all(n is None for n in sizes):
            break
        share = own_share([n or 0 for n in sizes], rank(), in_blocks=loader.in_blocks)
        taken = sum(place < wanted - seen for place in share.places)
        if inputs is not None and (taken or not share.whole):
            batches.append(to_device(inputs if size == taken else _slice(inputs, 0, taken), device))
        seen += share.whole
    return batches


def _shares(sizes: Sequence[int], in_blocks: bool) -> tuple[Share, ...]:
    """This process's parts of all batches, from the examples of those that are here."""
    found: list[Share] = []
    for of_all in itertools.zip_longest(*gathered_objects(list(sizes)), fillvalue=0):
        before = found[-1].before + found[-1].whole if found else 0
        found.append(own_share(of_all, rank(), in_blocks=in_blocks, before=before))
    return tuple(found)


def _parts(batch: Any, size: int) -> list[Any]:
    return [_slice(batch, start, size) for start in range(0, examples_in(batch) - size + 1, size)]


def _slice(batch: Any, start: int, size: int) -> Any:
    whole = examples_in(batch)

    def part(t: Tensor) -> Tensor:
        return t[start : start + size] if t.dim() and t.shape[0] == whole else t

    return torch.utils._pytree.tree_map_only(Tensor, part, batch)
