"""Behind a ReLU only what passes counts: rounds of following what is made lower what is got wrong there."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.refit import RepairConfig, least_squares, repair
from prunus.refit.calls import LayerCall, layer_call
from prunus.refit.least_squares import Channels, Clamped, LeastSquares


def call() -> LayerCall:
    graph = torch.export.export(nn.Linear(6, 5).double(), (torch.ones(2, 6, dtype=torch.float64),)).module().graph
    return next(c for n in graph.nodes if n.op == "call_function" and (c := layer_call(n)) is not None)  # type: ignore[union-attr]


def missed(end: Tensor, here: Tensor, low: float, high: float) -> float:
    """What stays wrong where the bounds tell numbers apart, and the distance of the others from their side."""
    beyond = torch.where(end <= low, (here - low).clamp_min(0), torch.where(end >= high, (here - high).clamp_max(0), 0))
    return float(torch.where((end > low) & (end < high), here - end, beyond).square().sum())


@pytest.mark.parametrize("bounds", [(0.0, float("inf")), (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_no_round_raises_what_is_missed(
    bounds: tuple[float, float], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(seed)
    node = call()
    x, weight = torch.randn(200, 1, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    factor = (torch.randn(5, dtype=torch.float64) * 2).expand(200, 1, 5)
    factor = factor * (torch.arange(5) > 0)
    wanted = torch.tanh(x @ weight.t() * 2) + torch.randn(200, 1, 5, dtype=torch.float64)
    end = factor * wanted + torch.randn(5, dtype=torch.float64)
    found = []
    for rounds in range(6):
        monkeypatch.setattr(least_squares, "ROUNDS", rounds)
        problem = LeastSquares(node, weight, Channels(torch.ones(6) > 0, torch.ones(5) > 0), True, bounds)
        held = torch.zeros(200) > 0
        problem.add(x, wanted, held)
        problem.clamped.append(Clamped(x, wanted, end, factor, held))
        solution = problem.solve((1e-12,))
        assert solution.weight is not None
        assert solution.constant is not None
        made = x @ solution.weight.t() + solution.constant
        found.append(missed(end, end + factor * (made - wanted), *bounds))
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(found))
    assert found[-1] < 0.97 * found[0]


@pytest.mark.parametrize("clamp", [nn.ReLU, nn.ReLU6])
def test_less_is_lost_behind_the_clamp(clamp: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.GELU(), nn.Conv2d(12, 8, 3, bias=False), nn.BatchNorm2d(8), clamp()
    ).double()  # fmt: skip
    x = torch.randn(32, 3, 8, 8, dtype=torch.float64)
    for _ in range(30):
        model(x)
    model.eval()
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:2]), {"0": range(5)})
    lost = []
    for rounds in (0, 3):
        monkeypatch.setattr(least_squares, "ROUNDS", rounds)
        config = RepairConfig(least_rows=100000, most_rows=100000)
        done = repair(model, plan, [(x,)], config=config, progress=False)
        lost.append(float((prunus.apply_(done.model, plan, x[:2])(x) - model(x)).detach().square().mean()))
    assert lost[1] < lost[0]
