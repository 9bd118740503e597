"""A model and a tokenizer with a smaller vocabulary, and what is known of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunus.errors import ConfigError, ExportError, first_line
from prunus.files.atomic import StrPath, check_free, replacing
from prunus.proof.comparison import difference
from prunus.runtime.calling import outputs
from prunus.runtime.entry import entry
from prunus.runtime.extras import from_extra

KEPT = "kept_tokens.json"
"""File in a saved folder: ids of before, by ids of now, and the report."""


@dataclass(frozen=True)
class Report:
    """What a smaller vocabulary costs and saves.

    Attributes:
        rows: of the embedding, before and afterwards.
        parameters: of the model, before and afterwards.
        bytes: of its parameters, before and afterwards.
        merges: of a byte-pair tokenizer, before and afterwards.
        tokens: that the texts are cut into, before and afterwards.
        unknown: of those, the ones that stand for anything unknown.
        coverage: share of the texts' tokens of before that are still tokens.
        texts: how many were given.
        changed: how many of them are cut otherwise than before.
        compared: sequences on which the two models were compared.
        max_error: largest difference of their outputs for kept ids, relative to each channel's largest.
    """

    rows: tuple[int, int]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    merges: tuple[int, int]
    tokens: tuple[int, int]
    unknown: tuple[int, int]
    coverage: float
    texts: int
    changed: int
    compared: int
    max_error: float

    @property
    def exact(self) -> bool:
        """Whether every text is cut into the same tokens as before."""
        return self.changed == 0

    def __str__(self) -> str:
        lines = [
            f"vocabulary  {self.rows[0]:,} -> {self.rows[1]:,} rows ({self.rows[1] / self.rows[0]:.1%})",
            f"parameters  {self.parameters[0]:,} -> {self.parameters[1]:,} "
            f"({self.parameters[1] / self.parameters[0]:.1%}), {self.bytes[0] - self.bytes[1]:,} bytes less",
        ]
        if self.merges[0]:
            lines.append(f"merges      {self.merges[0]:,} -> {self.merges[1]:,}")
        if self.exact:
            lines.append(f"texts       all {self.texts:,} are cut into the same tokens, renumbered")
        else:
            lines.append(
                f"texts       {self.changed:,} of {self.texts:,} are cut otherwise: "
                f"{self.coverage:.2%} of their tokens stay; "
                f"{self.tokens[1] / self.tokens[0]:.3f} tokens for one before; "
                f"{self.unknown[1] - self.unknown[0]:,} more unknown"
            )
        lines.append(
            f"proof       outputs for kept ids = the dense model's to {self.max_error:.1e} "
            f"(of each channel), {self.compared:,} sequences"
        )
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Trimmed:
    """What `trim_vocabulary` returns.

    Attributes:
        model: of its own class, with fewer rows.
        tokenizer: of its own class, with fewer tokens.
        kept: ids of before, by ids of now.
        report: what it costs and saves.
        examples: sequences of ids of now on which the models were compared.
    """

    model: Any
    tokenizer: Any
    kept: tuple[int, ...]
    report: Report
    examples: tuple[Any, ...] = field(repr=False)

    def __str__(self) -> str:
        return str(self.report)

    def save(self, directory: StrPath, *, overwrite: bool = False) -> Path:
        """Write a folder that stock `from_pretrained` of model and tokenizer load; see `save_trimmed`."""
        return save_trimmed(self, directory, overwrite=overwrite)


@entry()
def save_trimmed(trimmed: Trimmed, directory: StrPath, *, overwrite: bool = False) -> Path:
    """Write model and tokenizer, load both as anybody would, and compare.

    Args:
        trimmed: of `trim_vocabulary`.
        directory: folder to write; it appears only after what was loaded did the same.
        overwrite: take the place of a folder that is there.

    Returns:
        The folder.

    Raises:
        ArtifactError: the folder exists, or can't be written.
        ExportError: what is loaded cuts texts otherwise, or computes something else.
    """
    target = check_free(directory, overwrite)
    with replacing(target) as folder:
        trimmed.model.save_pretrained(folder)
        trimmed.tokenizer.save_pretrained(folder)
        told = {"kept": list(trimmed.kept), "report": asdict(trimmed.report)}
        (folder / KEPT).write_text(json.dumps(told), encoding="utf-8")
        _check_loaded(trimmed, folder)
    return Path(directory)


def _check_loaded(trimmed: Trimmed, folder: Path) -> None:
    transformers = from_extra("transformers", "hf", "trim_vocabulary")
    try:
        model = type(trimmed.model).from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ExportError(str(folder), f"stock from_pretrained refuses it: {first_line(error)}", "report it") from error
    if tokenizer.get_vocab() != trimmed.tokenizer.get_vocab():
        raise ExportError(str(folder), "AutoTokenizer loads another vocabulary", "report the tokenizer")
    for row in trimmed.examples:
        text = trimmed.tokenizer.decode(row[0])
        if tokenizer(text)["input_ids"] != trimmed.tokenizer(text)["input_ids"]:
            what = f"AutoTokenizer loads a {type(tokenizer).__name__} that cuts texts otherwise"
            raise ExportError(str(folder), what, "report the tokenizer")
    more = {"decoder_input_ids"} if trimmed.model.config.is_encoder_decoder else set()
    rows = [{"input_ids": row, **dict.fromkeys(more, row)} for row in trimmed.examples]
    pairs = [[outputs(m, {k: v.to(m.device) for k, v in r.items()}) for r in rows] for m in (trimmed.model, model)]
    apart, tolerance = difference(*pairs)
    if not apart <= tolerance:
        raise ExportError(str(folder), f"the loaded model differs by {apart:.1e} (relative)", "report the model")


def check_numbers(min_count: int, size: int | None) -> None:
    """Raise ConfigError for counts that mean nothing."""
    if min_count < 1:
        raise ConfigError(f"min_count={min_count}", "tokens that no text has can't be asked for", "give 1 or more")
    if size is not None and size < 1:
        raise ConfigError(f"size={size}", "no vocabulary is that small", "give a number of tokens")
