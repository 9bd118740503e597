"""A language model's vocabulary cut to what texts use: rows of embedding and head go, the tokenizer is rewritten."""

from prunus.vocabulary.trim import trim_vocabulary
from prunus.vocabulary.trimmed import Trimmed

__all__ = ["Trimmed", "trim_vocabulary"]
