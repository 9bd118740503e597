"""Which rows of a layer's output are looked at, and which of those are held out."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.runtime.dealing import Share


def held_out(examples: Tensor, every: int) -> Tensor:
    """Which examples, by their numbers, are held out: every so many-th; with 1 none is."""
    return examples % every == every - 1 if every > 1 else torch.zeros_like(examples, dtype=torch.bool)


def sampled_rows(
    share: Share,
    each: int,
    wanted: float,
    every: int,
    generator: torch.Generator,
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of a batch, as many of every example, drawn without replacement; and whether each is held out.

    Draws are those for all processes' examples, of which each takes its own: together they look at the rows that one
    process would look at.

    Args:
        share: the examples of the batch that are here.
        each: rows of an example; row numbers run over examples first.
        wanted: how many of each example; at least one is taken.
        every: see `held_out`.
        generator: draws.
        inside: which rows may be taken at all, bool [examples * each].

    Returns:
        int64 [N] and bool [N], on the processor.
    """
    count, examples = min(each, max(1, int(wanted + 1 - 1e-9))), len(share.places)
    if count == each:
        rows = torch.arange(examples * each, device="cpu")
    else:
        order = torch.rand(share.whole, each, generator=generator, device="cpu")[list(share.places)]
        first = torch.arange(examples, device="cpu")[:, None] * each
        rows = (order.topk(count, dim=1).indices + first).reshape(-1)
    held = held_out(share.numbers[rows // each], every)
    return (rows, held) if inside is None else (rows[inside[rows]], held[inside[rows]])
