"""What the house looks like, in numbers: modules, arrows, parameters, loops, results, lines.

    python benchmarks/counts.py [PACKAGE_DIR ...]      # one column per tree; the tree of this checkout by default

An arrow is an import from one room (a folder or a module in the root) to another. A training loop is a function that
steps an optimiser. A result class is a dataclass in a file with a public entry point.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from options import Parser

HERE = Path(__file__).parent.parent / "src" / "prunus"
WIDE, LARGEST = 10, 5


def main() -> None:
    """Print one line per count and one column per tree."""
    parser = Parser(__doc__)
    parser.add_argument("roots", nargs="*", type=Path, default=[HERE], metavar="PACKAGE_DIR")
    columns = [counts(root) for root in parser.parse_args().roots]
    for name in columns[0]:
        print(f"{name:44}", *(f"{column[name]!s:>32}" for column in columns))


def counts(root: Path) -> dict[str, int | float | str]:
    """Every count of one package."""
    texts = {p.relative_to(root): p.read_text() for p in sorted(root.rglob("*.py"))}
    trees = {p: ast.parse(text) for p, text in texts.items()}
    lines = [len(text.splitlines()) for p, text in texts.items() if p.name != "__init__.py"]
    functions = sorted(((parameters(f), f.name) for t in trees.values() for f in defined(t)), reverse=True)
    largest = ", ".join(str(n) for n, _ in functions[:LARGEST])
    return {
        "modules in the root, without __init__": sum(len(p.parts) == 1 and p.stem != "__init__" for p in trees),
        "rooms (folders)": len({p.parts[0] for p in trees if len(p.parts) > 1}),
        "arrows between rooms": len(set(arrows(root.name, trees))),
        "arrows between files": len(set(arrows(root.name, trees, rooms=False))),
        f"parameters of the {LARGEST} largest functions": largest,
        f"functions of more than {WIDE} parameters": sum(n > WIDE for n, _ in functions),
        "functions that step an optimiser": sum(steps(f) for t in trees.values() for f in defined(t)),
        "calls of torch.manual_seed": sum(text.count("torch.manual_seed(") for text in texts.values()),
        "result classes": sum(len(results(t)) for t in trees.values()),
        "isinstance(..., ...Method) or ...Criterion": sum(text.count("Method)") for text in kinds(trees)),
        "type: ignore": sum(text.count("# type: ignore") for text in texts.values()),
        "files": len(lines),
        "lines": sum(lines),
        "median lines of a file": median(lines),
        "longest file": max(lines),
    }


def defined(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods of a module, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def parameters(function: ast.FunctionDef) -> int:
    """How many arguments a function takes, `self` and `cls` apart."""
    found = function.args
    names = [a.arg for a in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    return len([n for n in names if n not in ("self", "cls")])


def steps(function: ast.FunctionDef) -> bool:
    """Whether a function itself calls `optimizer.step()`."""
    inner = {id(n) for f in ast.walk(function) if isinstance(f, ast.FunctionDef) and f is not function
             for n in ast.walk(f)}  # fmt: skip
    calls = (n for n in ast.walk(function) if isinstance(n, ast.Call) and id(n) not in inner)
    return any(ast.unparse(call.func).endswith("optimizer.step") for call in calls)


def results(tree: ast.Module) -> list[str]:
    """Dataclasses of a file that holds a public entry point."""
    decorated = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    marks = {n.name: " ".join(ast.unparse(d) for d in n.decorator_list) for n in decorated}
    if not any("entry(" in mark for mark in marks.values()):
        return []
    return [n.name for n in decorated if isinstance(n, ast.ClassDef) and "dataclass" in marks[n.name]]


def kinds(trees: dict[Path, ast.Module]) -> Iterator[str]:
    """Every test of an object's class, as text."""
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                yield ast.unparse(node).replace("Criterion)", "Method)")


def arrows(package: str, trees: dict[Path, ast.Module], *, rooms: bool = True) -> Iterator[tuple[str, str]]:
    """Imports from one room, or file, to another."""
    modules = {".".join(p.with_suffix("").parts).removesuffix(".__init__"): p for p in trees}
    for module, path in modules.items():
        if path.name == "__init__.py":
            continue
        for node in ast.walk(trees[path]):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(f"{package}."):
                continue
            base = (node.module or "").removeprefix(f"{package}.")
            for name in node.names:
                target = f"{base}.{name.name}" if f"{base}.{name.name}" in modules else base
                pair = (module.split(".")[0], target.split(".")[0]) if rooms else (module, target)
                if pair[0] != pair[1]:
                    yield pair


if __name__ == "__main__":
    main()
