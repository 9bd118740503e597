"""G8: is a plan made with the defaults faster than the dense network, and near the best rounding?

Each network is pruned by L1 to 70 and 50 % of its MACs, with the defaults and with `round_to` 1, 4, 8 and 16; all of
them and the dense one are timed in ONNX Runtime on one thread, in turn, in CPU time. Weights are random unless trained
ones are given, since the question is about shapes; both change which channels go.

    python benchmarks/round_to.py [--repeats 31] [--batch 1] [--weights DIR] [--smoke]
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from nets import CifarVGG16, load_checkpoint, resnet8, resnet56
from options import Parser, needs
from prunus.errors import BudgetError
from prunus.formats.onnx import export_onnx
from prunus.plan.allocation import Allocation
from real_nets import MobileNetV2
from record import interleaved, ratio, write

SHARE_OF_BEST = 1.15
STEPS = (1, 4, 8, 16)
NETS = ("ResNet-56", "MobileNetV2", "VGG-16", "ViT-tiny")
SHORTEST_SAMPLE = 0.03


class ViT(nn.Module):
    """A vision transformer of the tiny size: 192 dimensions, 3 heads of 64, 12 blocks, patches of 16."""

    def __init__(self, dim: int = 192, heads: int = 3, depth: int = 12, size: int = 224) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 16, 16)
        self.positions = nn.Parameter(torch.randn(1, (size // 16) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*(ViTBlock(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 1000)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class ViTBlock(nn.Module):
    """Attention and feed-forward, each after a layer norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm2, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def networks(weights: Path | None) -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Name -> maker and shape of one example."""

    def trained(make: Callable[[], nn.Module], *parts: str) -> Callable[[], nn.Module]:
        if weights is None or not (path := weights.joinpath(*parts)).exists():
            return make
        return lambda: load_checkpoint(make(), path)

    return {
        "ResNet-8": (resnet8, (3, 32, 32)),
        "ResNet-56": (trained(resnet56, "cifar10-resnet", "resnet56-4bfd9763.th"), (3, 32, 32)),
        "MobileNetV2": (trained(MobileNetV2, "mobilenet_v2", "mobilenet_v2-b0353104.pth"), (3, 224, 224)),
        "VGG-16": (CifarVGG16, (3, 32, 32)),
        "ViT-tiny": (ViT, (3, 224, 224)),
    }


def session(model: nn.Module, x: Tensor, folder: Path) -> Callable[[], float]:
    """CPU seconds of one pass in ONNX Runtime on one thread, as a function; a sample lasts 30 ms."""
    path = folder / "model.onnx"
    export_onnx(model, x, path)
    return sampled(opened(path), x)


def opened(path: Path) -> Any:
    """A session of ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def sampled(loaded: Any, x: Tensor) -> Callable[[], float]:
    """CPU seconds of one pass, as a function; a sample lasts 30 ms."""
    feed = {loaded.get_inputs()[0].name: x.numpy()}

    def passes(count: int) -> float:
        start = time.process_time()
        for _ in range(count):
            loaded.run(None, feed)
        return (time.process_time() - start) / count

    passes(2)
    count = max(1, round(SHORTEST_SAMPLE / max(passes(3), 1e-6)))
    return lambda: passes(count)


def main() -> int:
    parser = Parser(__doc__, nets=["ResNet-8"], percents=[50], steps=[8])
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--percents", nargs="*", type=int, default=[70, 50])
    parser.add_repeats(31, small=3)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="values of round_to")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--weights", type=Path, help="folder of trained weights")
    args = parser.parse_args()
    needs("onnx", "onnxruntime", "onnxscript")
    torch.set_num_threads(1)
    known = networks(args.weights)
    rows, missed = [], 0
    for name in args.nets:
        make, shape = known[name]
        torch.manual_seed(0)
        model, x = make().eval(), torch.randn(args.batch, *shape)
        for percent in args.percents:
            row = compared(name, model, x, percent, args.repeats, args.steps)
            rows.append(row)
            missed += not row["met"]
            print(row, flush=True)
    print(f"{len(rows) - missed} of {len(rows)} met: no slower than dense, and at most {SHARE_OF_BEST} x the best")
    found = {"batch": args.batch, "repeats": args.repeats, "rows": rows}
    print("written to", write(f"round_to_batch{args.batch}", found))
    return int(missed > 0 and not args.smoke)


def compared(
    name: str, model: nn.Module, x: Tensor, percent: int, repeats: int, steps: Sequence[int]
) -> dict[str, Any]:
    """Time of the default plan over that of the dense network, and over that of the fastest rounding."""
    plans: dict[str, Allocation | None] = {"default": None}
    plans |= {str(step): Allocation(round_to=step) for step in steps}
    macs, jobs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        jobs["dense"] = session(copy.deepcopy(model), x, Path(folder))
        for label, allocation in plans.items():
            try:
                result = prunus.prune(model, x, method="l1", target=f"macs<={percent}%", allocation=allocation)
            except BudgetError as error:
                print(f"{name}, {percent} %, round_to {label}: {error.what}")
                continue
            macs[label] = round(result.plan.after.macs / result.plan.before.macs, 3)
            jobs[label] = session(result.model, x, Path(folder))
        times = interleaved(jobs, repeats)
    against = {label: ratio(times, label, "dense") for label in macs}
    best = min((label for label in macs if label != "default"), key=lambda label: against[label][0])
    share = statistics.median(a / b for a, b in zip(times["default"], times[best], strict=True))
    return {
        "net": name,
        "macs<=": percent,
        "dense ms": round(1e3 * statistics.median(times["dense"]), 2),
        "time / dense": {label: [round(v, 3) for v in values] for label, values in against.items()},
        "macs": macs,
        "best": best,
        "default / best": round(share, 3),
        "met": against["default"][0] <= 1 and share <= SHARE_OF_BEST,
    }


if __name__ == "__main__":
    sys.exit(main())
