"""How experts in a list are called: which tokens come to each and with which weight, read off derivatives.

A layer that gives tokens to modules of a list adds up what these make, each times a number. The derivative of the sum
with respect to what a module made is that number, and only a token's own sum has one: so both the number and the token
are read from it, whatever the code between is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.gates.routed import NONE, LastLinear, Routed, not_shown

NEAR = 0.1
"""How near a digit that was read has to be to zero or one."""
NO_SUM = "what the module around its experts makes is no sum of what they make, each times a number"


@dataclass
class _Made:
    """What one call of an expert made.

    Attributes:
        expert: its number.
        output: [rows, width], of which derivatives are taken.
        last: name of its last linear layer within it, "" if it is one; None without.
        read: what that read, [rows, inputs].
        added: its bias, or zeros, [width].
    """

    expert: int
    output: Tensor
    last: str | None
    read: Tensor
    added: Tensor


@contextmanager
def list_seen(model: nn.Module, layer: str, around: str, see: Callable[[Routed], None]) -> Iterator[None]:
    """Within the context every call of a module around a list of experts is shown.

    Args:
        model: the network.
        layer: name of the list.
        around: name of the module that gives tokens to its experts.
        see: what is called with each.

    Raises:
        DataError: (in the forward pass) what the module makes is no sum of what its experts make.
    """
    experts, module = model.get_submodule(layer), model.get_submodule(around)
    assert isinstance(experts, nn.ModuleList)
    call = _Call(layer, see)
    with ExitStack() as hooks:
        hooks.callback(call.end)
        hooks.enter_context(module.register_forward_pre_hook(call.enter))
        hooks.enter_context(module.register_forward_hook(call.leave))
        for number, expert in enumerate(experts):
            for name, inner in expert.named_modules():
                if isinstance(inner, nn.Linear):
                    hooks.enter_context(inner.register_forward_hook(call.linear(name)))
            hooks.enter_context(expert.register_forward_hook(call.expert(number)))
        yield


class _Call:
    """One call of the module around a list of experts."""

    def __init__(self, layer: str, see: Callable[[Routed], None]) -> None:
        self.layer, self.see = layer, see
        self.made: list[_Made] = []
        self.linears: dict[str, tuple[nn.Linear, Tensor, Tensor]] = {}
        self.grad: ExitStack | None = None

    def enter(self, *_: Any) -> None:
        """Before it: derivatives are kept."""
        self.end()
        self.made, self.linears, self.grad = [], {}, ExitStack()
        self.grad.enter_context(torch.enable_grad())

    def end(self) -> None:
        """Derivatives are kept or not as they were before."""
        if self.grad is not None:
            self.grad.close()
            self.grad = None

    def linear(self, name: str) -> Callable[..., None]:
        """A hook that notes what a linear layer of an expert reads and makes."""

        def hook(module: nn.Linear, args: tuple[Any, ...], output: Any) -> None:
            if self.grad is not None and args and isinstance(args[0], Tensor):
                self.linears[name] = module, args[0].detach(), output.detach()

        return hook

    def expert(self, number: int) -> Callable[..., Any]:
        """A hook that notes what an expert makes, and lets derivatives be taken of it."""

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self.grad is None:
                return None
            if not isinstance(output, Tensor):
                raise not_shown(self.layer, "one of its experts makes something else than a tensor")
            leaf = output.detach().requires_grad_()
            last: str | None = None
            read, added = output.new_zeros(0), output.new_zeros(output.shape[-1])
            for name, (module, given, made) in self.linears.items():
                if made.shape == leaf.shape and torch.equal(made, leaf):
                    last, read = name, given.reshape(-1, given.shape[-1])
                    added = added if module.bias is None else module.bias.detach()
            self.linears = {}
            self.made.append(_Made(number, leaf, last, read, added))
            return leaf

        return hook

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After it: it is shown, and nothing behind it keeps derivatives."""
        try:
            self.see(_routed(self.layer, self.made, output))
        finally:
            self.end()
        return tree_map_only(Tensor, Tensor.detach, output)


def _routed(layer: str, made: Sequence[_Made], output: Any) -> Routed:
    calls = [m for m in made if m.output.numel()]
    width = calls[0].output.shape[-1] if calls else 0
    sums = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad and t.shape[-1] == width]
    if not sums:
        raise not_shown(layer, NO_SUM)
    total = sums[0].reshape(-1, width)
    tokens, experts, weights = _read(layer, total, calls)
    rows = torch.arange(len(tokens), device=tokens.device)
    there = weights != 0
    order = torch.argsort(tokens[there], stable=True)
    rows, sorted_tokens = rows[there][order], tokens[there][order]
    each = torch.bincount(sorted_tokens, minlength=len(total))
    choice = torch.arange(len(rows), device=rows.device) - (each.cumsum(0) - each)[sorted_tokens]
    places = rows.new_full((len(total), int(each.max())), NONE)
    places[sorted_tokens, choice] = rows

    def placed(values: Tensor) -> Callable[[int], Tensor]:
        """Numbers of rows, [R, ...] -> of a choice those of each token, [N, ...]; zeros without one."""
        whole = torch.cat([values, values.new_zeros(1, *values.shape[1:])])
        return lambda number: whole[places[:, number]]

    last = None
    if {c.last for c in calls} == {calls[0].last} and calls[0].last is not None:
        added = torch.cat([c.added.expand(len(c.read), -1) for c in calls])
        last = LastLinear(calls[0].last, placed(torch.cat([c.read for c in calls])), placed(added))
    flat = placed(torch.cat([c.output.detach().reshape(-1, width) for c in calls]))
    padded = [torch.cat([v, v.new_full((1,), empty)]) for v, empty in ((experts, NONE), (weights, 0))]
    return Routed(layer, padded[0][places], padded[1][places], flat, last)


def _read(layer: str, total: Tensor, calls: Sequence[_Made]) -> tuple[Tensor, Tensor, Tensor]:
    """Token, expert and weight of every row that experts made, [R] each; the weight is zero where it doesn't count."""
    count, width = total.shape
    each = _derivatives(total, torch.ones_like(total), calls)
    weights = each[:, 0]
    near = NEAR * weights.abs()
    if bool(((each - weights[:, None]).abs() > near[:, None]).any()):
        raise not_shown(layer, NO_SUM)
    bits = torch.arange(max(1, (count - 1).bit_length()), device=total.device)
    numbers = torch.arange(count, device=total.device)
    digits = []
    for some in bits.split(width):
        code = torch.zeros_like(total)
        code[:, : len(some)] = ((numbers[:, None] >> some) & 1).to(total.dtype)
        digits.append(_derivatives(total, code, calls)[:, : len(some)])
    found = torch.cat(digits, 1)
    ones = (found - weights[:, None]).abs() <= near[:, None]
    if not bool((ones | (found.abs() <= near[:, None])).all()):
        raise not_shown(layer, "what the module around its experts makes of a token is made of others' too")
    tokens = (ones.long() << bits).sum(1)
    experts = torch.cat([tokens.new_full((c.output.numel() // width,), c.expert) for c in calls])
    return tokens, experts, weights


def _derivatives(total: Tensor, direction: Tensor, calls: Sequence[_Made]) -> Tensor:
    """Of the products of the sums with a direction by what experts made, [R, width]."""
    leaves = [c.output for c in calls]
    found = torch.autograd.grad(total, leaves, direction, retain_graph=True, materialize_grads=True)
    return torch.cat([f.reshape(-1, total.shape[1]) for f in found])
