"""`prunus trim`: a language model with the part of its vocabulary that texts use."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.terminal import say
from prunus.data.texts import load_tokenizer, plain_text
from prunus.errors import ConfigError
from prunus.files.atomic import check_free, check_writable
from prunus.models.huggingface import load_pretrained
from prunus.vocabulary.trim import trim_vocabulary
from prunus.vocabulary.trimmed import KEPT, check_numbers

HUB, TEXT = "hf:", "text:"


def trim_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="hf:NAME_OR_DIR, with its tokenizer")],
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="DATA", help="text:FILE that the model will read and write; may be given again"),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder to write")],
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="TEXT", help="a token, or words whose tokens stay; may be given again"),
    ] = None,
    min_count: Annotated[
        int, typer.Option("--min-count", metavar="N", min=1, help="tokens that the texts have less often go")
    ] = 1,
    size: Annotated[
        int | None, typer.Option("--size", metavar="N", min=1, help="at most so many tokens stay, the most frequent")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a folder that is there")] = False,
) -> dict[str, Any]:
    """Cut a language model's vocabulary, and its tokenizer, to what texts use."""
    if not model.startswith(HUB):
        raise ConfigError(f"model {model!r}", "only transformers models bring a tokenizer", "give hf:NAME_OR_DIR")
    check_numbers(min_count, size)
    counting = min_count > 1 or size is not None
    texts = [text for spec in data for text in _texts(spec, counting)]
    check_free(out, force)
    check_writable(out.parent)
    tokenizer = load_tokenizer(model.removeprefix(HUB))
    network, _ = load_pretrained(model.removeprefix(HUB))
    trimmed = trim_vocabulary(network, tokenizer, texts, keep=keep or (), min_count=min_count, size=size)
    trimmed.save(out, overwrite=force)
    say(str(trimmed))
    say(f"written to {out}: from_pretrained reads it, for model and tokenizer; {KEPT} says which ids stayed")
    return {"directory": str(out), "exact": trimmed.report.exact, **asdict(trimmed.report)}


def _texts(spec: str, counting: bool) -> list[str]:
    """A file as a whole, as `text:FILE` learns from it; and each of its lines, unless tokens would count twice."""
    if not spec.startswith(TEXT):
        raise ConfigError(f"data {spec!r}", "a vocabulary is counted in plain text", "give text:FILE")
    whole = plain_text(Path(spec.removeprefix(TEXT)))
    return [whole] if counting else [whole, *whole.splitlines()]
