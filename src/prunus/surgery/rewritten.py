"""A captured graph as an ordinary module: it trains, is copied and pickled, and knows what sizes it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from prunus.errors import DataError
from prunus.graph.engine import operation
from prunus.graph.registry import RULES

Sizes = tuple[tuple[int | None, ...] | None, ...]
"""Of every flattened input: its sizes, None where they are free; None for what is no tensor."""


class RewrittenModel(fx.GraphModule):
    """A captured graph as a module whose batch norms and dropouts follow `train()` and `eval()`.

    Its state is the model's: numbers that the code itself holds are buffers outside it, in copies too.

    Attributes:
        takes: sizes of the inputs that it was captured with, None where any will do.
    """

    takes: Sizes | None

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "CapturedModel") -> None:
        super().__init__(root, graph, class_name)
        state = root.state_dict().keys()
        self.takes = _sizes(graph) or getattr(root, "takes", None)
        for prefix, module in self.named_modules():
            outside = {name for name in module._buffers if (f"{prefix}.{name}" if prefix else name) not in state}
            module._non_persistent_buffers_set |= outside

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's function.

        Raises:
            DataError: inputs of sizes that the graph was not captured for.
        """
        self._check(args, kwargs)
        return super().__call__(*args, **kwargs)

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = tree_leaves((args, kwargs))
        if self.takes is None or kwargs or len(given) != len(self.takes):
            return
        for number, (value, sizes) in enumerate(zip(given, self.takes, strict=True)):
            if sizes is None or not isinstance(value, Tensor):
                continue
            if value.dim() != len(sizes) or any(s not in (None, n) for s, n in zip(sizes, value.shape, strict=True)):
                wanted = ", ".join("any" if s is None else str(s) for s in sizes)
                raise DataError(
                    f"input {number} of {type(self).__name__}",
                    f"its sizes are {tuple(value.shape)}, and this captured graph takes ({wanted})",
                    "give inputs of these sizes, or prune with example inputs of the sizes that are wanted; "
                    "allow=('own_class',) keeps the model's own class",
                )

    def __reduce__(self) -> tuple[Callable[..., RewrittenModel], tuple[Any, ...]]:
        return _unpickled, (
            type(self).__name__, _described(self.graph), self.graph._codegen, dict(self._modules),
            dict(self._parameters), dict(self._buffers), set(self._non_persistent_buffers_set), self.takes,
            self.training,
        )  # fmt: skip

    def _deepcopy_init(self) -> Callable[..., None]:
        return RewrittenModel.__init__

    def __deepcopy__(self, memo: dict[int, Any]) -> RewrittenModel:
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, RewrittenModel)
        copied.takes = self.takes
        return copied

    def train(self, mode: bool = True) -> RewrittenModel:
        """Set training mode in the module and in the graph's batch norms and dropouts."""
        self.write_mode_(mode)
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def write_mode_(self, mode: bool, norms_only: bool = False) -> None:
        """Write the mode into the graph's batch norms and, unless `norms_only`, dropouts; in graphs of regions too."""
        for module in self.modules():
            if isinstance(module, fx.GraphModule):
                _write_mode_(module, mode, norms_only)

    def eval(self) -> RewrittenModel:
        """Set evaluation mode."""
        return self.train(False)


def _write_mode_(module: fx.GraphModule, mode: bool, norms_only: bool) -> None:
    changed = False
    for node in module.graph.nodes:
        found = RULES.get(operation(node)) if node.op == "call_function" else None
        index = None if found is None else found.training
        if index is not None and len(node.args) > index and node.args[index] != mode:
            norm = operation(node).endswith("_norm")
            if (norm and node.args[3] is None) or (norms_only and not norm):
                continue  # without running statistics a norm always takes the batch's
            node.update_arg(index, mode)
            changed = True
    if changed:
        module.recompile()


def as_module(program: torch.export.ExportedProgram) -> RewrittenModel:
    """A captured program as a trainable module with the model's parameter names."""
    exported = program.module(check_guards=False)
    return RewrittenModel(exported, exported.graph)


def what_is_lost(model: nn.Module, rewritten: RewrittenModel) -> tuple[str, ...]:
    """What a captured graph in the place of a class does not have, in words."""
    methods = [n for n in dir(type(model)) if not n.startswith("_") and n not in dir(nn.Module)]
    methods = [n for n in methods if callable(getattr(type(model), n, None))]
    gone = f", its methods {', '.join(methods)} are gone" if methods else ""
    place = f"a rewritten graph takes the place of the class {type(model).__name__}{gone}"
    found = [f"{place}; allow=('own_class',) keeps it"]
    for number, sizes in enumerate(rewritten.takes or ()):
        if sizes is not None and None not in sizes[:1]:
            found.append(f"it takes batches of {sizes[0]} alone as input {number}")
        if sizes is not None and len(sizes) > 2 and all(s is not None for s in sizes[2:]):
            found.append(f"it takes inputs {number} of {' x '.join(map(str, sizes[1:]))} alone")
    return tuple(found)


def _sizes(graph: fx.Graph) -> Sizes | None:
    """What sizes a captured graph takes, None if it does not say (an unpickled one)."""
    from torch.fx.experimental.symbolic_shapes import is_concrete_int

    values = [n.meta.get("val") for n in graph.nodes if n.op == "placeholder"]
    if not any(isinstance(v, Tensor) for v in values):
        return None
    return tuple(
        tuple(int(s) if is_concrete_int(s) else None for s in v.shape) if isinstance(v, Tensor) else None
        for v in values
    )


class _Node(str):
    """The name of a node among the arguments of another, in a described graph."""


def _described(graph: fx.Graph) -> list[tuple[str, str, Any, Any, Any]]:
    """The graph's nodes as plain data: name, kind, target, arguments, named arguments."""

    def named(value: Any) -> Any:
        return fx.map_arg(value, lambda n: _Node(n.name))

    return [(n.name, n.op, _target(n.target), named(n.args), named(n.kwargs)) for n in graph.nodes]


def _target(target: Any) -> Any:
    if isinstance(target, torch._ops.OpOverload):
        return ("operator", target._schema.name, target._schema.overload_name)
    return target


def _unpickled(
    class_name: str,
    nodes: list[tuple[str, str, Any, Any, Any]],
    codegen: Any,
    modules: dict[str, nn.Module],
    parameters: dict[str, Any],
    buffers: dict[str, Any],
    outside: set[str],
    takes: Sizes | None,
    training: bool,
) -> RewrittenModel:
    root = nn.Module()
    root._modules.update(modules)
    root._parameters.update(parameters)
    root._buffers.update(buffers)
    root._non_persistent_buffers_set |= outside
    graph = fx.Graph()
    graph.set_codegen(codegen)
    made: dict[str, fx.Node] = {}
    for name, kind, target, args, kwargs in nodes:
        args, kwargs = _renamed(args, made), _renamed(kwargs, made)
        made[name] = graph.create_node(kind, _called(target), args, kwargs, name)
    model = RewrittenModel(root, graph, class_name)
    model.takes, model.training = takes, training
    return model


def _renamed(value: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(value, _Node):
        return made[value]
    if isinstance(value, tuple | list):
        return type(value)(_renamed(v, made) for v in value)
    if isinstance(value, dict):
        return {k: _renamed(v, made) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_renamed(v, made) for v in (value.start, value.stop, value.step)))
    return value


def _called(target: Any) -> Any:
    if isinstance(target, tuple) and target and target[0] == "operator":
        space, _, name = target[1].partition("::")
        return getattr(getattr(getattr(torch.ops, space), name), target[2] or "default")
    return target
