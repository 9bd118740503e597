"""The words of the analysis: slots, readers, contractions, channel groups. Frozen data, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Kind = Literal["channel", "head", "key-value group", "head dimension", "expert"]
"""What the units of a group are; blocks are found beside groups (`graph.units`)."""


@dataclass(frozen=True)
class ExampleInput:
    """One tensor of the example inputs.

    Attributes:
        shape: its shape.
        dtype: its dtype, without `torch.`.
        path: where it is among the arguments: a position or a keyword, then places inside it.
        low: least whole number in it, None for other numbers.
        high: greatest whole number in it.
    """

    shape: tuple[int, ...]
    dtype: str
    path: tuple[str | int, ...] = (0,)
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a group's units live in one parameter or buffer.

    Attributes:
        tensor: fully qualified name of the parameter or buffer in the user's module.
        plane: integer array broadcastable to the tensor's shape; the unit index (0 .. units-1) that owns each
            element, or -1 where the element belongs to no unit of this group.
    """

    tensor: str
    plane: IntArray

    @property
    def dim(self) -> int:
        """The one dimension along which the plane varies, or -1 if it varies along several (grouped convolution)."""
        varying = [d for d, size in enumerate(self.plane.shape) if size > 1]
        if len(varying) == 1:
            return varying[0]
        return 0 if not varying else -1

    @property
    def units_along_dim(self) -> IntArray:
        """Unit index for each position along `dim` (1-D, -1 = none). Only for slots with one varying dimension."""
        return self.plane.reshape(-1)


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that contracts over the group's units: the place of the gate.

    Dimensions of queries and keys are read by a product of activations, where no gate can stand: theirs stands behind
    the layer that writes one side of it (`output`).

    Attributes:
        module: name of the submodule whose *input* holds the units; a gate is a forward pre-hook there.
        input_dim: dimension of that input that holds them (1 for convolutions, -1 for linear layers).
        units: unit index for each position of that dimension, -1 where the position is of another group.
        weight: name of the contracted weight.
        axis: dimension of the weight that is contracted.
        output: the units are in the module's *output*; `input_dim` and `axis` are those of what it writes.
        length: with `output`: a norm or a sum over the units is behind it, which zeros don't change.
        product: for a product that is no module's (`h @ self.w`), where the gate stands at the activation as it is
            multiplied: the how many-th product with something made of `stored` it is in a forward pass; else -1.
        stored: name of a stored tensor that the weight is made of, for such a product.
        routing: the units are experts, whose logits are what that product makes, or get `stored` added (no product):
            zero means the logit minus infinity.
    """

    module: str
    input_dim: int
    units: IntArray
    weight: str
    axis: int = 1
    output: bool = False
    length: bool = False
    product: int = -1
    stored: str = ""
    routing: bool = False


@dataclass(frozen=True)
class Routing:
    """How tokens come to the experts that the units of a group are.

    Attributes:
        module: the module that holds router and experts.
        choices: how many experts a token is given.
        least: how many have to stay for the router's code to run.
        node: name of the captured graph's node that makes the logits.
    """

    module: str
    choices: int
    least: int
    node: str


@dataclass(frozen=True)
class Norm:
    """A weight norm: what is contracted is `tensor` divided by its norm over all dimensions but `dim`, times `scale`.

    Attributes:
        tensor: name of the stored directions.
        scale: name of the stored lengths.
        dim: the dimension whose slices have a length each (-1: one length for all).
    """

    tensor: str
    scale: str
    dim: int


@dataclass(frozen=True, eq=False)
class Selection:
    """Units selected by an index whose numbers are known before anything runs.

    Attributes:
        dim: the dimension along which is selected.
        index: the positions there that are selected, int64 [n].
        units: labels along that dimension, one for each position.
        tensor: name of the buffer that the index is, or "".
    """

    dim: int
    index: IntArray
    units: IntArray
    tensor: str = ""


@dataclass(frozen=True, eq=False)
class Contraction:
    """One call of a convolution or linear layer, for cost accounting.

    Attributes:
        weight: name of the weight; MACs of the call = elements of the weight x positions.
        positions: output positions per example that the weight is applied to (1 for a linear layer on vectors;
            output height x width for a convolution, input height x width for a transposed one); of experts' weights
            the mean over the experts.
        over: where units lie along the positions (a linear layer on the last dimension of [B, C, W]): for each of
            their planes the root labels of its elements.
        module: name of the submodule that made the call.
        source: source line of the call.
        experts: name of the group of experts that the weight is one of, or holds, where each token is multiplied with
            those that it is given alone; else "".
    """

    weight: str
    positions: float
    module: str
    source: str
    over: tuple[IntArray, ...] = ()
    experts: str = ""


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units (channels, neurons) that must keep the same indices everywhere they appear.

    Attributes:
        name: the first layer that writes the units, in data-flow order; unique within a graph.
        units: number of units K.
        slots: every parameter and buffer that holds the units.
        writers: the slots among them, or in computed weights that a layer holds, that produce the units (rows of
            weights).
        readers: the layers that consume the units (a gate multiplies their input).
        rows: row of each unit when the same number must stay in every row (grouped convolution, group
            normalisation, channel shuffle), else None.
        exact: False if a normalisation takes statistics across the units, so that removal differs from masking.
        locked: why the group may not be pruned, or None.
        source: source line of the first writer.
        computed: where the units live in weights that are computed from stored tensors, under those weights' names.
        within: name of the group of whole rows (heads) that these units lie in, the same number in each, or None.
        heads_of: the layer whose outputs, reshaped to rows, have the units as whole rows (heads); None for channels.
        routing: how tokens come to the units, if they are experts.
    """

    name: str
    units: int
    slots: tuple[Slot, ...]
    writers: tuple[Slot, ...]
    readers: tuple[Reader, ...]
    rows: IntArray | None = None
    exact: bool = True
    locked: str | None = None
    source: str = ""
    within: str | None = None
    heads_of: str | None = None
    routing: Routing | None = None
    order: int = field(default=0, repr=False)
    computed: tuple[Slot, ...] = field(default=(), repr=False)

    @property
    def kind(self) -> Kind:
        """What its units are; of a key-value group, the query heads that read one key-value head go with it."""
        if self.routing is not None:
            return "expert"
        if self.inside_heads:
            return "head dimension"
        if self.heads_of is None:
            return "channel"
        rows = {int((slot.units_along_dim == 0).sum()) for slot in self.writers if slot.dim == 0}
        return "head" if len(rows - {0}) < 2 else "key-value group"

    @property
    def multiple(self) -> int:
        """Kept counts must be a multiple of this (the number of rows, or 1)."""
        return 1 if self.rows is None else int(self.rows.max()) + 1

    @property
    def inside_heads(self) -> bool:
        """True for dimensions inside attention heads: of values, or of queries and keys."""
        return self.within is not None or any(r.output and not r.length for r in self.readers)

    @property
    def prunable(self) -> bool:
        """True if nothing locks the group and removing a unit is the same as masking it."""
        return self.locked is None and self.exact
