"""Least squares of merging: one key for several groups, pair by pair, and one value, with what reads them turned.

Keys of the groups j in a pair are complex numbers k_j. Queries of group j read c_j k' in their place; c_j goes into the
queries. With w_j the mean of |q|^2 over the heads of group j, sum_j w_j E|k_j - c_j k'|^2 is least for the first
eigenvector v of the Hermitian matrix E[conj(s_i) s_j], s_j = sqrt(w_j) k_j: k' = sum_j v_j s_j, c_j = conj(v_j) /
sqrt(w_j). Keys and values are then scaled to the size that they had.

Values of group j are read by O_j, [outputs, width] for each head. With L_j the root of sum O_j^T O_j over its heads and
M all L_j v_j one below the other, the best v' = U^T M takes the first `width` eigenvectors U of E[M M^T]; the heads of
group j then read it by O_j L_j^+ U_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import forward
from prunus.errors import DataError
from prunus.keyvalues.attentions import Attention
from prunus.keyvalues.pairs import Pairs, as_complex
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision
from prunus.runtime.processes import model_device, summed
from prunus.runtime.progress import progress_bar


@dataclass
class Squares:
    """Second moments of one layer's projections.

    Attributes:
        tokens: how many were seen.
        queries: mean |q|^2, summed over the heads of each group, fp64 [groups, pairs].
        keys: E[conj(k_i) k_j], complex128 [pairs, groups, groups].
        values: E[v v^T], fp64 [groups * width, groups * width].
    """

    tokens: float
    queries: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Merged:
    """One key and one value in the place of those of several groups.

    Attributes:
        error: what is lost of keys and values, each relative to what there was: 0 to 2.
        keys: k' = sum over the groups of these times their keys, complex128 [groups, pairs].
        queries: by which the queries of each group are multiplied, complex128 [groups, pairs].
        values: v' = sum over the groups of these times their values, fp64 [groups, width, width].
        reads: what follows what reads the values of each group, fp64 [groups, width, width].
    """

    error: float
    keys: Tensor
    queries: Tensor
    values: Tensor
    reads: Tensor


def squares(
    model: nn.Module, found: Sequence[Attention], pairs: Pairs, batches: Sequence[Any], progress: bool
) -> list[Squares]:
    """The second moments of every layer, from one pass over data.

    Args:
        model: not touched.
        found: its layers.
        pairs: of a head's dimensions.
        batches: inputs, on the model's device.
        progress: show a bar where there is a terminal.

    Raises:
        DataError: a projection that is not finite.
    """
    device = model_device(model)
    sums = [_empty(a, device) for a in found]
    hooks = [h for a, s in zip(found, sums, strict=True) for h in _watch(a, a.projections(model), pairs, s)]
    try:
        with (
            torch.no_grad(),
            full_precision(),
            eval_mode(model),
            progress_bar("keys and values", len(batches), progress) as bar,
        ):
            for inputs in batches:
                forward(model, inputs)
                bar.advance()
    finally:
        for hook in hooks:
            hook.remove()
    for attention, s in zip(found, sums, strict=True):
        total = float(summed(torch.tensor([s.tokens], dtype=torch.float64, device=device)))
        s.queries, s.values = summed(s.queries) / total, summed(s.values) / total
        s.keys = torch.view_as_complex(summed(torch.view_as_real(s.keys))) / total
        if not all(bool(t.isfinite().all()) for t in (s.queries, s.keys.abs(), s.values)):
            raise DataError(attention.name, "its projections are not finite on these data", "look at the inputs")
    return sums


def _empty(attention: Attention, device: torch.device) -> Squares:
    groups, pairs, wide = attention.groups, attention.width // 2, attention.groups * attention.width
    kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
    keys = torch.zeros(pairs, groups, groups, dtype=torch.complex128, device=device)
    return Squares(0.0, torch.zeros(groups, pairs, **kind), keys, torch.zeros(wide, wide, **kind))


def _watch(attention: Attention, projections: Sequence[nn.Module], pairs: Pairs, into: Squares) -> list[Any]:
    """Hooks that add what the projections make."""
    groups, width = attention.groups, attention.width

    def heads(output: Tensor, count: int) -> Tensor:
        return as_complex(output.reshape(-1, count, width).permute(1, 2, 0), pairs)  # [heads, pairs, tokens]

    def queries(_: nn.Module, __: Any, output: Tensor) -> None:
        square = heads(output, attention.heads).abs().square().sum(-1)
        into.queries += square.view(groups, attention.shared, -1).sum(1)
        into.tokens += output.numel() / output.shape[-1]

    def keys(_: nn.Module, __: Any, output: Tensor) -> None:
        k = heads(output, groups).transpose(0, 1)  # [pairs, groups, tokens]
        into.keys += k.conj() @ k.transpose(1, 2)

    def values(_: nn.Module, __: Any, output: Tensor) -> None:
        v = output.reshape(-1, groups * width).double()
        into.values += v.T @ v

    watched = zip(projections, (queries, keys, values), strict=False)
    return [m.register_forward_hook(hook) for m, hook in watched]


def merged(attention: Attention, found: Squares, reader: Tensor, chosen: Sequence[int]) -> Merged:
    """One key and value for the chosen groups.

    Args:
        attention: the layer.
        found: its second moments.
        reader: weight of what reads the heads, [outputs, heads * width].
        chosen: groups.
    """
    index = torch.tensor(list(chosen), device=found.queries.device)
    weight = found.queries[index].sqrt()  # [m, pairs]
    weight = weight.clamp_min(1e-6 * float(found.queries.max()) ** 0.5 + 1e-150)
    gram = found.keys[:, index][:, :, index] * weight.T[:, :, None] * weight.T[:, None, :]
    value, vector = torch.linalg.eigh(gram)
    first = vector[:, :, -1].T  # [m, pairs]
    size = weight.square().sum(0).sqrt()
    whole = float(value.clamp_min(0).sum())
    lost = float(value[:, :-1].clamp_min(0).sum()) / whole if whole > 0 else 0.0
    width, read = attention.width, reader.detach().double()
    heads = read.view(len(read), attention.groups, attention.shared, width)
    roots = [_root(torch.einsum("osw,osv->wv", heads[:, j], heads[:, j])) for j in chosen]
    place = (index[:, None] * width + torch.arange(width, device=index.device)).flatten()
    root = torch.block_diag(*(r for r, _ in roots))
    value, vector = torch.linalg.eigh(root @ found.values[place][:, place] @ root.T)
    basis = vector[:, -width:]
    kept, before = float(value[-width:].clamp_min(0).sum()), float(found.values[place, place].sum()) / len(index)
    scale = (before / kept) ** 0.5 if kept > 0 and before > 0 else 1.0
    whole = float(value.clamp_min(0).sum())
    lost += float(value[:-width].clamp_min(0).sum()) / whole if whole > 0 else 0.0
    return Merged(
        lost,
        first * weight / size,
        first / weight * size,
        torch.stack([basis[i * width : (i + 1) * width].T @ r for i, (r, _) in enumerate(roots)]) * scale,
        torch.stack([back @ basis[i * width : (i + 1) * width] for i, (_, back) in enumerate(roots)]) / scale,
    )


def _root(square: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric root of a positive matrix, and the root's pseudo-inverse."""
    value, vector = torch.linalg.eigh(square)
    value = value.clamp_min(0)
    root = value.sqrt()
    back = torch.where(value > 1e-12 * value.max(), 1 / root.clamp_min(1e-150), 0.0)
    return (vector * root) @ vector.T, (vector * back) @ vector.T
