"""The tokenizer of a compressed language model, so that texts can be cut for its artifact."""

from __future__ import annotations

from pathlib import Path

from prunus.data.texts import TOKENIZER, load_tokenizer
from prunus.errors import ConfigError
from prunus.formats.pretrained import HUB
from prunus.formats.registry import Exportable, Exported, exporter


@exporter(
    TOKENIZER,
    file=TOKENIZER,
    help="the tokenizer of an hf: model, which text:FILE is cut by",
    suits=lambda subject: subject.data.startswith("text:") and subject.origin.startswith(HUB),
)
def write_tokenizer(subject: Exportable, path: Path) -> Exported:
    """A folder that `AutoTokenizer.from_pretrained` reads.

    Raises:
        ConfigError: the model does not come from transformers, or has no tokenizer.
    """
    if not subject.origin.startswith(HUB):
        raise ConfigError(f"export {TOKENIZER!r}", "the model is no hf: model", "leave it out")
    load_tokenizer(subject.origin.removeprefix(HUB)).save_pretrained(path)
    return Exported(path, None, "text:FILE is cut by it")
