"""The registered operations as a page: `python -m prunus.graph.listing > docs/operations.md`."""

from __future__ import annotations

from itertools import groupby

from prunus.graph import rules
from prunus.graph.registry import RULES, Labelling, Rule

HEAD = """# Operations with a rule

Made from the registry by `python -m prunus.graph.listing > docs/operations.md`. Operations that PyTorch tags
`pointwise` need no rule: they are element-wise. Any other locks the units that come near, and `graph.explain()` says
which; [custom-operations.md](custom-operations.md) says how to add one.

*sizes*: it has sizes of units among its arguments, which a rewritten graph changes. *zero*: it is known where its
result is zero if its operands are, so that a gate may stand before it. *rows*: whole rows (heads) pass.
"""


def families() -> list[tuple[str, list[tuple[Labelling, dict[str, Rule]]]]]:
    """By file of rules: each rule's function, and the operations that it is registered for."""
    found: dict[Labelling, dict[str, Rule]] = {}
    for name, rule in RULES.items():
        found.setdefault(rule.label, {})[name] = rule
    own = [(label, named) for label, named in found.items() if label.__module__.startswith(rules.__name__)]
    return [(module.rpartition(".")[2], list(entries)) for module, entries in groupby(own, lambda e: e[0].__module__)]


def page() -> str:
    """All rules of this package with their one line of help, as Markdown."""
    lines = [HEAD]
    for family, entries in sorted(families()):
        lines += [f"## {family.capitalize()}", "", "| operations | what happens to units | sizes | zero | rows |"]
        lines += ["|---|---|---|---|---|"]
        for _, named in entries:
            told = [_told(named, marks) for marks in ("rewrite", "zeros", "rows")]
            help_ = next(iter(named.values())).help.replace("|", "\\|")
            lines.append(f"| {', '.join(f'`{n}`' for n in sorted(named))} | {help_} | {' | '.join(told)} |")
        lines.append("")
    return "\n".join(lines)


def _told(named: dict[str, Rule], mark: str) -> str:
    """Which of the operations have it: yes, names, or nothing."""
    having = [name for name, rule in named.items() if getattr(rule, mark)]
    return "yes" if len(having) == len(named) else ", ".join(f"`{n}`" for n in sorted(having))


if __name__ == "__main__":
    print(page(), end="")
