"""Plans with masks inside weights: they say which weights stay, applying them sets the others to zero, proven."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.errors import ConfigError, PlanError, SurgeryError
from prunus.masks.layers import layer_of
from prunus.masks.maskable import maskable_layers
from prunus.masks.patterns import Pattern
from prunus.methods.dpp import DynamicProbabilisticPruning as DPP
from prunus.pipeline.compress import compress
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.proof.weightmasks import mask_of, masks_hold, plan_patterns, verify_masks, with_masks


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 2), nn.Flatten(), nn.Linear(200, 16), nn.ReLU(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LAYERS = ["3", "5", "7"]


def source() -> DataSource:
    part = ArrayDataset(torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(32) % 4)
    return DataSource("toy", part, part, part, 4)


def planned(text: str, layers: list[str]) -> tuple[Plan, dict[str, torch.Tensor]]:
    model = net()
    plan = plan_patterns(prunus.trace(model, X), model, dict.fromkeys(layers, text), DPP())
    generator = torch.Generator().manual_seed(3)
    masks = {}
    for p in plan.patterns:
        order = torch.rand(p.rows, p.n, generator=generator).argsort(1)
        masks[p.module] = order < p.k
    return with_masks(plan, masks), masks


@pytest.mark.parametrize("text", ["weight 25%", "kernel 50%", "2:4", "weight 30% shared"])
def test_an_applied_plan_is_the_dense_network_times_its_masks(text: str) -> None:
    plan, masks = planned(text, LAYERS)
    again = Plan.from_json(plan.to_json())
    assert all(torch.equal(mask_of(p), masks[p.module]) for p in again.patterns)
    expected = net()
    with torch.no_grad():
        for name, mask in masks.items():
            layer = layer_of(expected, name)
            layer.weight.mul_(Pattern.parse(text).layout(layer, name).on_weight(mask.float()))
    model, proof = apply_and_verify_(net(), again, X)
    for name in LAYERS:
        assert torch.equal(layer_of(model, name).weight, layer_of(expected, name).weight)
    assert torch.equal(model(X), expected(X))
    assert proof.passed
    assert masks_hold(model, again, X) == (0.0, 0)
    assert masks_hold(net(), again, X)[1] > 0  # the dense network is seen not to be it
    with pytest.raises(SurgeryError, match="outside of their masks"):
        verify_masks(net(), again, X)


def test_what_compress_writes_can_be_applied(tmp_path: Path) -> None:
    done = compress(net(), source(), method=DPP(pattern="weight 25%", epochs=1, tune_epochs=1), out=tmp_path / "run",
                    progress=False)  # fmt: skip
    for path in (tmp_path / "run").rglob("plan.json"):
        plan = Plan.load(path)
        model = prunus.apply_(net(), plan, X)
        for pattern in plan.patterns:
            weight, trained = layer_of(model, pattern.module).weight, layer_of(done.model, pattern.module).weight
            assert int(weight.count_nonzero()) == pattern.weights * pattern.k // pattern.n
            assert torch.equal(weight != 0, trained != 0)
    assert done.summary["proof"] == {"max_error": 0.0, "tolerance": 1e-4, "exact": True, "rewritten": False}
    filters = compress(net(), source(), method=DPP(pattern="filter 50%", epochs=1, tune_epochs=1), progress=False)
    assert 0 <= filters.summary["proof"]["max_error"] < 1e-4


def test_a_plan_without_masks_or_with_others_is_refused_and_nothing_changes() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    plan, _ = planned("weight 25%", LAYERS)
    first, *rest = plan.patterns
    other = nn.Sequential(*net()[:-3], nn.Linear(200, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    for broken in ("", "%%%", first.mask[:-8], first.mask + first.mask, "A" * len(first.mask)):
        wrong = replace(plan, patterns=(replace(first, mask=broken), *rest))
        with pytest.raises(PlanError, match="mask"):
            prunus.apply_(model, wrong, X)
    with pytest.raises(PlanError, match="made for"):
        prunus.apply_(other, plan, X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_weight_that_two_layers_share_is_refused_and_put_back() -> None:
    def shared() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        model[2].weight = model[0].weight
        return model

    model, x = shared(), torch.randn(2, 8)
    before = model[0].weight.clone()
    plan = plan_patterns(prunus.trace(model, x), model, {"2": "2:4"}, DPP())
    plan = with_masks(plan, {"2": torch.tensor([[True, True, False, False]]).expand(16, 4)})
    with pytest.raises(SurgeryError, match="put back"):
        prunus.apply_(model, plan, x)
    assert torch.equal(model[0].weight, before)
    assert model[2].weight is model[0].weight


def test_layers_are_chosen_by_names_types_and_modules() -> None:
    model = net()
    assert maskable_layers(model) == LAYERS
    assert maskable_layers(model, [nn.ConvTranspose2d]) == ["3", "7"]
    assert maskable_layers(model, [model[3], "7"]) == ["5"]
    for wrong in (["nothing"], [nn.LSTM], [nn.ReLU], [nn.Linear(2, 2)], "3"):
        with pytest.raises(ConfigError):
            maskable_layers(model, wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave one of them out"):
        compress(model, source(), method=DPP(), target={"3": "2:4"}, ignored_layers=["7"])


def test_an_artifact_holds_the_masks_of_its_plan(tmp_path: Path) -> None:
    plan, masks = planned("weight 25%", LAYERS)
    folder = prunus.save(tmp_path / "a", prunus.apply_(net(), plan, X), plan)
    found = prunus.load_masks(folder)
    assert {n: m.pattern for n, m in found.items()} == dict.fromkeys(LAYERS, "weight 25%")
    assert all(torch.equal(found[n].mask, masks[n]) for n in LAYERS)


class SizesInTheCode(nn.Module):
    """Flattens to a number that its code holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 2, 4] -> [B, 2]."""
        return self.c(torch.relu(self.b(torch.relu(self.a(x)).view(-1, 16))))


def test_the_given_model_keeps_its_weights_where_a_rewritten_graph_takes_its_place() -> None:
    torch.manual_seed(0)
    model, x = SizesInTheCode().eval(), torch.randn(3, 2, 4)
    graph = prunus.trace(model, x)
    kept = {g.name: [0, 2, 3, 5] for g in graph.groups() if g.name == "a"}
    inside = plan_patterns(graph, model, {"c": "weight 50%"}, DPP())
    plan = replace(Plan.from_kept(graph, kept), patterns=inside.patterns)
    plan = with_masks(plan, {"c": torch.tensor([[True] * 4 + [False] * 4] * 2)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    smaller, proof = apply_and_verify_(model, plan, x)
    assert proof.rewritten
    assert smaller is not model
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
