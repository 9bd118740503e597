"""Filter masks become physical removal: from what `fit_masks` keeps of each layer to a plan over groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunus.errors import ConfigError
from prunus.graph.grouping import Graph
from prunus.plan import Plan


def sole_writers(graph: Graph) -> dict[str, str]:
    """Layers whose filters are the units of a prunable group that no other layer writes: layer -> group."""
    found = {}
    for group in graph.groups():
        if len(group.writers) == 1:
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


def plan_of_filters(graph: Graph, masks: Mapping[str, Tensor], method: str = "dpp") -> Plan:
    """The plan that removes what filter masks leave out.

    A masked filter still passes on its bias and what a batch norm makes of zero; a removed one does not. So the smaller
    network is not the masked one, and wants tuning.

    Args:
        graph: the analysed model.
        masks: bool [1, filters] by layer.
        method: for the record.

    Raises:
        ConfigError: a layer whose filters other layers write too, or whose group is locked.
    """
    alone = check_filters(graph, list(masks))
    kept = {}
    for name, mask in masks.items():
        group = graph.group(alone[name])
        units = group.writers[0].units_along_dim
        kept[group.name] = sorted(units[mask.reshape(-1).cpu().numpy()].tolist())
    return Plan.from_kept(graph, kept, method=method)
