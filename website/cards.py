"""A page for every method, made from its card: the docstring of its module, and that of its class.

Sources are read, not imported. A card's lines at the margin are headings where indented lines follow them.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "src" / "prunus" / "methods"
BEFORE = "Every method, and what its card says first. Which to take, and when: [choosing.md](../choosing.md)."
KINDS = """A kind says what a method looks at: weights alone (`WeightCriterion`), gradients at gates
(`GradientCriterion`), a posterior that is learned (`PosteriorMethod`), one that decides by itself, in stages
(`StagedMethod`), masks inside weights (`MaskMethod`). Your own: [CONTRIBUTING](../../CONTRIBUTING.md#a-method)."""
SPAN = re.compile(r"(`[^`]+`)")


@dataclass(frozen=True)
class Card:
    """A method: its name, its class, the class it is a kind of, and the texts of class and module."""

    name: str
    module: str
    kind: str
    of_kind: str
    told: str
    card: str
    alone: bool

    @property
    def summary(self) -> str:
        """One line of what it does: the card's, where the card is about this method alone."""
        return (self.card if self.alone else self.told).splitlines()[0]


def found() -> list[Card]:
    """Every class that is a method by its definition (`name=...`), in the order of names."""
    cards = []
    for path in sorted(METHODS.glob("*.py")):
        tree = ast.parse(path.read_text())
        named = [(n, k.value) for n in tree.body if isinstance(n, ast.ClassDef) for k in n.keywords if k.arg == "name"]
        for node, name in named:
            of_kind = ast.unparse(node.bases[-1])
            texts = ast.get_docstring(node) or "", ast.get_docstring(tree) or ""
            cards.append(Card(ast.literal_eval(name), path.stem, node.name, of_kind, *texts, len(named) == 1))
    return sorted(cards, key=lambda c: c.name)


def pages() -> dict[str, str]:
    """Page -> text."""
    cards = found()
    rows = [f"| [`{c.name}`]({c.name}.md) | {plain(c.summary)} | `{c.of_kind}` |" for c in cards]
    index = ["# All methods", "", BEFORE, "", "| name | what it does | kind |", "|---|---|---|", *rows, "", KINDS]
    return {"methods/index.md": "\n".join(index), **{f"methods/{c.name}.md": page(c) for c in cards}}


def page(card: Card) -> str:
    """What a method's page says: how it is called, its card, its settings."""
    call = f'prunus.prune(model, example_inputs, method="{card.name}", target=..., data=loader, loss_fn=loss_fn)'
    shared = [] if card.alone else ["## What it shares with its like", ""]
    first, _, rest = card.card.partition("\n")
    return "\n".join(
        [
            f"# {card.name}",
            "",
            plain(card.summary),
            "",
            "```python",
            call,
            "```",
            f"On the command line `--method {card.name}`, each setting as `--set NAME=VALUE`.",
            "",
            *([] if card.alone else ["## Settings", "", directive(card), "", *shared, plain(first), ""]),
            markdown(rest, 2 if card.alone else 3),
            *(["## Settings", "", directive(card)] if card.alone else []),
            "",
        ]
    )


def directive(card: Card) -> str:
    """The place of the class's docstring and fields."""
    return f"::: prunus.methods.{card.module}.{card.kind}\n    options:\n      heading_level: 3\n"


def markdown(card: str, level: int) -> str:
    """A card as Markdown: headings where indented lines follow, formulas as they stand."""
    lines = []
    blocks = re.split(r"\n(?=\S)", f"\n{card.strip()}")
    for block in filter(None, blocks):
        head, _, body = block.partition("\n")
        if body.startswith("    "):
            inner = textwrap.dedent(body)
            shown = _formula(inner) if head.startswith("Objective") else plain(inner)
            lines += [f"{'#' * level} {plain(head)}", "", shown, ""]
        else:
            lines.append(plain(block))
    return "\n".join(lines)


def plain(text: str) -> str:
    """Prose of a docstring: what Markdown would take for its own is escaped, papers and documents are linked."""
    pieces = [p if p.startswith("`") else re.sub(r"([*_<\[\]])", r"\\\1", p) for p in SPAN.split(text)]
    linked = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(pieces))
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](../\1)", linked)


def _formula(text: str) -> str:
    """The first line as a formula, the rest as prose."""
    first, _, rest = text.partition("\n")
    return f"```text\n{first}\n```\n\n{plain(rest)}"
