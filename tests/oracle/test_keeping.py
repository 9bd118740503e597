"""Keep probabilities: the law of a second measurement after a first, in closed form and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from prunus.errors import ConfigError
from prunus.plan.keeping import keep_probability
from prunus.posteriors.dirichlet import DirichletPosterior


def around(score: Tensor, apart: Tensor) -> Tensor:
    return torch.cat([torch.stack([score + a, score - a]) for a in apart.reshape(-1, len(score))])


def probability(score: Tensor, apart: Tensor, k: int, seed: int = 0) -> Tensor:
    """Of scores as they are: negative ones among them forbid the logarithm."""
    shifted = score - score.max() - 10
    return keep_probability(shifted, around(shifted, apart), k, seed=seed)


def test_two_units_in_closed_form() -> None:
    for gap in (0.0, 0.5, 2.0, 4.0):
        found = probability(torch.tensor([gap, 0.0]), torch.tensor([0.6, -0.4]), 1)
        error = 1.0**2 / 2  # of each: half the squared difference of what moved them
        real = max(0.0, 1 - error / (gap**2 / 2)) if gap else 0.0
        z = real * gap / math.sqrt(2 * (1 + real) * error)
        assert float(found[0]) == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))), abs=0.03)
        assert float(found.sum()) == pytest.approx(1, abs=1e-6)


def test_noise_alone_decides_nothing() -> None:
    stream = torch.Generator().manual_seed(0)
    noise = torch.randn(400, generator=stream)
    found = probability(noise, torch.randn(8, 400, generator=stream), 100)
    assert float((found - 0.25).abs().max()) < 0.15
    assert float((found - 0.25).abs().mean()) < 0.05
    torch.testing.assert_close(
        keep_probability(torch.ones(4), torch.ones(2, 4), 4), torch.ones(4), atol=0, rtol=0
    )  # whatever is learned, all stay


def test_without_noise_all_is_decided() -> None:
    score = torch.tensor([1.0, 5.0, 3.0, 4.0, 2.0])
    assert keep_probability(score, around(score, torch.zeros(5)), 2).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("value", [0.0, 1.0, -3e-7])
def test_chance_decides_between_equals(value: float) -> None:
    score = torch.full((8,), value)
    found = keep_probability(score, score.expand(4, -1), 3)
    torch.testing.assert_close(found, torch.full((8,), 3 / 8), atol=0.04, rtol=0)
    score = torch.tensor([5.0, 4, 4, 4, 4, 1, 1, 1])
    found = keep_probability(score, score.expand(4, -1), 3)
    torch.testing.assert_close(found, torch.tensor([1, 0.5, 0.5, 0.5, 0.5, 0, 0, 0]), atol=0.04, rtol=0)


def test_units_in_rows_are_compared_with_those_of_their_row() -> None:
    score, rows = torch.arange(8.0, 0, -1), np.array([0, 1, 1, 1, 0, 0, 0, 1])
    apart = torch.tensor([0.1, -0.1] * 4)
    sure = keep_probability(score, around(score, torch.zeros(8)), 4, rows=rows)
    assert sure.tolist() == [1, 1, 1, 0, 1, 0, 0, 0]
    found = keep_probability(score, around(score, apart), 4, rows=rows)
    q = DirichletPosterior(8)
    for each in (found, q.keep_probability(4, rows=rows)):
        assert [float(each[rows == r].sum()) for r in (0, 1)] == pytest.approx([2, 2])
    torch.testing.assert_close(q.keep_probability(4, rows=np.zeros(8, int)), q.keep_probability(4), atol=0, rtol=0)


def test_falls_with_the_score_and_sums_to_the_size() -> None:
    score = torch.linspace(5, 1, 30)
    found = probability(score, torch.full((30,), 0.7) * (-1.0) ** torch.arange(30), 12)
    assert bool((found[1:] <= found[:-1] + 0.03).all())
    assert float(found.sum()) == pytest.approx(12, abs=1e-4)
    assert float(found[11:13].mean()) == pytest.approx(0.5, abs=0.05)


def test_units_and_scales_of_scores_play_no_part() -> None:
    stream = torch.Generator().manual_seed(1)
    score = torch.rand(40, generator=stream) + 0.1
    ends = around(score.log(), 0.1 * torch.randn(40, generator=stream)).exp()
    found = keep_probability(score, ends, 15)
    torch.testing.assert_close(keep_probability(1000 * score, 1000 * ends, 15), found, atol=2e-3, rtol=0)
    torch.testing.assert_close(keep_probability(score**2, ends**2, 15), found, atol=2e-3, rtol=0)
    common = torch.tensor([[3.0], [1 / 3]])  # what moves all units alike moves none past another
    torch.testing.assert_close(keep_probability(score, common * ends, 15), found, atol=2e-3, rtol=0)
    moved = torch.randperm(40, generator=stream)
    torch.testing.assert_close(keep_probability(score[moved], ends[:, moved], 15), found[moved], atol=0.04, rtol=0)


def test_dead_units_stay_dead() -> None:
    score = torch.cat([torch.zeros(30), torch.arange(1.0, 11.0)])
    found = keep_probability(score, around(score, 0.4 * score * (-1.0) ** torch.arange(40)), 5)
    assert float(found[:25].max()) == 0
    assert float(found[:30].max()) < 0.1 < float(found[34]) < float(found[39])


def test_says_how_often_a_second_measurement_agrees() -> None:
    stream = torch.Generator().manual_seed(2)
    stated, kept = [], []
    for _ in range(20):
        truth, std = torch.randn(200, generator=stream), 0.4
        first, other, second = (std * torch.randn(200, generator=stream) for _ in range(3))
        stated.append(probability(truth + first, other, 80))
        kept.append(torch.zeros(200).index_fill(0, (truth + second).topk(80).indices, 1.0))
    p, y = torch.cat(stated), torch.cat(kept)
    place = (10 * p).long().clamp(max=9)
    error = sum(
        float((place == b).float().mean() * (p[place == b].mean() - y[place == b].mean()).abs()) for b in range(10)
    )
    assert error < 0.02
    assert float((p - y).square().mean()) < 0.12  # a constant has 0.24


def test_impossible_sizes() -> None:
    with pytest.raises(ConfigError, match="between 1 and 3"):
        keep_probability(torch.ones(3), torch.ones(2, 3), 4)
