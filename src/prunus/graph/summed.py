"""Units that a product of activations sums over (dimensions of queries and keys), or whose length a norm takes: where a
gate can stand for them.

No layer reads them there, so the gate stands behind a layer that writes one side of the product. Between that layer and
the product, a unit that is zero must stay zero and must not be mixed with others: that is walked back node by node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunus.graph.engine import Engine, argument, example_size, meta_shape, module_path, operation, source_line
from prunus.graph.groups import IntArray
from prunus.graph.labels import varying_dims

LAYERS = (
    "linear", "addmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "batch_norm",
)  # fmt: skip
VIEWS = (
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as", "view_as",
    "reshape_as",
)  # fmt: skip
MOVES = (
    "permute", "transpose", "t", "movedim", "swapaxes", "slice", "narrow", "select", "split", "split_with_sizes",
    "chunk", "unbind", "repeat", "repeat_interleave", "flip", "roll", "tile",
)  # fmt: skip
ZERO_STAYS_ZERO = (
    "contiguous", "clone", "alias", "detach", "to", "_to_copy", "type_as", "dropout", "neg", "negative", "relu", "gelu",
    "silu", "tanh", "abs", "absolute", "square", "sqrt", "sign", "relu6", "leaky_relu", "elu", "selu", "celu", "mish",
    "hardswish", "prelu", "softshrink", "hardshrink", "tanhshrink", "erf", "sin", "sinh", "asinh", "atan", "expm1",
    "log1p", "feature_dropout", "alpha_dropout", "ceil", "floor", "round",
)  # fmt: skip
POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest", "upsample_bilinear")
REDUCTIONS = ("mean", "sum", "amax", "amin", "linalg_vector_norm", "norm")


@dataclass(frozen=True)
class Site:
    """A layer's output where a gate may stand for units: which positions of it belong to one side of a product.

    Attributes:
        module: the layer.
        dim: dimension of its output along which the positions lie, from the end.
        weight: name of its weight.
        axis: dimension of the weight that the positions are, too.
        roots: root label of each position, -1 where it does not reach the product.
        length: what takes the units is a norm or a sum over them, not a product with another tensor.
    """

    module: str
    dim: int
    weight: str
    axis: int
    roots: IntArray
    length: bool = False


Places = list[tuple[fx.Node, Tensor]]
"""Layers that an element comes from, and the position in each of their outputs (-1: from nowhere there)."""


class _Stop(Exception):
    """The walk met something behind which a zero need not be one."""


@dataclass(frozen=True)
class Sites:
    """Where gates can stand for what is summed over, and for what they can't.

    Attributes:
        found: layers' outputs to gate.
        reasons: per root in products behind no such layer, why it stays.
        unmasked: roots in norms and sums behind no such layer.
    """

    found: list[Site]
    reasons: dict[int, str]
    unmasked: set[int]


def sites_of(engine: Engine, model: nn.Module, roots: IntArray) -> Sites:
    """Where gates can stand for all that is summed over."""
    found: dict[tuple[str, int, bool], Site] = {}
    reasons: dict[int, str] = {}
    unmasked: set[int] = set()
    for summed in engine.summed:
        places, problems = None, []
        wanted = np.unique(roots[summed.labels.numpy()])
        for operand in summed.operands:
            try:
                places = _sites(engine, model, roots, operand, wanted)
                break
            except _Stop as stop:
                problems.append(str(stop))
        if summed.length:
            unmasked.update(
                np.setdiff1d(wanted, np.concatenate([wanted[:0], *(s.roots for s in places or ())])).tolist()
            )
        elif places is None:
            why = f"summed over by {operation(summed.node)}, and no gate can stand before it: {problems[0]}"
            for root in wanted.tolist():
                reasons.setdefault(root, f"{why} ({source_line(summed.node)})")
        for site in places or ():
            key = (site.module, site.dim, summed.length)
            line = np.where(site.roots >= 0, site.roots, found[key].roots) if key in found else site.roots
            found[key] = replace(site, roots=line, length=summed.length)
    for module, dim, length in [k for k in found if k[2]]:
        product = found.get((module, dim, False))
        if product is not None:  # one gate is enough
            site = found[module, dim, length]
            found[module, dim, length] = replace(site, roots=np.where(product.roots >= 0, -1, site.roots))
    return Sites([s for s in found.values() if (s.roots >= 0).any()], reasons, unmasked)


def gated_before(engine: Engine, model: nn.Module, roots: IntArray, sites: list[Site], source: Any) -> set[int]:
    """Roots whose gates before a norm or a sum reach this node too: all that it holds of them comes from there."""
    gated = {(site.module): site.roots for site in sites if site.length}
    if not gated:
        return set()
    try:
        places = _come_from(source, model, {})
    except _Stop:
        return set()
    reached: set[int] = set()
    others: set[int] = set()
    for layer, ids in places:
        planes = engine.value(layer).varying(_channel(layer))
        line = roots[planes[0].reshape(-1).numpy()] if len(planes) == 1 else np.zeros(0, np.int64)
        here = gated.get(module_path(layer), np.full(0, -1))
        present = np.unique(ids.numpy())
        for position in present[(present >= 0) & (present < len(line))].tolist():
            stands = position < len(here) and here[position] == line[position]
            (reached if stands else others).add(int(line[position]))
    return reached - others


def _sites(engine: Engine, model: nn.Module, roots: IntArray, operand: fx.Node, wanted: IntArray) -> list[Site]:
    """The layers behind one side of a product that hold what it sums over. Raises _Stop where there is none to gate."""
    positions: dict[fx.Node, list[Tensor]] = {}
    for layer, ids in _come_from(operand, model, {}):
        few = ids[tuple(slice(1) if stride == 0 else slice(None) for stride in ids.stride())]
        positions.setdefault(layer, []).append(torch.unique(few))
    found = []
    for layer, reached in positions.items():
        value = engine.value(layer)
        dim = _channel(layer)
        planes = value.varying(dim)
        if len(planes) != 1 or varying_dims(planes[0]) != (dim,):
            raise _Stop(f"the positions of {module_path(layer)} are no plain channels")
        line = roots[planes[0].reshape(-1).numpy()]
        inside = np.zeros(len(line), bool)
        inside[[p for p in torch.cat(reached).tolist() if p >= 0]] = True
        inside &= np.isin(line, wanted)
        module = module_path(layer)
        axis = next((1 - c.axis for c in engine.calls if c.node is layer), 0)
        found.append(Site(module, dim - value.ndim, f"{module}.weight", axis, np.where(inside, line, -1)))
    if not any((site.roots >= 0).any() for site in found):
        raise _Stop("no layer writes the units")
    return found


def _come_from(node: Any, model: nn.Module, known: dict[fx.Node, Places]) -> Places:
    """Which positions of which layers' outputs each element of a node comes from.

    Raises:
        _Stop: an element may be other than zero although all of those are.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        raise _Stop(f"{getattr(node, 'name', node)} is no layer's output")
    if node not in known:
        known[node] = _places(node, model, lambda source: _come_from(source, model, known))
    return known[node]


def _places(node: fx.Node, model: nn.Module, come_from: Callable[[Any], Places]) -> Places:
    name = operation(node)
    if name in LAYERS:
        return [(node, _positions(node, model))]
    if name == "getitem":
        moved = node.args[0]
        assert isinstance(moved, fx.Node)
        if operation(moved) not in MOVES:
            raise _Stop(f"{operation(moved)} comes between")
        return [(layer, _moved(moved, ids)[node.args[1]]) for layer, ids in come_from(moved.args[0])]
    if name in VIEWS:
        shape = meta_shape(node.meta["val"])
        expand = name.startswith("expand")
        return [
            (layer, ids.broadcast_to(shape) if expand else ids.reshape(shape))
            for layer, ids in come_from(node.args[0])
        ]  # fmt: skip
    if name in MOVES:
        if not isinstance(node.meta["val"], Tensor):
            return come_from(node.args[0])  # taken apart by the getitem behind it
        return [(layer, _moved(node, ids)) for layer, ids in come_from(node.args[0])]
    if name in ZERO_STAYS_ZERO:
        return come_from(node.args[0])
    shape = meta_shape(node.meta["val"])
    if name == "pow" and isinstance(node.args[1], int | float) and node.args[1] > 0:
        return come_from(node.args[0])
    if name.startswith(POOLS) or name in REDUCTIONS:
        return [(layer, _reduced(node, ids, shape)) for layer, ids in come_from(node.args[0])]
    if name in ("mul", "multiply"):
        return _spread(_first_of(node.args[:2], shape, come_from), shape)
    if name in ("div", "divide", "true_divide"):
        return _spread(come_from(node.args[0]), shape)
    if name in ("add", "sub", "subtract"):
        return _spread([p for source in node.args[:2] for p in come_from(source)], shape)
    if name in ("cat", "concat", "concatenate", "stack"):
        return _side_by_side(node, come_from)
    raise _Stop(f"{name} comes between")


def _reduced(node: fx.Node, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Positions behind a reduction over dimensions along which they don't vary."""
    if len(shape) == ids.dim():
        over = [d for d, size in enumerate(shape) if size != ids.shape[d]]
    else:
        over = [int(d) % ids.dim() for d in argument(node, 1 if "norm" not in operation(node) else 2, "dim")]
    few = ids[tuple(slice(1) if d in over else slice(None) for d in range(ids.dim()))]
    if bool((ids != few).any()):
        raise _Stop(f"{operation(node)} comes between")
    return (few if len(shape) == ids.dim() else few.flatten().reshape(shape)).broadcast_to(shape)


def _first_of(sources: Any, shape: tuple[int, ...], come_from: Callable[[Any], Places]) -> Places:
    """Of a product's factors one that comes from layers, a whole one first: if that is zero, so is the product."""
    stop = None
    for source in sorted(sources, key=lambda s: not isinstance(s, fx.Node) or meta_shape(s.meta["val"]) != shape):
        try:
            return come_from(source)
        except _Stop as problem:
            stop = stop or problem
    assert stop is not None
    raise stop


def _spread(places: Places, shape: tuple[int, ...]) -> Places:
    return [(layer, ids.broadcast_to(shape)) for layer, ids in places]


def _side_by_side(node: fx.Node, come_from: Callable[[Any], Places]) -> Places:
    operands: Any = argument(node, 0, "tensors")
    new = operation(node) == "stack"
    shape = meta_shape(node.meta["val"])
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    found: Places = []
    start = 0
    for operand in operands:
        size = 1 if new else meta_shape(operand.meta["val"])[dim]
        for layer, ids in come_from(operand):
            whole = torch.full(shape, -1, device="cpu")
            whole.narrow(dim, start, size).copy_(ids.unsqueeze(dim) if new else ids)
            found.append((layer, whole))
        start += size
    return found


def _moved(node: fx.Node, ids: Tensor) -> Any:
    """The node's own movement, done to positions."""
    args, kwargs = fx.map_arg((tuple(node.args[1:]), dict(node.kwargs)), example_size)
    return node.target(ids, *args, **kwargs)  # type: ignore[operator]


def _positions(node: fx.Node, model: nn.Module) -> Tensor:
    """Positions along a layer's output. Raises _Stop if the output is not that of a module with a weight."""
    path = module_path(node)
    layer = model.get_submodule(path)
    plain = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase)
    if not isinstance(getattr(layer, "weight", None), Tensor) or not (plain or _ends(node, path)):
        raise _Stop(f"the product in {path or 'the model'} is no layer of its own")
    shape = meta_shape(node.meta["val"])
    dim = _channel(node)
    return (
        torch.arange(shape[dim], device="cpu").reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
    )


def _channel(node: fx.Node) -> int:
    """Dimension of a layer's output along which its units lie."""
    shape = meta_shape(node.meta["val"])
    name = operation(node)
    if name in ("linear", "addmm"):
        return len(shape) - 1
    return 1 if name == "batch_norm" else len(shape) - int(name[-2]) - 1


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
