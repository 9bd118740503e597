"""What a network computes on the inputs of a proof: outputs, layers, the coarsest format, in fp64 if asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from prunus.plan.plan import Plan
from prunus.proof.comparison import TOLERANCE, named_tensors
from prunus.proof.masked import masked, recorded_layers
from prunus.proof.reference import MaskedGraph, Precisely
from prunus.runtime.arguments import as_arguments
from prunus.runtime.modes import eval_mode
from prunus.runtime.snapshot import state_kept


@dataclass
class Observed:
    """By batch: outputs, and what the layers made (by name, in order of the calls); and the coarsest format met."""

    outputs: list[dict[str, Tensor]] = field(default_factory=list)
    layers: list[dict[str, list[Tensor]]] = field(default_factory=list)
    coarsest: torch.dtype = torch.float64


def observe(
    model: nn.Module, plan: Plan, inputs: Sequence[Any], *, mask: bool, layers: bool, precise: bool = False
) -> Observed:
    """Run a network on every batch in eval mode, without gradients.

    Args:
        model: the dense or the smaller model.
        plan: what goes.
        inputs: batches.
        mask: compute with the plan's units at zero where they are read.
        layers: note what linear and convolution layers make.
        precise: compute in fp64.
    """
    seen = Observed()
    with ExitStack() as within:
        within.enter_context(state_kept(model))
        within.enter_context(eval_mode(model))
        within.enter_context(torch.no_grad())
        if mask:
            within.enter_context(masked(model, plan))
        if precise:
            within.enter_context(in_double(model))
        formats = within.enter_context(_Formats())
        for batch in inputs:
            with recorded_layers(model, plan) if layers else _nothing() as notes:
                result = _called(model, double(batch) if precise else batch, precise)
            seen.outputs.append(named_tensors(result))
            seen.layers.append(dict(notes))
    seen.coarsest = formats.coarsest
    return seen


def observe_graph(graph: MaskedGraph, inputs: Sequence[Any], *, layers: bool, precise: bool = False) -> Observed:
    """Like `observe` with a mask, by the captured graph with statistics over what stays."""
    seen = Observed()
    module: nn.Module = graph.module  # type: ignore[assignment]
    graph.precise = precise
    with torch.no_grad(), in_double(module) if precise else _nothing(), _Formats() as formats:
        for batch in inputs:
            result = graph.outputs(*as_arguments(double(batch) if precise else batch, graph.model))
            seen.outputs.append(named_tensors(result))
            seen.layers.append(graph.layers if layers else {})
    seen.coarsest = formats.coarsest
    return seen


def _called(model: nn.Module, batch: Any, precise: bool) -> Any:
    args, kwargs = as_arguments(batch, model)
    if precise and isinstance(model, fx.GraphModule) and hasattr(model, "_in_spec"):
        flat = torch.fx._pytree.tree_flatten_spec((args, kwargs), model._in_spec)  # type: ignore[arg-type]
        runner = Precisely(model)
        runner.precise = True
        found = runner.run(*flat, enable_io_processing=False)
        return torch.utils._pytree.tree_unflatten(list(found), model._out_spec)  # type: ignore[arg-type]
    return model(*args, **kwargs)


@contextmanager
def _nothing() -> Iterator[dict[str, list[Tensor]]]:
    yield {}


class _Formats(TorchDispatchMode):
    """Notes the coarsest floating-point format that anything was computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.coarsest = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and TOLERANCE.get(leaf.dtype, 0.0) > TOLERANCE[self.coarsest]:
                self.coarsest = leaf.dtype
        return result


def double(value: Any) -> Any:
    """Floating-point tensors of any nested value in fp64."""
    return tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, value)


@contextmanager
def in_double(model: nn.Module) -> Iterator[None]:
    """Within the context all floating-point tensors of the model are fp64 copies; tied ones stay tied."""
    copies: dict[int, Tensor] = {}
    old: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in model.modules():
            for table in (module._parameters, module._buffers, vars(module)):
                for name, tensor in list(table.items()):
                    if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
                        old.append((table, name, tensor))  # type: ignore[arg-type]
                        table[name] = copies.setdefault(id(tensor), _copy(tensor))  # type: ignore[assignment]
        yield
    finally:
        for table, name, tensor in old:
            table[name] = tensor


def _copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().double()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
