"""The order of the design, read from the source: imports go down the list only, and files stay small."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import prunus

ROOT = Path(prunus.__file__).parent
LAYERS = [
    ["errors", "fields", "advice", "ranking", "submodules", "reparametrised", "snapshot", "arguments"],
    [
        "addresses",
        "copies",
        "exchange",
        "jsontext",
        "atomic",
        "steady",
        "decoding",
        "manifest",
        "weightfile",
        "attention",
        "plain_attention",
        "recurrence",
        "inputs",
        "losses",
        "entry",
        "modes",
        "precision",
        "progress",
    ],
    ["graph"],
    [
        "rounding",
        "cost",
        "planfile",
        "kept",
        "plan",
        "stored_products",
        "posteriors",
        "quantize",
        "masks",
        "parallel",
        "batches",
        "datafiles",
        "datasets",
    ],
    ["configuration", "gate", "frozen", "budget", "allocation", "fold", "surgery", "optimizer"],
    ["nodesizes", "graphlayers", "rewritten", "rewrite"],
    ["comparison", "masked", "keptstatistics", "reference", "observation", "proofinputs", "noise", "power"],
    ["methods", "sparse"],
    [
        "fit",
        "finetuneconfig",
        "fingerprint",
        "stagefile",
        "placement",
        "recovery_state",
        "finetune",
        "batchnorm",
        "evaluate",
        "verify",
        "judge",
        "imagesizes",
        "ownclass",
        "apply",
        "weightmasks",
        "livememory",
        "tune",
        "recursive",
        "activations",
        "fit_masks",
        "maskfile",
        "calibrate",
        "filters",
    ],
    ["program"],
    ["card", "checkpoint", "export", "export_int8", "pretrained", "report", "measure"],
    ["texts", "packing", "runfolder"],
    ["request", "runextras"],
    ["sources", "pipeline", "demo"],
    ["compress", "sparsify"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(p for p in ROOT.rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


def part(module: str) -> str:
    return module.split(".")[0]


@cache
def imported(module: str) -> frozenset[str]:
    """Modules of the package that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            base = node.module or ""
            names = [f"{base}.{a.name}" if f"{base}.{a.name}".removeprefix("prunus.") in MODULES else base
                     for a in node.names]  # fmt: skip
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {n.removeprefix("prunus.") for n in names if n.startswith("prunus.")}
    return frozenset(found)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_imports_go_down(module: str) -> None:
    assert part(module) in RANK, "name its layer in this test, and in the design"
    upwards = [name for name in imported(module) if RANK[part(name)] > RANK[part(module)]]
    assert upwards == []


def test_there_is_no_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done or module not in MODULES:
            return
        for name in sorted(imported(module)):
            if name != module:
                visit(name, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_are_small_and_named_for_what_they_do(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in ("utils", "helpers", "manager", "misc", "common")


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=relative)
def test_packages_only_re_export(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.List)
        assert docstring or constant or isinstance(node, ast.Import | ast.ImportFrom), ast.dump(node)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


FORBIDDEN = {
    "graph": ("posteriors", "methods", "gate", "fit"),
    "surgery": ("posteriors", "methods", "gate", "fit", "budget", "allocation"),
}


def test_graph_and_surgery_know_no_probability_and_methods_walk_no_graph() -> None:
    parts = {part(module) for module in MODULES}
    assert parts >= {*FORBIDDEN, *(name for names in FORBIDDEN.values() for name in names)}, "a name that is no part"
    for module in MODULES:
        known = {part(name) for name in imported(module)}
        assert not known & set(FORBIDDEN.get(part(module), ())), module
        if part(module) == "methods":
            assert {n for n in imported(module) if part(n) == "graph"} <= {"graph.groups"}, module
