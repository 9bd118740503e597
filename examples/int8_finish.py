"""Smaller first, eight bits at the end: ONNX Runtime's static quantisation. `python int8_finish.py [FOLDER]`

Needs: pip install 'prunus[onnx]'
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import prunus


def main(out: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 4)),
    ).eval()
    pictures, labels = torch.randn(96, 1, 16, 16), torch.arange(96) % 4
    batches = [(pictures[i : i + 16], labels[i : i + 16]) for i in range(0, 96, 16)]

    result = prunus.prune(
        dense, pictures[:2], method="l2", target="macs<=50%", data=batches, loss_fn=F.cross_entropy, progress=False
    )
    print(result)
    out.mkdir(parents=True, exist_ok=True)
    # The grids of the inputs are found on half of 64 real examples; on the other half both files are compared.
    for path, more in ((out / "smaller.onnx", {}), (out / "int8.onnx", {"form": "int8", "calibration": batches})):
        written = prunus.export(result.model, pictures[:2], path, **more)
        print(f"{path.name}: {path.stat().st_size:,} bytes; {written.note}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/int8_finish"))
