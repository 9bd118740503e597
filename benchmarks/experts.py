"""Half of the experts of a Mixtral-shaped model that was trained here: posterior, REAP, frequency, random (bar J4).

    PRUNUS_SHARED=DIR python benchmarks/experts.py --weights FILE [--methods dirichlet reap ...] [--seeds 0 1 2]

The model reads characters of tiny-shakespeare (PRUNUS_SHARED/data/text/tiny-shakespeare), nine tenths of which train
it, minutes on a processor; FILE keeps its weights. Every method chooses from the same 64 training sequences of a seed,
without labels: what the dense network says is the target. Judged by the loss on the rest of the text, with and without
repair, never trained again. Rows go to results/experts.jsonl at once; what is there is not run again.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from options import Parser
from prunus.learning.routes import tokens_per_expert
from record import Log, results

LENGTH, LEARNED, JUDGED = 96, 64, 256
METHODS = ("dirichlet", "fisher", "reap", "frequency", "random")
SHAPE = {
    "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": LENGTH,
    "use_cache": False, "output_router_logits": False, "router_aux_loss_coef": 0.02,
}  # fmt: skip


def text(args: argparse.Namespace) -> str:
    """All of the text; a made-up one in a smoke run."""
    if args.smoke:
        return "".join(chr(97 + (i * i + i // 7) % 23) for i in range(8000))
    folder = Path(os.environ["PRUNUS_SHARED"], "data", "text", "tiny-shakespeare")
    return "".join(p.read_text() for p in sorted(folder.glob("*.txt")))


def coded(args: argparse.Namespace) -> tuple[Tensor, Tensor, int]:
    """Numbers of the characters: those that train, those that judge; and how many characters there are."""
    letters = text(args)
    known = {c: i for i, c in enumerate(sorted(set(letters)))}
    numbers = torch.tensor([known[c] for c in letters])
    cut = len(numbers) * 9 // 10
    return numbers[:cut], numbers[cut:], len(known)


def sequences(numbers: Tensor, count: int, seed: int) -> Tensor:
    """Pieces of the text from anywhere in it, [count, LENGTH + 1]."""
    starts = torch.randint(len(numbers) - LENGTH - 1, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([numbers[s : s + LENGTH + 1] for s in starts.tolist()])


def trained(args: argparse.Namespace) -> nn.Module:
    """The model, from FILE if it is there."""
    import transformers

    transformers.logging.set_verbosity_error()
    learned, _, letters = coded(args)
    torch.manual_seed(0)
    model: nn.Module = transformers.MixtralForCausalLM(transformers.MixtralConfig(vocab_size=letters, **SHAPE))
    file = Path(args.weights) if args.weights else None
    if file is not None and file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.1)
    start = time.perf_counter()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * step / args.steps))
        batch = sequences(learned, args.batch, 1000 + step)[:, :-1]
        out = model(input_ids=batch, labels=batch, output_router_logits=True)
        optimizer.zero_grad()
        out.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {float(out.loss.detach()):.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    if file is not None:
        torch.save(model.state_dict(), file)
    return model.eval()


@torch.no_grad()
def judged(model: nn.Module, held: Tensor) -> tuple[float, float]:
    """Mean loss of the next character on held-out text, in nats, and the share of right guesses."""
    pieces = sequences(held, JUDGED, 7)
    loss, right = 0.0, 0.0
    for part in pieces.split(32):
        logits = model(input_ids=part[:, :-1]).logits.double()
        loss += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
        right += float((logits.argmax(-1) == part[:, 1:]).sum())
    count = JUDGED * LENGTH
    return loss / count, 100 * right / count


def runs(model: nn.Module, args: argparse.Namespace, log: Log) -> Iterator[dict[str, Any]]:
    """A row for every method, seed, and with or without repair."""
    learned, held, _ = coded(args)
    dense = judged(model, held)
    for seed in args.seeds:
        data = [{"input_ids": part[:, :-1]} for part in sequences(learned, args.learned, seed).split(8)]
        inputs = data[0]
        for name in args.methods:
            key = {"method": name, "seed": seed, "steps": args.steps}
            if log.has({**key, "repair": True}):
                continue
            start = time.process_time()
            ways: dict[str, Any] = {"data": data, "allow": ("experts",), "repair": False, "progress": False}
            result = prunus.prune(model, inputs, method=name, target="experts<=50%", seed=seed, **ways)
            chosen = time.process_time() - start
            sizes = dict.fromkeys(result.plan.kept, SHAPE["num_local_experts"])
            load = tokens_per_expert(model, sizes, data)
            lost = [sum(n for e, n in enumerate(load[g]) if e not in kept) / sum(load[g])
                    for g, kept in result.plan.kept.items()]  # fmt: skip
            start = time.process_time()
            repaired = prunus.repair(model, result.plan, data, seed=seed, progress=False)
            smaller = prunus.apply_(repaired.model, result.plan, inputs)
            took = time.process_time() - start
            for repair, network in ((False, result.model), (True, smaller)):
                loss, accuracy = judged(network, held)
                yield {
                    **key, "repair": repair, "loss": loss, "accuracy": accuracy, "dense_loss": dense[0],
                    "dense_accuracy": dense[1], "params": result.plan.after.params / result.plan.before.params,
                    "choices_lost": sum(lost) / len(lost), "kept": result.plan.kept,
                    "proof": result.verification.max_error, "seconds": round(chosen + repair * took, 1),
                }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each method: mean loss over the seeds, without and with repair."""
    lines = [
        "| method | choices that went | loss at once | after repair | next character right, repaired | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["method"] for r in rows):
        some = {repair: [r for r in rows if r["method"] == name and r["repair"] == repair] for repair in (False, True)}
        losses = [spread([r["loss"] for r in some[repair]]) for repair in (False, True)]
        right = sum(r["accuracy"] for r in some[True]) / len(some[True])
        lost, seconds = (sum(r[k] for r in some[True]) / len(some[True]) for k in ("choices_lost", "seconds"))
        lines.append(f"| {name} | {lost:.0%} | {losses[0]} | {losses[1]} | {right:.1f} % | {seconds:.0f} |")
    first = rows[0]
    return "\n".join([
        *lines, f"dense: loss {first['dense_loss']:.3f}, {first['dense_accuracy']:.1f} % right; "
        f"{first['params']:.1%} of the parameters stay"
    ])  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """Mean and the least and largest."""
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.3f} .. {max(values):.3f})"


def main() -> None:
    parser = Parser(__doc__, steps=2, seeds=[0], methods=["reap", "random"], weights="", learned=16)
    parser.add_argument("--weights", metavar="FILE", default="", help="where the trained weights are kept")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--learned", type=int, default=LEARNED, help="sequences to choose and repair by")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(results() / "experts.jsonl")
    model = trained(args)
    for row in runs(model, args, log):
        log.add(row, "kept")
    print(table([r for r in log.rows if r["steps"] == args.steps]))


if __name__ == "__main__":
    main()
