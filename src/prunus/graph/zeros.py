"""Which elements of an operation's result are zero wherever some outputs of layers are, walked back node by node.

A gate behind a layer can stand for what is read later on, as far as a unit that is zero there stays zero and is not
mixed with others. Of every element it is known which position of which layer's output it comes from; each operation's
rule names the function here that tells it from those of its operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.graph.engine import argument, example_size, meta_shape, module_path, operation

Places = list[tuple[fx.Node, Tensor]]
"""Layers that an element comes from, and the position in each of their outputs (-1: from nowhere there)."""


class Mixed(Exception):
    """The walk met something behind which a zero need not be one."""


@dataclass(frozen=True)
class Back:
    """The walk so far.

    Attributes:
        model: the network, for the kinds of its layers.
        places: where the elements of a node come from. Raises Mixed.
    """

    model: nn.Module
    places: Callable[[Any], Places]


Zeros = Callable[[fx.Node, Back], Places]


def comes_between(node: fx.Node) -> Mixed:
    """The refusal of an operation behind which nothing is known of zeros."""
    return Mixed(f"{operation(node)} comes between")


def stay(node: fx.Node, back: Back) -> Places:
    """Element by element: a zero of the first operand is one of the result."""
    return back.places(node.args[0])


def powered(node: fx.Node, back: Back) -> Places:
    """A positive power of a zero is one."""
    if isinstance(node.args[1], int | float) and node.args[1] > 0:
        return stay(node, back)
    raise comes_between(node)


def viewed(node: fx.Node, back: Back) -> Places:
    """The same elements in another shape."""
    shape = meta_shape(node.meta["val"])
    return [(layer, ids.reshape(shape)) for layer, ids in back.places(node.args[0])]


def spread(node: fx.Node, back: Back) -> Places:
    """The first operand, broadcast to the shape of the result."""
    return _spread(back.places(node.args[0]), meta_shape(node.meta["val"]))


def moved(node: fx.Node, back: Back) -> Places:
    """Elements in other places: the movement itself, done to positions. Several results are told apart by `picked`."""
    if not isinstance(node.meta["val"], Tensor):
        return back.places(node.args[0])
    return [(layer, _moved(node, ids)) for layer, ids in back.places(node.args[0])]


def picked(node: fx.Node, back: Back) -> Places:
    """One of several results of a movement."""
    source: Any = node.args[0]
    return [(layer, _moved(source, ids)[node.args[1]]) for layer, ids in back.places(source)]


def reduced(node: fx.Node, back: Back) -> Places:
    """Sums, means, extremes and pooling over positions along which the units don't vary."""
    if not isinstance(node.meta["val"], Tensor):
        raise comes_between(node)
    return [(layer, _reduced(node, ids)) for layer, ids in back.places(node.args[0])]


def factors(node: fx.Node, back: Back) -> Places:
    """A product of two: one that comes from layers, a whole one first. If that is zero, so is the product."""
    shape = meta_shape(node.meta["val"])
    problem = None
    for source in sorted(node.args[:2], key=lambda s: not isinstance(s, fx.Node) or meta_shape(s.meta["val"]) != shape):
        try:
            return _spread(back.places(source), shape)
        except Mixed as mixed:
            problem = problem or mixed
    assert problem is not None
    raise problem


def terms(node: fx.Node, back: Back) -> Places:
    """A sum of two is zero where both are."""
    return _spread([p for source in node.args[:2] for p in back.places(source)], meta_shape(node.meta["val"]))


def joined(node: fx.Node, back: Back) -> Places:
    """Tensors side by side along a dimension."""
    return _joined(node, back, new=False)


def stacked(node: fx.Node, back: Back) -> Places:
    """Tensors side by side along a new dimension."""
    return _joined(node, back, new=True)


def written(node: fx.Node, back: Back) -> Places:
    """A layer: its own outputs. Raises Mixed if they are not those of a module with a weight."""
    path = module_path(node)
    layer = back.model.get_submodule(path)
    plain = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase)
    if not isinstance(getattr(layer, "weight", None), Tensor) or not (plain or _ends(node, path)):
        raise Mixed(f"the product in {path or 'the model'} is no layer of its own")
    shape = meta_shape(node.meta["val"])
    dim = channel_of(node)
    ids = torch.arange(shape[dim], device="cpu").reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return [(node, ids.expand(shape))]


def channel_of(layer: fx.Node) -> int:
    """Dimension of a layer's output along which its units lie."""
    shape = meta_shape(layer.meta["val"])
    name = operation(layer)
    if name in ("linear", "addmm"):
        return len(shape) - 1
    return 1 if name == "batch_norm" else len(shape) - int(name[-2]) - 1


def _reduced(node: fx.Node, ids: Tensor) -> Tensor:
    shape = meta_shape(node.meta["val"])
    if len(shape) == ids.dim():
        over = [d for d, size in enumerate(shape) if size != ids.shape[d]]
    else:
        over = [int(d) % ids.dim() for d in argument(node, 1 if "norm" not in operation(node) else 2, "dim")]
    few = ids[tuple(slice(1) if d in over else slice(None) for d in range(ids.dim()))]
    if bool((ids != few).any()):
        raise comes_between(node)
    return (few if len(shape) == ids.dim() else few.flatten().reshape(shape)).broadcast_to(shape)


def _spread(places: Places, shape: tuple[int, ...]) -> Places:
    return [(layer, ids.broadcast_to(shape)) for layer, ids in places]


def _joined(node: fx.Node, back: Back, new: bool) -> Places:
    operands: Any = argument(node, 0, "tensors")
    shape = meta_shape(node.meta["val"])
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    found: Places = []
    start = 0
    for operand in operands:
        size = 1 if new else meta_shape(operand.meta["val"])[dim]
        for layer, ids in back.places(operand):
            whole = torch.full(shape, -1, device="cpu")
            whole.narrow(dim, start, size).copy_(ids.unsqueeze(dim) if new else ids)
            found.append((layer, whole))
        start += size
    return found


def _moved(node: fx.Node, ids: Tensor) -> Any:
    args, kwargs = fx.map_arg((tuple(node.args[1:]), dict(node.kwargs)), example_size)
    return node.target(ids, *args, **kwargs)  # type: ignore[operator]


def _ends(node: fx.Node, path: str) -> bool:
    """True if nothing but views follows in the module that made the call: its output is the module's."""
    for user in node.users:
        stack = user.meta.get("nn_module_stack") or {}
        if any(entry[0] == path for entry in stack.values()):
            if operation(user) not in ("view", "reshape", "_unsafe_view", "contiguous", "clone"):
                return False
            if meta_shape(user.meta["val"])[-1] != meta_shape(node.meta["val"])[-1] or not _ends(user, path):
                return False
    return True
