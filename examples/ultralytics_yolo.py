"""A YOLO of Ultralytics, cut; its own trainer goes on with the smaller one. `python ultralytics_yolo.py [FOLDER]`

Needs: pip install 'prunus[onnx,images]' ultralytics

Ultralytics is under AGPL-3.0, and so is what is made with it: see its licence before you ship. Prunus neither contains
nor needs it. The network here is a small one with random weights; yours comes from `YOLO("best.pt")`.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/ultralytics_yolo").resolve()
os.environ.setdefault("YOLO_CONFIG_DIR", str(OUT))  # where it writes its settings

from ultralytics import YOLO  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402

import prunus  # noqa: E402

NETWORK = """
nc: 2
backbone: [[-1, 1, Conv, [16, 3, 2]], [-1, 1, Conv, [32, 3, 2]], [-1, 1, C2f, [32, True]], [-1, 1, Conv, [64, 3, 2]]]
head: [[-1, 1, C2f, [64]], [[2, 4], 1, Detect, [nc]]]
"""


class KeepsItsNetwork(DetectionTrainer):
    def get_model(self, cfg=None, weights=None, verbose=True):
        """The network as it was loaded: Ultralytics would make the dense one of its YAML again."""
        return self.set_model_names_for_load(weights) if weights is not None else super().get_model(cfg, None, verbose)


def draw(folder: Path) -> Path:
    """Pictures with one square each: replace them by yours."""
    rng = np.random.default_rng(0)
    for number in range(8):
        left, top, size, label = *rng.integers(0, 32, 2), rng.integers(16, 32), number % 2
        picture = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
        picture[top : top + size, left : left + size, label] = 250
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"images/{number}.png")
        line = [(left + size / 2) / 64, (top + size / 2) / 64, size / 64, size / 64]
        (folder / f"labels/{number}.txt").write_text(" ".join(map(str, (label, *line))))
    text = f"path: {folder}\ntrain: images\nval: images\nnames: [red, green]\n"
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def main(out: Path) -> None:
    torch.manual_seed(0)
    data = draw(out / "pictures")
    (out / "network.yaml").write_text(NETWORK)
    yolo, examples = YOLO(out / "network.yaml"), torch.rand(2, 3, 64, 64)
    settings = {"method": "l1", "target": "macs<=60%", "allow": ("own_class",)}  # what its own class survives, alone
    result = prunus.prune(yolo.model, examples, progress=False, **settings)
    print(result)
    torch.save({"model": result.model, "train_args": {}}, out / "smaller.pt")  # as its own checkpoints are

    small = YOLO(out / "smaller.pt")
    with torch.no_grad():
        same = torch.equal(small.model.eval()(examples)[0], result.model.eval()(examples)[0])
    quiet = {"plots": False, "verbose": False, "workers": 0, "device": "cpu", "project": str(out), "exist_ok": True}
    small.train(trainer=KeepsItsNetwork, data=str(data), epochs=2, batch=4, imgsz=64, **quiet)
    again = YOLO(out / "train/weights/best.pt")
    counts = [sum(p.numel() for p in each.parameters()) for each in (yolo, again)]
    print(f"loaded as saved: {same}; trained on: {counts[0]:,} -> {counts[1]:,} parameters")
    print("exported:", Path(again.export(format="onnx", imgsz=64, simplify=False)).name)


if __name__ == "__main__":
    main(OUT)
