"""Confidence and diversity at their limits (oracle 13), flip rates where they are known."""

from __future__ import annotations

import math

import pytest
import torch

from prunus.errors import ConfigError
from prunus.masks.metrics import confidence, diversity, entropy, flip_rate, mean_inclusion, probabilities


def test_entropy_and_confidence_at_the_limits() -> None:
    uniform = probabilities(torch.zeros(4, 12))
    assert torch.allclose(entropy(uniform), torch.tensor(math.log(12), dtype=torch.float64))
    assert confidence(uniform, 3) == pytest.approx(0)
    one_hot = probabilities(1000.0 * torch.eye(4, 12))
    assert float(entropy(one_hot).max()) == pytest.approx(0, abs=1e-12)
    assert confidence(one_hot, 1) == pytest.approx(1)
    three = probabilities(torch.tensor([[1000.0] * 3 + [0.0] * 9]))
    assert confidence(three, 3) == pytest.approx(1)
    assert confidence(one_hot, 3) > 1
    assert math.isnan(confidence(uniform, 12))


def test_diversity_is_a_mean_divergence_from_the_mean() -> None:
    same = probabilities(torch.randn(1, 9)).expand(5, 9)
    assert diversity(same) == pytest.approx(0, abs=1e-12)
    assert diversity(probabilities(1000.0 * torch.eye(6, 9))) == pytest.approx(math.log(6))
    torch.manual_seed(0)
    p = probabilities(torch.randn(7, 9))
    mean = p.mean(0)
    assert diversity(p) == pytest.approx(float((p * (p / mean).log()).sum(1).mean()))


def test_noise_scale_sharpens() -> None:
    logits = torch.randn(3, 8)
    assert torch.allclose(probabilities(logits, 0.1), probabilities(10 * logits))
    with pytest.raises(ConfigError, match="noise_scale"):
        probabilities(logits, 0.0)


def test_flip_rate_of_certain_and_of_uniform_masks() -> None:
    assert flip_rate(1000.0 * torch.eye(4, 12), 1) == 0
    uniform = flip_rate(torch.zeros(200, 12), 3, draws=40)
    assert uniform == pytest.approx(1 - 3 / 12, abs=0.01)


def test_mean_inclusion_is_the_chance_of_the_most_probable() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0], [3.0, 0.0, 0.0, 0.0]])
    wanted = float(logits.softmax(1).amax(1).mean())
    found = mean_inclusion(logits.repeat(500, 1), 1, draws=40)
    assert abs(found - wanted) < 4 * (0.25 / 40_000) ** 0.5
    assert mean_inclusion(logits, 4, draws=2) == 1
    assert mean_inclusion(logits, 2, noise_scale=0.0, draws=2) == 1
    even = mean_inclusion(torch.zeros(2_000, 8), 2, draws=10)
    assert abs(even - 0.25) < 4 * (0.25 * 0.75 / 40_000) ** 0.5
