"""`merge_key_values()`: fewer groups of keys and values in a model with grouped queries; every query head stays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.data.batches import as_batches
from prunus.keyvalues.attentions import Attention, attentions, check_number, remade
from prunus.keyvalues.pairs import Pairs, as_complex, as_real, pairs_of
from prunus.keyvalues.readers import refit_readers_
from prunus.keyvalues.sets import Set, best_sets
from prunus.keyvalues.squares import Merged, Squares, merged, squares
from prunus.refit.calibration import first_examples, shares_of
from prunus.refit.told import Refit
from prunus.runtime.entry import entry
from prunus.runtime.modes import without_cache


@dataclass(frozen=True)
class Layer:
    """What became of one layer of attention.

    Attributes:
        name: of the module.
        sets: which groups of before became one, in their new order.
        error: share of keys and values that the merged ones can't make, each relative to what there was: 0 to 2.
    """

    name: str
    sets: tuple[Set, ...]
    error: float


@dataclass(frozen=True, eq=False)
class MergedModel:
    """A model with fewer groups of keys and values.

    Attributes:
        model: of the same class; `save_pretrained` and stock `from_pretrained` do.
        layers: what became of each layer.
        refits: how what reads the heads was fitted again, by layer.
    """

    model: Any
    layers: tuple[Layer, ...]
    refits: tuple[Refit, ...]

    def __str__(self) -> str:
        text = self.model.config.get_text_config()
        worst = max(self.layers, key=lambda layer: layer.error)
        lines = [
            f"{text.num_key_value_heads} groups of keys and values in each of {len(self.layers)} layers, "
            f"{text.num_attention_heads} heads of queries as before",
            f"most is lost in {worst.name}: {worst.error / 2:.0%} of keys and values",
        ]
        return "\n".join(lines)


@entry(unchanged=True)
def merge_key_values(
    model: Any,
    groups: int,
    data: Iterable[Any],
    *,
    repair: bool = True,
    examples: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> MergedModel:
    """A transformers model with fewer groups of keys and values: a smaller cache, the same heads of queries.

    Groups are merged, not cut: one key serves several groups, and the queries of each are turned so that they read it
    as nearly as possible as their own; one value serves them, and what reads it is changed alike. Turns are complex
    numbers per pair of dimensions, which commute with rotary positions, so that the merged model is of the same class
    and its positions need no change. Which groups are merged with which is chosen layer by layer at the least loss. No
    label is needed.

    Args:
        model: as `from_pretrained` loads it, with `q_proj`, `k_proj`, `v_proj`, `o_proj`; it stays as it is.
        groups: of keys and values afterwards, a divisor of what there are.
        data: batches of inputs, as for `prune`.
        repair: fit what reads the heads again, layer by layer, to what the dense layer makes of the data.
        examples: so many are looked at, the first ones.
        seed: of loaders that shuffle.
        progress: show progress bars where there is a terminal.

    Returns:
        The smaller model, and what became of each layer.

    Raises:
        ConfigError: no transformers model, no such layers, or a number of groups that they can't have.
        DataError: no batch, or numbers that are not finite.
        SurgeryError: positions are read in a way that merged keys can't follow.

    Source: grouped-query attention (Ainslie et al., 2023) starts from the mean of the keys and values; what is merged
        here is the best in least squares, after each group has been turned towards the others.

    Example:
        >>> import prunus, transformers
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=4)
        >>> model = transformers.LlamaForCausalLM(config).eval()
        >>> batches = [{"input_ids": torch.randint(16, (8, 12))}]
        >>> prunus.merge_key_values(model, 2, batches).model.config.num_key_value_heads
        2
    """
    found = attentions(model)
    check_number(found, groups)
    loader = as_batches(data, model)
    with without_cache(model):
        batches = first_examples(model, loader, examples, seed)
        pairs = pairs_of(model, found, batches[0])
        moments = squares(model, found, pairs, batches, progress)
    tensors: dict[str, Tensor] = {}
    layers = []
    for attention, known in zip(found, moments, strict=True):
        layer, new = _merged(model, attention, known, pairs, groups)
        layers.append(layer)
        tensors |= new
    smaller = remade(model, groups, tensors)
    with without_cache(model), without_cache(smaller):
        refits = refit_readers_(smaller, model, found, batches, shares_of(batches, loader), progress) if repair else ()
    return MergedModel(smaller, tuple(layers), refits)


def _merged(
    model: Any, attention: Attention, known: Squares, pairs: Pairs, groups: int
) -> tuple[Layer, dict[str, Tensor]]:
    """What becomes of a layer, and its new weights by name."""
    q, k, v, o = attention.projections(model)
    size = attention.groups // groups

    def one(chosen: Set) -> Merged:
        return merged(attention, known, o.weight, chosen)

    sets = best_sets(attention.groups, size, lambda chosen: one(chosen).error)
    found = [one(chosen) for chosen in sets]
    heads = (attention.groups, attention.shared, attention.width)
    order = [g for chosen in sets for g in chosen]
    turns = torch.cat([f.queries for f in found])[:, None, :, None]

    def queries(tensor: Tensor) -> Tensor:
        parts = as_complex(tensor.reshape(*heads, -1)[order], pairs)
        return as_real(parts * turns, pairs).reshape(tensor.shape)

    def keys(tensor: Tensor) -> Tensor:
        parts = as_complex(tensor.reshape(attention.groups, attention.width, -1), pairs)
        new = [(parts[list(chosen)] * f.keys[..., None]).sum(0) for chosen, f in zip(sets, found, strict=True)]
        return as_real(torch.stack(new), pairs).reshape(-1, *tensor.shape[1:])

    def values(tensor: Tensor) -> Tensor:
        parts = tensor.double().reshape(attention.groups, attention.width, -1)
        new = [(f.values @ parts[list(chosen)]).sum(0) for chosen, f in zip(sets, found, strict=True)]
        return torch.stack(new).reshape(-1, *tensor.shape[1:])

    reads = torch.cat([f.reads for f in found])
    read = o.weight.double().reshape(-1, *heads)[:, order]
    new = {"o_proj.weight": torch.einsum("ogsw,gwv->ogsv", read, reads).reshape(o.weight.shape)}
    for name, linear, change in (("q_proj", q, queries), ("k_proj", k, keys), ("v_proj", v, values)):
        new |= {f"{name}.{n}": change(p.detach()) for n, p in linear.named_parameters()}
    error = sum(f.error for f in found) / len(found)
    return Layer(attention.name, tuple(sets), error), {f"{attention.name}.{n}": t for n, t in new.items()}
