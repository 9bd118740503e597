"""Run the captured graph on labels: model and example inputs in, `Graph` out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from prunus.errors import TraceError
from prunus.graph import rules  # noqa: F401 - importing them registers them
from prunus.graph.capture import capture
from prunus.graph.engine import Engine, meta_shape, meta_value, operation
from prunus.graph.free import settle
from prunus.graph.grouping import Graph, build_graph
from prunus.graph.labels import Value, along
from prunus.graph.registry import RULES
from prunus.graph.resultforms import results_of
from prunus.graph.rules.creation import create, unknown
from prunus.graph.rules.elementwise import pointwise
from prunus.graph.rules.selecting import tie_selections
from prunus.graph.stored import note_product, note_stored, values_of
from prunus.runtime.entry import entry

REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")


@entry(meta=True)
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    dynamic_batch: bool = False,
    strict: bool = False,
    follow_branches: bool = False,
    free_sizes: bool = False,
) -> Graph:
    """Find by itself what is coupled with what.

    Args:
        model: any module; it is neither changed nor kept in another mode.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments, with a batch dimension first.
        dynamic_batch: capture with a free batch size (needed only for a rewritten graph).
        strict: refuse a model with an operation that has no rule, instead of locking what it touches.
        follow_branches: where the code branches on data, analyse the way that the example inputs take; the others are
            not looked at, and may not run after removal.
        free_sizes: with `dynamic_batch`, capture images with free heights and widths too, where the code leaves them.

    Returns:
        The graph, with its channel groups, costs and reasons.

    Raises:
        TraceError: the model cannot be captured, or `strict` and an operation has no rule.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> print(prunus.trace(net, torch.randn(2, 8)).explain())
        prunable  0: 16 units, read by 2  [0]
        locked    2: 4 units; is an output of the model (output)  [2]
        16 of 20 units in 1 of 2 groups can go
    """
    program = capture(
        model, example_inputs, dynamic_batch=dynamic_batch, follow_branches=follow_branches, free_sizes=free_sizes
    )
    graph = replace(analyse(program, model, strict=strict), followed=follow_branches)
    if graph.blocks.flow is None:
        return graph
    results = results_of(model, example_inputs, graph.blocks.flow.calls.inside)
    return replace(graph, blocks=replace(graph.blocks, results=results))


def analyse(program: ExportedProgram, model: nn.Module, *, strict: bool = False) -> Graph:
    """Label run over an exported program of `model`; see `trace`."""
    engine = Engine()
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    aliases = _aliases(model)
    numbers = {**dict(model.named_buffers(remove_duplicate=False)), **program.constants}
    engine.batch = _batch_size(program, inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            engine.values[node] = _placeholder(engine, node, inputs[node.name], aliases, numbers)
        elif node.op == "call_function":
            _call(engine, node)
        elif node.op == "output":
            outputs = [engine.value(n) for n in node.all_input_nodes]
            engine.lock([p for v in outputs for p in (*v.planes, *v.rows)], "is an output of the model", node)
        else:
            engine.values[node] = meta_value(node.meta.get("val"))
    if strict:
        _refuse_unknown(engine)
    settle(engine)
    tie_selections(engine)
    return build_graph(engine, program, model, aliases)


def _call(engine: Engine, node: fx.Node) -> None:
    if operation(node) in REGIONS:
        engine.values[node] = _region(engine, node)
        return
    note_product(engine, node)
    engine.values[node] = _run(engine, node)
    note_stored(engine, node)


def _region(engine: Engine, node: fx.Node) -> list[Value]:
    """A part of the code under another setting (autocast) is a graph of its own; its operations are analysed as all."""
    number, name = next((i, a.target) for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
    owner = node.graph.owning_module
    assert owner is not None
    part = owner.get_submodule(str(name))
    assert isinstance(part, fx.GraphModule)
    operands = iter(node.args[number + 1 :])
    results: list[Value] = []
    for inner in part.graph.nodes:
        if inner.op == "placeholder":
            engine.values[inner] = engine.values[next(operands)]  # type: ignore[index]
        elif inner.op == "call_function":
            _call(engine, inner)
        elif inner.op == "output":
            results = [engine.value(n) for n in inner.args[0]]
        else:
            engine.values[inner] = meta_value(inner.meta.get("val"))
    return results


def _run(engine: Engine, node: fx.Node) -> Any:
    name = operation(node)
    found = RULES.get(name)
    if not isinstance(node.meta.get("val"), Tensor | list | tuple | None):
        made = found is not None and found.label is create  # else a number, not a tensor
        return create(engine, node) if made else unknown(engine, node)
    if not (_is_pointwise(node) if found is None else found.rows):
        engine.lock_rows([v for n in node.all_input_nodes for v in values_of(engine.values[n])], node)
    if found is not None:
        return found.label(engine, node)
    if _is_pointwise(node):
        return pointwise(engine, node)
    return unknown(engine, node)


def _is_pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def _placeholder(
    engine: Engine, node: fx.Node, spec: Any, aliases: dict[str, str], numbers: dict[str, Any]
) -> Value | list[Value]:
    """Parameters and buffers get one plane of fresh labels per dimension; inputs have fixed sizes."""
    if spec.kind == InputKind.CONSTANT_TENSOR:
        return Value(meta_shape(node.meta["val"]), stored=frozenset(), constant=numbers.get(spec.target))
    if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER) or not isinstance(node.meta.get("val"), Tensor):
        return meta_value(node.meta.get("val"))
    name = aliases.get(spec.target, spec.target)
    if name not in engine.parameters:
        shape = tuple(int(s) for s in node.meta["val"].shape)
        planes = [along(engine.labels.fresh(s), d, len(shape)) for d, s in enumerate(shape) if s > 1]
        engine.parameters[name] = Value(shape, planes, name, stored=frozenset({name}))
        if spec.kind == InputKind.BUFFER:
            engine.stored.buffers.add(name)
            engine.parameters[name].constant = numbers.get(spec.target)
    return engine.parameters[name]


def _aliases(model: nn.Module) -> dict[str, str]:
    """Every name of a tied parameter or buffer, mapped to its first name."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            names[name] = first.setdefault(id(tensor), name)
    return names


def _batch_size(program: ExportedProgram, inputs: dict[str, Any]) -> int:
    for node in program.graph.nodes:
        if node.op == "placeholder" and inputs[node.name].kind == InputKind.USER_INPUT:
            value = meta_value(node.meta.get("val"))
            if isinstance(value, Value) and value.shape:
                return value.shape[0]
    return 1


def _refuse_unknown(engine: Engine) -> None:
    missing = sorted({f"{lock.reason} ({lock.source})" for lock in engine.locks if lock.reason.startswith("no rule")})
    if missing:
        raise TraceError(
            "trace(strict=True)", "; ".join(missing), "drop strict=True to lock what these operations touch"
        )
