"""The proof that a trimmed model computes what the whole one does, on sequences of the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.errors import ConfigError, SurgeryError, first_line
from prunus.proof.comparison import difference
from prunus.runtime.calling import outputs

LENGTH = 128


def sequences(model: Any, cut: Sequence[Sequence[int]], kept: Sequence[int], examples: int) -> list[Tensor]:
    """At most so many sequences, evenly from all texts, each [1, tokens] and no longer than half of the positions.

    Args:
        model: that they are for.
        cut: every text with the ids of now.
        kept: ids of before, which the sequences hold, by ids of now.
        examples: how many.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = min(LENGTH, max(1, limit // 2)) if isinstance(limit, int) and limit > 0 else LENGTH
    starts = [(ids, at) for ids in cut for at in range(0, len(ids), length)]
    step = max(1, -(-len(starts) // examples))
    device = model.get_input_embeddings().weight.device
    return [torch.tensor([[kept[i] for i in ids[at : at + length]]], device=device) for ids, at in starts[::step]]


def dense_outputs(model: Any, ids: Sequence[Tensor]) -> list[list[Tensor]]:
    """What the model makes of each sequence.

    Raises:
        ConfigError: it can't be called with token ids alone, so that nothing could be proven.
    """
    try:
        return [outputs(model, _inputs(model, row)) for row in ids]
    except Exception as error:
        what = f"it can't be called with token ids alone: {first_line(error)}"
        raise ConfigError(type(model).__name__, what, "trim the language model inside it") from error


def largest_error(
    smaller: Any, dense: Sequence[Sequence[Tensor]], ids: Sequence[Tensor], numbers: Mapping[int, int], rows: int
) -> float:
    """How far the smaller model's outputs are from the dense one's, of the kept ids, by the scale of each channel.

    Args:
        smaller: the trimmed model.
        dense: outputs of the whole model, for each sequence.
        ids: the sequences, with the ids of before.
        numbers: id before -> id afterwards.
        rows: size of the vocabulary before.

    Raises:
        SurgeryError: they differ by more than rounding.
    """
    kept = torch.tensor(sorted(numbers), device="cpu")
    table = torch.full((rows,), -1, device="cpu")
    table[kept] = torch.arange(len(kept), device="cpu")
    found = [outputs(smaller, _inputs(smaller, table.to(row.device)[row])) for row in ids]
    wanted = [
        [_of_kept(a, b, kept) for a, b in zip(one, other, strict=True)] for one, other in zip(dense, found, strict=True)
    ]
    error, tolerance = difference(wanted, found)
    if not error <= tolerance:
        what = f"without the rows it computes something else (relative difference {error:.1e})"
        raise SurgeryError(type(smaller).__name__, what, "report the model; its vocabulary is read elsewhere too")
    return error


def _inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}


def _of_kept(whole: Tensor, smaller: Tensor, kept: Tensor) -> Tensor:
    """The part of an output that the smaller model has too."""
    if whole.shape[-1:] == smaller.shape[-1:]:
        return whole
    return whole.index_select(-1, kept.to(whole.device))
