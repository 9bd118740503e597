"""How inputs are given to a model and to the layers in it: by position, by keyword, inside tuples, lists and dicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

from prunus.errors import ConfigError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def as_arguments(inputs: Any, model: nn.Module | None = None) -> Arguments:
    """Inputs as positional and keyword arguments: a tensor, a tuple or list of them, or a dict of keywords.

    Keywords come in the order of the model's `forward`. What that can take only as one argument (a dict that it reads
    by key, a list that it goes through) is passed whole.

    Args:
        inputs: example inputs, or those of a batch.
        model: what is to be called; without it a dict is always one of keywords.
    """
    if any(t.is_inference() for t in tensors_in(inputs)) and not torch.is_inference_mode_enabled():
        # Autograd can't keep what was made in inference mode.
        inputs = tree_map_only(Tensor, lambda t: t.clone() if t.is_inference() else t, inputs)
    whole: Arguments = ((inputs,), {})
    if isinstance(inputs, Mapping):
        spread: Arguments = ((), dict(inputs) if model is None else _in_order(model, dict(inputs)))
    elif isinstance(inputs, tuple | list):
        spread = (tuple(inputs), {})
    else:
        return whole
    if model is None or (_takes(model, spread) and not _is_record(inputs, model)) or not _takes(model, whole):
        return spread
    return whole


def _takes(model: nn.Module, given: Arguments) -> bool:
    signature = signature_of(model)
    args, kwargs = given
    if signature is None:
        return True
    if not all(isinstance(name, str) for name in kwargs):
        return False
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _is_record(inputs: Any, model: nn.Module) -> bool:
    """True for a named tuple whose fields are no arguments of the model's."""
    fields, signature = getattr(inputs, "_fields", None), signature_of(model)
    return fields is not None and signature is not None and not set(fields) <= set(signature.parameters)


def signature_of(module: nn.Module) -> inspect.Signature | None:
    """Of a module's `forward`, without `self`; None where Python can't tell."""
    try:
        return inspect.signature(module.forward)
    except (TypeError, ValueError):
        return None


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def examples_in(inputs: Any, none: int = 1) -> int:
    """Batch size: the first dimension of the first tensor that has one; `none` without any."""
    return next((t.shape[0] for t in tensors_in(inputs) if t.dim()), none)


def sized(inputs: Any, examples: int) -> Any:
    """Inputs of another batch size: the examples there are, over and over.

    Args:
        inputs: nested tensors, batch first; those of another first dimension than the batch size stay.
        examples: how many are wanted.
    """
    batch = examples_in(inputs)

    def change(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != batch:
            return tensor
        return tensor[torch.arange(examples, device=tensor.device) % batch]

    return tree_map_only(Tensor, change, inputs)


def change_input(
    module: nn.Module,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    size: tuple[int, int] | None,
    change: Callable[[Tensor], Tensor],
) -> Arguments:
    """The arguments of a module's call with its input changed, however it is given.

    Args:
        module: what is called.
        name: for messages.
        args: of the call, by position.
        kwargs: of the call, by keyword.
        size: a dimension of the input and its size there: the first floating-point tensor of which that is true, in
            the order of the module's `forward`, is the input. None: the first floating-point tensor.
        change: from the input to what takes its place.

    Raises:
        ConfigError: none of the arguments is such a tensor.
    """
    if args and _is_input(args[0], size):
        return (change(args[0]), *args[1:]), kwargs
    leaves, structure = tree_flatten((args, _in_order(module, kwargs)))
    for place, leaf in enumerate(leaves):
        if _is_input(leaf, size):
            leaves[place] = change(leaf)
            return tree_unflatten(leaves, structure)  # type: ignore[no-any-return]
    sized = "" if size is None else f" of size {size[1]} along dimension {size[0]}"
    raise ConfigError(
        f"module {name!r}", f"none of its arguments is a floating-point tensor{sized}", "put it into ignored_layers"
    )


def _is_input(value: Any, size: tuple[int, int] | None) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return size is None or (-value.dim() <= size[0] < value.dim() and value.shape[size[0]] == size[1])


def first_tensor(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first floating-point tensor of a module's call, in the order of its `forward`."""
    found = tensors_in((args, _in_order(module, kwargs)))
    return next((t for t in found if t.is_floating_point()), None)


def _in_order(module: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = signature_of(module)
    if len(kwargs) < 2 or signature is None:
        return kwargs
    known = [name for name in signature.parameters if name in kwargs]
    return {name: kwargs[name] for name in dict.fromkeys([*known, *kwargs])}


def is_plain(value: Any) -> bool:
    """Whether nothing but tensors and numbers lies in known containers."""
    return all(not _has_fields(leaf) for leaf in tree_leaves(value))


def plain(value: Any) -> Any:
    """Nested outputs with every object that holds tensors (a dataclass, say) as a dict of its fields that do."""
    if not isinstance(value, Tensor) and _has_fields(value):
        fields = {name: plain(field) for name, field in vars(value).items()}
        return {name: field for name, field in fields.items() if tensors_in(field)}
    return tree_map(lambda leaf: plain(leaf) if _has_fields(leaf) else leaf, value)


def _has_fields(leaf: Any, depth: int = 3) -> bool:
    if depth == 0 or isinstance(leaf, Tensor | nn.Module | type) or not hasattr(leaf, "__dict__"):
        return False
    return any(tensors_in(v) or _has_fields(v, depth - 1) for v in vars(leaf).values())
