"""Doors of the release before: they answer as they did, by way of the one door, and say what to write now."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from masked import masked
from prunus.errors import ConfigError
from prunus.methods.dpp import DynamicProbabilisticPruning as DPP


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(8), (torch.arange(32) % 3).split(8), strict=True))


@pytest.mark.parametrize("pattern", ["weight 50%", "filter 50%"])
def test_fit_masks_is_prune_with_patterns_by_layer(pattern: str) -> None:
    method = DPP(pattern=pattern, epochs=2, tune_epochs=1)
    with pytest.warns(DeprecationWarning, match="write prune") as told:
        old = prunus.fit_masks(net(), ["0", "2"], method, batches(), F.cross_entropy, seed=3, progress=False)
    assert [w.filename for w in told if "fit_masks" in str(w.message)] == [__file__]
    new = masked(net(), ["0", "2"], method, batches(), F.cross_entropy, seed=3)
    assert all(torch.equal(t, new.model.state_dict()[n]) for n, t in old.model.state_dict().items())
    assert all(torch.equal(m, new.masks[n]) for n, m in old.masks.items())
    assert (old.sampled_loss, old.fixed_loss, old.layouts) == (new.sampled_loss, new.fixed_loss, new.layouts)
    assert (old.proof is None) == (pattern == "weight 50%")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("layers", [["0", "0"], [], "0"])
def test_layers_that_are_no_list_of_different_names_are_refused(layers: list[str]) -> None:
    with pytest.raises(ConfigError, match="give a list of names"):
        prunus.fit_masks(net(), layers, DPP(), batches(), F.cross_entropy)
