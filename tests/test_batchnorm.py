"""Re-estimated statistics: as exact as the kernel that tells them, in every type and layout, kept only if better."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import DataError


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in model.named_buffers() if n.rpartition(".")[2].startswith("running")}


def batches(count: int = 3, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(size, 3, 7, 7, generator=generator) * (n + 1) + n, torch.zeros(size)) for n in range(count)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_are_those_of_all_the_data(dtype: torch.dtype, layout: torch.memory_format) -> None:
    norm = nn.BatchNorm2d(3).to(dtype)
    data = [(x.to(dtype, memory_format=layout), y) for x, y in batches()]
    prunus.reestimate_batch_norm(norm, data)
    everything = torch.cat([x for x, _ in data]).double().transpose(0, 1).flatten(1)
    rounding = 2 * torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 1e-5
    torch.testing.assert_close(norm.running_mean.double(), everything.mean(1), rtol=rounding, atol=rounding)
    torch.testing.assert_close(norm.running_var.double(), everything.var(1), rtol=rounding, atol=0)


def test_small_variances_far_from_zero_survive() -> None:
    """A sum of squares in fp32 would lose them, and so would 1 / sqrt(variance + eps)."""
    norm, x = nn.BatchNorm1d(2), 100 + 0.01 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    prunus.reestimate_batch_norm(norm, [(part, None) for part in x.split(1000)])
    torch.testing.assert_close(norm.running_var.double(), x.double().var(0), rtol=1e-3, atol=0)


def test_what_later_layers_see_is_normalised_by_the_batch() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    prunus.reestimate_batch_norm(model, batches())
    first = [F.relu(F.batch_norm(x, None, None, training=True)) for x, _ in batches()]
    everything = torch.cat(first).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[2].running_mean, everything.mean(1))
    torch.testing.assert_close(model[2].running_var, everything.var(1))


def test_a_last_batch_of_one_counts_as_one() -> None:
    x = torch.randn(9, 2)
    norm = nn.BatchNorm1d(2)
    prunus.reestimate_batch_norm(norm, [(part, None) for part in x.split(4)])
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    torch.testing.assert_close(norm.running_var, x.var(0))
    before = statistics(norm)
    with pytest.raises(DataError, match="at least two"):
        prunus.reestimate_batch_norm(norm, [(x[:1], None)])
    assert all(torch.equal(b, before[n]) for n, b in statistics(norm).items())


def test_an_autocast_around_changes_nothing() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    other = copy.deepcopy(plain)
    prunus.reestimate_batch_norm(plain, batches())
    with torch.autocast("cpu", torch.bfloat16):
        prunus.reestimate_batch_norm(other, batches())
    assert all(torch.equal(b, statistics(other)[n]) for n, b in statistics(plain).items())


def distance(model: nn.Module) -> float:
    """From the statistics of all the data."""
    everything = torch.cat([x for x, _ in batches()]).transpose(0, 1).flatten(1)
    return float((statistics(model)["0.running_mean"] - everything.mean(1)).abs().sum())


def test_statistics_stay_only_if_the_model_is_better() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert prunus.reestimate_if_better(model, batches(), distance)
    assert distance(model) < 1e-5
    found = statistics(model)
    other = [(x + 1, y) for x, y in batches()]
    assert not prunus.reestimate_if_better(model, other, distance)
    assert all(torch.equal(b, found[n]) for n, b in statistics(model).items())
    assert prunus.reestimate_if_better(model, batches(), lambda _: 1.0), "as good as before"


@pytest.mark.parametrize("broken", [float("nan"), None])
def test_whatever_goes_wrong_the_old_statistics_stay(broken: float | None) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).train()
    before, answers = statistics(model), iter([1.0, broken])

    def loss(judged: nn.Module) -> float:
        assert not judged.training
        answer = next(answers)
        if answer is None:
            raise RuntimeError("the data are gone")
        return answer

    if broken is None:
        with pytest.raises(RuntimeError, match="gone"):
            prunus.reestimate_if_better(model, batches(), loss)
    else:
        assert not prunus.reestimate_if_better(model, batches(), loss)
    assert all(torch.equal(b, before[n]) for n, b in statistics(model).items())
    assert model.training
