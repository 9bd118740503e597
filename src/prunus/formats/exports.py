"""What a run leaves for other tools: the exporters that were asked for, or that suit the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunus.errors import ConfigError, PruneError
from prunus.formats.registry import EXPORTERS, Exportable, Exporter
from prunus.formats.run import RunFolder
from prunus.models.registry import import_all

import_all("prunus.formats")


@dataclass(frozen=True)
class Choice:
    """Which exporters a run uses.

    Attributes:
        asked: those that must work.
        auto: besides, all that suit the model and can work here.
        without: names of those that are left out.
    """

    asked: tuple[Exporter, ...] = ()
    auto: bool = True
    without: frozenset[str] = frozenset()

    def of(self, subject: Exportable) -> list[Exporter]:
        """The exporters for a model."""
        suiting = [e for e in EXPORTERS.values() if self.auto and e.suits(subject)]
        return [e for e in dict.fromkeys((*self.asked, *suiting)) if e.name not in self.without]


def chosen(names: Sequence[str]) -> Choice:
    """Exporters by name; to be called before any work.

    Args:
        names: of exporters; `no-NAME` leaves one out, `auto` (as no name at all) takes all that suit the model, `none`
            takes none.

    Raises:
        ConfigError: an unknown name.
        MissingDependencyError: a package that one of them needs is not installed.
    """
    left_out = {name.removeprefix("no-") for name in names if name.startswith("no-")}
    asked = [name for name in names if not name.startswith("no-") and name not in ("auto", "none")]
    for name in (*asked, *left_out):
        if name not in EXPORTERS:
            what, fix = "there is none of that name", f"use some of {', '.join(EXPORTERS)}, auto or none"
            raise ConfigError(f"export {name!r}", what, fix)
    if both := left_out & {*asked}:
        raise ConfigError(f"export {', '.join(sorted(both))}", "it is asked for and left out", "say one of the two")
    for name in asked:
        EXPORTERS[name].check()
    auto = "auto" in names or not (asked or "none" in names)
    return Choice(tuple(EXPORTERS[name] for name in asked), auto, frozenset(left_out))


def add_exports(saved: RunFolder, subject: Exportable, choice: Choice, say: Callable[[str], None]) -> PruneError | None:
    """Add files to a saved run.

    Args:
        saved: the run's folder.
        subject: its model.
        choice: which.
        say: receives a line about each.

    Returns:
        The first refusal of one that was asked for. One that nobody asked for is only said.
    """
    failed = None
    with saved.standing():
        for each in choice.of(subject):
            try:
                each.check()
                with saved.adding(each.file) as temporary:
                    done = each.write(subject, temporary)
                say(f"{each.file}: {done.note}")
            except PruneError as error:
                say(f"no {each.file}: {error.what}; {error.fix}")
                failed = failed or (error if each in choice.asked else None)
    return failed
