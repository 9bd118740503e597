"""`prunus doctor`: what is installed, whether it fits, what this machine is good for."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from prunus.cli.terminal import show
from prunus.runtime.extras import EXTRAS
from prunus.runtime.installed import installed, machine, misfit


def doctor() -> dict[str, Any]:
    """Say what is installed, whether torch and torchvision fit, and what this machine is good for."""
    from prunus import __version__

    versions, wrong, here = installed(), misfit(), machine()
    extras = {extra: [name for name in names if versions[name] is None] for extra, names in EXTRAS.items()}
    table = Table(title=f"Prunus {__version__}", title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    for name, told in here.items():
        table.add_row(name, escape(told))
    core = ", ".join(f"{n} {v}" for n, v in versions.items() if v is not None and not _of_an_extra(n))
    table.add_row("installed", escape(core))
    for extra, missing in extras.items():
        there = ", ".join(f"{n} {versions[n]}" for n in EXTRAS[extra] if versions[n] is not None)
        lacks = f"[yellow]without {', '.join(missing)}[/yellow]: pip install 'prunus{escape(f'[{extra}]')}'"
        table.add_row(f"extra {extra}", f"{escape(there)} {lacks if missing else ''}".strip())
    fit = "no torchvision" if versions["torchvision"] is None else escape(wrong or "fit")
    table.add_row("torch and torchvision", fit)
    show(table)
    absent = {extra: names for extra, names in extras.items() if names}
    return {"prunus": __version__, "versions": versions, "missing": absent, "misfit": wrong, "machine": here}


def _of_an_extra(name: str) -> bool:
    return any(name in names for names in EXTRAS.values())
