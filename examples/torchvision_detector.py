"""A detector of torchvision by its own losses, made inside `forward` of lists of dicts.

Needs: pip install prunus torchvision

`python torchvision_detector.py [FOLDER]`. Yours comes from `torchvision.models.detection`.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import prunus


class Network(nn.Module):
    """What can be captured, without boxes and their suppression; with targets the detector's own loss."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(nn.Conv2d(a, b, 3, 2), nn.BatchNorm2d(b), nn.ReLU(True)) for a, b in ((3, 16), (16, 32), (32, 32))]
        backbone = nn.Sequential(*sum(layers, ()))
        backbone.out_channels = 32  # as torchvision wants it of a backbone
        anchors = AnchorGenerator(sizes=((24,),), aspect_ratios=((1.0,),))
        self.detector = RetinaNet(backbone, num_classes=3, min_size=64, max_size=64, anchor_generator=anchors)

    def forward(self, pictures: Tensor, targets: list[dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        if targets is None:
            return self.detector.head([self.detector.backbone(pictures)])  # of a pyramid: list(features.values())
        before, self.detector.training = self.detector.training, True  # its losses, without dropout and statistics
        losses = self.detector(list(pictures), targets)
        self.detector.training = before
        return {"loss": sum(losses.values())}


def batch() -> dict:
    pictures, targets = torch.rand(4, 3, 64, 64) / 4, []
    for picture in pictures:
        left, top, size, label = (
            int(torch.randint(low, high, ())) for low, high in ((0, 32), (0, 32), (16, 32), (1, 3))
        )
        picture[label, top : top + size, left : left + size] += 0.7
        box = torch.tensor([[left, top, left + size, top + size]]).float()
        targets.append({"boxes": box, "labels": torch.tensor([label])})
    return {"pictures": pictures, "targets": targets}


def train(detector: RetinaNet, batches: list[dict]) -> dict[str, float]:  # as any detector of torchvision
    optimizer = torch.optim.AdamW(detector.train().parameters(), lr=2e-3)
    for each in batches:
        losses = detector(list(each["pictures"]), each["targets"])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return {name: round(loss.item(), 3) for name, loss in losses.items()}


def main(out: Path) -> None:
    torch.manual_seed(0)
    batches, dense = [batch() for _ in range(6)], Network()
    examples = batches[0]["pictures"][:2]
    print("dense:", train(dense.detector, batches * 8))
    settings = {"target": "macs<=60%", "allow": ("own_class",), "progress": False}
    result = prunus.prune(dense, examples, method="taylor", data=batches, **settings)
    print(result)
    small = result.model.detector  # a RetinaNet as before
    print("smaller:", train(small, batches * 4))
    prunus.save(out / "smaller", result.model, result.plan)
    again = prunus.load(out / "smaller", Network).detector  # into your class; the file holds no code
    found, loaded = (net.eval()(list(examples)) for net in (small, again))
    same = all(torch.equal(a[key], b[key]) for a, b in zip(found, loaded, strict=True) for key in a)
    print(f"loaded: a {type(again).__name__}, {[len(f['boxes']) for f in found]} boxes, the same: {same}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/torchvision_detector"))
