"""Digests of weights and data: the same again, another for anything else, and nothing is consumed or disturbed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from prunus.data.datasets import ArrayDataset, Batches
from prunus.files.fingerprint import data_digest, weights_digest

X, Y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


class OnDemand(Dataset[Any]):
    """Reads by number; noise, if any, is drawn anew each time."""

    def __init__(self, shift: float, noise: bool = False, own: torch.Generator | None = None) -> None:
        self.shift, self.noise, self.own = shift, noise, own

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randn(3, generator=self.own) if self.noise else torch.zeros(3)
        return torch.full((3,), self.shift + index) + noise, index % 3


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it is consumed")


class Holder:
    """A loader of somebody's own."""

    def __init__(self, x: Tensor) -> None:
        self.batches = [(x[:20], Y[:20]), (x[20:], Y[20:])]

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it is consumed")


def loaders(x: Tensor) -> dict[str, Any]:
    whole = TensorDataset(x, Y)
    return {
        "list": [(x[:20], Y[:20]), (x[20:], Y[20:])],
        "dicts": [{"x": x, "labels": Y}],
        "tensors": DataLoader(whole, 8, shuffle=True),
        "subset": DataLoader(Subset(whole, range(30)), 8),
        "batches": Batches(ArrayDataset(x, Y), 8, shuffle=True),
        "on demand": DataLoader(OnDemand(float(x[0, 0])), 8, shuffle=True),
        "noisy": DataLoader(OnDemand(float(x[0, 0]), noise=True), 8, shuffle=True),
        "own class": Holder(x),
    }


@pytest.mark.parametrize("kind", list(loaders(X)))
def test_the_same_data_have_the_same_digest_and_others_another(kind: str) -> None:
    before = torch.get_rng_state()
    digest = data_digest(loaders(X)[kind])
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(3)
    assert data_digest(loaders(X.clone())[kind]) == digest
    assert data_digest(loaders(X + 1)[kind]) != digest


def test_what_is_drawn_outside_the_global_generators_counts_by_shape_alone() -> None:
    one, other = (data_digest(OnDemand(s, noise=True, own=torch.Generator())) for s in (0.0, 1.0))
    assert one == other
    assert data_digest(DataLoader(Stream())) == data_digest(DataLoader(Stream()))  # it isn't read


def test_other_parts_of_the_same_data_are_other_data() -> None:
    whole = TensorDataset(X, Y)
    assert data_digest(Subset(whole, range(30))) != data_digest(Subset(whole, range(10, 40)))
    assert data_digest(DataLoader(whole, 8)) != data_digest(DataLoader(whole, 4))


def test_every_tensor_of_a_model_counts() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model.register_buffer("mask", torch.ones(4), persistent=False)
    digest = weights_digest(model)
    assert weights_digest(copy.deepcopy(model)) == digest
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        changed = copy.deepcopy(model)
        {**dict(changed.named_parameters()), **dict(changed.named_buffers())}[name].data.view(-1)[0] += 1
        assert weights_digest(changed) != digest, (name, tensor.shape)
    assert weights_digest(copy.deepcopy(model).double()) != digest
