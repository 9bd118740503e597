"""Pairs of a head's dimensions that positions turn together; found by trying, not from the name of a class.

Rotary positions multiply each pair, as a complex number, by a number of modulus one that depends on the position. What
multiplies the keys of a pair by a complex number and the queries by its inverse conjugate leaves all logits as they
were: these changes commute with positions. Without rotary positions they leave the logits alone too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunus.data.batches import forward
from prunus.errors import SurgeryError
from prunus.keyvalues.attentions import Attention
from prunus.runtime.copies import copied
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision
from prunus.runtime.seeds import seeded

SAME, SHARP = 1e-3, 2.0
"""Largest difference that a rounding makes, relative; size of the logits under which keys are turned: they matter."""

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
    """The pairs of a model, shown on every layer by turning its keys and queries at random: nothing changes.

    Raises:
        SurgeryError: in no layout do the layers make what they made.
    """
    text = model.config.get_text_config()
    width = found[0].width
    part = getattr(text, "partial_rotary_factor", None) or (getattr(text, "rope_parameters", None) or {}).get(
        "partial_rotary_factor"
    )
    turned = [int(width * part)] if part else []
    calls = _calls(model, found, example_inputs)
    for pairs in layouts(width, turned):
        if all(_same(model, attention, call, pairs) for attention, call in zip(found, calls, strict=True)):
            return pairs
    what = "keys and queries that are turned together, pair by pair, change what its attention makes"
    fix = "its positions are read in an unknown way: prune its heads instead, prunus.prune"
    raise SurgeryError(type(model).__name__, what, fix)


def _calls(model: nn.Module, found: Sequence[Attention], example_inputs: Any) -> list[tuple[Any, Any]]:
    """What each layer is called with, in fp32."""
    calls: dict[str, tuple[Any, Any]] = {}

    def note(name: str) -> Callable[..., None]:
        def see(_: nn.Module, args: Any, kwargs: Any) -> None:
            calls[name] = tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, (args, kwargs))

        return see

    hooks = [model.get_submodule(a.name).register_forward_pre_hook(note(a.name), with_kwargs=True) for a in found]
    try:
        with torch.no_grad(), full_precision(), eval_mode(model):
            forward(model, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [calls[a.name] for a in found]


def _same(model: nn.Module, attention: Attention, call: tuple[Any, Any], pairs: Pairs) -> bool:
    """Whether a layer reads the same from its heads after its keys and queries were turned."""
    layer = copied(model.get_submodule(attention.name)).float().eval()
    usual = Attention("", attention.heads, attention.groups, attention.width)
    with torch.no_grad(), full_precision(), seeded(0):
        q, k, _, _ = usual.projections(layer)
        queries, keys, _ = _seen(layer, call)
        _multiply_(q, SHARP / (_size(queries) * _size(keys)))
        before = _seen(layer, call)[2]
        _turn_(q, k, usual, pairs)
        after = _seen(layer, call)[2]
    return float((after - before).norm()) <= SAME * float(before.norm())


def _seen(layer: nn.Module, call: tuple[Any, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, and what is read from the heads."""
    found: dict[str, Tensor] = {}
    hooks = [layer.get_submodule(n).register_forward_hook(lambda m, args, out, n=n: found.setdefault(
        n, args[0] if n == "o_proj" else out)) for n in ("q_proj", "k_proj", "o_proj")]  # fmt: skip
    layer(*call[0], **call[1])
    for hook in hooks:
        hook.remove()
    return found["q_proj"], found["k_proj"], found["o_proj"]


def _size(values: Tensor) -> float:
    return max(float(values.square().mean().sqrt()), 1e-20)


def _multiply_(linear: nn.Linear, by: float) -> None:
    for tensor in linear.parameters():
        tensor.mul_(by)


def _turn_(q: nn.Linear, k: nn.Linear, attention: Attention, pairs: Pairs) -> None:
    """Multiply keys by a complex number in each pair, and the queries that read them by the inverse conjugate."""
    size = (attention.groups, len(pairs[0]))
    angle, length = torch.rand(size, device="cpu") * 2 * math.pi, torch.rand(size, device="cpu") + 0.5
    factor = torch.polar(length.double(), angle.double())
    for linear, by in ((k, factor), (q, (1 / factor).conj().repeat_interleave(attention.shared, 0))):
        for tensor in linear.parameters():
            heads = as_complex(tensor.view(len(by), attention.width, -1), pairs)
            tensor.copy_(as_real(heads * by.to(heads.device)[..., None], pairs).view_as(tensor))


def as_complex(heads: Tensor, pairs: Pairs) -> Tensor:
    """[..., width, N] -> complex128 [..., width / 2, N]."""
    wide = heads.double()
    return torch.complex(*(wide.index_select(-2, part.to(wide.device)) for part in pairs))


def as_real(heads: Tensor, pairs: Pairs) -> Tensor:
    """Complex [..., width / 2, N] -> fp64 [..., width, N]."""
    parts = torch.cat([heads.real, heads.imag], -2)
    order = torch.cat(pairs).argsort().to(heads.device)
    return parts.index_select(-2, order)
