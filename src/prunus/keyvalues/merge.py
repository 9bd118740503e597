"""`merge_key_values()`: fewer groups of keys and values in a model with grouped queries; every query head stays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunus.data.batches import as_batches
from prunus.keyvalues.attentions import attentions, check_number, remade
from prunus.keyvalues.pairs import pairs_of
from prunus.keyvalues.refitting import refitted
from prunus.keyvalues.squares import squares
from prunus.keyvalues.ways import Way, shared_out
from prunus.refit.calibration import first_examples
from prunus.refit.config import RepairConfig
from prunus.refit.told import Refit
from prunus.runtime.entry import entry
from prunus.runtime.modes import without_cache


@dataclass(frozen=True, eq=False)
class MergedModel:
    """A model with fewer groups of keys and values.

    Attributes:
        model: of the same class; `save_pretrained` and stock `from_pretrained` do.
        ways: how the groups of each layer were shared out, and what is lost of keys and values.
        refits: how layers were fitted to what came of it.
    """

    model: Any
    ways: tuple[Way, ...]
    refits: tuple[Refit, ...]

    def __str__(self) -> str:
        text = self.model.config.get_text_config()
        worst = max(self.ways, key=lambda way: way.error)
        lines = [
            f"{text.num_key_value_heads} groups of keys and values in each of {len(self.ways)} layers, "
            f"{text.num_attention_heads} heads of queries as before",
            f"most is lost in {worst.attention.name}: {worst.error / 2:.0%} of keys and values",
        ]
        return "\n".join(lines)


@entry(unchanged=True)
def merge_key_values(
    model: Any,
    groups: int,
    data: Iterable[Any],
    *,
    repair: bool | RepairConfig = True,
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
        repair: fit all other layers to what the dense network makes of the data, in order, in closed form; how, and how
            many examples are looked at.
        seed: of loaders that shuffle, and of the rows that are looked at.
        progress: show progress bars where there is a terminal.

    Returns:
        The smaller model, how groups were shared out, and what repair won back.

    Raises:
        ConfigError: no transformers model, no such layers, or a number of groups that they can't have.
        DataError: no batch, or numbers that are not finite.
        SurgeryError: positions are read in a way that merged keys can't follow.
        TraceError: the model can't be run operation by operation, which repair needs.

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
    config = repair if isinstance(repair, RepairConfig) else RepairConfig()
    loader = as_batches(data, model)
    with without_cache(model):
        batches = first_examples(model, loader, config.examples, seed)
        pairs = pairs_of(model, found, batches[0])
        moments = squares(model, found, pairs, batches, progress)
        ways = [shared_out(a, known, model, groups) for a, known in zip(found, moments, strict=True)]
        old: dict[str, Tensor] = dict(model.named_parameters())
        new: dict[str, Tensor] = {}
        refits: tuple[Refit, ...] = ()
        if repair:
            given = {n: t.to(old[n]) for way in ways for n, t in way.as_before(old, pairs).items()}
            new, refits = refitted(model, given, batches[0], loader, config, seed, progress)
            new = {n: t for n, t in new.items() if n not in given}
    for way in ways:
        new |= way.as_merged({**old, **new}, pairs)
    return MergedModel(remade(model, groups, new), tuple(ways), refits)
