"""Exactly two of every four weights, refitted at once and then trained along. `python two_of_four.py`

Needs: pip install 'prunus[demo]'
"""

import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.data import Batches, load_data


def main() -> None:
    torch.manual_seed(0)
    digits = load_data("digits", validation=400)
    learned = list(Batches(digits.train.subset(torch.arange(800)), 32, shuffle=False))
    held_out = list(Batches(digits.validation, 200, shuffle=False))
    data = prunus.Splits(learned, held_out)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    prunus.finetune(dense, data, prunus.FinetuneConfig(epochs=4, batch_size=32, lr=0.05), progress=False)
    print("dense:", prunus.evaluate(dense, held_out))

    for name, settings in (("refitted", {"epochs": 0, "tune_epochs": 0}), ("learned", {"epochs": 1, "tune_epochs": 1})):
        method = prunus.DynamicProbabilisticPruning(**settings)
        result = prunus.prune(
            dense,
            digits.example_inputs,
            method=method,
            target="2:4",
            data=data,
            loss_fn=F.cross_entropy,
            progress=False,
        )
        weight = dict(result.model.named_parameters())["3.weight"]
        in_fours = (weight.reshape(-1, 4) != 0).sum(1)
        print(f"{name}: {prunus.evaluate(result.model, held_out)}; of four weights at most {int(in_fours.max())} stay")


if __name__ == "__main__":
    main()
