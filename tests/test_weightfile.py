"""Weights from files: exactly the model's names, shapes and dtypes, or a refusal that leaves it as it was."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunus.errors import ArtifactError, ConfigError
from prunus.files.weightfile import load_weights_, read_state_dict, unique_tensors


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[3].weight = model[2].weight
    return model


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in unique_tensors(model).items()}


def test_what_was_stored_comes_back_and_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, other = net(), net()
    with torch.no_grad():
        other[2].weight.add_(1)
    save_file(stored(other), tmp_path / "w.safetensors")
    load_weights_(model, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert model[3].weight is model[2].weight


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t | {"0.weight": t["0.weight"].half()},
        lambda t: t | {"0.weight": t["0.weight"].double()},
        lambda t: t | {"0.weight": t["0.weight"].to(torch.int8)},
        lambda t: t | {"0.weight": t["0.weight"][:2].clone()},
        lambda t: t | {"other": torch.zeros(1)},
        lambda t: {n: v for n, v in t.items() if n != "0.bias"},
        lambda t: {},
    ],
)
def test_other_tensors_are_refused_before_anything_is_copied(
    damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    save_file(damage(stored(net())), tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="don't fit"):
        load_weights_(model, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}"])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_weights_(net(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="damaged or of no known kind"):
        read_state_dict(tmp_path / "w.safetensors")


def test_nan_is_said(tmp_path: Path) -> None:
    tensors = stored(net())
    tensors["0.bias"][1] = torch.nan
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.warns(RuntimeWarning, match=r"'0\.bias' holds NaN"):
        load_weights_(net(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"'0\.bias' holds NaN"):
        read_state_dict(tmp_path / "w.safetensors")


def test_state_dicts_in_the_usual_wrappings_are_read(tmp_path: Path) -> None:
    state = net().state_dict()
    for wrapped in (state, {"state_dict": state}):
        torch.save(wrapped, tmp_path / "w.pt")
        found = read_state_dict(tmp_path / "w.pt")
        assert found.keys() == state.keys()
        assert all(torch.equal(t, state[n]) for n, t in found.items())


class Runs:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def test_pickles_that_would_run_code_are_refused_and_do_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"weight": Runs(canary)}, tmp_path / "w.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Runs(canary)))
    torch.save(net(), tmp_path / "m.pt")
    for name in ("w.pt", "p.pt", "m.pt"):
        with pytest.raises(ConfigError) as refusal:
            read_state_dict(tmp_path / name)
        assert "weights_only" not in str(refusal.value)
    assert not canary.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": [torch.zeros(1)]}, {"state_dict": 3}, torch.zeros(2)])
def test_what_holds_no_tensors_by_name_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="not tensors by name"):
        read_state_dict(tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="no such file"):
        read_state_dict(tmp_path / "absent.pt")
