"""Data for `prune` in parts, in every form that the rest of the package takes; what is one batch or a list stays so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.data import ArrayDataset, DataSource
from prunus.data.given import split_up

X, Y = torch.randn(32, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
LISTED = [(X[:16], Y[:16]), (X[16:], Y[16:])]
LOADER, PART = DataLoader(TensorDataset(X, Y), 16), ArrayDataset(X, Y)
PAIRED: dict[str, Callable[[], Any]] = {
    "loaders": lambda: (LOADER, LOADER),
    "list of loaders": lambda: [LOADER, LOADER],
    "three": lambda: (LOADER, LOADER, LOADER),
    "data sets": lambda: (TensorDataset(X, Y), TensorDataset(X, Y)),
    "lists of batches": lambda: (LISTED, LISTED),
    "splits of data sets": lambda: prunus.Splits(PART, PART),
    "by name": lambda: {"train": LOADER, "val": LOADER},
    "source": lambda: DataSource("some", PART, PART, PART, 3),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.mark.parametrize("data", PAIRED.values(), ids=PAIRED)
def test_prune_takes_parts_as_compress_and_finetune_do(data: Callable[[], Any]) -> None:
    plain = prunus.prune(net(), X[:2], method="taylor", target=0.5, data=LISTED, loss_fn=F.cross_entropy, repair=False)
    given = data()
    loss = None if isinstance(given, DataSource) else F.cross_entropy
    parted = prunus.prune(net(), X[:2], method="taylor", target=0.5, data=given, loss_fn=loss, repair=False)
    for name, scores in plain.scores.values.items():
        torch.testing.assert_close(parted.scores.values[name], scores, rtol=1e-4, atol=1e-7)
    assert isinstance(split_up(given, net(), 0), prunus.Splits)


@pytest.mark.parametrize("batches", [
    LISTED,
    [[X, Y], [X, Y]],
    [({"input": X}, Y), ({"input": X}, Y)],
    [{"input": X, "labels": Y}, {"input": X, "labels": Y}],
    ((X, Y), (X, Y)),
    [X, Y],
    LOADER,
    None,
])  # fmt: skip
def test_batches_stay_what_they_are(batches: Any) -> None:
    assert split_up(batches, None, 0) is batches
