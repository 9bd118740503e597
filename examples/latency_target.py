"""A bound on milliseconds, not on MACs: layers are timed on this machine first. `python latency_target.py`"""

import torch
import torch.nn.functional as F
from torch import nn

import prunus


def main() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
    ).eval()
    pictures, labels = torch.randn(32, 3, 24, 24), torch.arange(32) % 4
    batches = [(pictures[i : i + 8], labels[i : i + 8]) for i in range(0, 32, 8)]

    result = prunus.prune(
        dense,
        pictures[:2],
        method="taylor",
        target="latency@eager<=80%",  # without @eager: in ONNX Runtime, one example, one thread
        data=batches,
        loss_fn=F.cross_entropy,
        progress=False,
    )
    print(result)
    print(*result.plan.notes, sep="\n")  # how it was timed, and what came out
    timed = prunus.benchmark(dense, result.model, pictures[:1], modes=("eager",), repeats=10).modes[0]
    print(f"timed again, in turns: {timed.before.median:.3f} ms, smaller {timed.after.median:.3f} ms")


if __name__ == "__main__":
    main()
