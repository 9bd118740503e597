"""What reads the heads, fitted again layer by layer: least squares from what the merged layer gives it to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import forward
from prunus.keyvalues.attentions import Attention
from prunus.refit.least_squares import RIDGES, cheapest
from prunus.refit.moments import Moments, solved
from prunus.refit.sampling import held_out
from prunus.refit.told import Refit
from prunus.runtime.dealing import Share
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision, lower
from prunus.runtime.progress import progress_bar

HELD_OUT = 5
"""Every so many-th example chooses the price of a change."""


def refit_readers_(
    smaller: nn.Module,
    dense: nn.Module,
    found: Sequence[Attention],
    batches: Sequence[Any],
    shares: Sequence[Share],
    progress: bool,
) -> tuple[Refit, ...]:
    """Fit the layers behind the heads to what the dense network's make, in order; each reads what is merged by then.

    Args:
        smaller: the merged network; its layers change.
        dense: the network before.
        found: the layers of attention, in order.
        batches: inputs, on the networks' device.
        shares: which examples they are.
        progress: show a bar where there is a terminal.
    """
    told = []
    with (
        torch.no_grad(),
        full_precision(),
        eval_mode(smaller),
        eval_mode(dense),
        progress_bar("heads' readers", len(found), progress) as bar,
    ):
        for attention in found:
            told.append(_refitted_(smaller, dense, f"{attention.name}.o_proj", batches, shares))
            bar.advance()
    return tuple(told)


def _refitted_(
    smaller: nn.Module, dense: nn.Module, name: str, batches: Sequence[Any], shares: Sequence[Share]
) -> Refit:
    layer = smaller.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    sizes = (1, layer.in_features, layer.out_features, layer.weight.device)
    fitted, held = Moments.empty(*sizes), Moments.empty(*sizes)
    for batch, share in zip(batches, shares, strict=False):  # of the last there may be nothing here
        read, wanted = _seen(smaller, name, batch)[0], _seen(dense, name, batch)[1]
        each = len(read) // len(share.places)
        out = held_out(share.numbers.repeat_interleave(each), HELD_OUT).to(read.device)
        for part, chosen in ((fitted, ~out), (held, out)):
            part.add(read[chosen][:, None], wanted[chosen][:, None])
    fitted, held = fitted.over_ranks(), held.over_ranks()
    judge = held if held.count else fitted
    constant = torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias.detach()
    old = torch.cat([layer.weight.detach().T, constant[None]]).double()[None]
    intercept = layer.bias is not None
    price, least = cheapest(RIDGES, lambda ridge: judge.error(solved(fitted, old, ridge, intercept)))
    before, spread = judge.error(old), judge.spread()
    if not lower(least, than=before):
        return Refit(name, before / spread, before / spread, reason="no change helps on held-out data")
    new = solved(fitted + held, old, price, intercept)[0]
    layer.weight.copy_(new[:-1].T)
    if intercept:
        layer.bias.copy_(new[-1])
    return Refit(name, before / spread, least / spread, price, int(fitted.count + held.count))


class _Enough(Exception):
    """The layer has been seen: the rest of the network need not run."""


def _seen(model: nn.Module, name: str, batch: Any) -> tuple[Tensor, Tensor]:
    """What a layer reads and makes of a batch, [tokens, width] each."""
    found: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.extend(t.reshape(-1, t.shape[-1]) for t in (args[0], output))
        raise _Enough

    with model.get_submodule(name).register_forward_hook(note):
        try:
            forward(model, batch)
        except _Enough:
            pass
    return found[0], found[1]
