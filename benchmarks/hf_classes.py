"""transformers classes from tiny configurations: pruned, saved, loaded three ways, generating (bar D3).

    python benchmarks/hf_classes.py [--only PATTERN ...]

Half of the heads and neurons go by L1, the same number in every layer. Then: the artifact loaded into the class, the
artifact loaded without any class, the folder for stock `from_pretrained` where the configuration can say the widths;
outputs must be equal, and what language models generate with their cache too. Writes docs/huggingface.md. A smoke run
takes classes that are known to work: it ends with status 1 where one is refused or is not equal.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from options import Parser, needs
from prunus.errors import ConfigError, PruneError
from prunus.formats.pretrained import save_pretrained
from prunus.plan.allocation import Allocation
from prunus.proof.comparison import difference
from prunus.runtime.calling import call, flat_outputs, outputs
from record import Log, results
from zoo_models import stir_, transformers_model
from zoo_transformers import TRANSFORMERS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "huggingface.md"
TOLERANCE = 1e-4
INTRODUCTION = """# transformers classes

Written by `python benchmarks/hf_classes.py`: tiny configurations with random weights, half of the heads and neurons
removed by L1, the same number in every layer. *artifact*: loaded into the class; *without the class*: the captured
program; *stock*: the folder that `prunus.save_pretrained` writes, loaded by `from_pretrained`.
"""


def same(model: nn.Module, again: nn.Module, inputs: Any) -> bool:
    """Outputs agree to fp32 rounding."""
    return difference([outputs(model, inputs)], [flat_outputs(call(again.eval(), inputs))])[0] <= TOLERANCE


def generated(model: Any, inputs: Any) -> Any:
    """Twelve tokens chosen greedily with the cache on, as a list."""
    model.generation_config.pad_token_id = 0
    return model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=True).tolist()


def row_of(name: str) -> dict[str, Any]:
    """What one class does; a refusal is a row, too."""
    torch.manual_seed(0)
    model, inputs = transformers_model(name)()
    stir_(model.eval())
    row: dict[str, Any] = {"name": name, "class": type(model).__name__}
    try:
        result = prunus.prune(model, inputs, method="l1", target=0.5, allocation=Allocation(scope="uniform"))
    except PruneError as refusal:
        return row | {"refused": f"{refusal.where}: {refusal.what}; {refusal.fix}"[:300]}
    small, plan = result.model, result.plan
    speaks = name not in ("t5-encoder",) and hasattr(model, "generate") and model.can_generate()
    row |= {
        "params": plan.after.params / plan.before.params,
        "heads": sum(g.heads_of is not None and len(g.kept) < g.units for g in plan.groups),
        "proof": result.verification.max_error,
        "own_class": type(small) is type(model),
    }
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        prunus.save(Path(folder) / "artifact", small, plan, example_inputs=inputs)
        loaded = prunus.load(Path(folder) / "artifact", lambda: copy.deepcopy(model))
        row["artifact"] = same(small, loaded, inputs)
        row["without_class"] = same(small, prunus.load(Path(folder) / "artifact"), inputs)
        if speaks and row["own_class"]:
            row["generate"] = generated(small, inputs) == generated(loaded, inputs)
        try:
            save_pretrained(small, plan, Path(folder) / "stock", inputs)
            again = type(small).from_pretrained(Path(folder) / "stock").eval()
            row["stock"] = same(small, again, inputs)
            if speaks:
                row["generate"] = row["generate"] and generated(small, inputs) == generated(again, inputs)
        except ConfigError as error:
            row |= {"stock": None, "why": error.what}
    return row


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    words = {True: "yes", False: "**no**", None: "-"}
    lines = [
        "| class | parameters left | groups of heads | own class | artifact | without the class | `generate` | stock |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['class']} | refused: {row['refused']} | | | | | | |")
            continue
        marks = [words[row.get(k)] for k in ("own_class", "artifact", "without_class", "generate", "stock")]
        lines.append(f"| {row['class']} | {100 * row['params']:.0f} % | {row['heads']} | {' | '.join(marks)} |")
    done = [r for r in rows if "refused" not in r]
    counts = {k: sum(r.get(k) is True for r in done) for k in ("artifact", "without_class", "generate", "stock")}
    spoken = sum(r.get("generate") is not None for r in done)
    reasons = [f"- {r['class']}: {r['why']}" for r in done if r.get("why")]
    summary = (
        f"{len(done)} of {len(rows)} classes pruned and proven; artifact {counts['artifact']}, without the class "
        f"{counts['without_class']}, `generate` equal with its cache {counts['generate']} of {spoken}, stock "
        f"{counts['stock']}."
    )
    return "\n".join(
        [INTRODUCTION, summary, "", *lines, "", "No folder for `from_pretrained`, because:", "", *reasons, ""]
    )


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Classes that were refused, and those that are not equal in one of the ways."""
    found = [f"{r['name']}: {r['refused']}" for r in rows if "refused" in r]
    for row in rows:
        unequal = [k for k in ("artifact", "without_class", "generate", "stock") if row.get(k) is False]
        found += [f"{row['name']}: not equal: {', '.join(unequal)}"] if unequal else []
    return found


def main() -> int:
    """Run what is asked for; 1 if a class of a smoke run failed."""
    parser = Parser(__doc__, only=["vit", "llama"])
    parser.add_argument("--only", nargs="*", default=["*"])
    args = parser.parse_args()
    needs("transformers")
    torch.set_num_threads(1)
    log = Log(results() / "hf_classes.jsonl")
    for name in [n for n in TRANSFORMERS if any(fnmatchcase(n, glob) for glob in args.only)]:
        if not log.has({"name": name}):
            log.add(row_of(name))
    if not args.smoke:
        PAGE.write_text(page(log.rows))
    print(page(log.rows))
    failed = failures(log.rows) if args.smoke else []
    print("".join(f"{line}\n" for line in failed), end="", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
