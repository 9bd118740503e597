"""The captured graph with its size constants rewritten: for models whose Python code holds sizes of its own.

Every shape, split, slice and padding constant becomes the number of kept labels in the node's own planes. The result is
an ordinary trainable module with the model's parameter names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from prunus.graph.engine import operation
from prunus.graph.grouping import Graph
from prunus.graph.labels import Value
from prunus.graph.rules.movement import FILLS
from prunus.graph.trace import trace
from prunus.plan import Plan
from prunus.surgery import cut_

TRAINING_ARGUMENT = {"batch_norm": 5, "dropout": 2, "instance_norm": 5, "alpha_dropout": 2, "feature_dropout": 2}


class RewrittenModel(fx.GraphModule):
    """A captured graph as a module whose batch norms and dropouts follow `train()` and `eval()`.

    Its state is the model's: numbers that the code itself holds are buffers outside it, in copies too.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "CapturedModel") -> None:
        super().__init__(root, graph, class_name)
        state = root.state_dict().keys()
        for prefix, module in self.named_modules():
            outside = {name for name in module._buffers if (f"{prefix}.{name}" if prefix else name) not in state}
            module._non_persistent_buffers_set |= outside

    def _deepcopy_init(self) -> Callable[..., None]:
        return RewrittenModel.__init__

    def train(self, mode: bool = True) -> RewrittenModel:
        """Set training mode in the module and in the graph's batch norms and dropouts."""
        self.write_mode_(mode)
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def write_mode_(self, mode: bool, norms_only: bool = False) -> None:
        """Write the mode into the graph's batch norms and, unless `norms_only`, dropouts."""
        changed = False
        for node in self.graph.nodes:
            index = TRAINING_ARGUMENT.get(operation(node)) if node.op == "call_function" else None
            if index is not None and len(node.args) > index and node.args[index] != mode:
                norm = operation(node).endswith("_norm")
                if (norm and node.args[3] is None) or (norms_only and not norm):
                    continue  # without running statistics a norm always takes the batch's
                node.update_arg(index, mode)
                changed = True
        if changed:
            self.recompile()

    def eval(self) -> RewrittenModel:
        """Set evaluation mode."""
        return self.train(False)


def as_module(program: torch.export.ExportedProgram) -> RewrittenModel:
    """A captured program as a trainable module with the model's parameter names."""
    exported = program.module(check_guards=False)
    return RewrittenModel(exported, exported.graph)


def rewrite(model: nn.Module, plan: Plan, example_inputs: Any) -> RewrittenModel:
    """A new module that computes the pruned function from the captured graph; `model` stays as it is.

    Args:
        model: the dense network.
        plan: what stays.
        example_inputs: inputs to capture with; the batch size stays free unless the code makes a number of it.

    Raises:
        TraceError: the model cannot be captured.
    """
    graph = trace(model, example_inputs, dynamic_batch=True, follow_branches=plan.followed)
    exported = graph.program.module(check_guards=False)
    if fixed_batch(exported.graph) == 2 and _examples(example_inputs) == 1:  # it was doubled for nothing
        graph = trace(model, example_inputs, follow_branches=plan.followed)
        exported = graph.program.module(check_guards=False)
    kept = _Kept(graph, plan)
    nodes = {n.name: n for n in exported.graph.nodes}
    for source, result in graph.values.items():
        target = nodes.get(source.name)
        if target is None or source.op != "call_function":
            continue
        _rewrite_node(target, source, result, graph, kept)
    exported.graph.lint()
    rewritten = RewrittenModel(exported, exported.graph, class_name=f"Pruned{type(model).__name__}")
    _copy_tensors(model, rewritten)
    cut_(rewritten, plan)
    return rewritten.train(model.training)


def fixed_batch(graph: fx.Graph) -> int | None:
    """The only batch size that an exported module's graph runs on, None if it is free.

    Code that makes a plain number of it (`len(x)`, `int(x.shape[0])`) fixes it at that of the example.
    """
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.dim():
            return int(value.shape[0]) if is_concrete_int(value.shape[0]) else None
    return None


def _examples(example_inputs: Any) -> int:
    """Batch size of the first tensor that has one."""
    leaves = torch.utils._pytree.tree_leaves(example_inputs)
    return next((t.shape[0] for t in leaves if isinstance(t, Tensor) and t.dim()), 0)


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


class _Kept:
    """Which labels stay after a plan.

    A position in a row that goes goes with it. But where a value still has its rows apart, the label of a row's first
    position stands for its column in all rows, and stays as long as the column does.
    """

    def __init__(self, graph: Graph, plan: Plan) -> None:
        kept = np.ones(len(graph.roots), bool)
        names = [g.name for g in graph.channel_groups]
        stays = {name: set(units) for name, units in plan.kept.items()}
        for root, (number, unit) in graph.labels.items():
            if names[number] in stays and unit not in stays[names[number]]:
                kept[root] = False
        self.graph, self.columns = graph, kept[graph.roots]
        self.positions = self._adopted(np.zeros(0, np.int64))

    def of(self, value: Value) -> Any:
        """Label -> whether it stays, as the value's planes mean their labels: bool [labels]."""
        if not value.rows:
            return self.positions
        return self._adopted(np.unique(np.concatenate([r.numpy().ravel() for r in value.rows])))

    def _adopted(self, apart: Any) -> Any:
        kept, roots = self.columns.copy(), self.graph.roots
        for positions, rows in self.graph.adopted:
            inside = ~np.isin(roots[rows], roots[apart])
            kept[positions[inside]] &= self.columns[rows[inside]]
        return kept


def _alive(value: Value, dim: int, kept: _Kept) -> Any:
    """Which elements stay, laid over all dimensions of the planes and rows that bear on `dim`; None if none does."""
    bearing = [p for p in (*value.planes, *value.rows) if p.shape[dim] > 1]
    result, stays = None, kept.of(value)
    for plane in bearing:
        mask = stays[plane.numpy()]
        result = mask if result is None else result & mask
    return result


def _line(value: Value, dim: int, kept: _Kept) -> Any:
    """Which positions along `dim` stay, or None if nothing varies there."""
    dim %= max(value.ndim, 1)
    mask = _alive(value, dim, kept)
    return None if mask is None else mask.any(axis=tuple(d for d in range(mask.ndim) if d != dim))


def _count(value: Value, dim: int, kept: _Kept) -> int | None:
    """Size along `dim` after removal; for dimensions that share planes the kept elements fill a grid."""
    dim %= max(value.ndim, 1)
    mask = _alive(value, dim, kept)
    if mask is None:
        return None
    mask = mask.any(axis=tuple(range(dim + 1, mask.ndim)))
    return int(mask.sum()) // max(int(mask.any(axis=dim).sum()), 1)


def _rewrite_node(target: fx.Node, source: fx.Node, result: Any, graph: Graph, kept: _Kept) -> None:
    name = operation(source)
    arguments: list[Any] = list(target.args)
    operand = graph.values.get(source.args[0]) if source.args and isinstance(source.args[0], fx.Node) else None
    before = operand if isinstance(operand, Value) else None
    after = result if isinstance(result, Value) else None
    if name in ("view", "reshape", "_unsafe_view", "expand", "unflatten") and after is not None:
        index = 2 if name == "unflatten" else 1
        sizes = list(arguments[index])
        offset = int(arguments[1]) if name == "unflatten" else 0
        arguments[index] = [_resized(s, after, offset + d, kept, name == "expand") for d, s in enumerate(sizes)]
    elif name in FILLS and after is not None:
        sizes = list(arguments[FILLS[name]])
        arguments[FILLS[name]] = [_resized(s, after, d, kept, False) for d, s in enumerate(sizes)]
    elif name == "slice" and before is not None:
        dim = int(arguments[1]) if len(arguments) > 1 else 0
        line = _line(before, dim, kept)
        if line is not None:
            start, end = (*arguments[2:4], None, None)[:2]
            strided = len(arguments) > 4 and arguments[4] != 1  # whole blocks went: the first position is what it was
            arguments[2:4] = [start if strided else _moved(start, line), _moved(end, line)]
    elif name == "narrow" and before is not None:
        line = _line(before, int(arguments[1]), kept)
        if line is not None and isinstance(arguments[2], int):
            start, length = arguments[2] % len(line), arguments[3]
            arguments[2:4] = [int(line[:start].sum()), int(line[start : start + length].sum())]
    elif name in ("split", "split_with_sizes", "chunk") and before is not None and isinstance(result, list):
        dim = int(arguments[2]) if len(arguments) > 2 else 0
        if _alive(before, dim, kept) is not None:
            sizes = [_count(v, dim, kept) for v in result]
            target.target = torch.ops.aten.split_with_sizes.default
            whole = [v.shape[dim % before.ndim] for v in result]
            arguments = [arguments[0], [w if s is None else s for s, w in zip(sizes, whole, strict=True)], dim]
    elif name in ("pad", "constant_pad_nd") and before is not None and after is not None:
        arguments[1] = _padding(list(arguments[1]), before, after, kept)
    elif name.startswith("conv") and "transpose" not in name and len(arguments) > 6 and before is not None:
        weight = graph.values[source.args[1]]  # type: ignore[index]
        channel = before.ndim - (weight.ndim - 1)  # type: ignore[union-attr]
        if int(arguments[6]) == before.shape[channel] > 1:
            arguments[6] = _count(before, channel, kept) or arguments[6]
    elif name == "scaled_dot_product_attention" and before is not None:
        target.kwargs = {**target.kwargs, "scale": target.kwargs.get("scale") or before.shape[-1] ** -0.5}
    elif name == "layer_norm" and before is not None:
        count = len(arguments[1])
        arguments[1] = [_count(before, before.ndim - count + d, kept) or size for d, size in enumerate(arguments[1])]
    target.args = tuple(arguments)


def _resized(size: Any, value: Value, dim: int, kept: _Kept, expanding: bool) -> Any:
    if not isinstance(size, int) or size == -1 or (expanding and size == 1):
        return size
    count = _count(value, dim, kept)
    return size if count is None else count


def _moved(position: Any, line: Any) -> Any:
    if not isinstance(position, int):
        return position
    size = len(line)
    if position >= size:
        return position
    return int(line[: position % size if position < 0 else position].sum())


def _padding(amounts: list[Any], before: Value, after: Value, kept: _Kept) -> list[Any]:
    for dim in range(before.ndim):
        position = 2 * (before.ndim - 1 - dim)
        line = _line(after, dim, kept)
        if line is None or position >= len(amounts):
            continue
        left, right = amounts[position], amounts[position + 1]
        amounts[position] = int(line[:left].sum())
        amounts[position + 1] = int(line[len(line) - right :].sum()) if right else 0
    return amounts
