"""The list of like layers that is a model's body, and how each is called, seen in one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten

from prunus.errors import TraceError, first_line
from prunus.graph.numberless import called
from prunus.runtime.arguments import as_arguments
from prunus.runtime.modes import eval_mode

FIX = "use prunus.prune, which holds the whole model"


@dataclass(frozen=True)
class LayerList:
    """Layers that are called once each, in order, each with what the one before returned.

    Attributes:
        path: of the `ModuleList`.
        count: how many there are.
        place: which leaf of the arguments is what the layer before made, by layer.
        result: how each returns it: None alone, a number the length of a tuple whose first element it is.
    """

    path: str
    count: int
    place: tuple[int, ...]
    result: int | None

    def name(self, number: int) -> str:
        """Of a layer."""
        return f"{self.path}.{number}"

    def number_of(self, tensor: str) -> int | None:
        """Which layer a parameter or a buffer is in, None if in none."""
        head, _, rest = tensor.removeprefix(f"{self.path}.").partition(".")
        return int(head) if tensor.startswith(f"{self.path}.") and rest and head.isdigit() else None

    def of(self, model: nn.Module) -> list[nn.Module]:
        """The layers."""
        return list(model.get_submodule(self.path).children())

    def returned(self, hidden: Tensor) -> Any:
        """What a layer that makes this returns."""
        return hidden if self.result is None else (hidden, *[None] * (self.result - 1))


@dataclass(frozen=True)
class Call:
    """A layer's call: the leaves of its arguments, and how they lie in them."""

    leaves: tuple[Any, ...]
    spec: TreeSpec

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """From positional and keyword arguments."""
        leaves, spec = tree_flatten((args, kwargs))
        return cls(tuple(leaves), spec)


@torch.no_grad()
def layer_list(model: nn.Module, example_inputs: Any) -> LayerList:
    """Find the list that holds most of the model's weights, and see that one call goes through it layer by layer.

    Args:
        model: on any device, also `meta`; not changed.
        example_inputs: for one call, on that device.

    Raises:
        TraceError: there is no such list, or layers are not called one after another.
    """
    where = f"model {type(model).__name__}"
    lists = dict(_lists(model))
    if not lists:
        raise TraceError(where, "it has no list of layers of one class", FIX)
    path = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    layers = list(lists[path])
    seen: list[tuple[int, Call, Any]] = []
    with eval_mode(model), ExitStack() as hooks:
        for number, layer in enumerate(layers):

            def note(_: nn.Module, args: Any, kwargs: Any, result: Any, number: int = number) -> None:
                seen.append((number, Call.of(args, kwargs), result))

            hooks.enter_context(layer.register_forward_hook(note, with_kwargs=True))
        hooks.enter_context(model.register_forward_pre_hook(lambda *_: seen.clear()))
        args, kwargs = as_arguments(example_inputs, model)
        try:
            called(model, args, kwargs)
        except Exception as failure:
            what = f"it does not run on the example inputs: {first_line(failure)}"
            raise TraceError(where, what, "give other batches") from failure
    if [number for number, _, _ in seen] != list(range(len(layers))):
        raise TraceError(where, f"the layers of {path} are not called once each, in order", FIX)
    forms = {_form(result) for _, _, result in seen}
    if len(forms) > 1 or -1 in forms:
        raise TraceError(where, f"the layers of {path} return more than what the next one reads", FIX)
    made = [result if isinstance(result, Tensor) else result[0] for _, _, result in seen]
    places = [_place(call, result) for (_, call, _), result in zip(seen[1:], made, strict=False)]
    if None in places:
        what = f"{path}.{places.index(None) + 1} does not read what the layer before it made, or reads it elsewhere too"
        raise TraceError(where, what, FIX)
    first = next((i for i, leaf in enumerate(seen[0][1].leaves) if isinstance(leaf, Tensor)), None)
    if first is None or (places and first != places[0]):
        raise TraceError(where, f"{path}.0 is not called as the others are", FIX)
    return LayerList(path, len(layers), (first, *(p for p in places if p is not None)), forms.pop())


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and len({type(m) for m in module}) == 1:
            yield name, module


def _form(result: Any) -> int | None:
    """See `LayerList.result`; -1 for any other."""
    if isinstance(result, Tensor):
        return None
    fine = isinstance(result, tuple) and result and isinstance(result[0], Tensor)
    return len(result) if fine and all(r is None for r in result[1:]) else -1


def _place(call: Call, made: Tensor) -> int | None:
    """The one leaf of a call that is this tensor."""
    found = [i for i, leaf in enumerate(call.leaves) if leaf is made]
    return found[0] if len(found) == 1 else None
