"""Residual sums: the layer before the sum makes up for what the other side gets wrong, whichever is written first."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.refit import RepairConfig, Repaired, repair
from prunus.refit.least_squares import LeastSquares
from zoo import untidy

KEPT = [0, 2, 3, 5, 6]
ALL = RepairConfig(least_rows=100000, most_rows=100000)


class Block(nn.Module):
    """A main branch of two layers and a shortcut, both of which read units that go; the shortcut can't be refitted."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 16), nn.Linear(16, 5, bias=False)
        self.kernel = nn.Parameter(torch.randn(8, 5))
        self.norm, self.form = nn.BatchNorm1d(5), form
        self.gamma = nn.Parameter(torch.rand(5) + 0.5)

    def main(self, x: Tensor) -> Tensor:
        made: Tensor = self.down(torch.tanh(self.up(x)))
        forms = {
            "norm": self.norm, "scale": lambda t: self.gamma * t, "half": lambda t: t / 2,
            "computed scale": lambda t: t * (1 + self.gamma).view(1, -1) - self.gamma * 0.1,
        }  # fmt: skip
        return forms.get(self.form, lambda t: t)(made)

    def short(self, x: Tensor) -> Tensor:
        return x @ self.kernel

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        if self.form == "shortcut first":
            short = self.short(x)
            return short + self.main(x)
        main = self.main(x)
        if self.form == "difference":
            return main - self.short(x)
        return main + self.short(x)


def fitted(x: Tensor, wanted: Tensor, constant: bool) -> tuple[Tensor, Tensor]:
    ones = torch.ones_like(x[:, :1])
    found = torch.linalg.lstsq(torch.cat([x, ones], 1) if constant else x, wanted).solution
    return found[: x.shape[1]].t(), found[-1] if constant else torch.zeros_like(found[-1])


def made(form: str) -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    return untidy(Block(form)).double().eval(), torch.randn(300, 4, dtype=torch.float64)  # type: ignore[return-value]


def repaired(model: nn.Module, x: Tensor, config: RepairConfig = ALL) -> Repaired:
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:2]), {"stem": KEPT})
    return repair(model, plan, [(x[:170],), (x[170:],)], config=config, progress=False)


@pytest.mark.parametrize("form", ["plain", "shortcut first", "difference", "norm", "scale", "half", "computed scale"])
def test_the_last_layer_of_a_branch_makes_up_for_the_shortcut(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeastSquares, "solve", partialmethod(LeastSquares.solve, (1e-13,)))
    model, x = made(form)
    done = repaired(model, x)
    with torch.no_grad():
        whole = torch.tanh(model.stem(x))
        left = whole[:, KEPT]
        missed = model.short(whole) - left @ model.kernel[KEPT]
        up, added = fitted(left, model.up(whole) - model.up.bias, True)
        hidden = torch.tanh(left @ up.t() + model.up.bias + added)
        factor = {"norm": (model.norm.running_var + model.norm.eps).rsqrt() * model.norm.weight, "scale": model.gamma,
                  "computed scale": 1 + model.gamma,
                  "half": torch.tensor(0.5), "difference": torch.tensor(-1.0)}.get(form, torch.tensor(1.0))  # fmt: skip
        down, mean = fitted(hidden, model.down(torch.tanh(model.up(whole))) + missed / factor, form == "norm")
    new = done.model.get_submodule
    torch.testing.assert_close(new("up").weight[:, KEPT], up, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new("up").bias, model.up.bias + added, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new("down").weight, down, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new("norm").running_mean, model.norm.running_mean - mean, rtol=1e-5, atol=1e-5)
    assert [r.layer for r in done.refits] == ["up", "down"]
    assert not any(r.reason for r in done.refits)


class Parallel(Block):
    """As `Block` with a third branch between, of one layer: the two sums come one after the other."""

    def __init__(self) -> None:
        super().__init__("plain")
        self.left = nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.short(x) + self.left(x) + self.main(x)


def test_a_branch_makes_up_for_one_side_while_the_other_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and feed-forward layers that stand side by side (GPT-J, GPT-NeoX, Phi, Cohere)."""
    monkeypatch.setattr(LeastSquares, "solve", partialmethod(LeastSquares.solve, (1e-13,)))
    torch.manual_seed(0)
    model, x = untidy(Parallel()).double().eval(), torch.randn(300, 4, dtype=torch.float64)
    done = repaired(model, x)
    with torch.no_grad():
        whole = torch.tanh(model.stem(x))
        kept = whole[:, KEPT]
        missed = model.short(whole) - kept @ model.kernel[KEPT]
        left, _ = fitted(kept, model.left(whole) + missed, False)
        up, added = fitted(kept, model.up(whole) - model.up.bias, True)
        hidden = torch.tanh(kept @ up.t() + model.up.bias + added)
        missed = missed + model.left(whole) - kept @ left.t()
        down, _ = fitted(hidden, model.down(torch.tanh(model.up(whole))) + missed, False)
    new = done.model.get_submodule
    torch.testing.assert_close(new("left").weight[:, KEPT], left, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new("down").weight, down, rtol=1e-5, atol=1e-5)


def test_sums_help_and_can_be_left_out() -> None:
    model, x = made("plain")
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:2]), {"stem": KEPT})
    errors = {}
    for sums in (True, False):
        done = repaired(model, x, RepairConfig(least_rows=100000, most_rows=100000, sums=sums))
        errors[sums] = float((prunus.apply_(done.model, plan, x[:2])(x) - model(x)).detach().square().mean())
    assert errors[True] < 0.5 * errors[False]


def test_readers_alone_can_be_refitted() -> None:
    model, x = made("plain")
    done = repaired(model, x, RepairConfig(layers="readers"))
    assert [r.layer for r in done.refits] == ["up"]
    assert torch.equal(done.model.get_submodule("down").weight, model.down.weight)
