"""A tokenizer with fewer tokens: its `tokenizer.json` with what stays, renumbered, loaded by its own class."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunus.errors import SurgeryError, first_line
from prunus.vocabulary.pieces import merged, merges_of
from prunus.vocabulary.tokens import Tokens

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
Numbers = Mapping[int, int]
"""Id before -> id afterwards, of what stays."""


def fewer(tokens: Tokens, numbers: Numbers) -> dict[str, Any]:
    """The contents of the smaller `tokenizer.json`; ids keep their order."""
    data = copy.deepcopy(tokens.data)
    model, stays = data["model"], {t: numbers[i] for t, i in tokens.ids.items() if i in numbers}
    if isinstance(model["vocab"], list):
        if model.get("unk_id") is not None:
            model["unk_id"] = numbers[model["unk_id"]]
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in stays]
    else:
        model["vocab"] = {token: stays[token] for token in model["vocab"] if token in stays}
    if "merges" in model:
        words = model["vocab"]
        pairs = [p for p in merges_of(model) if p[0] in words and p[1] in words and merged(model, *p) in words]
        model["merges"] = [list(p) for p in pairs]
    for token in data.get("added_tokens", ()):
        token["id"] = numbers[token["id"]]
    if data.get("padding"):
        data["padding"]["pad_id"] = numbers[data["padding"]["pad_id"]]
    data["post_processor"] = _renumbered(data.get("post_processor"), numbers)
    return data


def _renumbered(processor: Any, numbers: Numbers) -> Any:
    if isinstance(processor, list):
        return [_renumbered(part, numbers) for part in processor]
    if not isinstance(processor, dict):
        return processor
    done: dict[str, Any] = {}
    for key, value in processor.items():
        if key == "ids":
            done[key] = [numbers[number] for number in value]
        elif key in ("sep", "cls"):
            done[key] = [value[0], numbers[value[1]]]
        else:
            done[key] = _renumbered(value, numbers)
    return done


def rewritten(tokenizer: Any, data: Mapping[str, Any], numbers: Numbers) -> Any:
    """The tokenizer as its own class loads it from a folder with the smaller `tokenizer.json`.

    Raises:
        SurgeryError: the class can't load it.
    """
    with tempfile.TemporaryDirectory(prefix="prunus-") as place:
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        for path in folder.iterdir():
            if path.name not in (FILE, SETTINGS) and path.suffix != ".jinja":
                path.unlink()  # vocabularies in other forms, which would still be the whole one
        (folder / FILE).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        added = settings.get("added_tokens_decoder")
        if added:
            settings["added_tokens_decoder"] = {str(numbers[int(i)]): t for i, t in added.items() if int(i) in numbers}
        (folder / SETTINGS).write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
        try:
            return type(tokenizer).from_pretrained(folder)
        except Exception as error:
            what = f"it can't load its smaller tokenizer.json: {first_line(error)}"
            raise SurgeryError(f"tokenizer {type(tokenizer).__name__}", what, "report the tokenizer") from error
