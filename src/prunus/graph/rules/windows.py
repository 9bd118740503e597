"""Windows over positions: unpooling, sliding windows taken apart and put together. Channels pass."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, argument, meta_shape, operation
from prunus.graph.labels import Value, varying_dims
from prunus.graph.registry import rule


@rule("max_unpool2d", "max_unpool3d")
def unpool(engine: Engine, node: fx.Node) -> Result:
    """Values put back where a pooling took them from: as many channels as both have, positions are another matter."""
    operands = [engine.value(n) for n in node.args[:2]]
    spatial = int(operation(node)[-2])
    shape = meta_shape(node.meta["val"])
    whole = tuple(1 if d >= len(shape) - spatial else size for d, size in enumerate(shape))
    channels = [Value(whole, _apart_from(engine, o, spatial, "unpooled over units", node)) for o in operands]
    return Value(shape, engine.combine(channels, whole, node).planes)


@rule("im2col")
def windows_of(engine: Engine, node: fx.Node) -> Result:
    """[B, C, H, W] -> [B, C x kernel, L]: each channel becomes as many as the window has positions."""
    source = engine.value(node.args[0])
    shape = meta_shape(node.meta["val"])
    window = math.prod(_two(argument(node, 1, "kernel_size")))
    planes = _apart_from(engine, source, 2, "windows slide over units", node)
    channel = source.ndim - 3
    return Value(shape, [p.squeeze(-1).repeat_interleave(window if p.shape[channel] > 1 else 1, channel)
                         for p in planes])  # fmt: skip


@rule("col2im")
def windows_together(engine: Engine, node: fx.Node) -> Result:
    """[B, C x kernel, L] -> [B, C, H, W]: the positions of a window become one channel again."""
    source = engine.value(node.args[0])
    window = math.prod(_two(argument(node, 2, "kernel_size")))
    channel, planes = source.ndim - 2, []
    for plane in _apart_from(engine, source, 1, "windows slide over units", node):
        if plane.shape[channel] > 1:
            grid = plane.reshape(*plane.shape[:channel], -1, window, 1)
            plane = engine.labels.tie(grid, [channel + 1])
        else:
            plane = plane.unsqueeze(-1)
        planes.append(plane)
    return Value(meta_shape(node.meta["val"]), planes)


@rule("unfold")
def sliding(engine: Engine, node: fx.Node) -> Result:
    """`Tensor.unfold`: windows along one dimension, their positions in a new last one."""
    source = engine.value(node.args[0])
    dim = int(argument(node, 1, "dimension")) % source.ndim
    engine.lock(source.varying(dim), "windows slide over units", node)
    return Value(meta_shape(node.meta["val"]), [p.unsqueeze(-1) for p in source.planes if p.shape[dim] == 1])


def _apart_from(engine: Engine, source: Value, spatial: int, reason: str, node: fx.Node) -> list[Tensor]:
    """The planes that don't vary over the last `spatial` dimensions; the others are locked."""
    over = [p for p in source.planes if any(d >= source.ndim - spatial for d in varying_dims(p))]
    engine.lock(over, reason, node)
    return [p for p in source.planes if not any(p is o for o in over)]


def _two(size: Any) -> tuple[int, ...]:
    numbers = tuple(size) if isinstance(size, list | tuple) else (size,)
    return numbers * 2 if len(numbers) == 1 else numbers
