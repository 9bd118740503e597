"""Pairs of a head's dimensions that positions turn together; found by trying, not from the name of a class.

Rotary positions multiply each pair, as a complex number, by a number of modulus one that depends on the position. What
multiplies the keys of a pair by a complex number and the queries by its inverse conjugate leaves all logits as they
were: these changes commute with positions. Without rotary positions they leave the logits alone too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import SurgeryError
from prunus.keyvalues.attentions import Attention
from prunus.proof.comparison import difference
from prunus.runtime.calling import outputs
from prunus.runtime.copies import copied
from prunus.runtime.seeds import seeded

SAME = 1e-3
"""Largest difference of an output channel that a rounding makes, relative."""

Pairs = tuple[Tensor, Tensor]
"""Dimensions of a head that are real parts, and those that are imaginary parts, int64 [width / 2] each."""


def layouts(width: int, turned: Sequence[int]) -> Iterator[Pairs]:
    """How pairs may lie in a head: as halves or as neighbours, of all its dimensions or of the first ones."""
    for first in dict.fromkeys((width, *turned)):
        if first % 2 or width % 2 or not 0 < first <= width:
            continue
        rest = torch.arange(first, width, device="cpu").view(-1, 2)
        place = torch.arange(first, device="cpu")
        for pairs in (place.view(2, -1).T, place.view(-1, 2)):
            both = torch.cat([pairs, rest])
            yield both[:, 0], both[:, 1]


def pairs_of(model: Any, found: Sequence[Attention], example_inputs: Any) -> Pairs:
    """The pairs of a model, shown by turning its keys and queries at random: nothing changes.

    Raises:
        SurgeryError: in no layout is the model the same.
    """
    text = model.config.get_text_config()
    width = found[0].width
    part = getattr(text, "partial_rotary_factor", None) or (getattr(text, "rope_parameters", None) or {}).get(
        "partial_rotary_factor"
    )
    turned = [int(width * part)] if part else []
    dense = outputs(model, example_inputs)
    for pairs in layouts(width, turned):
        if difference([dense], [outputs(_turned(model, found, pairs), example_inputs)])[0] <= SAME:
            return pairs
    what = "keys and queries that are turned together, pair by pair, change its outputs"
    fix = "its positions are read in an unknown way: prune its heads instead, prunus.prune"
    raise SurgeryError(type(model).__name__, what, fix)


def _turned(model: Any, found: Sequence[Attention], pairs: Pairs) -> nn.Module:
    """A copy whose keys are multiplied by a complex number in each pair, and its queries by the inverse conjugate."""
    new = copied(model)
    with torch.no_grad(), seeded(0):
        for attention in found:
            q, k, _, _ = attention.projections(new)
            size = (attention.groups, len(pairs[0]))
            angle, length = torch.rand(size, device="cpu") * 6.28, torch.rand(size, device="cpu") + 0.5
            factor = torch.polar(length.double(), angle.double())
            for linear, by in ((k, factor), (q, (1 / factor).conj().repeat_interleave(attention.shared, 0))):
                for tensor in (linear.weight, linear.bias):
                    if tensor is not None:
                        heads = as_complex(tensor.view(len(by), attention.width, -1), pairs)
                        tensor.copy_(as_real(heads * by.to(heads.device)[..., None], pairs).view_as(tensor))
    return new


def as_complex(heads: Tensor, pairs: Pairs) -> Tensor:
    """[..., width, N] -> complex128 [..., width / 2, N]."""
    wide = heads.double()
    return torch.complex(*(wide.index_select(-2, part.to(wide.device)) for part in pairs))


def as_real(heads: Tensor, pairs: Pairs) -> Tensor:
    """Complex [..., width / 2, N] -> fp64 [..., width, N]."""
    parts = torch.cat([heads.real, heads.imag], -2)
    order = torch.cat(pairs).argsort().to(heads.device)
    return parts.index_select(-2, order)
