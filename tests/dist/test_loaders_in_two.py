"""Two processes that were given the same DataLoader learn and judge what one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import two_processes, write_down
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SubsetRandomSampler, TensorDataset

from prunus import DirichletPruning, prune
from prunus.data import Metric, evaluate
from prunus.data.batches import examples_behind
from prunus.data.shared import SharedLoader, shareable
from prunus.recovery import FinetuneConfig, finetune

X = torch.randn(43, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0)
LAST = Metric("last", lambda _, labels: (labels == 2).float())


class Stream(IterableDataset[Any]):
    """A process's own share of 33 examples: of two the first has a batch more."""

    def __init__(self, rank: int, world: int) -> None:
        self.rows = [(X[i], Y[i]) for i in range(rank, 33, world)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def found(rank: int = 0, world: int = 1) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    train, held_out = DataLoader(TensorDataset(X[:35], Y[:35]), 8, shuffle=True), TensorDataset(X[35:], Y[35:])
    config = FinetuneConfig(epochs=3, lr=0.1, precision="fp32")
    result = finetune(model, (train, DataLoader(held_out, 3)), config, progress=False)
    judged = evaluate(model, DataLoader(TensorDataset(X, Y), 10), metric=LAST)
    single = evaluate(model, [(X, Y)])  # one process has no batch at all
    weights = torch.cat([p.flatten() for p in model.parameters()]).tolist()
    chosen = DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler(range(20)))
    behind = examples_behind(chosen if world == 1 else SharedLoader(chosen, rank, world))
    method = DirichletPruning(min_steps=9)
    pruned = prune(model, X[:2], method=method, target={"0": 8}, data=train, loss_fn=F.cross_entropy, progress=False)
    again = DataLoader(TensorDataset(X, Y), 8, shuffle=True)  # of whose last batch they have unequal shares
    mine = DataLoader(TensorDataset(X[rank::world], Y[rank::world]), 8 // world)  # data sets of their own
    scores = [
        prune(
            model, X[:2], method=DirichletPruning(min_steps=4), target=0.5, data=data, loss_fn=F.cross_entropy,
            repair=False, progress=False,
        ).scores.values["0"].tolist()
        for data in (again, mine)
    ]  # fmt: skip
    # Nobody waits for a batch that another process does not have.
    streamed = finetune(model, (DataLoader(Stream(rank, world), 4), [(X, Y)]), config, progress=False)
    return {
        "weights": weights,
        "single": [single.score, single.loss, single.num_examples],
        "behind": behind,
        "scores": scores,
        "streamed": len(streamed.history),
        "gates": pruned.scores.values["0"].tolist(),
        "pruned": torch.cat([p.flatten() for p in pruned.model.parameters()]).tolist(),
        "history": [[e.validation_score, e.train_loss] for e in result.history[1:]],
        "judged": [judged.score, judged.loss, judged.num_examples],
    }


@pytest.mark.dist
def test_a_loader_that_all_were_given_is_shared_out(tmp_path: Path) -> None:
    one, (first, second) = found(), two_processes(__file__, tmp_path)
    assert first["weights"] == second["weights"]
    for name, wanted in one.items():
        torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_what_is_shared_is_every_row_once() -> None:
    data = TensorDataset(torch.arange(11))
    loader = DataLoader(data, 4, shuffle=True)
    assert shareable(loader)
    assert not shareable(DataLoader(data, 4, sampler=DistributedSampler(data, 2, 0)))
    torch.manual_seed(3)
    whole = [x.tolist() for (x,) in loader]
    shares = []
    for rank in range(2):
        torch.manual_seed(3)
        shared = SharedLoader(loader, rank, 2)
        rows = []
        for (x,), of_all in zip(shared, whole, strict=True):
            assert shared.whole == len(of_all)
            rows.append(x.tolist())
        shares.append(rows)
    for number, of_all in enumerate(whole):
        assert of_all[0::2] == shares[0][number]
        assert of_all[1::2] == shares[1][number]
    assert SharedLoader(loader, 0, 9).rows.world == 9
    many = SharedLoader(loader, 8, 9)
    assert [len(rows) for rows in many.rows] == [1, 1, 1]  # nobody stands idle
    assert list(many.rows.sizes) == [9, 9, 9]  # and no row weighs more than the others


if __name__ == "__main__":
    write_down(found)
