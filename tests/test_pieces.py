"""Where the memory does not hold a step, its gradient is added up over pieces of the batch, and that is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.recovery import FinetuneConfig, finetune
from prunus.runtime.pieces import Pieces
from prunus.runtime.progress import Bar
from prunus.runtime.training import Training


class Small(nn.Module):
    """A network that no more than `most` examples fit into."""

    def __init__(self, most: int, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))
        self.most, self.seen = most, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        answer = self.net(x)
        if self.training or torch.is_grad_enabled():
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            self.seen.append(len(x))
        return answer  # type: ignore[no-any-return]


X, Y = torch.randn(10, 6, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3


def stepped(most: int, steps: int = 2, dropout: float = 0.0) -> Small:
    model = Small(most, dropout).train()
    training = Training(model, "fp32", Bar(), torch.optim.SGD(model.parameters(), lr=0.5))
    torch.manual_seed(1)
    for _ in range(steps):
        training.step((X, Y), lambda x, y: F.cross_entropy(model(x), y), "step 0", lambda: model.net[0].weight.sum())  # type: ignore[union-attr, operator]
    return model


def test_halves_of_halves_take_the_step_of_the_whole() -> None:
    whole = stepped(100)
    with pytest.warns(RuntimeWarning, match="taken in 4 pieces, whose gradients add up"):
        parts = stepped(3)
    assert parts.seen == [3, 3, 3, 1] * 2, "it is not tried again"
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_what_an_attempt_drew_is_drawn_again() -> None:
    model = Small(5, dropout=0.5).train()
    training = Training(model, "fp32", Bar(), torch.optim.SGD(model.parameters(), lr=0.5), pieces=Pieces(2))
    torch.manual_seed(1)
    for _ in range(2):
        training.step((X, Y), lambda x, y: F.cross_entropy(model(x), y), "step 0", lambda: model.net[0].weight.sum())  # type: ignore[union-attr, operator]
    halved = stepped(5, dropout=0.5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), halved.parameters(), strict=True))


def test_what_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(RuntimeWarning, match="10 pieces"):
        stepped(0)


def test_recovery_and_learning_go_on_in_pieces() -> None:
    part = ArrayDataset(X, Y)
    data = DataSource("toy", part, part, None, 3)
    config = FinetuneConfig(epochs=2, batch_size=10, momentum=0.0)
    found: list[Any] = []
    for most in (100, 4):
        model = Small(most)
        found.append(finetune(model, data, config, progress=False).history if most == 100 else None)
        if most == 4:
            with pytest.warns(RuntimeWarning, match="out of memory"):
                found[1] = finetune(model, data, config, progress=False).history
    assert [e.train_loss for e in found[0]][1:] == pytest.approx([e.train_loss for e in found[1]][1:], rel=1e-5)
    model = Small(4).eval()
    groups = prunus.trace(model.net, X).groups()
    method = prunus.DirichletPruning(min_steps=2)
    for group in groups:
        assert group.units == 8
    with pytest.warns(RuntimeWarning, match="out of memory"):
        scores = prunus.fit(
            model, prunus.trace(Small(100).eval(), X).groups(), method, [(X, Y)], F.cross_entropy, num_data=10
        )
    assert all(bool(torch.isfinite(v).all()) for v in scores.values.values())
