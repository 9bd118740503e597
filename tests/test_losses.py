"""Losses and answers of classifiers, segmenters and language models; data of tokens and of several inputs."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data.batches import as_batches
from prunus.data.datasets import ArrayDataset, Batches, DataSource, next_tokens
from prunus.data.evaluation import evaluate
from prunus.data.losses import cross_entropy, main_output
from prunus.errors import DataError
from prunus.pipeline.compress import compress
from prunus.pipeline.settings import RunSettings
from prunus.recovery.config import FinetuneConfig


def test_the_answer_is_found_in_what_models_return() -> None:
    logits, hidden = torch.ones(2, 3), torch.zeros(2, 4)
    for result in (
        logits, SimpleNamespace(logits=logits), {"logits": logits, "hidden": hidden}, (logits, hidden), {"x": logits},
    ):  # fmt: skip
        assert main_output(result) is logits
    with pytest.raises(DataError, match="no tensor in a SimpleNamespace"):
        main_output(SimpleNamespace())


def test_classes_lie_last_or_second() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randn(4, 5, 7, generator=generator), torch.randint(0, 7, (4, 5), generator=generator)
    wanted = F.cross_entropy(tokens.movedim(-1, 1), labels)
    assert torch.allclose(cross_entropy(tokens, labels), wanted)
    assert torch.allclose(cross_entropy(tokens.movedim(-1, 1), labels), wanted)
    assert torch.allclose(cross_entropy({"logits": tokens}, labels, reduction="sum"), wanted * 20)
    with pytest.raises(DataError, match="outputs"):
        cross_entropy(tokens, labels[:, :4])


def test_ignored_positions_do_not_count() -> None:
    logits, labels = torch.randn(3, 4, 6), torch.randint(0, 6, (3, 4))
    masked = labels.clone()
    masked[:, 2:] = -100
    assert torch.allclose(cross_entropy(logits, masked), cross_entropy(logits[:, :2], labels[:, :2]))
    data = ArrayDataset(torch.zeros(3, 4, dtype=torch.int64), masked)
    assert data.num_targets == as_batches(Batches(data, 2)).num_labels() == 6
    assert ArrayDataset(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)).num_targets == 3


class Constant(nn.Module):
    """Answers with the logarithms of fixed token probabilities, whatever it is given."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def test_a_language_model_is_judged_in_nats_per_token() -> None:
    data = next_tokens(torch.tensor([[0, 1, 1, 2, 3], [0, 1, 2, 3, 3]]), ignored=3)
    assert data.labels.tolist() == [[1, 1, 2, -100], [1, 2, -100, -100]]
    found = evaluate(Constant([0.1, 0.6, 0.2, 0.1]), data)
    assert found.num_examples == 5
    assert found.loss == pytest.approx(-(3 * math.log(0.6) + 2 * math.log(0.2)) / 5, rel=1e-5)
    assert found.accuracy == pytest.approx(60.0)
    with pytest.raises(DataError, match="none is judged"):
        evaluate(Constant([0.5, 0.5]), ArrayDataset(data.inputs, torch.full((2, 4), -100)))


class Two(nn.Module):
    """Two inputs by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scale, self.up, self.head = (
            nn.Embedding(9, 12),
            nn.Linear(3, 12),
            nn.Linear(12, 24),
            nn.Linear(24, 4),
        )

    def forward(self, ids: Tensor, features: Tensor) -> dict[str, Tensor]:
        mixed = self.embed(ids) + self.scale(features)[:, None]
        return {"logits": self.head(self.up(mixed).relu().mean(1))}


def test_inputs_by_keyword_go_through_everything(tmp_path: Any) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "ids": torch.randint(0, 9, (64, 5), generator=generator),
        "features": torch.randn(64, 3, generator=generator),
    }
    part = ArrayDataset(inputs, inputs["features"].argmax(1))
    data = DataSource("two", part, part, part, 4)
    assert part[3][0]["ids"].shape == (5,)
    done = compress(
        Two(), data, method="dirichlet", target="macs<=60%", recovery=FinetuneConfig(epochs=2, lr=0.05),
        run=RunSettings(modes=("eager",)), out=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert done.result.plan.after.macs <= 0.6 * done.result.plan.before.macs
    assert done.loss["recovered"] < done.loss["one_shot"]
    assert set(done.loss) == set(done.accuracy)
