"""Two CPU processes under torchrun do what one process does."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import two_processes
import torch.nn.functional as F
from torch import nn

from prunus.errors import DataError
from prunus.data.evaluation import evaluate
from prunus.recovery.finetuning import FinetuneConfig, finetune
from prunus.runtime.processes import accelerator
from prunus.data.datasets import ArrayDataset, Batches, DataSource

pytestmark = pytest.mark.dist


def make_data() -> DataSource:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(99) % 3
    images = torch.randn(99, 1, 6, 6, generator=generator) + (labels - 1).view(-1, 1, 1, 1)
    part = ArrayDataset(images, labels)
    parts = [part.subset(torch.arange(n * 33, (n + 1) * 33)) for n in range(3)]
    return DataSource("toy", *parts, num_classes=3)


def make_model(norm: bool) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


CONFIG = FinetuneConfig(epochs=3, batch_size=8, lr=0.05, precision="fp32")


def resumed(checkpoint: Path, data: DataSource) -> dict[str, Any]:
    """Rank 1 alone meets a NaN; then all resume from the file that rank 0 wrote."""
    steps = 0

    def loss(outputs: torch.Tensor, labels: torch.Tensor, **extra: Any) -> torch.Tensor:
        nonlocal steps
        steps += torch.is_grad_enabled()
        value = F.cross_entropy(outputs, labels, **extra)
        return value * (math.nan if steps == 6 and os.environ["RANK"] == "1" else 1.0)

    model, refused = make_model(True), ""
    try:
        finetune(model, dataclasses.replace(data, loss_fn=loss), CONFIG, progress=False, checkpoint=checkpoint)
    except DataError as error:
        refused = error.where
    fresh = make_model(True)
    finetune(fresh, data, CONFIG, progress=False, checkpoint=checkpoint, resume=True)
    return {"refused": refused, "weights": {k: v.tolist() for k, v in fresh.state_dict().items()}}


def report(folder: Path | None = None) -> dict[str, Any]:
    """What one rank sees."""
    data, found = make_data(), {}
    for norm in (False, True):
        model = make_model(norm)
        started = evaluate(model, data.test, batch_size=10)
        result = finetune(model, data, CONFIG, progress=False)
        again = finetune(make_model(norm), data, CONFIG, progress=False)
        found[f"norm={norm}"] = {
            "start": [started.accuracy, started.loss, started.num_examples],
            "accuracy": result.validation.accuracy,
            "loss": result.validation.loss,
            "weights": {k: v.tolist() for k, v in model.state_dict().items()},
            "repeats": all(torch.equal(v, again.model.state_dict()[k]) for k, v in model.state_dict().items()),
            "best": result.best_epoch,
            "processes": result.processes,
        }
    if folder is not None:
        found["resumed"] = resumed(folder / "run.pt", data)
    with accelerator() as processes:
        rank, world = processes.process_index, processes.num_processes
    batches = Batches(data.train, 8, shuffle=True, rank=rank, world=world)
    return {**found, "labels": [y.tolist() for _, y in batches], "images": [x.sum().item() for x, _ in batches]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return list(two_processes(__file__, folder))


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return report()


def test_both_ranks_take_part(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert [r["norm=True"]["processes"] for r in ranks] == [2, 2]
    assert len(ranks[0]["labels"]) == len(ranks[1]["labels"]) == len(alone["labels"]) - 1
    seen = [label for r in ranks for labels in r["labels"] for label in labels]
    assert sorted(seen) == sorted(label for labels in alone["labels"] for label in labels)
    assert sum(sum(r["images"]) for r in ranks) == pytest.approx(sum(alone["images"]), rel=1e-4)


@pytest.mark.parametrize("case", ["norm=False", "norm=True"])
def test_all_ranks_end_with_the_same_weights(ranks: list[dict[str, Any]], case: str) -> None:
    assert ranks[0][case] == ranks[1][case]
    assert ranks[0][case]["repeats"]


def test_all_ranks_refuse_what_one_meets_and_resume(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["resumed"]["refused"] == "fine-tuning, epoch 2, step 2"
        assert rank["resumed"]["weights"] == rank["norm=True"]["weights"]


@pytest.mark.parametrize("case", ["norm=False", "norm=True"])
def test_evaluation_equals_one_process(ranks: list[dict[str, Any]], alone: dict[str, Any], case: str) -> None:
    assert ranks[0][case]["start"] == pytest.approx(alone[case]["start"], rel=1e-6)
    assert ranks[0][case]["start"][2] == 33


def test_without_batch_norm_training_equals_one_process(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    one, two = alone["norm=False"], ranks[0]["norm=False"]
    assert two["best"] == one["best"]
    for name, values in one["weights"].items():
        torch.testing.assert_close(torch.tensor(two["weights"][name]), torch.tensor(values), rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    answer = report(Path(sys.argv[1]))
    Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(answer))
    torch.distributed.destroy_process_group()
