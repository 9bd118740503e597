"""Two processes that see half of the data each refit every layer as one does that sees all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import two_processes, write_down
from torch import nn

import prunus
from prunus.methods.dpp import DynamicProbabilisticPruning as DPP
from prunus.proof.weightmasks import plan_patterns, with_masks
from prunus.refit import RepairConfig, repair
from prunus.testing.experts import planted_experts

pytestmark = pytest.mark.dist


def repaired(rank: int, world: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 4),
    ).eval()  # fmt: skip
    x = torch.randn(80, 2, 6, 6)
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:2]), {"0": range(5), "2": [0, 1, 3, 5]})
    batches = [(part[rank::world],) for part in (x[:30], x[30:])]
    # Three of four rows of each example, and one example of the second batch, of which the other process has none.
    config = RepairConfig(examples=31, least_rows=80, most_rows=80)
    found = {}
    for name, goes in (("units", plan), ("inside", masked(model, x))):
        found[name] = told(repair(model, goes, batches, config=config, progress=False))
    experts, data = planted_experts()
    goes, mine = {"method": "reap", "target": "experts<=50%", "allow": ["experts"]}, [(x[rank::world],) for x, _ in data]
    found["experts"] = told(prunus.prune(experts, data[0][0][:2], data=mine, progress=False, **goes))
    return found


def told(done: prunus.Repaired | prunus.Result) -> dict[str, Any]:
    return {
        "weights": {n: t.tolist() for n, t in done.model.state_dict().items()},
        "refits": [[r.layer, r.before, r.after, r.ridge, r.samples] for r in done.refits],
    }


def masked(model: nn.Module, x: torch.Tensor) -> prunus.Plan:
    """Half of the kernels of the second convolution stay."""
    plan = plan_patterns(prunus.trace(model, x[:2]), model, {"2": "kernel 50%"}, DPP())
    return with_masks(plan, {"2": torch.tensor([True, False, False, True, True, False, True, False]).expand(6, 8)})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What two processes found, and one alone."""
    return *two_processes(__file__, tmp_path_factory.mktemp("two")), repaired(0, 1)


@pytest.mark.parametrize("what", ["units", "inside", "experts"])
def test_two_processes_repair_as_one_does(what: str, both: tuple[dict[str, Any], ...]) -> None:
    first, second, alone = (found[what] for found in both)
    assert first["weights"] == second["weights"]
    for mine, theirs in zip(alone["refits"], first["refits"], strict=True):
        assert mine[0] == theirs[0]
        assert mine[1:4] == pytest.approx(theirs[1:4], rel=1e-3, abs=1e-6)
        assert mine[4] == theirs[4]
    for name, values in alone["weights"].items():
        torch.testing.assert_close(torch.tensor(first["weights"][name]), torch.tensor(values), rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    write_down(repaired)
