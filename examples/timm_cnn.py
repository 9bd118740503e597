"""A CNN of timm, smaller, loaded again by stock timm: features, a new classifier. `python timm_cnn.py [FOLDER]`

Needs: pip install 'prunus[timm]'

The network has random weights; yours comes from `timm.create_model(NAME, pretrained=True)`.
"""

import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.models import FeatureListNet, adapt_model_from_string, load_checkpoint

import prunus


def stock(folder: Path) -> torch.nn.Module:
    """Loaded by timm alone: what its own pruned models go through."""
    model = adapt_model_from_string(timm.create_model(f"local-dir:{folder}"), (folder / "shapes.txt").read_text())
    load_checkpoint(model, str(folder / "model.safetensors"))
    return model.eval()


def main(out: Path) -> None:
    torch.manual_seed(0)
    dense = timm.create_model("resnet10t", num_classes=4, zero_init_last=False).eval()
    labels = torch.arange(32) % 4
    pictures = torch.randn(32, 3, 64, 64) + labels.reshape(-1, 1, 1, 1) / 2
    batches = [(pictures[i : i + 8], labels[i : i + 8]) for i in range(0, 32, 8)]

    print(prunus.trace(dense, pictures[:2]))  # what can go, what is locked, why
    result = prunus.prune(
        dense, pictures[:2], method="taylor", target="macs<=50%", data=batches, loss_fn=F.cross_entropy, progress=False
    )
    print(result)
    prunus.finetune(result.model, (batches, batches), prunus.FinetuneConfig(epochs=2, batch_size=8), progress=False)
    print(prunus.export(result.model, pictures[:2], out / "smaller", form="timm").note)

    again, small = stock(out / "smaller"), result.model.eval()
    with torch.no_grad():
        difference = (again(pictures) - small(pictures)).abs().max()
        features = FeatureListNet(again, out_indices=(2, 4))
        shapes = [tuple(f.shape[1:]) for f in features(pictures)]
        again.reset_classifier(7)
        print(f"stock timm: logits differ by at most {difference:.1e}; a new head {tuple(again(pictures).shape)}")
    print(f"features_only: {shapes}, of {features.feature_info.channels()} channels as it says")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/timm_cnn"))
