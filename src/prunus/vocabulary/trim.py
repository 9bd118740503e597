"""Vocabulary trimming: what texts never use goes from embedding, head and tokenizer, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from prunus.errors import ConfigError, DataError, SurgeryError
from prunus.runtime.entry import entry
from prunus.vocabulary.choice import chosen
from prunus.vocabulary.identifiers import named
from prunus.vocabulary.proof import dense_outputs, largest_error, sequences
from prunus.vocabulary.rewriting import Numbers, fewer, rewritten
from prunus.vocabulary.rows import check_model, without_rows
from prunus.vocabulary.tokens import Tokens, count, cut, passed, tokens_of
from prunus.vocabulary.trimmed import Report, Trimmed, check_numbers


@entry(unchanged=True)
def trim_vocabulary(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[str] | str,
    *,
    keep: Iterable[str] = (),
    min_count: int = 1,
    size: int | None = None,
    examples: int = 16,
) -> Trimmed:
    """A transformers model and its tokenizer with the part of the vocabulary that texts use.

    Every one of the texts is cut into the same tokens as before, with other numbers, and the outputs for kept tokens
    are the same, which is shown for some sequences before anything is returned. With `min_count` or `size` rarer tokens
    go too, their texts are cut into smaller pieces, and the report says how many.

    Special and added tokens, bytes that anything can be spelled with, ids in the configurations, and letters that occur
    in kept tokens stay.

    Args:
        model: as `from_pretrained` loads it; it stays as it is.
        tokenizer: its tokenizer, with a `tokenizer.json` (byte-pair encoding, WordPiece, unigram, words).
        texts: what the smaller model will read and write; all of it is held in memory.
        keep: tokens that stay, and texts whose tokens stay, however rare.
        min_count: tokens that the texts have less often go.
        size: at most so many tokens stay, the most frequent ones.
        examples: sequences of at most 128 tokens on which the two models are compared.

    Returns:
        Model, tokenizer, which ids stayed, and the report.

    Raises:
        ConfigError: no transformers model; a vocabulary that is read in unknown ways; a tokenizer without
            `tokenizer.json`, or one with tokens that the model has no rows for; a size that is too small.
        DataError: no text.
        SurgeryError: texts are cut otherwise, or outputs differ, though they should not; nothing has changed.
        MissingDependencyError: transformers is not installed.

    Example:
        >>> import prunus, transformers
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "plum": 2, "cherry": 3}, unk_token="<unk>"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...     bos_token_id=0, eos_token_id=0)
        >>> trimmed = prunus.trim_vocabulary(transformers.LlamaForCausalLM(config), tokenizer, ["a plum", "plum a"])
        >>> trimmed.report.rows, trimmed.report.exact, trimmed.tokenizer("a plum")["input_ids"]
        ((4, 3), True, [1, 2])
    """
    check_numbers(min_count, size)
    rows, tokens = check_model(model), tokens_of(tokenizer)
    beyond = next((t for t, i in sorted(tokens.ids.items(), key=lambda e: e[1]) if i >= rows), None)
    if beyond is not None:
        what = f"{beyond!r} has the id {tokens.ids[beyond]}, the model has {rows} rows"
        raise ConfigError(tokens.name, what, "model.resize_token_embeddings(len(tokenizer)) gives it one")
    given = _texts(texts)
    old = cut(tokens, given)
    counted = count(old)
    if not counted:
        raise DataError("texts", f"{len(given)} texts have no token", "give texts that the model will read")
    always = tokens.fixed() | named(model, rows) | set(tokenizer.all_special_ids) | passed(tokens, given, old)
    always |= _asked(tokens, list(keep))
    kept = chosen(tokens, counted, always, min_count=min_count, size=size)
    numbers = {old: new for new, old in enumerate(kept)}
    smaller_tokenizer = rewritten(tokenizer, fewer(tokens, numbers), numbers)
    after = tokens_of(smaller_tokenizer)
    new = cut(after, given)
    changed = _changed(given, old, new, numbers)
    if changed and min_count == 1 and size is None:
        what = f"without the tokens that no text uses it cuts {changed[0][:60]!r} otherwise"
        raise SurgeryError(tokens.name, what, "report the tokenizer")
    ids = sequences(model, new, kept, examples)
    dense = dense_outputs(model, ids)
    smaller = without_rows(model, numbers, rows)
    error = largest_error(smaller, dense, ids, numbers, rows)
    again = count(new)
    report = Report(
        (rows, len(kept)),
        (_parameters(model), _parameters(smaller)),
        (_bytes(model), _bytes(smaller)),
        (len(tokens.data["model"].get("merges", ())), len(after.data["model"].get("merges", ()))),
        (counted.total(), again.total()),
        (_unknown(tokens, counted), _unknown(after, again)),
        sum(times for i, times in counted.items() if i in numbers) / counted.total(),
        len(given),
        len(changed),
        len(ids),
        error,
    )
    table = torch.full((rows,), -1, device="cpu")
    table[torch.tensor(kept, device="cpu")] = torch.arange(len(kept), device="cpu")
    return Trimmed(smaller, smaller_tokenizer, tuple(kept), report, tuple(table[row.cpu()] for row in ids))


def _texts(texts: Iterable[str] | str) -> list[str]:
    given = [texts] if isinstance(texts, str) else list(texts)
    odd = next((t for t in given if not isinstance(t, str)), None)
    if odd is not None:
        raise DataError("texts", f"a {type(odd).__name__} is no text", "give strings")
    return given


def _asked(tokens: Tokens, keep: Sequence[str]) -> set[int]:
    """Ids of the tokens that are asked for, and of those that the texts are cut into."""
    ids = cut(tokens, keep)
    return {tokens.ids[t] for t in keep if t in tokens.ids} | set(count(ids)) | passed(tokens, keep, ids)


def _changed(
    texts: Sequence[str], old: Sequence[Sequence[int]], new: Sequence[Sequence[int]], numbers: Numbers
) -> list[str]:
    """The texts that are cut otherwise than before."""
    rows = zip(texts, old, new, strict=True)
    return [text for text, before, after in rows if [numbers.get(i, -1) for i in before] != list(after)]


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _unknown(tokens: Tokens, counted: Any) -> int:
    return 0 if tokens.unknown is None else int(counted[tokens.unknown])
