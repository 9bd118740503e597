"""The report of a run: one HTML file that needs no network, made from the run's folder alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from prunus.errors import ArtifactError, ConfigError
from prunus.files.atomic import StrPath, write_text
from prunus.formats.run import ARTIFACT, SUMMARY, RunFolder
from prunus.reports.folder import RunFiles, read_run
from prunus.reports.sections import sections_of
from prunus.runtime.entry import entry

REPORT = "report.html"


class Written(Protocol):
    """A result of `compress`, as far as its report looks at it."""

    @property
    def directory(self) -> Path | None:
        """The folder that was written."""


@entry()
def report(run: StrPath | Written, out: StrPath | None = None) -> Path:
    """Write the report of a run as one HTML file: what came out, how sure it is, what else could be had, and from what.

    Args:
        run: the folder that `compress` wrote, the artifact in it, or what `compress` returned. Nothing but the folder
            is read, and no model is loaded.
        out: the file to write; by default `report.html` in the folder of the run, which the next run there takes away.

    Returns:
        The file.

    Raises:
        ConfigError: there is no finished run, or no folder of it.
        ArtifactError: a file of the run is damaged, or the report can't be written.
        PlanError: the plan is damaged.

    Example:
        >>> from prunus.data import ArrayDataset, DataSource
        >>> part = ArrayDataset(torch.randn(64, 6), torch.arange(64) % 3)
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> quick = {"method": "l1", "target": 0.5, "progress": False, "run": prunus.RunSettings(modes=())}
        >>> done = prunus.compress(net, DataSource("random", part, part, part, 3), out="run", **quick)
        >>> prunus.report(done).name  # or prunus.report("run")
        'report.html'
    """
    place = run if isinstance(run, str | os.PathLike) else getattr(run, "directory", None)
    if place is None:
        raise ConfigError("run", "there is no folder to make a report of", "give one, or compress with out=DIR")
    found = read_run(place)
    text = page(found)
    return _kept_with(found, text) if out is None else write_text(out, text)


def _kept_with(run: RunFiles, text: str) -> Path:
    """The report in the artifact that it tells of, so that it goes when another run replaces that; where people look.

    Raises:
        ArtifactError: it can't be written, or another run has replaced the artifact.
    """
    folder = run.path.parent
    if run.path.name != ARTIFACT or not os.path.lexists(folder / SUMMARY):  # an artifact by itself
        return write_text(run.path / REPORT, text)
    told: list[str] = []
    RunFolder(folder, {"sha256": run.digests}, told.append).add(REPORT, text.encode())
    held = run.path / REPORT
    if told and not held.is_file():
        raise ArtifactError(str(held), told[0], "make the report again")
    return folder / REPORT if (folder / REPORT).is_symlink() else held


def page(run: RunFiles) -> str:
    """The page as text; texts of the run are escaped, and nothing in it is fetched from anywhere."""
    from jinja2 import Environment

    room = files("prunus.reports") / "page"

    def part(name: str) -> str:
        return (room / name).read_text(encoding="utf-8")

    sections = sections_of(run)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(part("page.html"))
    text = template.render(
        **sections.texts,
        data=embedded(sections.data),
        style=part("page.css"),
        script=part("page.js"),
        echarts=part("echarts.min.js"),
    )
    # Names of files that are no text hold what UTF-8 can't.
    return text.encode(errors="replace").decode()


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside of a script element: no character in it ends the element or begins a comment."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.translate({ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"})
