"""The masked model: the dense network with the removed units at zero wherever they are read; what its layers make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunus.gates.routing import less_likely, seen_instead
from prunus.graph.stored_products import around_products
from prunus.layers.submodules import is_conv1d
from prunus.plan.edits import MaskedInput
from prunus.plan.plan import Plan
from prunus.runtime.arguments import change_input
from prunus.runtime.entry import one_at_a_time


@contextmanager
def masked(model: nn.Module, plan: Plan, gates: Mapping[int, Tensor] | None = None) -> Iterator[None]:
    """Within the context the model computes with the plan's removed units set to zero wherever they are read.

    Args:
        model: the dense network.
        plan: what goes.
        gates: number of an entry of `plan.masked` -> what its positions are multiplied by instead, [size].
    """
    with one_at_a_time(), ExitStack() as hooks:
        products: dict[tuple[str, int], list[tuple[Tensor, int]]] = {}
        logits: dict[tuple[str, int], Callable[[Tensor], Tensor]] = {}
        for name in plan.removal.gates:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(_silenced))
        for number, entry in enumerate(plan.masked):
            keep = (gates or {}).get(number)
            keep = kept_positions(entry) if keep is None else keep
            if entry.routing and entry.product >= 0:
                logits[entry.stored, entry.product] = _unlikely(keep, entry.dim)
                continue
            if entry.routing:
                hooks.enter_context(seen_instead(model, entry.stored, _unlikely(keep, entry.dim)))
                continue
            if entry.product >= 0:
                products.setdefault((entry.stored, entry.product), []).append((keep, entry.dim))
                continue
            module = model.get_submodule(entry.module)
            if entry.output:
                hooks.enter_context(module.register_forward_hook(_behind(keep, entry.dim)))
            else:
                hook = _before(keep, entry.dim, entry.module)
                hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        inputs = {place: _all_masked(m) for place, m in products.items()}
        hooks.enter_context(around_products(model, inputs, logits))
        yield


def _unlikely(keep: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    return lambda x: less_likely(x, keep.to(x.device), dim)


def _silenced(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """The output of a module whose block goes: zeros."""
    return tree_map_only(Tensor, torch.zeros_like, output)


def _all_masked(masks: Sequence[tuple[Tensor, int]]) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        for keep, dim in masks:
            x = _masked(x, keep, dim)
        return x

    return change


def kept_positions(entry: MaskedInput) -> Tensor:
    """One where a position of the reader's input stays, zero where it goes: fp32 [size], on the processor."""
    keep = torch.ones(entry.size, dtype=torch.float32, device="cpu")
    keep[list(entry.removed)] = 0
    return keep


def _before(keep: Tensor, dim: int, name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return change_input(module, name, args, kwargs, (dim, len(keep)), lambda x: _masked(x, keep, dim))

    return hook


def _behind(keep: Tensor, dim: int) -> Callable[..., Any]:
    return lambda _, args, output: _masked(output, keep, dim)


def _masked(x: Tensor, keep: Tensor, dim: int) -> Tensor:
    shape = [1] * x.dim()
    shape[dim] = -1
    return x * keep.to(x).reshape(shape)


@contextmanager
def recorded_layers(model: nn.Module, plan: Plan) -> Iterator[dict[str, list[Tensor]]]:
    """Within the context every call of a convolution or linear layer notes its output: layer -> outputs, in order.

    What is left in the dense model's outputs is what the plan keeps of them. A wrong split of dimensions into heads, or
    a wrong scale of scores, may hardly be seen in a network's output; in the layer behind it is.
    """
    found: dict[str, list[Tensor]] = {}
    gated = {entry.module for entry in plan.masked if entry.output}
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name in gated or not _is_layer(module) or not outputs_known(module):
                continue
            keep = kept_outputs(plan, f"{name}.weight", module)
            hooks.enter_context(module.register_forward_hook(_note(found, name, keep)))
        yield found


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or is_conv1d(module)


def outputs_known(layer: nn.Module) -> bool:
    """True if a layer's outputs lie along a dimension of its stored weight, where the plan says which of them stay.

    They don't where the weight is computed (weight norm, masks), nor in a grouped transposed convolution.
    """
    stored = layer._parameters.get("weight") is not None or layer._buffers.get("weight") is not None
    return stored and not (getattr(layer, "transposed", False) and layer.groups != 1)


def kept_outputs(plan: Plan, weight: str, module: nn.Module) -> tuple[int, int, tuple[int, ...]] | None:
    """(dimension, its dense size, positions that stay) of a layer's output; None if the plan leaves it whole."""
    edit = plan.tensors.get(weight)
    axis = int(is_conv1d(module) or bool(getattr(module, "transposed", False)))
    if edit is None or axis not in edit.keep:
        return None
    return _output_dim(module), edit.shape[axis], edit.keep[axis]


def _output_dim(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) or is_conv1d(layer) else 1


def units_pass_through(layer: nn.Module, whole: Tensor, smaller: Tensor) -> bool:
    """True if a layer's output lost units along other dimensions than its own: it maps tokens, or each head by itself.

    Which of them stay is known where they are read, not here.
    """
    own = _output_dim(layer)
    if whole.dim() != smaller.dim() or whole.shape[own] != smaller.shape[own]:
        return False
    pairs = list(zip(whole.shape, smaller.shape, strict=True))
    return any(b < a for a, b in pairs) and all(b <= a for a, b in pairs)


def kept_part(output: Tensor, keep: tuple[int, int, tuple[int, ...]] | None) -> Tensor:
    """What stays of a layer's output, which may be of the smaller model already: a copy, as code may write into it."""
    if keep is None or output.shape[keep[0]] != keep[1]:
        return output.clone()
    return output.index_select(keep[0], torch.tensor(keep[2], device=output.device))


def _note(found: dict[str, list[Tensor]], name: str, keep: Any) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            found.setdefault(name, []).append(kept_part(output.detach(), keep))

    return hook
