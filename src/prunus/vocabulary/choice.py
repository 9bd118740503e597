"""Which tokens stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from prunus.errors import ConfigError
from prunus.vocabulary.pieces import needed
from prunus.vocabulary.tokens import Tokens


def chosen(
    tokens: Tokens, counted: Counter[int], always: Collection[int], *, min_count: int, size: int | None
) -> list[int]:
    """Ids that stay, in order.

    Args:
        tokens: the tokenizer.
        counted: how often the texts have each id.
        always: ids that stay in any case.
        min_count: tokens that the texts have less often go.
        size: at most so many stay; None for as many as the texts need.

    Raises:
        ConfigError: more than `size` have to stay in any case.
    """
    wanted = [i for i, times in sorted(counted.items(), key=lambda c: (-c[1], c[0])) if times >= min_count]
    if size is None:
        return sorted(_closed(tokens, {*always, *wanted}))
    # One more wanted token never needs fewer others, so that the most that fit are found by halving.
    least, most = 0, len(wanted)
    if len(_closed(tokens, set(always))) > size:
        what = f"{len(_closed(tokens, set(always)))} tokens stay in any case: special ones, bytes and what `keep` names"
        raise ConfigError(f"size={size}", what, "allow more")
    while least < most:
        middle = (least + most + 1) // 2
        fits = len(_closed(tokens, {*always, *wanted[:middle]})) <= size
        least, most = (middle, most) if fits else (least, middle - 1)
    return sorted(_closed(tokens, {*always, *wanted[:least]}))


def _closed(tokens: Tokens, ids: set[int]) -> set[int]:
    """The ids with all that the tokenizer needs to make them."""
    kept = {tokens.texts[i] for i in ids if i in tokens.texts} & tokens.of_model
    kept |= tokens.alphabet()
    return ids | {tokens.ids[t] for t in kept | needed(tokens.data["model"], tokens.of_model, kept)}
