"""The order of the rooms, read from the source of a package: what breaks it, as text. See `test_architecture.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ORDER = """
errors names < moved runtime < files kernels posteriors models < graph layers < data gates plan < masks < surgery
methods < proof < refit recovery formats < keyvalues measure streaming vocabulary < learning sparse < reports < pipeline
< trainers < cli < __main__ testing
"""
RANK = {room: rank for rank, rooms in enumerate(ORDER.split("<")) for room in rooms.split()}
FACE = "__init__"
VAGUE = {"utils", "helpers", "manager", "misc", "common"}
LINES, IN_THE_ROOT = 400, 4
DECIDES = ("plan.budget", "plan.allocation")
GRAPH_KNOWS_NOT = {"graph": {"posteriors", "methods", "gates"}, "surgery": {"posteriors", "methods", "gates"}}


@cache
def parsed(text: str) -> ast.Module:
    """The tree of a source; the same text is parsed once."""
    return ast.parse(text)


def sources(root: Path) -> dict[str, ast.Module]:
    """Module name, without the package's, -> its parsed source."""
    return {
        ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(f".{FACE}"): parsed(p.read_text())
        for p in sorted(root.rglob("*.py"))
    }


def room(module: str) -> str:
    """The folder in the root that a module stands in, or its own name."""
    return module.split(".")[0]


def imported(module: str, tree: ast.Module, modules: dict[str, ast.Module]) -> set[str]:
    """Modules of the package that a module imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = "." if node.level else node.module or ""
            inner = [f"{base}.{a.name}" for a in node.names]
            found |= {name if name.removeprefix("prunus.") in modules else base for name in inner}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    relative = {n for n in found if n.startswith(".")}
    return {n.removeprefix("prunus.") for n in found if n.startswith("prunus.")} - {module} | relative


def wrong_arrows(modules: dict[str, ast.Module]) -> Iterator[str]:
    """Imports that climb, rooms without a place in the order, relative imports."""
    for module, tree in modules.items():
        if module == FACE:
            continue
        if room(module) not in RANK:
            yield f"{module}: its room has no place in the order"
            continue
        for name in sorted(imported(module, tree, modules)):
            if name.startswith("."):
                yield f"{module}: a relative import"
            elif room(name) in GRAPH_KNOWS_NOT.get(room(module), ()):
                yield f"{module} imports {name}: {room(module)} knows no probability"
            elif room(module) == "surgery" and name in DECIDES:
                yield f"{module} imports {name}: surgery decides nothing"
            elif room(module) == "methods" and room(name) == "graph" and name != "graph.groups":
                yield f"{module} imports {name}: methods walk no graph"
            elif room(name) != room(module) and RANK.get(room(name), len(RANK)) >= RANK[room(module)]:
                yield f"{module} imports {name}, which stands no lower"


def cycles(modules: dict[str, ast.Module]) -> Iterator[str]:
    """Files that import each other in a loop."""
    arrows = {m: imported(m, tree, modules) & set(modules) for m, tree in modules.items() if m != FACE}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> Iterator[str]:
        if module in path:
            yield " -> ".join((*path[path.index(module) :], module))
        elif module not in done:
            for name in sorted(arrows.get(module, ())):
                yield from visit(name, (*path, module))
            done.add(module)

    for module in arrows:
        yield from visit(module, ())


def disorder(root: Path) -> Iterator[str]:
    """Files too long, vaguely named or without a word of what they are; too many in the root; packages that define."""
    standing = [p.name for p in root.glob("*.py") if p.stem != FACE]
    if len(standing) > IN_THE_ROOT:
        yield f"{len(standing)} modules in the root: {', '.join(sorted(standing))}"
    for path in sorted(root.rglob("*.py")):
        where, text = str(path.relative_to(root)), path.read_text()
        if len(text.splitlines()) > LINES:
            yield f"{where}: more than {LINES} lines"
        if VAGUE & {*Path(where).with_suffix("").parts}:
            yield f"{where}: a name that says nothing"
        tree = parsed(text)
        if not ast.get_docstring(tree):
            yield f"{where}: no word of what it is"
        if path.stem == FACE and any(not re_exports(node) for node in tree.body):
            yield f"{where}: a package's face only names what is inside"


def re_exports(node: ast.stmt) -> bool:
    """A statement that belongs into the face of a package."""
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.List)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse:
        return all(map(re_exports, node.body))
    return text or constant or isinstance(node, ast.Import | ast.ImportFrom)


def undocumented(modules: dict[str, ast.Module]) -> Iterator[str]:
    """Public functions, classes and methods without a docstring."""
    for module, tree in modules.items():
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            inner = node.body if isinstance(node, ast.ClassDef) else []
            methods = [n for n in inner if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
            overloads = [n for n in (node, *methods) if not ast.get_docstring(n)]
            yield from (f"{module}.{node.name}: {n.name} has no docstring" for n in overloads)
