"""Filter masks: gates at the filters' readers while they are learned, a plan over groups once they are fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.gates import gate
from prunus.graph.grouping import Graph
from prunus.masks.filter_masks import MaskedUnits
from prunus.plan.plan import Plan
from prunus.runtime.arguments import examples_in


def sole_writers(graph: Graph) -> dict[str, str]:
    """Layers whose filters are the units of a prunable group that no other layer writes: layer -> group."""
    found = {}
    for group in graph.groups():
        if len(group.writers) == 1 and group.writers[0].tensor in graph.shapes:
            layer, _, attribute = group.writers[0].tensor.rpartition(".")
            if attribute == "weight" and sorted(group.writers[0].units_along_dim.tolist()) == list(range(group.units)):
                found[layer] = group.name
    return found


def check_filters(graph: Graph, layers: Sequence[str]) -> dict[str, str]:
    """`sole_writers`, after every one of the layers was found among them. Raises ConfigError otherwise."""
    alone = sole_writers(graph)
    for name in layers:
        if name not in alone:
            advice = f"give the pattern to some of {', '.join(alone)}" if alone else "use another granularity"
            raise ConfigError(f"layer {name!r}", "its filters are locked or shared with other layers", advice)
    return alone


@contextmanager
def gated_filters(
    model: nn.Module, graph: Graph, masks: Mapping[str, MaskedUnits], draws: gate.Draws = "batch"
) -> Iterator[None]:
    """Within the context every pass multiplies what reads a layer's filters by the layer's mask, drawn for that pass.

    So a mask of zero is exactly what removal leaves, whatever norm and activation lie between.

    Args:
        model: the network; gets hooks, loses them on leaving.
        graph: the analysed model.
        masks: by layer.
        draws: one mask for each example of a pass, or one for all.

    Raises:
        ConfigError: a layer whose filters other layers write too, or whose group is locked.
    """
    alone = check_filters(graph, list(masks))
    groups = {name: graph.group(alone[name]) for name in masks}
    filters = {n: torch.from_numpy(np.argsort(g.writers[0].units_along_dim)) for n, g in groups.items()}
    with gate.attach(model, list(groups.values()), draws=draws) as gates, gate.recompute_products():

        def draw(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            examples = examples_in((args, kwargs)) if draws == "example" else 1
            drawn = {n: m.multipliers(examples) for n, m in masks.items()}
            gates.fix({g.name: drawn[n][:, filters[n].to(drawn[n].device)] for n, g in groups.items()})

        with model.register_forward_pre_hook(draw, with_kwargs=True):
            yield


def plan_of_filters(graph: Graph, masks: Mapping[str, Tensor], asked: str = "", method: str = "by hand") -> Plan:
    """The plan that removes what filter masks leave out.

    Args:
        graph: the analysed model.
        masks: bool [1, filters] by layer.
        asked: the pattern, for the record.
        method: what learned the masks, for the record.

    Raises:
        ConfigError: a layer whose filters other layers write too, or whose group is locked.
    """
    alone = check_filters(graph, list(masks))
    kept = {}
    for name, mask in masks.items():
        group = graph.group(alone[name])
        units = group.writers[0].units_along_dim
        kept[group.name] = sorted(units[mask.reshape(-1).cpu().numpy()].tolist())
    return Plan.from_kept(graph, kept, method=method, asked=asked)
