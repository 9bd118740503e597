"""Gates on the logits by which a router chooses: the logarithm of the gate is added, so that zero is minus infinity.

A gate z multiplies the odds that a token comes to an expert, and at zero the expert is gone: a softmax gives its share
to the others, a choice passes it over. What the choice adds to the logits besides (a bias that balances the load) is
minus infinity then too: a sigmoid alone would leave the expert that bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunus.errors import DataError
from prunus.graph.groups import ChannelGroup, Reader

LEAST = 1e-30
"""The smallest gate that is told from zero."""


def less_likely(x: Tensor, gate: Tensor, dim: int) -> Tensor:
    """Logits with the logarithm of the gate added: minus infinity where it is zero, unchanged where it is one.

    Args:
        x: logits, of any floating-point type.
        gate: not negative, [K] or one row per example, [B, K], of which each goes with as many consecutive rows of `x`.
        dim: of `x`, which has K positions there.

    Returns:
        As `x`.

    Example:
        >>> less_likely(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1.0, 0.0, 1.0]), -1)
        tensor([[1., -inf, 3.]])
    """
    added = torch.where(gate > 0, gate.clamp_min(LEAST).log(), -torch.inf)
    rows = 1 if gate.dim() < 2 else gate.shape[0]
    shape = [1] * x.dim()
    shape[dim] = gate.shape[-1]
    if rows > 1:
        each = x.shape[0] // rows
        added = added if each == 1 else added.repeat_interleave(each, 0)
        shape[0] = added.shape[0]
    return x + added.to(x.dtype).reshape(shape)


@contextmanager
def seen_instead(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context a module's code sees something else in place of a stored tensor; the tensor stays as it is.

    Args:
        model: the network.
        name: of a parameter or buffer.
        change: makes what is seen.
    """
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    vars(owner)[attribute] = change(getattr(owner, attribute))  # looked up before parameters and buffers
    try:
        yield
    finally:
        vars(owner).pop(attribute, None)


class Multipliers(Protocol):
    """What is asked of a set of gates here; see `gates.gate.GateSet`."""

    mode: Any
    positions: dict[str, int]

    def multiplier(self, group: ChannelGroup) -> Tensor | None:
        """This forward pass's multipliers: fp32 [B, K] or [1, K]; None if the group is left alone."""


def router_sites(
    gates: Multipliers, model: nn.Module, groups: Sequence[ChannelGroup], hooks: ExitStack
) -> dict[tuple[str, int], Callable[[Tensor], Tensor]]:
    """Products that make the logits of experts, and the gates on them.

    Args:
        gates: their values.
        model: the network; where fixed gates remove experts, it sees minus infinity in what is added to their logits.
        groups: all that are gated.
        hooks: what takes the model's hooks off again.
    """
    found: dict[tuple[str, int], Callable[[Tensor], Tensor]] = {}
    for group in groups:
        for reader in (r for r in group.readers if r.routing):
            site = _RouterSite(gates, group, reader)
            if reader.product >= 0:
                found[reader.stored, reader.product] = site.logits
                continue
            hooks.enter_context(model.register_forward_pre_hook(site.enter))
            hooks.enter_context(model.register_forward_hook(site.leave, always_call=True))
    return found


class _RouterSite:
    """Where a router's experts are gated."""

    def __init__(self, gates: Multipliers, group: ChannelGroup, reader: Reader) -> None:
        self.gates, self.group, self.reader = gates, group, reader
        self.seen: ExitStack | None = None

    def logits(self, x: Tensor) -> Tensor:
        """Logits with this forward pass's gates on them."""
        gate = self.gates.multiplier(self.group)
        if gate is None:
            return x
        if x.shape[0] % gate.shape[0]:
            what = f"its router has {x.shape[0]} rows, the model's first input {gate.shape[0]} examples"
            raise DataError(f"gate at {self.reader.module!r}", what, "set draws='batch' (--set draws=batch)")
        self.gates.positions[self.group.name] = x.shape[:-1].numel() // gate.shape[0]
        return less_likely(x, gate, self.reader.input_dim)

    def enter(self, model: nn.Module, _: Any) -> None:
        """Before a forward pass: fixed gates act on what a choice adds to the logits too."""
        gate = self.gates.multiplier(self.group) if self.gates.mode == "fixed" else None
        if gate is None or gate.shape[0] > 1:
            return
        self.seen = ExitStack()
        dim = self.reader.input_dim
        self.seen.enter_context(seen_instead(model, self.reader.stored, lambda x: less_likely(x, gate[0], dim)))

    def leave(self, *_: Any) -> None:
        """After it: what is stored is seen again."""
        if self.seen is not None:
            self.seen.close()
            self.seen = None
