"""The zoo pruned with data, and so repaired: does it run, is it proven, is the outcome nearer to the dense network?

    python benchmarks/repair_zoo.py [--only PATTERN ...]

Every model of `zoo_models.py` with random weights loses units by L1 at a ratio of 0.3, once without repair and once
with it, from four batches of inputs like the examples. A row says how far the outputs are from the dense network's on
a fifth batch, mean of squares over variance. Whatever ends in an error that is not a `PruneError` is a bug: status 1.
Rows go to results/repair_zoo.jsonl; what is there is not run again.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import prunus
from options import Parser
from prunus.errors import PruneError, first_line
from prunus.runtime.calling import outputs
from record import Log, results
from zoo_models import models, stir_

RATIO, BATCHES = 0.3, 4


def like(inputs: Any, number: int) -> Any:
    """Other inputs of the same shapes: whole numbers in another order, the rest with noise."""
    stream = torch.Generator().manual_seed(number)

    def other(t: Tensor) -> Tensor:
        if t.is_floating_point():
            return t + 0.3 * t.std().nan_to_num().clamp_min(0.1) * torch.randn(t.shape, generator=stream).to(t)
        if t.dtype == torch.bool or not t.numel() or int(t.max()) <= 1:
            return t
        return t.flatten()[torch.randperm(t.numel(), generator=stream)].view(t.shape)

    return tree_map_only(Tensor, other, inputs)


@torch.no_grad()
def distance(model: nn.Module, dense: nn.Module, inputs: Any) -> float:
    """Mean square of what outputs differ by, over the variance of the dense ones; mean over the outputs."""
    pairs = zip(outputs(model, inputs), outputs(dense, inputs), strict=True)
    found = [(a.float(), b.float()) for a, b in pairs if b.is_floating_point() and b.numel() > 1]
    return sum(float((a - b).square().mean() / b.var().clamp_min(1e-12)) for a, b in found) / max(len(found), 1)


def row_of(name: str, make: Any) -> dict[str, Any]:
    """What one model does; a refusal is a row, too."""
    torch.manual_seed(0)
    model, inputs = make()
    stir_(model.eval())
    batches = [{"inputs": like(inputs, i)} if not isinstance(inputs, dict) else like(inputs, i) for i in range(BATCHES)]
    if not isinstance(inputs, dict):
        batches = [(b["inputs"],) if not isinstance(b["inputs"], tuple) else (b["inputs"], None) for b in batches]
    row: dict[str, Any] = {"name": name}
    start = time.process_time()
    try:
        for repair in (False, True):
            options: dict[str, Any] = {
                "method": "l1",
                "target": RATIO,
                "data": batches,
                "loss_fn": None,
                "repair": repair,
            }
            result = prunus.prune(model, inputs, progress=False, **options)
            row["repaired" if repair else "cut"] = distance(result.model, model, like(inputs, BATCHES))
        row |= {
            "layers": sum(not r.reason for r in result.refits),
            "left": sorted({r.reason for r in result.refits if r.reason}),
            "proof": result.verification.max_error,
            "notes": [n for n in result.plan.notes if n.startswith("not repaired")],
        }  # fmt: skip
    except PruneError as refusal:
        row["refused"] = first_line(refusal)
    except Exception as error:
        row["bug"] = first_line(error)
        row["where"] = traceback.format_exc().strip().splitlines()[-8:]
    return row | {"seconds": round(time.process_time() - start, 1)}


def chosen(patterns: list[str]) -> Iterator[tuple[str, Any]]:
    """Name and maker of the models asked for."""
    for name, make in models().items():
        if any(fnmatchcase(name, p) for p in patterns):
            yield name, make


def main() -> int:
    parser = Parser(__doc__, only=["trap:*two*"])
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of models")
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(results() / "repair_zoo.jsonl")
    for name, make in chosen(args.only):
        if not log.has({"name": name}):
            log.add(row_of(name, make), "where")
    rows = log.rows
    bugs = [r for r in rows if "bug" in r]
    done = [r for r in rows if r.get("layers")]
    nearer = sum(r["repaired"] < r["cut"] for r in done)
    refused = sum("refused" in r for r in rows)
    print(f"{len(rows)} models: {len(done)} repaired, {nearer} of them nearer; {refused} refused; {len(bugs)} bugs")
    return 1 if bugs else 0


if __name__ == "__main__":
    sys.exit(main())
