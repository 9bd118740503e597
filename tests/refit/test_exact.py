"""What can be repaired exactly is: twin channels, inputs of full rank; and where the constant goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.refit import RepairConfig, Repaired, repair
from prunus.refit.least_squares import LeastSquares
from prunus.runtime.copies import copied

KEPT = {"0": [0, 2, 3, 4, 5]}
ALL = RepairConfig(least_rows=100000, most_rows=100000)


def repaired(model: nn.Module, x: Tensor, kept: dict[str, list[int]], config: RepairConfig = ALL) -> Repaired:
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:2]), kept)
    done = repair(model, plan, [(x,)], config=config, progress=False)
    prunus.apply_(copied(done.model), plan, x[:2])
    return done


def smaller(model: nn.Module, done: Repaired, x: Tensor, kept: dict[str, list[int]]) -> nn.Module:
    return prunus.apply_(done.model, prunus.Plan.from_kept(prunus.trace(model, x[:2]), kept), x[:2])


def twin_(model: nn.Module, layer: str) -> None:
    """Let unit 1 of a layer, and of the norm behind it, be what unit 0 is."""
    number = int(layer)
    with torch.no_grad():
        for module in list(model.children())[number : number + 2]:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.dim():
                    tensor[1] = tensor[0]


TWINS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4)), (5,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 4, 3, padding=1)),
        (3, 7, 7),
    ),
    "transposed": (lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 4, 3, 2)), (3, 9)),
    "behind a flattening": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 4)), (3, 4, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_one_of_two_equal_channels_goes_and_nothing_changes(name: str) -> None:
    torch.manual_seed(0)
    model = TWINS[name][0]().eval()
    twin_(model, "0")
    x, unseen = torch.randn(300, *TWINS[name][1]), torch.randn(20, *TWINS[name][1])
    done = repaired(model, x, KEPT)
    torch.testing.assert_close(smaller(model, done, x, KEPT)(unseen), model(unseen), rtol=1e-3, atol=1e-3)
    assert done.refits[0].after < 1e-6


def test_with_a_price_near_zero_it_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prices to choose from hold the weights near the old ones; the solution itself has no other error."""
    monkeypatch.setattr(LeastSquares, "solve", partialmethod(LeastSquares.solve, (1e-12,)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4)).double()
    twin_(model, "0")
    x = torch.randn(300, 5, dtype=torch.float64)
    done = repaired(model, x, KEPT)
    torch.testing.assert_close(smaller(model, done, x, KEPT)(x), model(x), rtol=1e-5, atol=1e-5)


def test_what_the_kept_ones_span_is_won_back() -> None:
    """Twelve units that are linear in five inputs: any seven of them, with a constant, are enough."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Linear(12, 4)).double()
    x = torch.randn(400, 5, dtype=torch.float64)
    (refit,) = repaired(model, x, {"0": [0, 1, 2, 3, 4, 5, 6]}).refits
    assert refit.after < 1e-6 < refit.before
    assert refit.layer == "1"
    assert refit.won_back > 0.999


def norm(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4, **options))
    return made.double().eval()


def constants(before: nn.Module, after: nn.Module) -> list[str]:
    old = before.state_dict()
    names = [n for n, t in after.state_dict().items() if not torch.equal(t, old[n])]
    return [n for n in names if not n.endswith("weight")]


def test_the_constant_goes_into_the_bias_or_the_mean_of_the_norm_behind() -> None:
    x, kept = torch.randn(200, 3, 2, 2, dtype=torch.float64), {"0": [0, 1, 2]}
    torch.manual_seed(0)
    biased = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)).double().eval()
    assert constants(biased, repaired(biased, x, kept).model) == ["2.bias"]
    for affine in (True, False):
        model = norm(affine=affine)
        done = repaired(model, x, kept)
        assert constants(model, done.model) == ["3.running_mean"]
        gap = (smaller(model, done, x, kept)(x) - model(x)).detach().mean((0, 2, 3))
        assert float(gap.abs().max()) < 1e-9, "the mean of what the layer makes is met"


def test_there_may_be_no_place_for_a_constant() -> None:
    x, kept = torch.randn(200, 3, 2, 2, dtype=torch.float64), {"0": [0, 1, 2]}
    bare = nn.Sequential(*norm()[:3])
    statistics = norm(track_running_stats=False)
    for model in (bare, statistics):
        done = repaired(model, x, kept)
        assert constants(model, done.model) == []
        assert not done.refits[-1].reason


def test_a_bias_that_two_layers_share_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 4)).double()
    model[3].bias = model[2].bias
    done = repaired(model, torch.randn(200, 5, dtype=torch.float64), {"0": [0, 1, 2]})
    assert torch.equal(done.model[2].bias, model[2].bias)
    assert done.model[3].bias is done.model[2].bias
