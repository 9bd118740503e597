"""The proof: outputs of the smaller model equal those of the dense model with the removed units masked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunus.arguments import as_arguments, change_input, plain, tensors_in
from prunus.entry import one_at_a_time
from prunus.errors import DataError
from prunus.modes import eval_mode
from prunus.plan import Plan
from prunus.stored_products import before_products
from prunus.submodules import is_conv1d

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Verification:
    """What was proven.

    Attributes:
        max_error: largest absolute difference between pruned and masked outputs, relative to the largest output. If
            not `exact`, between the model cut in its own class and as a rewritten graph; NaN if there is only one.
        tolerance: what was allowed.
        inputs: number of input batches compared.
        exact: False if a normalisation makes equality with the masked model impossible by definition.
        rewritten: True if the captured graph had to take the place of the model's own code.
    """

    max_error: float
    tolerance: float
    inputs: int
    exact: bool
    rewritten: bool = False

    @property
    def passed(self) -> bool:
        """True if the difference is within tolerance."""
        return not self.exact or self.max_error <= self.tolerance


@contextmanager
def masked(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Within the context the model computes with the plan's removed units set to zero wherever they are read.

    Other threads wait meanwhile.
    """
    with one_at_a_time(), ExitStack() as hooks:
        places: dict[tuple[str, int], list[tuple[Tensor, int]]] = {}
        for entry in plan.masked:
            keep = torch.ones(entry.size, device="cpu")
            keep[list(entry.removed)] = 0
            if entry.product >= 0:
                places.setdefault((entry.stored, entry.product), []).append((keep, entry.dim))
                continue
            module = model.get_submodule(entry.module)
            if entry.output:
                handle = module.register_forward_hook(_output_mask_hook(keep, entry.dim))
            else:
                mask = _mask_hook(keep, entry.dim, entry.module)
                handle = module.register_forward_pre_hook(mask, with_kwargs=True)
            hooks.callback(handle.remove)
        hooks.enter_context(before_products(model, {place: _all_masked(masks) for place, masks in places.items()}))
        yield


def _mask_hook(keep: Tensor, dim: int, name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return change_input(module, name, args, kwargs, (dim, len(keep)), lambda x: _masked(x, keep, dim))

    return hook


def _output_mask_hook(keep: Tensor, dim: int) -> Callable[..., Any]:
    return lambda _, args, output: _masked(output, keep, dim)


def _all_masked(masks: Sequence[tuple[Tensor, int]]) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        for keep, dim in masks:
            x = _masked(x, keep, dim)
        return x

    return change


def _masked(x: Tensor, keep: Tensor, dim: int) -> Tensor:
    shape = [1] * x.dim()
    shape[dim] = -1
    return x * keep.to(x).reshape(shape)


def proof_inputs(plan: Plan, example_inputs: Any, model: nn.Module, seed: int = 0) -> list[Any]:
    """Example inputs (if given) and random ones of the same shapes and dtypes, on the model's device."""
    generator = torch.Generator().manual_seed(seed)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if plan.followed and example_inputs is None:
        what = "the model branches on data, and random inputs may take another branch than the analysed one"
        raise DataError("example_inputs", what, "pass the example inputs")
    if example_inputs is None:
        return [
            tuple(
                _random(torch.empty(s, dtype=getattr(torch, d), device="cpu"), generator, device)
                for s, d in plan.inputs
            )
        ]
    _refuse_nan(example_inputs)
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    if plan.followed:
        return [example_inputs]
    return [example_inputs, tree_map_only(Tensor, lambda t: _random(t, generator, device), example_inputs)]


def _random(value: Any, generator: torch.Generator, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        return torch.randn(value.shape, generator=generator, dtype=torch.float32, device="cpu").to(device, value.dtype)
    return torch.zeros_like(value, device=device) if value.device.type == "meta" else value.to(device)


def _refuse_nan(example_inputs: Any) -> None:
    for value in tensors_in(example_inputs):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(
                "example_inputs", "they contain NaN or infinity", "pass finite inputs: nothing can be proven on these"
            )


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Floating-point output tensors of one call in eval mode, without gradients."""
    with eval_mode(model), torch.no_grad():
        return flat_outputs(call(model, inputs))


def call(model: nn.Module, inputs: Any) -> Any:
    """Call with positional or keyword inputs."""
    args, kwargs = as_arguments(inputs, model)
    return model(*args, **kwargs)


def flat_outputs(result: Any) -> list[Tensor]:
    """Every floating-point tensor in a nested output."""
    return [t for t in tensors_in(plain(result)) if t.is_floating_point()]


def difference(reference: Sequence[Sequence[Tensor]], pruned: Sequence[Sequence[Tensor]]) -> tuple[float, float]:
    """Largest relative difference and the tolerance for the outputs' dtype; infinity if shapes or finiteness differ."""
    worst, tolerance = 0.0, TOLERANCE[torch.float32]
    for before, after in zip(reference, pruned, strict=True):
        if len(before) != len(after):
            return float("inf"), tolerance
        for a, b in zip(before, after, strict=True):
            tolerance = TOLERANCE.get(a.dtype, tolerance)
            if a.shape != b.shape:
                return float("inf"), tolerance
            scale = float(a.abs().max().clamp_min(1e-6)) if a.numel() else 1.0
            gap = float((a - b).abs().max()) / scale if a.numel() else 0.0
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst, tolerance


@contextmanager
def recorded_layers(model: nn.Module, plan: Plan) -> Iterator[dict[str, list[Tensor]]]:
    """Within the context every call of a convolution or linear layer notes its output: layer -> outputs, in order.

    What is left in the dense model's outputs is what the plan keeps of them. A wrong split of dimensions into heads, or
    a wrong scale of scores, may hardly be seen in a network's output; in the layer behind it is.
    """
    found: dict[str, list[Tensor]] = {}
    handles = []
    gated = {entry.module for entry in plan.masked if entry.output}
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear) or is_conv1d(module)
        if name in gated or not (linear or isinstance(module, nn.modules.conv._ConvNd)):
            continue
        edit = plan.tensors.get(f"{name}.weight")
        axis = int(is_conv1d(module) or bool(getattr(module, "transposed", False)))
        dim = -1 if linear else 1
        kept = None if edit is None else edit.keep.get(axis)
        handles.append(module.register_forward_hook(_note(found.setdefault(name, []), edit, axis, dim, kept)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _note(outputs: list[Tensor], edit: Any, axis: int, dim: int, kept: Any) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        whole = kept is not None and output.shape[dim] == edit.shape[axis]
        outputs.append(output.index_select(dim, torch.tensor(kept, device=output.device)) if whole else output)

    return hook


def check_backward(model: nn.Module, inputs: Any) -> None:
    """Run a backward pass without touching any `.grad`. Raises whatever autograd raises."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        return
    with eval_mode(model), torch.enable_grad():
        total = [t.float().sum() for t in flat_outputs(call(model, inputs)) if t.requires_grad]
        if total:
            torch.autograd.grad(torch.stack(total).sum(), trainable, allow_unused=True)
