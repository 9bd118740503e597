"""Blocks of every model of the zoo that has some: each alone, and every second one with half of the widths (bar J1).

    python benchmarks/blocks_zoo.py [--only PATTERN ...] [--each 6]

Cut and proven against the masked network, the parameters that are left counted. Rows go to results/blocks_zoo.jsonl at
once; what is there already is not run again. Status 1 if fewer than 97 % of a row's kind are proven.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

import prunus
from options import Parser
from prunus.errors import PruneError, first_line
from prunus.graph.grouping import Graph
from prunus.graph.shallower import without_blocks
from prunus.pipeline.planning import prunable_groups
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from record import Log, results
from zoo_models import models, stir_

BAR = 0.97


def half(graph: Graph, model: nn.Module) -> dict[str, list[int]]:
    """The first half of every group that goes without asking, the same number in every row."""
    kept: dict[str, list[int]] = {}
    for group in prunable_groups(graph, model):
        rows = [0] * group.units if group.rows is None else group.rows.tolist()
        count = max(1, group.units // group.multiple // 2)
        kept[group.name] = [u for u in range(group.units) if rows[:u].count(rows[u]) < count]
    return kept


def removed(model: nn.Module, graph: Graph, kept: Mapping[str, Sequence[int]], inputs: Any) -> dict[str, Any]:
    """What became of one removal."""
    try:
        plan = Plan.from_kept(graph, kept)
        smaller, proof = apply_and_verify_(copy.deepcopy(model), plan, inputs)
    except PruneError as refusal:
        return {"proven": False, "why": str(refusal)[:500]}
    except Exception as failure:  # a row, not a crash
        return {"proven": False, "why": f"{type(failure).__name__}: {first_line(failure)}"}
    left = sum(p.numel() for p in smaller.parameters())
    counted = left == plan.after.params
    why = "" if counted else f"{left} parameters are left, {plan.after.params} were predicted"
    return {"proven": proof.passed and counted, "why": why, "rewritten": proof.rewritten, "error": proof.max_error}


def rows_of(model: nn.Module, inputs: Any, each: int) -> list[dict[str, Any]]:
    """A row for every block tried, and one for every second of them with half of the widths."""
    graph = prunus.trace(model, inputs)
    names = [b.name for b in graph.blocks.free]
    step = max(1, -(-len(names) // each))
    rows = [{"what": name, **removed(model, graph, {name: ()}, inputs)} for name in names[::step]]
    apart: list[str] = []
    for name in names[::2]:
        inner = graph.blocks.inner([name])
        if not inner & set(apart) and name not in graph.blocks.inner(apart):
            apart.append(name)
    if apart:
        left = without_blocks(graph, apart)
        widths = {n: k for n, k in half(graph, model).items() if left.group(n).locked is None}
        rows.append(
            {"what": "every second, half", **removed(model, graph, {**dict.fromkeys(apart, ()), **widths}, inputs)}
        )
    locked = [str(b) for b in graph.blocks.units if b.locked]
    return [{**row, "blocks": len(names), "locked": locked} for row in rows]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What was proven, alone and together."""
    lines = []
    for kind in ("alone", "together"):
        some = [r for r in rows if (r["what"] == "every second, half") == (kind == "together")]
        proven = [r for r in some if r["proven"]]
        own = sum(not r["rewritten"] for r in proven)
        lines.append(f"{kind}: {len(proven)} of {len(some)} proven, {own} of them in their own class, "
                     f"in {len({r['name'] for r in some})} models")  # fmt: skip
        lines += [f"  {r['name']}, {r['what']}: {r['why']}" for r in some if not r["proven"]]
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__, only=["trap:residual_option_b"], each=1)
    parser.add_argument("--only", nargs="+", default=["*"], help="name patterns")
    parser.add_argument("--each", type=int, default=6, help="blocks of a model that go alone, at most about so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(results() / "blocks_zoo.jsonl")
    chosen = [n for n in models() if any(fnmatchcase(n, p) for p in args.only)]
    lacking = tuple(f"{package}:" for package in ("timm", "transformers") if find_spec(package) is None)
    chosen = [n for n in chosen if not n.startswith(lacking)]
    for name in chosen:
        if log.has({"name": name}):
            continue
        torch.manual_seed(0)
        try:
            model, inputs = models()[name]()
            stir_(model.eval())
            found = rows_of(model, inputs, args.each)
        except Exception as failure:  # what can't be made or traced has no blocks to speak of
            found = [{"what": "nothing", "why": f"{type(failure).__name__}: {first_line(failure)}"}]
        for row in found or [{"what": "nothing", "why": "it has no blocks"}]:
            log.add({"name": name, **row}, "locked")
    rows = [r for r in log.rows if r["what"] != "nothing" and r["name"] in chosen]
    print(table(rows))
    if not rows or sum(r["proven"] for r in rows) < BAR * len(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
