"""Keywords of the release before: they do what they did, and say how to write it now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import BudgetError, ConfigError
from prunus.pipeline.prune import prune

X = torch.randn(2, 6)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"budget": "macs<=50%"}, {"target": "macs<=50%"}, "target='macs<=50%'"),
        ({"pruning_ratio": 0.5}, {"target": 0.5}, "target=0.5"),
        ({"kept_counts": {"0": 7}}, {"target": {"0": 7}}, "target={'0': 7}"),
        ({"target": 0.5, "inexact": True, "head_dims": True}, {"target": 0.5}, "allow=('head_dims', 'inexact')"),
        ({"target": 0.5, "inexact": False, "budget": None}, {"target": 0.5}, "write nothing"),
    ],
)
def test_old_keywords_do_the_same_and_say_the_new_ones(old: dict[str, Any], new: dict[str, Any], said: str) -> None:
    with pytest.warns(DeprecationWarning, match="next release") as told:
        found = prune(net(), X, method="l1", **old)
    assert any(said in str(w.message) for w in told)
    assert all(w.filename == __file__ for w in told if w.category is DeprecationWarning)
    assert found.plan == prune(net(), X, method="l1", **new).plan


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"budget": "macs<=50%", "target": 0.5}, ConfigError),
        ({"budget": "macs<=50%", "pruning_ratio": 0.5}, ConfigError),
        ({"target": 0.5, "inexact": True, "allow": ("head_dims",)}, ConfigError),
        ({"budget": 0.5}, BudgetError),  # it was none, and is no ratio now
        ({"budget": float("nan")}, BudgetError),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_spellings_and_bare_numbers_are_refused(given: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        prune(net(), X, method="l1", **given)


def test_loader_may_be_called_batches() -> None:
    norm, x = nn.BatchNorm1d(6), torch.randn(8, 6)
    with pytest.warns(DeprecationWarning, match=r"write loader=\.\.\.") as told:
        prunus.reestimate_batch_norm(norm, batches=[(x, None)])  # type: ignore[call-arg]
    assert told[0].filename == __file__
    torch.testing.assert_close(norm.running_mean, x.mean(0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_resume_joins_the_path(tmp_path: Path) -> None:
    method = prunus.RecursiveBayesianPruning(epochs=1, tune_epochs=0)
    data = [(torch.randn(8, 6), torch.randint(0, 3, (8,)))]
    options: dict[str, Any] = {"method": method, "data": data, "loss_fn": F.cross_entropy, "progress": False}
    path = tmp_path / "stages.pt"
    first = prune(net(), X, checkpoint=path, **options)
    again = prune(net(), X, checkpoint=path, resume=True, **options)
    assert again.plan.kept == first.plan.kept
    with pytest.raises(ConfigError, match="says it too"):
        prune(net(), X, checkpoint=prunus.Checkpoint(path), resume=True, **options)
