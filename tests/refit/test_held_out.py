"""What is held out is held out by example, wherever a layer sees positions merged with examples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.refit.config import RepairConfig
from prunus.refit.layers import refit_layers
from prunus.refit.least_squares import LeastSquares
from prunus.refit.lockstep import Lockstep
from prunus.refit.sampling import held_out
from prunus.surgery.rewrite import captured_freely


class Merged(nn.Module):
    """Linear layers on [examples * tokens, channels], or on [examples, tokens, channels]."""

    def __init__(self, merge: bool) -> None:
        super().__init__()
        self.up, self.down, self.merge = nn.Linear(6, 16), nn.Linear(16, 6), merge

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(-1, 6) if self.merge else x
        return self.down(self.up(y).relu()).reshape(x.shape).mean(1)


@pytest.mark.parametrize("merge", [True, False])
def test_tokens_of_a_held_out_example_are_all_held_out(merge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Merged(merge).eval()
    batches = [torch.arange(12.0).reshape(12, 1, 1).expand(12, 5, 6) + 0.01 * torch.rand(12, 5, 6) for _ in range(2)]
    plan = prunus.Plan.from_kept(prunus.trace(model, batches[0]), {"up": range(9)})
    found: list[Tensor] = []
    monkeypatch.setattr(LeastSquares, "add", lambda self, x, wanted, held: found.append(held))
    run = Lockstep(captured_freely(model, plan, batches[0]), plan, model)
    with torch.no_grad(), run.in_format():
        refit_layers(run, batches, plan, RepairConfig(held_out=3), 0, False)
    wanted = held_out(torch.arange(24), 3).repeat_interleave(5)
    assert torch.equal(torch.cat(found), wanted)


def test_nothing_is_held_out_of_one() -> None:
    assert not held_out(torch.arange(5), 1).any()
    assert held_out(torch.arange(6), 3).tolist() == [False, False, True] * 2
