"""The hooks of mkdocs: pages that are made from the sources at build, and links that lead to them.

Nothing that stands elsewhere is written again: the front page is the README, a method's page is its card, the
reference is the docstrings of public names, an example's page is its file. CONTRIBUTING and its like are pages too.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import cards
import reference

ROOT = Path(__file__).parents[1]
ABOVE = {name: f"{name.lower()}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")} | {"README": "index.md"}
"""Documents of the root of the repository -> the pages that they become."""
FOLDERS = ("EXAMPLES", "METHODS", "REFERENCE")
"""Entries of the navigation that stand for all pages of a folder that are made."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def examples() -> dict[str, str]:
    """Page -> text, one for each example: what its docstring says, and the file."""
    pages = {}
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text()
        title = path.stem.replace("_", " ").capitalize()
        pages[f"examples/{path.stem}.md"] = f"# {title}\n\n`examples/{path.name}`\n\n```python\n{text}```\n"
    return pages


def made() -> dict[str, str]:
    """Page -> text, of all pages that no file in docs/ holds."""
    above = {page: (ROOT / f"{name}.md").read_text() for name, page in ABOVE.items()}
    return {**above, **examples(), **cards.pages(), **reference.pages()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The lists of pages that are made stand in the navigation where it names their folder in capitals."""

    pages = made()

    def filled(entry: Any) -> Any:
        if isinstance(entry, list):
            return [f for e in entry for f in (filled(e) if e in FOLDERS else [filled(e)])]
        if isinstance(entry, dict):
            return {title: filled(inner) for title, inner in entry.items()}
        return [page for page in pages if page.startswith(f"{entry.lower()}/")] if entry in FOLDERS else entry

    config.nav = filled(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for page, text in made().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are written for the repository, made into links between pages."""
    written = page.file.src_uri
    source = {page: f"{name}.md" for name, page in ABOVE.items()}.get(written, f"docs/{written}")

    def led(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if not (ROOT / target).exists() and files.get_file_from_path(target.removeprefix("docs/")) is None:
            raise PluginError(f"{source} links to {match[1]}, which isn't there")
        inside = ABOVE.get(target.removesuffix(".md"), target.removeprefix("docs/"))
        if re.fullmatch(r"examples/\w+\.py", target):
            inside = f"{target.removesuffix('.py')}.md"
        return posixpath.relpath(inside, posixpath.dirname(written) or ".")

    pieces, end = [], 0
    for code in CODE.finditer(markdown):
        pieces += [LINK.sub(led, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, LINK.sub(led, markdown[end:])])
