"""Which other tokens a tokenizer needs so that the tokens to keep come out of a text as before, by kind of tokenizer.

A text is cut as before if every step that the tokenizer took on it can be taken again and none is new. No step is new,
since tokens and merges only go. So what is needed are the steps: for byte-pair encoding the merges on the way to a
token, for WordPiece the longest matches, for a unigram model the best path, which stays the best of fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from prunus.errors import ConfigError

Needed = Callable[[Mapping[str, Any], set[str], set[str]], set[str]]
Merges = Mapping[tuple[str, str], int]


def merges_of(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a byte-pair model in their order; older files hold them as one text with a space."""
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return [(one, other) for one, other in pairs]


def merged(model: Mapping[str, Any], one: str, other: str) -> str:
    """The token that a merge makes: inside words the second one loses its prefix."""
    return one + other.removeprefix(model.get("continuing_subword_prefix") or "")


def merge_path(model: Mapping[str, Any], ranks: Merges, token: str) -> list[str]:
    """Every symbol on the way to a token, characters first; empty if merges don't lead to it."""
    symbols = _first_symbols(model, token)
    path = list(symbols)
    while len(symbols) > 1:
        pairs = list(pairwise(symbols))
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        if pairs[best] not in ranks:
            return []
        symbols[best : best + 2] = [merged(model, *pairs[best])]
        path.append(symbols[best])
    return path if symbols == [token] else []


def _first_symbols(model: Mapping[str, Any], token: str) -> list[str]:
    """The characters that a token is merged from, marked as inside or at the end of a word as the token is."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    inside = bool(prefix) and token.startswith(prefix) and token != prefix
    ends = bool(suffix) and token.endswith(suffix) and token != suffix
    text = token.removeprefix(prefix) if inside else token
    text = text.removesuffix(suffix) if ends else text
    symbols = [c if i == 0 and not inside else prefix + c for i, c in enumerate(text)]
    return [*symbols[:-1], symbols[-1] + suffix] if ends else symbols


def _of_merges(model: Mapping[str, Any], tokens: set[str], kept: set[str]) -> set[str]:
    ranks = {pair: rank for rank, pair in enumerate(merges_of(model))}
    return {symbol for token in kept for symbol in merge_path(model, ranks, token) if symbol in tokens}


def _of_words(model: Mapping[str, Any], tokens: set[str], kept: set[str]) -> set[str]:
    prefix = model.get("continuing_subword_prefix") or ""
    letters = {c for token in kept for c in token.removeprefix(prefix)}
    return {spelled for c in letters for spelled in (c, prefix + c) if spelled in tokens}


def _of_paths(model: Mapping[str, Any], tokens: set[str], kept: set[str]) -> set[str]:
    # What is unknown costs a little more than the least probable token: that one stays, so that the price does.
    least = min(model["vocab"], key=lambda entry: entry[1])[0]
    unknown = model.get("unk_id")
    named = set() if unknown is None else {model["vocab"][unknown][0]}
    return {least, *named, *({c for token in kept for c in token} & tokens)}


def _of_nothing(model: Mapping[str, Any], tokens: set[str], kept: set[str]) -> set[str]:
    return set()


KINDS: dict[str, Needed] = {
    "BPE": _of_merges, "WordPiece": _of_words, "Unigram": _of_paths, "WordLevel": _of_nothing,
}  # fmt: skip
"""Kind of tokenizer -> (its model, all its tokens, what is to be kept) -> what else has to be."""


def needed(model: Mapping[str, Any], tokens: set[str], kept: set[str]) -> set[str]:
    """Tokens that have to stay along with those to keep.

    Letters that occur in kept tokens stay as tokens of their own, where they were: new words can still be spelled.

    Args:
        model: the part `model` of a `tokenizer.json`, of a kind in `KINDS`.
        tokens: all tokens that the model knows.
        kept: those to keep.

    Returns:
        The tokens, some of `kept` among them.
    """
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)} if model.get("byte_fallback") else set()
    unknown = {model["unk_token"]} if model.get("unk_token") else set()
    return ((bytes_ | unknown) & tokens) | KINDS[model["type"]](model, tokens, kept)


def greedy(model: Mapping[str, Any], tokens: set[str], word: str) -> Iterator[str]:
    """The tokens that WordPiece takes from the front of a word until nothing matches."""
    prefix, start = model.get("continuing_subword_prefix") or "", 0
    while start < len(word):
        lead = prefix if start else ""
        end = next((e for e in range(len(word), start, -1) if lead + word[start:e] in tokens), None)
        if end is None:
            return
        yield lead + word[start:end]
        start = end


def check_kind(model: Mapping[str, Any], name: str) -> None:
    """Raise ConfigError for a kind of tokenizer whose tokens can't be told apart from each other's needs."""
    kind = model.get("type")
    if kind not in KINDS:
        fix = f"use a tokenizer of one of the kinds {', '.join(KINDS)}"
        raise ConfigError(name, f"its tokenizer.json holds a model of the kind {kind!r}", fix)
    if model.get("dropout"):
        what = f"it leaves out merges at random (dropout={model['dropout']}): a text has no one way to be cut"
        raise ConfigError(name, what, "load it without dropout")
