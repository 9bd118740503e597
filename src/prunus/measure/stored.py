"""Tables of layer costs on the disk: one file for each machine, runtime and number of threads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from prunus.errors import ConfigError
from prunus.files.atomic import write_text
from prunus.files.decoding import Malformed, decode, parse_json
from prunus.files.jsontext import strict_json
from prunus.measure.runtimes import version_of
from prunus.plan.layercosts import LayerCosts
from prunus.plan.setup import Setup
from prunus.runtime.processor import processor_name

PLACE = "PRUNUS_TABLES"
"""Names another folder than `~/.cache/prunus/layers`, for a table that travels."""


@dataclass(frozen=True)
class Stored:
    """A file of layer costs.

    Attributes:
        name: machine, runtime and threads, in words.
        path: the file.
    """

    name: str
    path: Path

    @classmethod
    def of(cls, setup: Setup, device: torch.device) -> Stored:
        """The file for a setup on this machine."""
        runtime = "eager" if setup.runtime == "compiled" else setup.runtime
        where = torch.cuda.get_device_name(device) if device.type == "cuda" and runtime == "eager" else processor_name()
        name = f"{where}, {version_of(runtime)}, {setup.threads} thread{'s' * (setup.threads > 1)}"
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = os.environ.get(PLACE) or Path(home) / "prunus" / "layers"
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[:120]
        return cls(name, Path(folder) / f"{plain}.json")

    def read(self) -> dict[str, LayerCosts]:
        """Costs by layer; none if there is no file.

        Raises:
            ConfigError: the file is damaged.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(str(self.path), f"cannot be read: {error}", "remove it; it is made again") from error
        try:
            found: dict[str, LayerCosts] = decode(dict[str, LayerCosts], parse_json(text), "table")
        except Malformed as error:
            raise ConfigError(str(self.path), f"no table: {error}", "remove it; it is made again") from error
        return found

    def add(self, costs: Mapping[str, LayerCosts]) -> None:
        """Write further layers to what is there now.

        Raises:
            ArtifactError: the file can't be written.
        """
        merged = {**self.read(), **costs}
        plain = {key: asdict(merged[key]) for key in sorted(merged)}
        write_text(self.path, strict_json(plain, "table"))
