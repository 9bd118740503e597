"""Sizes in the nodes of a captured graph, brought in line with what a plan keeps.

Every shape, split, slice and padding constant becomes the number of kept labels in the node's own planes; each
operation's rule knows how (`rewrite` in `graph/rules`). Sizes that the graph computes (a free batch size, times the
heads that are merged with it) stay those of the dense network, and are scaled by the share of kept labels where they
are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from prunus.graph.engine import operation
from prunus.graph.grouping import Graph
from prunus.graph.groups import Selection
from prunus.graph.registry import RULES
from prunus.graph.resizing import Resizing
from prunus.plan.kept import Kept, renumbered


def resize_(target: fx.Node, source: fx.Node, result: Any, graph: Graph, kept: Kept) -> None:
    """Rewrite the sizes in `target`, the node that became of `source`, whose labels are `result`."""
    if source in graph.selections:
        select_(target, source, graph.selections[source], kept)
        return
    found = RULES.get(operation(source))
    if found is not None and found.rewrite is not None:
        call = Resizing(source, target, list(target.args), result, graph.values, kept)
        found.rewrite(call)
        target.args = tuple(call.arguments)


def select_(target: fx.Node, source: fx.Node, selection: Selection, kept: Kept) -> None:
    """Give an operation that selects units an index of its own; one in a buffer is edited with the other tensors."""
    values = None if selection.tensor else renumbered(selection, kept.positions)
    if values is None:
        return
    where = next(n for n in target.all_input_nodes[1:])
    held = source.all_input_nodes[1].meta["val"]
    owner = target.graph.owning_module
    assert owner is not None
    name = f"{target.name}_positions"
    owner.register_buffer(name, torch.tensor(values, dtype=held.dtype, device=held.device), persistent=False)
    with target.graph.inserting_before(target):
        target.replace_input_with(where, target.graph.get_attr(name))
