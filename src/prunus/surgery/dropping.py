"""Blocks out of a captured graph: each sum becomes its skip, and what nothing reads then goes."""

from __future__ import annotations

import torch
from torch import fx, nn

from prunus.graph.deadcode import written
from prunus.graph.grouping import Graph
from prunus.graph.units.blocks import Sum
from prunus.plan.plan import Plan


def drop_blocks_(exported: fx.GraphModule, graph: Graph, plan: Plan) -> None:
    """Take the plan's blocks out of a module made from a captured graph, and the tensors that go with them.

    Args:
        exported: made from the program of `graph`; its operations have the same names.
        graph: the analysed model.
        plan: what goes.
    """
    if not plan.blocks:
        return
    nodes = {n.name: n for n in exported.graph.nodes if n.op == "call_function"}
    for removed in graph.blocks.sums(plan.blocks):
        here = nodes[removed.node.name]
        skip = _side(here, removed)
        if written(here) or any(here in written(user) for user in here.users):
            with exported.graph.inserting_before(here):  # what is written to now must not be what others read
                skip = exported.graph.call_function(torch.ops.aten.clone.default, (skip,))
                skip.meta = dict(here.meta)
        here.replace_all_uses_with(skip)
        exported.graph.erase_node(here)
    gone = {n.name for n in graph.blocks.gone(plan.blocks)}
    for node in reversed(list(exported.graph.nodes)):
        unread = node.op == "get_attr" and not node.users and str(node.target) in plan.removal.tensors
        if unread or (node.op == "call_function" and node.name in gone):
            exported.graph.erase_node(node)
    for name in plan.removal.tensors:
        _remove_tensor(exported, name)


def _side(here: fx.Node, removed: Sum) -> fx.Node:
    """The skip, which may be that of a sum before it by now."""
    place = list(removed.node.args).index(removed.skip)
    side = here.args[place]
    assert isinstance(side, fx.Node)
    return side


def _remove_tensor(root: nn.Module, name: str) -> None:
    path, _, attribute = name.rpartition(".")
    try:
        owner = root.get_submodule(path)
    except AttributeError:
        return
    owner._parameters.pop(attribute, None)
    owner._buffers.pop(attribute, None)
