"""What rules note down while the graph runs on labels: locks, calls, sums, whole rows, what is stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, fx


@dataclass(frozen=True)
class Lock:
    """Labels that must stay, why, and where; `whole`: so must rows that are made over them later."""

    labels: Tensor
    reason: str
    source: str
    whole: bool = False


@dataclass(frozen=True)
class Call:
    """One convolution or linear call: 1-D labels along the contracted and the produced dimension (None = fixed).

    A stored selection of inputs is a call too, with no positions: it produces units and multiplies nothing. `over`
    holds the planes of labels that lie along the positions to which the weight is applied; what is contracted is
    dimension `axis` of the weight; `in_rows` says that it came with whole rows over it. `at_input`: what is contracted
    is the input of the module that made the call; else `product` says which call it is: the how many-th product of an
    activation with something made of this stored tensor.
    """

    node: fx.Node
    module: str
    weight: str
    inputs: Tensor | None
    outputs: Tensor | None
    input_dim: int
    positions: int
    depthwise: bool
    over: tuple[Tensor, ...] = ()
    axis: int = 1
    in_rows: bool = False
    at_input: bool = True
    product: tuple[str, int] | None = None


@dataclass(frozen=True)
class Summed:
    """Labels that a product of activations sums over, and the sides of the product that carry them.

    Or that a sum or a norm over the units does (`length`): zeros change neither, so that removal is masking where the
    mask can stand before; elsewhere it is removal across which statistics are taken.
    """

    labels: Tensor
    node: fx.Node
    operands: tuple[fx.Node, ...]
    length: bool = False


@dataclass(frozen=True)
class Lies:
    """A dimension of a stored tensor that lies along dimension `at` of a weight computed from it.

    `whole`: position by position; else it is a part of it, or repeats.
    """

    tensor: str
    dim: int
    at: int
    whole: bool


@dataclass
class Rows:
    """Whole rows (heads).

    Attributes:
        made: labels of rows, by the reshape that made them.
        batched: rows that are the batch of a product of activations.
        nobody: the label that stands for "in no row" (-1: not needed yet).
        adopted: labels of positions, and the labels of the rows that lie over them.
    """

    made: list[Tensor] = field(default_factory=list)
    batched: list[Tensor] = field(default_factory=list)
    nobody: int = -1
    adopted: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


@dataclass
class Free:
    """Dimensions along which a tensor is the same everywhere: their labels, and what those met."""

    labels: set[int] = field(default_factory=set)
    met: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass
class Stored:
    """Which values are stored tensors or made of them alone.

    Attributes:
        buffers: names of the parameters among `Engine.parameters` that are buffers.
        computed: name of each weight that is computed from stored tensors -> where those lie along it.
        products: products of an activation with something stored: of which tensor, and the how many-th.
        counts: how many products of each stored tensor there were so far, less one.
    """

    buffers: set[str] = field(default_factory=set)
    computed: dict[str, tuple[Lies, ...]] = field(default_factory=dict)
    products: dict[fx.Node, tuple[str, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
