"""Is a rule right? The coupling that is predicted must be the one that is seen when an output is moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import PruneError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.graph.trace import trace
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_
from prunus.runtime.calling import call
from prunus.runtime.copies import copied
from prunus.runtime.modes import eval_mode
from prunus.testing.demand import demand

CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
SEEN, SIZES = 1e-6, (4.0, -4.0)
INSIDE = 3
"""Channels that a writer is given, and that a reader makes."""


def check_rule(operation: Callable[..., Tensor], *examples: Tensor, dim: int = 1) -> None:
    """Check that the rule for an operation says what the operation does to units.

    A layer that writes units is put before every input of the operation, and a layer that reads them behind it. Then
    every output of the writers is moved, the readers are watched (`check_coupling`), half of the units are removed, and
    the smaller network must be the masked one.

    Args:
        operation: a function or module, of as many tensors as there are examples, that returns one tensor.
        examples: floating-point inputs, such as [B, C, H, W]; several values along `dim`, a batch of two or more.
        dim: where the units are: 1 (channels), or -1 (features of tokens). They must be there in the result as well,
            or the result is [B, F].

    Raises:
        AssertionError: with what is wrong, in a sentence: no rule or one that locks the units, a unit that moves what
            it should not, or does not move what it should, or a cut that can't be proven.

    Example:
        >>> import torch
        >>> check_rule(torch.nn.functional.silu, torch.randn(2, 6, 4, 4))
        >>> check_rule(lambda a, b: torch.cat([a, b], -1), torch.randn(2, 5, 4), torch.randn(2, 5, 3), dim=-1)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _Around(operation, examples, dim)
        made = tuple(torch.randn(_shape_before(e, dim)) for e in examples)
        inputs: Any = made if len(made) > 1 else made[0]
        graph = trace(model, inputs)
        ours = [g for g in graph.groups(locked=True, inexact=True) if any("writers" in s.tensor for s in g.writers)]
        for group in ours:
            why = group.locked or "it takes statistics across the units, so that removal is not masking"
            demand(group.prunable, f"the units of {group.name} are locked: {why}")
        demand(bool(ours), "the writers' outputs are no units: the operation makes something else of them")
        check_coupling(model, inputs)
        kept = {g.name: _half(g) for g in ours}
        try:
            apply_(model, Plan.from_kept(graph, kept), inputs)
        except PruneError as error:
            raise AssertionError(f"cut as the rule says, the network is not the masked one: {error}") from error


def _half(group: ChannelGroup) -> list[int]:
    """Every other unit, in every row alike."""
    rows = np.zeros(group.units, dtype=np.int64) if group.rows is None else group.rows
    return sorted(int(u) for r in np.unique(rows) for u in np.flatnonzero(rows == r)[::2])


def check_coupling(model: nn.Module, example_inputs: Any) -> None:
    """Check that units couple in a network as its analysis says: move one output of a writer, watch every reader.

    All other layers that contract units are frozen at what they computed before, so that a change travels only through
    what lies between: activations, normalisations, sums, concatenations, movement, depthwise convolutions.

    Args:
        model: the network, which stays as it is; a copy is moved, its batch norms as new (but for a bias of one).
        example_inputs: as for `trace`.

    Raises:
        AssertionError: naming the writer and its output, the reader, and the units.
    """
    moved = copied(model)
    for module in moved.modules():  # else an unlucky channel is below zero wherever it is moved
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
            if module.bias is not None:
                nn.init.ones_(module.bias)
    graph = trace(moved, example_inputs)
    names = _contracting(moved, graph)
    written = _written(graph, names)
    demand(bool(written), "there is no layer that writes units which may go")
    frozen = _Frozen(moved, names, example_inputs)
    reached: set[tuple[str, str, int]] = set()
    for group, writer, units in written:
        for channel in np.flatnonzero(units >= 0).tolist():
            reached |= _watched(graph, group, writer, channel, int(units[channel]), frozen.changed(writer, channel))
    for group in graph.groups():
        for reader in (r for r in group.readers if not r.output and r.product < 0):
            moved_there = {u for g, m, u in reached if (g, m) == (group.name, reader.module)}
            still = sorted({int(u) for u in reader.units if u >= 0} - moved_there)
            told = f"{reader.module} is said to read the units {still} of {group.name}"
            demand(not still, f"{told}, but moving them changes nothing there")


def _watched(
    graph: Graph, group: ChannelGroup, writer: str, channel: int, unit: int, total: dict[str, Tensor]
) -> set[tuple[str, str, int]]:
    """(group, reader, unit) of what moved; nothing but the unit itself may."""
    reached = set()
    for module, change in total.items():
        if change.dim() == 0:
            continue
        for other in graph.groups(locked=True):
            for reader in (r for r in other.readers if r.module == module):
                dims = [d for d in range(change.dim()) if d != reader.input_dim % change.dim()]
                hit = np.flatnonzero((change.sum(dims) > SEEN).numpy())
                moved = {int(u) for u in reader.units[hit] if u >= 0}
                strangers = sorted(moved - ({unit} if other is group else set()))
                told = f"output {channel} of {writer} is unit {unit} of {group.name}, but moving it moves "
                told += f"the units {strangers} of {other.name} where {module} reads them"
                demand(not strangers, told)
                reached |= {(group.name, module, u) for u in moved}
    return reached


def _contracting(model: nn.Module, graph: Graph) -> list[str]:
    """Modules that contract units (depthwise convolutions pass them through)."""
    modules = {c.module: model.get_submodule(c.module) for c in graph.contractions}
    return [n for n, m in modules.items() if not (1 < getattr(m, "groups", 1) == getattr(m, "in_channels", 0))]


def _written(graph: Graph, names: Sequence[str]) -> list[tuple[ChannelGroup, str, Any]]:
    """(group, module, unit of each output channel) for every layer that writes a prunable group."""
    slots = [(g, s.tensor.rpartition(".")[0], s.units_along_dim) for g in graph.groups() for s in g.writers]
    return [(group, module, units) for group, module, units in slots if module in names]


def _layer(shape: torch.Size, dim: int, before: int | None = None, after: int | None = None) -> nn.Module:
    """A layer that mixes units along the dimension, position by position: `before` into `after`, or as many as are."""
    known = len(shape) == 2 or (len(shape) > 2 and dim == -1) or (dim == 1 and len(shape) in CONVOLUTIONS)
    demand(known, f"there is no layer for units in dimension {dim} of {list(shape)}, where a batch comes first")
    before, after = before or shape[dim], after or shape[dim]
    return nn.Linear(before, after) if dim == -1 or len(shape) == 2 else CONVOLUTIONS[len(shape)](before, after, 1)


def _shape_before(example: Tensor, dim: int) -> list[int]:
    shape = list(example.shape)
    shape[dim] = INSIDE
    return shape


class _Frozen:
    """Runs a model with its contracting layers held at their first outputs, except one that is moved."""

    def __init__(self, model: nn.Module, names: Sequence[str], inputs: Any) -> None:
        self.model, self.names, self.inputs = model, names, inputs
        self.outputs: dict[str, list[Tensor]] = defaultdict(list)
        self.clean = self._run(None, torch.zeros(()))

    def _run(self, moved: str | None, change: Tensor) -> dict[str, list[Tensor]]:
        seen: dict[str, list[Tensor]] = defaultdict(list)
        recording = not self.outputs

        def hook(name: str) -> Any:
            def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
                turn = len(seen[name])
                seen[name].append(args[0].clone())
                if recording:
                    self.outputs[name].append(output.clone())
                    return output
                frozen = self.outputs[name][turn].clone()
                return change + frozen if name == moved else frozen

            return after

        handles = [self.model.get_submodule(n).register_forward_hook(hook(n)) for n in self.names]
        try:
            with eval_mode(self.model), torch.no_grad():
                call(self.model, self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def changed(self, writer: str, channel: int) -> dict[str, Tensor]:
        """For every contracting layer, the absolute change of its inputs when one output channel of `writer` moves."""
        shape = self.outputs[writer][0].shape
        dim = len(shape) - 1 if isinstance(self.model.get_submodule(writer), nn.Linear) else 1
        total: dict[str, Tensor] = {}
        for size in SIZES:
            delta = torch.zeros(shape)
            delta.select(dim, channel).copy_(size * (1 + torch.rand(delta.select(dim, channel).shape)))
            for name, seen in self._run(writer, delta).items():
                difference = sum(((a - b).abs() for a, b in zip(seen, self.clean[name], strict=True)), torch.zeros(()))
                total[name] = total.get(name, torch.zeros(())) + difference
        return total


class _Shared:
    """A function that copies of a network share: operators of torch can't be copied."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class _Around(nn.Module):
    """Writers, the operation, a reader."""

    def __init__(self, operation: Callable[..., Tensor], examples: Sequence[Tensor], dim: int) -> None:
        super().__init__()
        self.operation = operation if isinstance(operation, nn.Module) else _Shared(operation)
        self.writers = nn.ModuleList(_layer(e.shape, dim, before=INSIDE) for e in examples)
        with torch.no_grad():
            result = operation(*examples)
        demand(isinstance(result, Tensor), f"the operation returns a {type(result).__name__}, it must be one tensor")
        self.reader = _layer(result.shape, dim if result.ndim > 2 else -1, after=INSIDE)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        written = [writer(x) for writer, x in zip(self.writers, inputs, strict=True)]
        return self.reader(self.operation(*written))
