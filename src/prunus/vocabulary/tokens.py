"""A tokenizer as plain data: its `tokenizer.json`, and the texts that it cuts."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from prunus.errors import ConfigError
from prunus.runtime.extras import from_extra
from prunus.vocabulary.pieces import check_kind, greedy

BATCH = 512


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a `tokenizer.json` says.

    Attributes:
        name: class of the tokenizer, for refusals.
        data: the file's contents.
        ids: token -> id, added tokens too.
    """

    name: str
    data: dict[str, Any]
    ids: dict[str, int]

    @cached_property
    def of_model(self) -> set[str]:
        """Tokens of the model inside, without those that were only added."""
        vocabulary = self.data["model"]["vocab"]
        return {entry[0] for entry in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)

    @cached_property
    def texts(self) -> dict[int, str]:
        """Id -> token."""
        return {number: token for token, number in self.ids.items()}

    @cached_property
    def unknown(self) -> int | None:
        """The id of what stands for anything unknown."""
        model = self.data["model"]
        return model.get("unk_id") if "unk_id" in model else self.ids.get(model.get("unk_token") or "")

    def alphabet(self) -> set[str]:
        """The characters that stand for bytes, if the tokenizer cuts bytes."""
        if not any(_named(self.data.get(part), "ByteLevel") for part in ("normalizer", "pre_tokenizer")):
            return set()
        tokenizers = from_extra("tokenizers", "hf", self.name)
        return set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) & self.of_model

    def fixed(self) -> set[int]:
        """Ids that stay whatever the texts: added tokens, and those that the post-processor puts around a text."""
        added = {token["id"] for token in self.data.get("added_tokens", ())}
        return added | set(processor_ids(self.data.get("post_processor"))) | set(padding_ids(self.data))

    def backend(self) -> Any:
        """A `tokenizers.Tokenizer` that neither truncates nor pads."""
        tokenizers = from_extra("tokenizers", "hf", self.name)
        made = tokenizers.Tokenizer.from_str(json.dumps(self.data))
        made.no_truncation()
        made.no_padding()
        return made


def tokens_of(tokenizer: Any) -> Tokens:
    """The data of a transformers tokenizer.

    Raises:
        ConfigError: it has no `tokenizer.json`, or one of an unknown kind.
    """
    name, backend = type(tokenizer).__name__, getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        what = "it has no tokenizer.json to rewrite: it is cut by code of its own"
        raise ConfigError(f"tokenizer {name}", what, "load the fast tokenizer (use_fast=True), or convert it to one")
    data = json.loads(backend.to_str())
    check_kind(data["model"], f"tokenizer {name}")
    return Tokens(f"tokenizer {name}", data, backend.get_vocab(with_added_tokens=True))


def cut(tokens: Tokens, texts: Sequence[str]) -> list[array[int]]:
    """The ids of every text, with the tokens that the post-processor puts around it."""
    backend = tokens.backend()
    found: list[array[int]] = []
    for start in range(0, len(texts), BATCH):
        found += [array("i", e.ids) for e in backend.encode_batch_fast(list(texts[start : start + BATCH]))]
    return found


def count(ids: Iterable[Iterable[int]]) -> Counter[int]:
    """How often each id is there."""
    return Counter(chain.from_iterable(ids))


def passed(tokens: Tokens, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> set[int]:
    """Ids that WordPiece took on the way to finding a word unknown: without them it might find its way.

    Args:
        tokens: the tokenizer.
        texts: what it cuts.
        ids: what it makes of them, see `cut`.
    """
    model = tokens.data["model"]
    if model["type"] != "WordPiece" or tokens.unknown is None:
        return set()
    backend, words = tokens.backend(), set[str]()
    for text, made in zip(texts, ids, strict=True):
        if tokens.unknown in made:
            found = backend.encode(text)
            spans = [span for number, span in zip(found.ids, found.offsets, strict=True) if number == tokens.unknown]
            words |= {text[start:end] for start, end in spans}
    normal = [backend.normalizer.normalize_str(w) if backend.normalizer is not None else w for w in sorted(words)]
    return {tokens.ids[piece] for word in normal for piece in greedy(model, tokens.of_model, word)}


def processor_ids(processor: Any) -> Iterator[int]:
    """Every id in a post-processor."""
    if isinstance(processor, list):
        for part in processor:
            yield from processor_ids(part)
    elif isinstance(processor, dict):
        for key, value in processor.items():
            if key == "ids":
                yield from value
            elif key in ("sep", "cls"):
                yield value[1]
            elif isinstance(value, dict | list):
                yield from processor_ids(value)


def padding_ids(data: dict[str, Any]) -> Iterator[int]:
    """The id that the tokenizer pads with, if it does."""
    if data.get("padding"):
        yield data["padding"]["pad_id"]


def _named(part: Any, kind: str) -> bool:
    if isinstance(part, list):
        return any(_named(p, kind) for p in part)
    return isinstance(part, dict) and (part.get("type") == kind or any(_named(v, kind) for v in part.values()))
