"""The folder for Model Explorer: node data that name nodes of the program beside them, with the shares that stayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import ConfigError
from prunus.formats.modelexplorer import kept_weights, layers_of_nodes

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 2)).eval()


def read(path: Path) -> dict[str, float]:
    told = json.loads(path.read_text())
    assert [c["stop"] for c in told["gradient"]] == [0, 0.5, 1]
    return {name: result["value"] for name, result in told["results"].items()}


def test_nodes_have_the_shares_of_their_layers(tmp_path: Path) -> None:
    dense = net()
    data = [(X, torch.arange(4) % 2)] * 4
    made: dict[str, Any] = {"target": "macs<=50%", "data": data, "loss_fn": F.cross_entropy, "progress": False}
    result = prunus.prune(dense, X, method="dirichlet", **made)
    note = prunus.export(result.model, X, tmp_path / "seen", form="model-explorer", plan=result.plan).note
    assert "weights-kept.json and keep-probability.json" in note
    program = torch.export.load(tmp_path / "seen" / "model.pt2")
    layers = layers_of_nodes(program)
    found = read(tmp_path / "seen" / "weights-kept.json")
    sizes = {n: (p.numel(), dict(dense.named_parameters())[n].numel()) for n, p in result.model.named_parameters()}
    shares = {n.removesuffix(".weight"): a / b for n, (a, b) in sizes.items() if n.endswith(".weight") and a < b}
    assert {layers[node]: share for node, share in found.items()} == pytest.approx(shares, abs=1e-4)
    assert kept_weights(result.plan) == pytest.approx(shares)
    probable = read(tmp_path / "seen" / "keep-probability.json")
    by_layer = {g.name: g.keep_probability for g in result.plan.groups if g.keep_probability}
    assert {layers[n] for n in probable} == set(by_layer)
    for node, value in probable.items():
        assert value == pytest.approx(sum(by_layer[layers[node]]) / len(by_layer[layers[node]]), abs=1e-4)


def test_the_program_has_no_free_size(tmp_path: Path) -> None:
    """Model Explorer's reader of programs ends in an error at one."""
    result = prunus.prune(net(), X, method="l1", target=0.5)
    prunus.export(result.model, X, tmp_path / "seen", form="model-explorer", plan=result.plan)
    program = torch.export.load(tmp_path / "seen" / "model.pt2")
    sizes = [n.meta["val"].shape for n in program.graph.nodes if n.op == "call_function"]
    assert sizes
    assert all(isinstance(size, int) for shape in sizes for size in shape)
    assert not (tmp_path / "seen" / "keep-probability.json").exists()


def test_what_has_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not known"):
        prunus.export(net(), X, tmp_path / "seen", form="model-explorer")
    whole = prunus.Plan.from_kept(prunus.trace(net(), X), {})
    with pytest.raises(ConfigError, match="no layer of the program has lost"):
        prunus.export(net(), X, tmp_path / "seen", form="model-explorer", plan=whole)
    assert not (tmp_path / "seen").exists()
