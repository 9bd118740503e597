"""Groups of keys and values merged in the Llama of stories: least squares against means and against cutting (item 4).

    PRUNUS_SHARED=DIR python benchmarks/keyvalues.py [--seeds 0 1 2]

The Llama of 260 K parameters has eight heads of queries in four groups; two groups stay, then one. All ways look at the
same 1,024 texts of the model itself, without labels: *mean of neighbours*, as grouped queries are made of whole ones
(Ainslie et al., 2023); *merged*, `merge_key_values` without repair; *merged, repaired*; *cut, repaired*, whole groups
with their queries removed by `prunus.prune`, which saves parameters and products as well. Loss and accuracy of the next
token on 300 other texts; nothing is trained. Rows go to results/keyvalues.jsonl; what is there is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from options import Parser, needs
from prunus.data.evaluation import evaluate
from prunus.keyvalues.attentions import attentions, remade
from real_models import few, llama, stories
from record import Log, results

LEARNED = 1024


def neighbours(model: Any, groups: int) -> Any:
    """Keys and values that are means over neighbouring groups."""
    tensors: dict[str, Tensor] = {}
    for attention in attentions(model):
        for name in ("k_proj", "v_proj"):
            weight = model.get_submodule(f"{attention.name}.{name}").weight.detach()
            parts = weight.view(groups, -1, attention.width, weight.shape[1])
            tensors[f"{attention.name}.{name}.weight"] = parts.mean(1).flatten(0, 1)
    return remade(model, groups, tensors)


def cut(model: Any, groups: int, batches: list[Any], seed: int) -> nn.Module:
    """As many groups of every layer removed, with the queries that read them."""
    graph = prunus.trace(model, batches[0])
    heads = [g for g in graph.groups() if g.heads_of is not None]
    target: Any = {g.name: groups for g in heads}
    return prunus.prune(
        model, batches[0], method="fisher", target=target, data=batches, seed=seed, progress=False
    ).model


def ways(model: Any, groups: int, batches: list[Any], seed: int) -> dict[str, Callable[[], Any]]:
    """What is compared, by name."""

    def merged(repair: bool) -> Any:
        options: dict[str, Any] = {"repair": repair, "seed": seed, "progress": False}
        return prunus.merge_key_values(model, groups, batches, **options).model

    return {
        "mean of neighbours": lambda: neighbours(model, groups),
        "merged": lambda: merged(False),
        "merged, repaired": lambda: merged(True),
        "cut, repaired": lambda: cut(model, groups, batches, seed),
    }


def runs(log: Log, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """A row for every number of groups, seed and way."""
    model, data = llama(), stories()
    dense = evaluate(model, data.test, loss_fn=data.loss_fn)
    now = model.config.num_key_value_heads
    for groups in (n for n in (2, 1) if n < now):
        for seed in seeds:
            order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: few(LEARNED)]
            batches = [{"input_ids": part} for part in data.train.inputs[order].split(64)]
            for way, make in ways(model, groups, batches, seed).items():
                key = {"way": way, "groups": groups, "seed": seed}
                if log.has(key):
                    continue
                start = time.process_time()
                smaller = make().eval()
                took = time.process_time() - start
                found = evaluate(smaller, data.test, loss_fn=data.loss_fn)
                yield {
                    **key, "loss": found.loss, "accuracy": found.score, "dense_loss": dense.loss,
                    "dense_accuracy": dense.score, "seconds": round(took, 1),
                    "params": sum(p.numel() for p in smaller.parameters()) / sum(p.numel() for p in model.parameters()),
                }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each number of groups and way: means over the seeds."""
    lines = ["| groups | way | test loss | next token right | parameters | seeds |", "|--:|---|---|---|---|--:|"]
    for groups, way in dict.fromkeys((r["groups"], r["way"]) for r in rows):
        some = [r for r in rows if (r["groups"], r["way"]) == (groups, way)]
        loss, right, params = (sum(r[k] for r in some) / len(some) for k in ("loss", "accuracy", "params"))
        each = f"{loss:.3f} ({min(r['loss'] for r in some):.3f} .. {max(r['loss'] for r in some):.3f})"
        lines.append(f"| {groups} | {way} | {each} | {right:.1f} % | {params:.1%} | {len(some)} |")
    dense = rows[0]
    return "\n".join([*lines, f"dense: loss {dense['dense_loss']:.3f}, {dense['dense_accuracy']:.1f} % right"])


def main() -> None:
    parser = Parser(__doc__, seeds=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    needs("transformers")
    torch.set_num_threads(1)
    log = Log(results() / "keyvalues.jsonl")
    for row in runs(log, args.seeds):
        log.add(row)
    print(table(log.rows))


if __name__ == "__main__":
    main()
