"""The captured graph with its sizes rewritten: for models whose Python code holds sizes of its own.

The result is an ordinary trainable module with the model's parameter names.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, fx, nn

from prunus.errors import TraceError
from prunus.graph.grouping import Graph
from prunus.graph.trace import trace
from prunus.plan.kept import Kept
from prunus.plan.plan import Plan
from prunus.runtime.arguments import examples_in, tensors_in
from prunus.runtime.entry import entry
from prunus.surgery.cut import cut_
from prunus.surgery.dropping import drop_blocks_
from prunus.surgery.graphlayers import give_layers_
from prunus.surgery.nodesizes import resize_
from prunus.surgery.rewritten import RewrittenModel


@entry()
def rewrite(model: nn.Module, plan: Plan, example_inputs: Any, graph: Graph | None = None) -> RewrittenModel:
    """A new module that computes the pruned function from the captured graph; `model` stays as it is.

    Args:
        model: the dense network.
        plan: what stays.
        example_inputs: inputs to capture with; the batch size stays free unless the code makes a number of it.
        graph: what `captured_freely` made of both, if that is there already.

    Raises:
        TraceError: the model cannot be captured.
    """
    graph = captured_freely(model, plan, example_inputs) if graph is None else graph
    exported = graph.program.module(check_guards=False)
    kept = Kept(graph, plan.kept)
    drop_blocks_(exported, graph, plan)
    give_layers_(exported, exported.graph)
    nodes = _counterparts(graph.program.graph_module, exported)
    for source, result in graph.values.items():
        target = nodes[source.graph].get(source.name)
        if target is not None and source.op == target.op == "call_function":
            resize_(target, source, result, graph, kept)
    exported.graph.lint()
    for part in exported.modules():
        if isinstance(part, fx.GraphModule):
            part.recompile()
    rewritten = RewrittenModel(exported, exported.graph, class_name=f"Pruned{type(model).__name__}")
    _copy_tensors(model, rewritten)
    cut_(rewritten, plan, removing=False)
    return rewritten.train(model.training)


def _counterparts(captured: fx.GraphModule, exported: fx.GraphModule) -> dict[fx.Graph, dict[str, fx.Node]]:
    """For each captured graph, also of regions inside it (autocast), the nodes of its copy by name."""
    parts = [(name, part) for name, part in captured.named_modules() if isinstance(part, fx.GraphModule)]
    copies = {part.graph: exported.get_submodule(name) for name, part in parts}
    return {graph: {n.name: n for n in copy.graph.nodes} for graph, copy in copies.items()}  # type: ignore[union-attr]


def captured_freely(model: nn.Module, plan: Plan, example_inputs: Any) -> Graph:
    """The analysis of the model captured with a free batch size, unless its code makes a number of it.

    Raises:
        TraceError: the model cannot be captured, or no longer has the groups of the plan.
    """
    graph = _with_free_images(model, plan, example_inputs)
    if graph is not None:
        return graph
    graph = trace(model, example_inputs, dynamic_batch=True, follow_branches=plan.followed)
    if _only_batch(graph) == 2 and examples_in(example_inputs, none=0) == 1:  # doubled for nothing
        graph = trace(model, example_inputs, follow_branches=plan.followed)
    lost = _lost(graph, plan)
    if lost is not None:
        what = f"captured with a free batch size the model has no group {lost!r} of the planned size"
        raise TraceError(f"model {type(model).__name__}", what, "report the model: this should not happen")
    return graph


def _with_free_images(model: nn.Module, plan: Plan, example_inputs: Any) -> Graph | None:
    """Captured with free heights and widths, if there are images and the code leaves their sizes free."""
    images = [t for t in tensors_in(example_inputs) if t.dim() > 3 and t.is_floating_point()]
    if not images:
        return None
    try:
        graph = trace(model, example_inputs, dynamic_batch=True, follow_branches=plan.followed, free_sizes=True)
    except TraceError:
        return None
    return None if _only_batch(graph) is not None or _lost(graph, plan) is not None else graph


def _only_batch(graph: Graph) -> int | None:
    return fixed_batch(graph.program.graph, graph.program.graph_signature.user_inputs)


def _lost(graph: Graph, plan: Plan) -> str | None:
    """The first group of the plan that the graph does not have in the planned size."""
    sizes = {g.name: g.units for g in graph.channel_groups} | {b.name: 1 for b in graph.blocks.free}
    return next((g.name for g in plan.groups if sizes.get(g.name) != g.units), None)


def fixed_batch(graph: fx.Graph, inputs: Collection[Any] | None = None) -> int | None:
    """The only batch size that a captured graph runs on, None if it is free.

    Code that makes a plain number of it (`len(x)`, `int(x.shape[0])`) fixes it at that of the example.

    Args:
        graph: of a captured program or module.
        inputs: names of the placeholders that are inputs; all if absent.
    """
    from torch.fx.experimental.symbolic_shapes import is_concrete_int

    for node in graph.nodes:
        value = node.meta.get("val")
        taken = node.op == "placeholder" and (inputs is None or node.name in inputs)
        if taken and isinstance(value, Tensor) and value.dim():
            return int(value.shape[0]) if is_concrete_int(value.shape[0]) else None
    return None


def _copy_tensors(model: nn.Module, rewritten: nn.Module) -> None:
    """Give the rewritten module its own copies, tied and frozen as the model's."""
    copies: dict[int, Tensor] = {}
    for prefix, module in rewritten.named_modules():
        for attribute in [*module._parameters, *module._buffers]:
            name = f"{prefix}.{attribute}" if prefix else attribute
            old = _find(model, name)
            if old is None:
                continue
            if id(old) not in copies:
                copy = old.detach().clone()
                copies[id(old)] = nn.Parameter(copy, old.requires_grad) if isinstance(old, nn.Parameter) else copy
            table: dict[str, Any] = module._parameters if attribute in module._parameters else module._buffers
            table[attribute] = copies[id(old)]


def _find(model: nn.Module, name: str) -> Tensor | None:
    path, _, attribute = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        return None
    found = getattr(owner, attribute, None)
    return found if isinstance(found, Tensor) else None
