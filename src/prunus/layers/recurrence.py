"""`nn.LSTM` and `nn.GRU` taken apart into linear layers and a loop, so that hidden units can be gated and removed.

The packed modules multiply by their recurrent weights inside one function, where no gate can stand. Taken apart they
compute the same, slower; after pruning `join_recurrence_` packs what is left into torch's fast modules again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.layers.submodules import replace_submodules_
from prunus.runtime.entry import entry

GATES = {"LSTM": 4, "GRU": 3}
"""Input, forget, cell, output; or reset, update, new: torch's order of the rows."""
State = tuple[Tensor, ...]


class Cell(nn.Module):
    """One direction of one layer: a linear layer from the input and one from the hidden state for every gate."""

    def __init__(self, kind: str, inputs: int, units: int, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        count = GATES[kind]
        self.inputs = nn.ModuleList(nn.Linear(inputs, units, bias=bias) for _ in range(count))
        self.hidden = nn.ModuleList(nn.Linear(units, units, bias=bias) for _ in range(count))

    def forward(self, x: Tensor, state: State | None, reverse: bool) -> tuple[Tensor, State]:
        """All hidden states [B, T, H] and the last state, from x [B, T, I]."""
        steps = [layer(x).unbind(1) for layer in self.inputs]
        order = range(x.shape[1] - 1, -1, -1) if reverse else range(x.shape[1])
        found: list[Tensor] = []
        for t in order:
            state = self._step([s[t] for s in steps], state)
            found.append(state[0])
        assert state is not None
        return torch.stack(found[::-1] if reverse else found, 1), state

    def _step(self, x: Sequence[Tensor], state: State | None) -> State:
        # Without a state the hidden layers add their biases alone: a tensor of zeros would have a size of its own.
        layers: list[nn.Linear] = list(self.hidden)  # type: ignore[arg-type]
        h: list[Tensor | None] = [layer(state[0]) if state is not None else layer.bias for layer in layers]
        if self.kind == "LSTM":
            i, f, g, o = (a if b is None else a + b for a, b in zip(x, h, strict=True))
            new = i.sigmoid() * g.tanh()
            c = new if state is None else f.sigmoid() * state[1] + new
            return o.sigmoid() * c.tanh(), c
        r, z = ((a if b is None else a + b).sigmoid() for a, b in zip(x[:2], h[:2], strict=True))
        n = (x[2] if h[2] is None else x[2] + r * h[2]).tanh()
        return ((1 - z) * n if state is None else (1 - z) * n + z * state[0],)


class SeparateRecurrence(nn.Module):
    """A recurrent module of cells; call and results are those of the packed module.

    Args:
        packed: an `nn.LSTM` or `nn.GRU`; its numbers are copied, what is frozen stays frozen.
        name: for messages.

    Raises:
        ConfigError: it projects its states (`proj_size`), or is neither LSTM nor GRU.
    """

    def __init__(self, packed: nn.RNNBase, name: str = "recurrence") -> None:
        super().__init__()
        if packed.mode not in GATES or packed.proj_size:
            what = f"proj_size={packed.proj_size}" if packed.proj_size else f"it is a {type(packed).__name__}"
            raise ConfigError(f"module {name!r}", what, "leave it as it is: its hidden units stay locked")
        self.kind: str = packed.mode
        self.layers, self.directions = packed.num_layers, 2 if packed.bidirectional else 1
        self.batch_first, self.dropout = packed.batch_first, nn.Dropout(packed.dropout)
        self.cells = nn.ModuleList()
        for layer in range(self.layers):
            for direction in range(self.directions):
                inputs = packed.input_size if layer == 0 else self.directions * packed.hidden_size
                cell = Cell(self.kind, inputs, packed.hidden_size, packed.bias).to(next(packed.parameters()))
                _copy_(cell, packed, f"l{layer}{'_reverse' if direction else ''}", back=False)
                self.cells.append(cell)
        self.train(packed.training)

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """As `nn.LSTM` and `nn.GRU`: hidden states of the last layer, and the last states of all.

        Raises:
            ConfigError: a PackedSequence.
        """
        if not isinstance(x, Tensor):
            fix = "pass padded sequences"
            raise ConfigError("recurrence", f"a {type(x).__name__} can't be taken apart", fix)
        given = None if hx is None else (hx if isinstance(hx, tuple) else (hx,))
        alone = x.dim() == 2

        def step(index: int, x: Tensor, reverse: bool) -> tuple[Tensor, State]:
            start = None if given is None else tuple(s[index].unsqueeze(0) if alone else s[index] for s in given)
            found: tuple[Tensor, State] = self.cells[index](x, start, reverse)
            return found

        return _through_layers(self, x, step)


class StackedRecurrence(nn.Module):
    """torch's modules one layer and direction each, for layers that no longer have equally many units."""

    def __init__(self, source: SeparateRecurrence) -> None:
        super().__init__()
        self.kind, self.layers, self.directions = source.kind, source.layers, source.directions
        self.batch_first, self.dropout = source.batch_first, source.dropout
        self.parts = nn.ModuleList(_packed([cell], source.kind) for cell in source.cells)  # type: ignore[list-item]
        self.train(source.training)

    def forward(self, x: Tensor, hx: None = None) -> tuple[Tensor, Any]:
        """As `SeparateRecurrence`, without states to start from."""
        if hx is not None:
            raise ConfigError("recurrence", "layers of unequal sizes take no initial states", "call it without hx")

        def step(index: int, x: Tensor, reverse: bool) -> tuple[Tensor, State]:
            states, end = self.parts[index](x.flip(1) if reverse else x)
            return states.flip(1) if reverse else states, tuple(
                s[0] for s in (end if isinstance(end, tuple) else (end,))
            )

        return _through_layers(self, x, step)


Step = Callable[[int, Tensor, bool], tuple[Tensor, State]]


def _through_layers(module: SeparateRecurrence | StackedRecurrence, x: Tensor, step: Step) -> tuple[Tensor, Any]:
    """Layer after layer, both directions side by side; `step` runs one direction of one layer on [B, T, I]."""
    alone = x.dim() == 2
    x = x.unsqueeze(0) if alone else x if module.batch_first else x.transpose(0, 1)
    ends: list[State] = []
    for layer in range(module.layers):
        found = [step(layer * module.directions + d, x, d == 1) for d in range(module.directions)]
        ends += [end for _, end in found]
        x = found[0][0] if len(found) == 1 else torch.cat([states for states, _ in found], -1)
        x = module.dropout(x) if layer + 1 < module.layers else x
    return _answer(x, ends, module.kind, module.batch_first, alone)


class LastStates(Sequence[Tensor]):
    """The last states of all layers while a model is captured: taken one by one they are not tied to each other.

    Whatever else is asked of them is asked of the stacked tensor that torch's modules return.
    """

    def __init__(self, states: Sequence[Tensor]) -> None:
        self.states = tuple(states)

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: Any) -> Any:
        return self.states[index] if isinstance(index, int) else torch.stack(self.states)[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.stack(self.states), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = torch.utils._pytree.tree_map_only(cls, lambda s: torch.stack(s.states), (args, kwargs or {}))
        return func(*args, **kwargs)


def _answer(x: Tensor, ends: Sequence[State], kind: str, batch_first: bool, alone: bool) -> tuple[Tensor, Any]:
    """Outputs and last states in torch's shapes; states of unequal sizes stay tuples."""
    equal = all(e[0].shape == ends[0][0].shape for e in ends)  # symbolic sizes can't be hashed
    if alone:
        ends = [tuple(s.squeeze(0) for s in e) for e in ends]
    states = zip(*ends, strict=True)
    if torch.compiler.is_exporting() and len(ends) > 1:
        last: list[Any] = [LastStates(s) for s in states]
    else:
        last = [torch.stack(s) if equal else s for s in states]
    out = x[0] if alone else x if batch_first else x.transpose(0, 1)
    return out, (tuple(last) if kind == "LSTM" else last[0])


def _copy_(cell: Cell, packed: nn.RNNBase, suffix: str, back: bool) -> None:
    """Numbers and requires_grad of one direction of one layer, from the packed module or back into it."""
    for own, name in ((cell.inputs, "ih"), (cell.hidden, "hh")):
        for kind in ("weight", "bias") if packed.bias else ("weight",):
            rows: nn.Parameter = getattr(packed, f"{kind}_{name}_{suffix}")
            parts = [getattr(layer, kind) for layer in own]
            with torch.no_grad():
                if back:
                    rows.copy_(torch.cat(parts))
                else:
                    for part, block in zip(parts, rows.chunk(len(parts)), strict=True):
                        part.copy_(block)
            learned = any(p.requires_grad for p in parts) if back else rows.requires_grad
            for tensor in [rows] if back else parts:
                tensor.requires_grad_(learned)


def _packed(cells: Sequence[Cell], kind: str, directions: int = 1, **options: Any) -> nn.RNNBase:
    """torch's own module with the numbers of cells of one size."""
    first: nn.Linear = cells[0].inputs[0]  # type: ignore[assignment]
    module: nn.RNNBase = (nn.LSTM if kind == "LSTM" else nn.GRU)(
        first.in_features,
        first.out_features,
        num_layers=len(cells) // directions,
        bias=first.bias is not None,
        bidirectional=directions == 2,
        **{"batch_first": True, **options},
    ).to(first.weight)
    for index, cell in enumerate(cells):
        _copy_(cell, module, f"l{index // directions}{'_reverse' if index % directions else ''}", back=True)
    return module


@entry()
def separate_recurrence_(model: nn.Module) -> nn.Module:
    """Replace every `nn.LSTM` and `nn.GRU` inside a model by a `SeparateRecurrence` of the same outputs.

    Parameter names change: do it before tracing, and in the factory that later loads an artifact's weights. The loop
    over time is captured step by step: example inputs as short as the code allows keep the analysis quick.

    Returns:
        The model, changed in place (or the replacement, if it is itself one).

    Raises:
        ConfigError: one of them projects its states or is a plain RNN; the model is as it was.

    Example:
        >>> lstm, x = nn.LSTM(8, 16, batch_first=True), torch.randn(2, 3, 8)
        >>> before = lstm(x)[0]
        >>> lstm = prunus.separate_recurrence_(lstm)  # its hidden units can be pruned now
        >>> torch.allclose(lstm(x)[0], before, atol=1e-6)
        True
    """
    if isinstance(model, nn.RNNBase):
        return SeparateRecurrence(model)
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.RNNBase)}
    return replace_submodules_(model, {n: SeparateRecurrence(m, n) for n, m in found.items()})


@entry()
def join_recurrence_(model: nn.Module) -> nn.Module:
    """Pack every `SeparateRecurrence` into torch's fast modules: one if all layers have equally many units, or a stack.

    Returns:
        The model, changed in place (or the replacement, if it is itself one).

    Example:
        >>> net = prunus.separate_recurrence_(nn.Sequential(nn.GRU(8, 16, batch_first=True)))
        >>> prunus.join_recurrence_(net)
        Sequential(
          (0): GRU(8, 16, batch_first=True)
        )
    """
    if isinstance(model, SeparateRecurrence):
        return _joined(model)
    found = {n: m for n, m in model.named_modules() if isinstance(m, SeparateRecurrence)}
    return replace_submodules_(model, {n: _joined(m) for n, m in found.items()})


def _joined(module: SeparateRecurrence) -> nn.Module:
    cells: list[Cell] = list(module.cells)  # type: ignore[arg-type]
    if len({c.hidden[0].out_features for c in cells}) > 1:
        return StackedRecurrence(module)
    rate = module.dropout.p if module.layers > 1 else 0.0
    packed = _packed(cells, module.kind, module.directions, batch_first=module.batch_first, dropout=rate)
    return packed.train(module.training)
