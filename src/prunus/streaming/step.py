"""What is done with one layer in memory: run for the dense network, repaired, cut, and held against the masked one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import DataError, SurgeryError, first_line
from prunus.graph.grouping import Graph
from prunus.graph.trace import trace
from prunus.plan.plan import Plan
from prunus.proof.comparison import difference
from prunus.proof.masked import masked
from prunus.refit.config import RepairConfig
from prunus.refit.repair import repair_part_
from prunus.refit.told import Refit
from prunus.runtime.arguments import examples_in
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision
from prunus.streaming.layerlist import Call, LayerList
from prunus.streaming.onelayer import INNER, OneLayer
from prunus.surgery.cut import cut_
from prunus.surgery.rewrite import fixed_batch


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: of the layer.
        refits: what repair did inside it, in its order.
        proof: largest difference of the cut layer from the masked one on its recorded inputs, by channel, relative.
        apart: squared distance of what the smaller network makes here from what the dense one makes, relative to the
            variance of that.
    """

    name: str
    refits: tuple[Refit, ...]
    proof: float
    apart: float


@torch.no_grad()
def passed_(
    layer: nn.Module,
    listed: LayerList,
    number: int,
    calls: Sequence[Call],
    hidden: tuple[list[Tensor], list[Tensor]],
    whole: Plan,
    repair: RepairConfig | None,
    seed: int,
    stored_as: torch.dtype,
) -> tuple[LayerReport, tuple[list[Tensor], list[Tensor]]]:
    """Cut a layer, and carry the hidden states of both networks through it.

    Args:
        layer: with its weights; smaller afterwards.
        listed: the layers that it is one of.
        number: which.
        calls: its calls, by batch.
        hidden: what comes to it in the dense and in the smaller network, by batch.
        whole: the plan of the whole model.
        repair: how it is repaired; None: not at all.
        seed: of the rows that repair looks at.
        stored_as: format that new weights are rounded to.

    Returns:
        What became of it, and what it makes in both networks.

    Raises:
        SurgeryError: the cut layer does not do what the masked one does.
        DataError: it runs on batches of one size alone, and there are others.
    """
    name = listed.name(number)
    model = OneLayer(layer, calls[0], listed.place[number])
    pairs = model.inputs(list(zip(*hidden, strict=True)), calls)
    dense, cut = [given for given, _ in pairs], [given for _, given in pairs]
    with full_precision(), eval_mode(model):
        made = [model(*given) for given in dense]
    kept = _inside(whole.kept, name)
    refits: tuple[Refit, ...] = ()
    smaller = made if all(a is b for a, b in zip(*hidden, strict=True)) else []
    proof = 0.0
    if kept or (repair is not None and repair.layers == "all" and not smaller):
        graph = _captured(model, name, dense)
        plan = Plan.from_kept(graph, kept)
        _check(plan, whole, name)
        if repair is not None:
            told = repair_part_(model, graph, plan, pairs, repair, seed=seed, stored_as=stored_as)
            refits = tuple(replace(r, layer=name + r.layer.removeprefix(INNER)) for r in told)
        proof, smaller = _proven_(model, plan, cut, name)
    elif not smaller:
        with full_precision(), eval_mode(model):
            smaller = [model(*given) for given in cut]
    return LayerReport(name, refits, proof, _apart(made, smaller)), (made, smaller)


def _inside(kept: Mapping[str, tuple[int, ...]], name: str) -> dict[str, tuple[int, ...]]:
    """What stays of the groups of a layer, by their names in `OneLayer`."""
    return {INNER + n.removeprefix(name): units for n, units in kept.items() if n.startswith(f"{name}.")}


def _captured(model: OneLayer, name: str, batches: Sequence[Any]) -> Graph:
    graph = trace(model, batches[0], dynamic_batch=True)
    only = fixed_batch(graph.program.graph, graph.program.graph_signature.user_inputs)
    sizes = {examples_in(b) for b in batches}
    if only is not None and sizes != {only}:
        what = f"its code makes a number of the batch size, and there are batches of {sorted(sizes)}"
        raise DataError(f"layer {name!r}", what, "give batches of one size, of two examples or more")
    return graph


def _check(plan: Plan, whole: Plan, name: str) -> None:
    """Refuse a plan that means something else in the layer by itself than in the whole model."""
    there = {INNER + n.removeprefix(name): e for n, e in whole.tensors.items() if n.startswith(f"{name}.")}
    if odd := sorted(n for n in {*there, *plan.tensors} if there.get(n) != plan.tensors.get(n)):
        what = f"{odd[0].removeprefix(f'{INNER}.')!r} is cut otherwise in the layer by itself than in the whole model"
        raise SurgeryError(f"layer {name!r}", what, "use prunus.prune, and report the model")


def _proven_(model: OneLayer, plan: Plan, batches: Sequence[Any], name: str) -> tuple[float, list[Tensor]]:
    """Cut the layer; its largest difference from the masked one, and what it makes."""
    with full_precision():
        with eval_mode(model), masked(model, plan):
            wanted = [model(*given) for given in batches]
        cut_(model, plan)
        try:
            with eval_mode(model):
                found = [model(*given) for given in batches]
        except Exception as failure:
            raise _refusal(name, f"the smaller layer does not run: {first_line(failure)}") from failure
    error, tolerance = difference([[t] for t in wanted], [[t] for t in found])
    if not error <= tolerance:
        raise _refusal(name, f"the smaller layer is {error:.1e} from the masked one, more than {tolerance:.0e}")
    return error, found


def _refusal(name: str, what: str) -> SurgeryError:
    return SurgeryError(f"layer {name!r}", what, "put what goes in it into ignored_layers, or use prunus.prune")


def _apart(dense: Sequence[Tensor], smaller: Sequence[Tensor]) -> float:
    """Squared distance relative to the variance of each channel of the hidden states, summed in fp64."""
    rows, others = (torch.cat([t.reshape(-1, t.shape[-1]) for t in side]).double() for side in (dense, smaller))
    spread = float((rows - rows.mean(0)).square().sum())
    return float((rows - others).square().sum()) / spread if spread else 0.0
