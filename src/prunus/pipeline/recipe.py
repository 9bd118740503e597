"""A whole run as a text: what `prunus compress` is told, in YAML, read and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from prunus.errors import ConfigError, first_line
from prunus.files.atomic import StrPath, write_text

RECIPE = "recipe.yaml"
HEAD = "# What this run was made with. Again, from the same folder: prunus compress --recipe FILE --out DIR\n"
LISTS = ("load", "set", "repair", "recover", "allocate", "run")
"""Parts that are settings, NAME=VALUE each, or the one word none."""


@dataclass(frozen=True)
class Recipe:
    """What a run is told; every part is what the option of `prunus compress` of that name says.

    Attributes:
        model: spec of the trained model.
        data: spec of its data.
        weights: file with its state dict; empty where the model brings its weights.
        load: how the data are read.
        target: how much goes; empty for methods that decide it.
        method: what learns what stays.
        set: settings of the method.
        repair: settings of the repair; `("none",)` for none.
        recover: settings of the recovery; `("none",)` for none.
        allocate: settings of the allocation.
        allow: what is not open by default.
        ignore: globs of layers whose outputs stay.
        labels: `given` or `none`.
        export: exporters.
        run: how it is run.
        seed: of everything random.
        out: folder to write.
        prunus: version that wrote it.

    Example:
        >>> from prunus.pipeline.recipe import Recipe
        >>> recipe = Recipe("net.py:build", "digits", target="macs<=50%", recover=("epochs=3",))
        >>> Recipe.from_text(recipe.to_text()) == recipe
        True
    """

    model: str
    data: str
    weights: str = ""
    load: tuple[str, ...] = ()
    target: str = ""
    method: str = "dirichlet"
    set: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()
    recover: tuple[str, ...] = ()
    allocate: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    labels: str = "given"
    export: str = "auto"
    run: tuple[str, ...] = ()
    seed: int = 0
    out: str = "runs/compress"
    prunus: str = ""

    @classmethod
    def of(cls, parts: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """A recipe from a mapping, such as one read from YAML.

        Raises:
            ConfigError: an unknown part, a part of another kind, or neither model nor data.
        """
        known = {f.name: f for f in fields(cls)}
        found: dict[str, Any] = {}
        for name, value in parts.items():
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                fix = f"write {close[0]}" if close else f"the parts are {', '.join(known)}"
                raise ConfigError(where, f"it has a part {name!r}, which is unknown", fix)
            if value is not None:
                found[name] = _part(name, value, where)
        for name in ("model", "data"):
            if name not in found:
                raise ConfigError(where, f"it does not say which {name}", f"add the line {name}: ...")
        return cls(**found)

    @classmethod
    def from_text(cls, text: str, where: str = "recipe") -> Recipe:
        """A recipe from YAML. Raises ConfigError if it is none."""
        import yaml

        try:
            parts = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                where, f"it is no YAML: {' '.join(first_line(error).split())}", "mend the line"
            ) from error
        if not isinstance(parts, Mapping):
            fix = "write lines such as model: net.py:build, data: imagefolder:DIR"
            raise ConfigError(where, f"it holds a {type(parts).__name__}, not parts by name", fix)
        return cls.of(parts, where)

    @classmethod
    def load_file(cls, path: StrPath) -> Recipe:
        """A recipe from a file, or from the folder of a run. Raises ConfigError if there is none."""
        place = Path(path) / RECIPE if Path(path).is_dir() else Path(path)
        try:
            text = place.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fix = f"give a YAML file, or the folder of a run with its {RECIPE}"
            raise ConfigError(f"recipe {place}", f"cannot be read: {first_line(error)}", fix) from error
        return cls.from_text(text, f"recipe {place}")

    def to_text(self) -> str:
        """The recipe as YAML, without what is empty."""
        import yaml

        parts = {f.name: _plain(f.name, getattr(self, f.name)) for f in fields(self)}
        kept = {name: value for name, value in parts.items() if value not in ("", {}, [])}
        return HEAD + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)

    def save(self, path: StrPath) -> None:
        """Write the recipe. Raises ArtifactError if it can't be written."""
        write_text(path, self.to_text())

    def but(self, **parts: Any) -> Recipe:
        """The same with other parts; those that are None stay."""
        return replace(self, **{name: value for name, value in parts.items() if value is not None})


def _part(name: str, value: Any, where: str) -> Any:
    """A part of a recipe as the field that it is."""
    if name == "seed":
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{where}, seed", f"{value!r} is no whole number", "give for example 0")
        return value
    if name in LISTS:
        if isinstance(value, Mapping):
            return tuple(f"{setting}={_text(one)}" for setting, one in value.items())
        listed = [value] if isinstance(value, str) else value
        if isinstance(listed, Sequence) and all(isinstance(one, str) for one in listed):
            return tuple(listed)
        raise ConfigError(f"{where}, {name}", f"{value!r} are no settings", f"write {name}: {{NAME: VALUE}}, or none")
    if name in ("allow", "ignore"):
        listed = [one.strip() for one in value.split(",")] if isinstance(value, str) else value
        if isinstance(listed, Sequence) and all(isinstance(one, str) for one in listed):
            return tuple(one for one in listed if one)
        raise ConfigError(f"{where}, {name}", f"{value!r} are no names", f"write {name}: [NAME, NAME]")
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        if name == "target" and isinstance(value, Mapping):
            return ", ".join(f"{group}={_text(count)}" for group, count in value.items())
        raise ConfigError(f"{where}, {name}", f"{value!r} is no text", f"write {name}: TEXT")
    return _text(value)


def _text(value: Any) -> str:
    """A value of YAML as the text of a setting."""
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _plain(name: str, value: Any) -> Any:
    """A field as YAML shows it: settings by name, with numbers as numbers where they read back as the same text."""
    if name in LISTS:
        pairs = [one.partition("=") for one in value]
        if value and all(equals for _, equals, _ in pairs):
            return {setting: _number(one) for setting, _, one in pairs}
        return value[0] if len(value) == 1 else list(value)
    return list(value) if isinstance(value, tuple) else value


def _number(text: str) -> Any:
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            if str(kind(text)) == text:
                return kind(text)
        except ValueError:
            continue
    return text
