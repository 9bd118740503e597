"""Every model of the zoo through every engine: pruned to about half, proven, saved, loaded, exported (bars D1, D2).

    python benchmarks/zoo.py [--only PATTERN ...] [--engines prunus torch-pruning prunus-head-dims] [--seconds 60]
        [--prove-only] [--table]

One process per model and engine, stopped after so many seconds (saving, loading and ONNX have as many again). Rows go
to results/zoo.jsonl at once; what is there already is not run again. `--table` writes docs/support.md from the rows.
`prunus-head-dims` cuts dimensions inside attention heads too. A smoke run takes models that are known to work: it ends
with status 1 where a row of ours is anything but right.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from options import Parser
from prunus.errors import PruneError
from prunus.formats.artifact import load, save
from prunus.formats.onnx import export_onnx
from prunus.graph.capture import capture
from prunus.graph.grouping import Graph
from prunus.pipeline.planning import prunable_groups
from prunus.proof.apply import apply_and_verify_
from prunus.runtime.arguments import as_arguments
from prunus.runtime.calling import call, flat_outputs, outputs
from prunus.surgery.cut import cut_
from record import Log, results
from zoo_models import models, stir_
from zoo_table import page, write_table

ENGINES = ("prunus", "torch-pruning")
HEAD_DIMS = "prunus-head-dims"


def half(graph: Graph, model: nn.Module, head_dims: bool = False) -> dict[str, list[int]]:
    """A random half of every group that goes without asking (or inside heads), the same number in every row."""
    generator = torch.Generator().manual_seed(0)
    kept: dict[str, list[int]] = {}
    for group in prunable_groups(graph, model, head_dims=head_dims):
        rows = torch.zeros(group.units, dtype=torch.long) if group.rows is None else torch.from_numpy(group.rows)
        stays: list[int] = []
        for row in range(group.multiple):
            units = (rows == row).nonzero().flatten()
            chosen = torch.randperm(len(units), generator=generator)[: max(1, len(units) // 2)]
            stays += units[chosen].tolist()
        kept[group.name] = sorted(stays)
    return kept


def ours(model: nn.Module, inputs: Any, note: Any, files: bool, head_dims: bool) -> dict[str, Any]:
    """Trace, plan, cut and prove; the proof runs forward and backward, and compares with the masked model."""
    capture(model, inputs)  # the first call of a process pays for torch's own imports
    start = time.perf_counter()
    capture(model, inputs)
    note(export_seconds=time.perf_counter() - start)
    dense = outputs(model, inputs)
    start = time.perf_counter()
    try:
        graph = prunus.trace(model, inputs)
        kept = half(graph, model, head_dims)
        plan = prunus.Plan.from_kept(graph, kept)
        cut_(model, plan)()  # cut and put back: the proof is timed apart
        note(analysis_seconds=time.perf_counter() - start)
        groups = {
            "groups": len(kept),
            "of": len(graph.channel_groups),
            "heads": sum(graph.group(n).heads_of is not None for n in kept),
            "inside_heads": sum(graph.group(n).inside_heads for n in kept),
            "summed_over": sum(any(r.output for r in graph.group(n).readers) for n in kept),
        }
        if not any(len(k) < graph.group(n).units for n, k in kept.items()):
            reasons = sorted(
                {g.locked or "a normalisation takes statistics across the units" for g in graph.channel_groups}
            )
            return {"status": "nothing prunable", "why": reasons[0], **groups}
        smaller, proof = apply_and_verify_(model, plan, inputs)
    except PruneError as refusal:
        return {"status": "refused", "why": str(refusal)}
    after = outputs(smaller, inputs)
    moved = max(float((a - b).abs().max()) for a, b in zip(dense, after, strict=True))
    found = {
        "status": "proven" if proof.passed and moved > 0 else "wrong",
        "why": "" if moved > 0 else "outputs are those of the dense model",
        "error": proof.max_error,
        "rewritten": proof.rewritten,
        "params": plan.after.params / plan.before.params,
        "macs": plan.after.macs / max(plan.before.macs, 1),
        "seconds": time.perf_counter() - start,
        **groups,
    }
    note(**found)
    return found | (kept_promises(smaller, plan, inputs, after, note) if files else {})


def kept_promises(model: nn.Module, plan: prunus.Plan, inputs: Any, after: list[Tensor], note: Any) -> dict[str, Any]:
    """The artifact loads without the model's code and computes the same; ONNX agrees."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for step in ("artifact", "onnx"):
            try:
                if step == "artifact":
                    save(Path(folder) / "artifact", model, plan, example_inputs=inputs)
                    again = flat_outputs(call(load(Path(folder) / "artifact"), inputs))
                    gap = max(float((a - b).abs().max()) for a, b in zip(after, again, strict=True))
                    found[step] = gap <= 1e-4 * max(float(a.abs().max()) for a in after)
                else:
                    found[step] = export_onnx(model, inputs, Path(folder) / "model.onnx") < 1e-3
            except Exception as error:  # a row, not a crash: every model gets one
                found[step], found[f"{step}_why"] = (
                    False,
                    f"{type(error).__name__}: {str(error).replace(folder, '')[:300]}",
                )
            note(**found)
    return found


def torch_pruning(model: nn.Module, inputs: Any, note: Any) -> dict[str, Any]:
    """Torch-Pruning as its README says: one pruner for all, the classifier left alone; then forward and backward."""
    import torch_pruning as tp

    args, kwargs = as_arguments(inputs)
    example = kwargs or (args if len(args) > 1 else args[0])
    dense = sum(p.numel() for p in model.parameters())
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    ignored = linear[-1:] or [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1:]
    start = time.perf_counter()
    try:
        pruner = tp.pruner.BasePruner(
            model, example, importance=tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=ignored
        )
        pruner.step()
        seconds = time.perf_counter() - start
        note(seconds=seconds)
        sum(o.square().sum() for o in flat_outputs(call(model, inputs))).backward()  # type: ignore[union-attr]
    except Exception as error:
        return {"status": "failed", "why": f"{type(error).__name__}: {str(error)[:300]}"}
    share = sum(p.numel() for p in model.parameters()) / dense
    status = "runs" if share < 0.999 else "nothing pruned"
    return {"status": status, "why": "", "params": share, "seconds": seconds}


def child(name: str, engine: str, path: Path, files: bool) -> None:
    """One model in one engine; what is known so far is in the file at any time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known: dict[str, Any] = {}

    def note(**facts: Any) -> None:
        known.update(facts)
        path.write_text(json.dumps(known))

    model, inputs = models()[name]()
    stir_(model.eval())
    copied = copy.deepcopy(model)
    if engine == "torch-pruning":
        note(**torch_pruning(copied, inputs, note))
    else:
        note(**ours(copied, inputs, note, files, engine == HEAD_DIMS))
    note(peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, done=True)


def run_one(name: str, engine: str, seconds: float, files: bool) -> dict[str, Any]:
    """A row for one model in one engine, whatever happens to its process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--child", name, engine, str(path), str(int(files))]
        try:
            limit = seconds * (1 if engine == "torch-pruning" else 3)
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            last = (done.stderr.strip().splitlines() or [""])[-1][:300]
        except subprocess.TimeoutExpired:
            last = f"stopped after {limit:.0f} s"
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "status" not in known:
        known |= {"status": "hang" if last.startswith("stopped") else "crash", "why": last}
    elif engine != "torch-pruning" and known["status"] == "proven" and known["seconds"] > seconds:
        known |= {"status": "hang", "why": f"{known['seconds']:.0f} s"}
    return {"name": name, "engine": engine, **known}


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of ours that are wrong, crashed, hung or were refused, or whose files do not keep their promise."""
    found = []
    for row in (r for r in rows if r["engine"] != "torch-pruning"):
        broken = [step for step in ("artifact", "onnx") if row.get(step) is False]
        if broken or row["status"] not in ("proven", "nothing prunable"):
            why = "; ".join(
                filter(None, [row.get("why"), *(row.get(f"{step}_why", f"{step} differs") for step in broken)])
            )
            found.append(f"{row['name']}, {row['engine']}: {row['status']}: {why}")
    return found


def main() -> int:
    """Run what is asked for; 1 if a row of a smoke run failed."""
    parser = Parser(__doc__, only=["trap:squeeze_excite_conv"], engines=["prunus", HEAD_DIMS])
    parser.add_argument("--only", nargs="*", default=["*"], help="globs of names")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=(*ENGINES, HEAD_DIMS))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--again", action="store_true", help="run also what is in the log")
    parser.add_argument("--prove-only", action="store_true", help="no artifact and no ONNX")
    parser.add_argument("--table", action="store_true", help="write docs/support.md and nothing else")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], Path(args.child[2]), args.child[3] == "1")
        return 0
    log = Log(results() / "zoo.jsonl")
    if not args.table:
        for name in [n for n in models() if any(fnmatchcase(n, glob) for glob in args.only)]:
            for engine in args.engines:
                if args.again or not log.has({"name": name, "engine": engine}):
                    log.add(run_one(name, engine, args.seconds, not args.prove_only), "peak_mib", "done")
    inside = [r for r in log.rows if r["engine"] == HEAD_DIMS and r.get("summed_over")]
    proven = [r for r in inside if r["status"] == "proven"]
    print(
        f"dimensions of queries and keys: {len(proven)} of {len(inside)} models proven, "
        f"{sum(not r['rewritten'] for r in proven)} in their own class"
    )
    print(page(log.rows)[1] if args.smoke else write_table(log.rows))
    failed = failures(log.rows) if args.smoke else []
    print("".join(f"{line}\n" for line in failed), end="", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
