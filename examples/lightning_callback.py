"""Cut in the middle of a Lightning training; a checkpoint loads again, smaller. `python lightning_callback.py [FOLDER]`

Needs: pip install 'prunus[lightning]'
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunus.trainers.lightning import PruneCallback, cut_as_saved_


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(32, 4)),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        pictures, labels = batch
        return F.cross_entropy(self.net(pictures), labels)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        cut_as_saved_(self, checkpoint)  # before the weights are loaded: the class makes the dense network


def trainer(epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[*callbacks], enable_checkpointing=False, **quiet
    )  # fmt: skip


def main(out: Path) -> None:
    pl.seed_everything(0)
    labels = torch.arange(128) % 4
    pictures = torch.randn(128, 1, 12, 12) + labels.reshape(-1, 1, 1, 1) / 2
    loader = DataLoader(TensorDataset(pictures, labels), 16, shuffle=True)
    model = Classifier()
    prune = PruneCallback(16, pictures[:2], network="net", target="macs<=50%", loss_fn=F.cross_entropy, seed=0)
    first = trainer(4, prune)  # 8 steps each; learnt, cut after step 16, and on with the optimiser's moments
    first.fit(model, loader)
    print(prune.result)
    first.save_checkpoint(out / "smaller.ckpt")

    again = Classifier.load_from_checkpoint(out / "smaller.ckpt").eval()
    model.eval()
    with torch.no_grad():
        difference = (again.net(pictures) - model.net(pictures)).abs().max()
    print(
        f"load_from_checkpoint: {sum(p.numel() for p in again.parameters()):,} parameters, differs by {difference:.1e}"
    )
    resumed = trainer(6, PruneCallback(16, pictures[:2], network="net", target="macs<=50%", loss_fn=F.cross_entropy))
    resumed.fit(Classifier(), loader, ckpt_path=out / "smaller.ckpt")
    print(f"resumed: from step {first.global_step} to {resumed.global_step}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lightning_callback"))
