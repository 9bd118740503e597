"""A CNN of your own and pictures in folders: train, look, compress, load. `python own_cnn.py [FOLDER]`

Needs: pip install 'prunus[images]'
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

import prunus
from prunus.data import load_data


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(32, 3)),
    )


def draw(folder: Path, each: int = 10) -> None:
    """Stripes across, stripes down and a chequerboard, in noise: replace them by pictures of yours."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((16, 16)) // 2 % 2
    for name, pattern in (("across", rows), ("down", columns), ("both", rows ^ columns)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            grey = 90 * pattern[..., None] + rng.integers(0, 160, (16, 16, 3))
            Image.fromarray(grey.astype(np.uint8)).save(folder / name / f"{number}.png")


def main(out: Path) -> None:
    draw(out / "pictures")
    data = load_data(f"imagefolder:{out / 'pictures'}")  # cut in three: to learn from, validation, test
    dense = network()
    prunus.finetune(dense, data, prunus.FinetuneConfig(epochs=12, batch_size=8, lr=0.05), progress=False)

    examples = data.example_inputs
    print(prunus.trace(dense, examples))  # what can go, what is locked, why
    done = prunus.compress(
        dense,
        data,
        target="macs<=50%",
        recovery=prunus.FinetuneConfig(epochs=2, batch_size=8),
        out=out / "run",
        run=prunus.RunSettings(batch_size=8, modes=()),  # nothing is timed here; leave it out to see the speed
        progress=False,
    )
    print(done.result)
    print("test accuracy, dense and smaller:", done.scores["dense_test"], done.scores["test"])
    small = prunus.load(out / "run" / "artifact")  # without this file
    print("loaded:", sum(p.numel() for p in small.parameters()), "parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_cnn"))
