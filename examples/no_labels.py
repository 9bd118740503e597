"""No labels: everything is learned from the dense network's own answers. `python no_labels.py`"""

import torch
from torch import nn

import prunus
from prunus.data import DataSource, DenseOutputs


def main() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    inputs = torch.randn(512, 20)  # what it will meet; nobody says what it should answer
    batches = [(inputs[i : i + 64],) for i in range(0, 384, 64)]
    held_out = inputs[384:]

    result = prunus.prune(dense, inputs[:2], method="fisher", target="macs<=50%", data=batches, progress=False)
    print(result)

    def agreement() -> float:
        return (dense(held_out).argmax(1) == result.model(held_out).argmax(1)).float().mean().item()

    print(f"agrees with the dense network, repaired: {agreement():.1%}")
    settings = prunus.FinetuneConfig(epochs=20, batch_size=64, lr=0.01)
    data = DataSource("unlabelled", batches, [(held_out,)], loss_fn=DenseOutputs())
    prunus.finetune(result.model, data, settings, teacher=dense, progress=False)
    print(f"agrees with the dense network, distilled: {agreement():.1%}")


if __name__ == "__main__":
    main()
