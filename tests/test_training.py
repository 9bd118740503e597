"""The one training step, and the one way to seed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import DataError
from prunus.runtime import seeds
from prunus.runtime.progress import Bar
from prunus.runtime.seeds import seeded, start_at
from prunus.runtime.training import Training


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


def test_a_step_is_forward_backward_and_update() -> None:
    x, y = batch()
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    training = Training(model, "fp32", Bar(), torch.optim.SGD(model.parameters(), lr=0.5))
    loss = training.step((x, y), lambda a, b: F.cross_entropy(model(a), b), "here", lambda: model.weight.square().sum())
    expected = F.cross_entropy(other(x), y)
    (expected + other.weight.square().sum()).backward()
    assert not loss.requires_grad
    assert torch.equal(loss, expected.detach())
    for after, before in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.5 * before.grad, rtol=0, atol=1e-7)


def test_without_an_optimizer_there_are_gradients_alone() -> None:
    x, y = batch()
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    training = Training(model, "fp32", Bar())
    for _ in range(2):
        training.step((x, y), lambda a, b: F.cross_entropy(model(a), b), "here")
    assert torch.equal(model.weight, before)
    (once,) = torch.autograd.grad(F.cross_entropy(model(x), y), model.weight)
    torch.testing.assert_close(model.weight.grad, 2 * once)


@pytest.mark.parametrize("broken", ["loss", "penalty"])
def test_nothing_is_learned_from_what_is_not_finite(broken: str) -> None:
    x, y = batch()
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    training = Training(model, "fp32", Bar(), torch.optim.SGD(model.parameters(), lr=0.5))
    factor = {"loss": float("nan"), "penalty": float("inf")}[broken]
    with pytest.raises(DataError, match="epoch 3, step 1"):
        training.step(
            (x, y),
            lambda a, b: F.cross_entropy(model(a), b) * (factor if broken == "loss" else 1),
            "epoch 3, step 1",
            (lambda: model.weight.square().sum() * factor) if broken == "penalty" else None,
        )
    assert torch.equal(model.weight, before)


def test_draws_follow_the_seed_and_the_generator_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(seed: int, *, alike: bool = False) -> Tensor:
        with seeded(seed, torch.device("cpu"), alike=alike):
            return torch.rand(3)

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = draws(7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), first)
    monkeypatch.setattr(seeds, "rank", lambda: 1)
    assert not torch.equal(draws(7), first)
    assert torch.equal(draws(7, alike=True), first)


def test_no_epoch_of_one_rank_draws_as_another_of_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for number in range(4):
        monkeypatch.setattr(seeds, "rank", lambda number=number: number)
        for epoch in range(30):
            with seeded(0):
                start_at(7919 * epoch)
                seen.add(torch.initial_seed())
    assert len(seen) == 4 * 30
