"""Stages: folding is exact, what is planted is found, resumed runs are unbroken ones, failures name their stage."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import ArtifactError, ConfigError, DataError
from prunus.files.fingerprint import tree_digest
from prunus.gates.gate import attach
from prunus.learning.fit import fit
from prunus.learning.stages import trainable_from
from prunus.methods.base import StagedMethod
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.methods.registry import METHODS
from prunus.methods.relatives import VariationalInformationBottleneck
from prunus.pipeline.prune import Result, prune
from prunus.runtime.calling import outputs
from prunus.surgery.fold import fold_
from zoo import ZOO

FOLDABLE = [
    "plain_cnn", "mlp", "flatten_to_linear", "residual_option_a", "residual_option_b", "dense_concat", "mobilenet_v2",
    "resnext", "squeeze_excite_conv", "conv_transpose_unet", "shared_conv", "conv1d", "conv3d", "decoder_unflatten",
]  # fmt: skip
QUICK = RecursiveBayesianPruning(epochs=6, tune_epochs=1, lr=0.03, weight_lr=1e-3, complexity_per="unit")


@pytest.mark.parametrize("name", FOLDABLE)
def test_folding_leaves_the_gated_outputs(name: str) -> None:
    model, inputs = ZOO[name].make().double(), ZOO[name].inputs(4).double()
    graph = prunus.trace(model, inputs)
    values = {g.name: torch.linspace(0.2, 1.7, g.units) for g in graph.groups()}
    assert values
    with attach(model, graph.groups()) as gates:
        gates.fix(values)
        gated = outputs(model, inputs)
    for group in graph.groups():
        fold_(model, graph, group, values[group.name])
    for wanted, got in zip(gated, outputs(model, inputs), strict=True):
        assert float((wanted - got).abs().max() / wanted.abs().max()) < 1e-12


def test_tied_readers_are_not_scaled() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.third.weight = self.second.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.third(torch.tanh(self.second(torch.tanh(self.first(x))))).sum(1, keepdim=True)

    model = Twice()
    graph = prunus.trace(model, torch.randn(2, 4))
    before = copy.deepcopy(model.state_dict())
    tied = [g for g in graph.groups(locked=True) if any(r.weight == "second.weight" for r in g.readers)]
    assert tied
    for group in tied:
        with pytest.raises(ConfigError, match="tied"):
            fold_(model, graph, group, torch.full((group.units,), 2.0))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def planted() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Eight hidden units: four that matter, one a copy of the first, three that are read by nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[[0, 1, 2, 3], [0, 1, 2, 3]] = 1.0
        model[0].weight[4, 0] = 1.0
        model[0].weight[5:] = torch.randn(3, 4)
        model[1].weight.zero_()
        model[1].weight[[1, 2, 3], [1, 2, 3]] = 3.0
        model[1].weight[0, [0, 4]] = 1.5
    x = torch.randn(1024, 4)
    y = (3 * x).argmax(1)
    return model, [(x[i : i + 64], y[i : i + 64]) for i in range(0, 1024, 64)]


def test_useless_units_go_and_of_two_copies_one_stays() -> None:
    model, batches = planted()
    method = replace(QUICK, epochs=60, beta=30.0)
    result = prune(model, batches[0][0], method=method, data=batches, loss_fn=F.cross_entropy)
    (kept,) = result.plan.kept.values()
    assert not {5, 6, 7} & set(kept)
    assert {1, 2, 3} <= set(kept)
    assert len({0, 4} & set(kept)) == 1
    assert result.verification.max_error < 1e-5


def small() -> tuple[nn.Module, Tensor, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3),
    ).eval()  # fmt: skip
    x, y = torch.randn(48, 1, 8, 8), torch.randint(0, 3, (48,))
    return model, x[:2], [(x[i : i + 16], y[i : i + 16]) for i in range(0, 48, 16)]


def run(method: RecursiveBayesianPruning, **options: object) -> Result:
    model, x, batches = small()
    return prune(model, x, method=method, data=batches, loss_fn=F.cross_entropy, **options)  # type: ignore[arg-type]


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


def test_stages_follow_the_data_and_the_seed_decides() -> None:
    model, x, batches = small()
    before = copy.deepcopy(model.state_dict())
    method = replace(QUICK, beta=30.0, lr=0.1)
    result = prune(model, x, method=method, data=batches, loss_fn=F.cross_entropy, seed=1)
    assert [s.groups for s in result.stages] == [("0",), ("3",), ("8",)]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training
    again = prune(model, x, method=method, data=batches, loss_fn=F.cross_entropy, seed=1)
    assert again.plan.kept == result.plan.kept
    assert same(again.model, result.model)
    assert result.plan.after.macs < result.plan.before.macs
    together = run(replace(method, simultaneous=True))
    assert [s.groups for s in together.stages] == [("0", "3", "8")]


def test_resumed_is_unbroken(tmp_path: Path) -> None:
    path, method = tmp_path / "stages.pt", replace(QUICK, beta=30.0, lr=0.1)
    whole = run(method)
    model, x, batches = small()
    calls = 0

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        prune(model, x, method=method, data=batches, loss_fn=failing, checkpoint=path)
    assert path.exists()
    resumed = run(method, checkpoint=prunus.Checkpoint(path, resume=True))
    assert resumed.plan.kept == whole.plan.kept
    assert resumed.stages == whole.stages
    assert same(resumed.model, whole.model)
    with pytest.raises(ArtifactError, match=r"another method: .*beta=30.* there, .*beta=2.* here"):
        run(replace(method, beta=2.0), checkpoint=prunus.Checkpoint(path, resume=True))
    other = [copy.deepcopy(model), [(x + 1, y) for x, y in batches]]
    with torch.no_grad():
        other[0][0].weight[0] += 1  # type: ignore[index, union-attr]
    for named, given in (("model", (other[0], batches)), ("data", (model, other[1]))):
        with pytest.raises(ArtifactError, match=f"another {named}: .* there, .* here"):
            prune(
                given[0],
                x,
                method=method,
                data=given[1],
                loss_fn=F.cross_entropy,
                checkpoint=prunus.Checkpoint(path, resume=True),
            )
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        run(method, checkpoint=prunus.Checkpoint(path, resume=True))
    with pytest.raises(ConfigError, match="no checkpoint"):
        prune(model, x, method=method, resume=True)  # type: ignore[call-arg]


def test_an_edited_checkpoint_is_refused(tmp_path: Path) -> None:
    """Each edit comes with the right checksum: what an attacker, or a careful bug, would write."""
    path = tmp_path / "stages.pt"
    run(QUICK, checkpoint=path)
    whole = torch.load(path, weights_only=True)
    first = whole["stages"][0]

    def stage(**values: object) -> dict[str, object]:
        return {"stages": [{**first, **values}, *whole["stages"][1:]]}

    name, tensor = next(iter(whole["weights"].items()))
    edits: list[dict[str, object]] = [
        {"kept": {**whole["kept"], "0": [99]}},
        {"kept": {**whole["kept"], "0": [0, 0]}},
        {"kept": 3},
        {"stages": whole["stages"][::-1]},
        {"stages": [{}]},
        stage(kept=(1000,)),
        stage(loss=float("nan")),
        stage(score={"0": (float("nan"),) * 6}),
        stage(keep_probability={}),
        {"weights": {**whole["weights"], name: tensor * float("nan")}},
        {"weights": {**whole["weights"], name: tensor.half()}},
        {"weights": {**whole["weights"], name: tensor[:1]}},
        {"weights": {}},
        {"weights": []},
        {"identity": []},
    ]
    for edit in edits:
        rest = {k: v for k, v in {**whole, **edit}.items() if k not in ("format", "digest")}
        torch.save({"format": whole["format"], "digest": tree_digest(rest), **rest}, path)
        with pytest.raises(ArtifactError):
            run(QUICK, checkpoint=prunus.Checkpoint(path, resume=True))
    torch.save({**whole, "error": 0.5}, path)
    with pytest.raises(ArtifactError, match="edited"):
        run(QUICK, checkpoint=prunus.Checkpoint(path, resume=True))


def test_a_budget_is_met_and_counts_are_obeyed() -> None:
    result = run(QUICK, target="macs<=60%")
    assert result.plan.after.macs <= 0.6 * result.plan.before.macs
    by_hand = run(QUICK, target={"0": 4, "3": 5})
    assert {n: len(k) for n, k in by_hand.plan.kept.items()} == {"0": 4, "3": 5, "8": 10}


def test_a_group_judged_useless_keeps_its_floor_and_says_so() -> None:
    result = run(replace(QUICK, beta=1e4, lr=0.2, epochs=10))
    assert all(s.natural == (0,) and s.kept == (1,) for s in result.stages)
    assert "judged useless; its floor of 1 stays" in result.plan.explain()


def test_a_diverging_stage_names_itself(tmp_path: Path) -> None:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(outputs, targets) * (float("nan") if calls == 25 else 1.0)

    model, x, batches = small()
    with pytest.raises(DataError, match=r"(?s)stage 2 \(3\).*NaN or infinity in the loss.*1 stages before it are in"):
        prune(model, x, method=QUICK, data=batches, loss_fn=loss, checkpoint=tmp_path / "s.pt")
    resumed = run(QUICK, checkpoint=prunus.Checkpoint(tmp_path / "s.pt", resume=True))
    assert same(resumed.model, run(QUICK).model)


def test_earlier_layers_stay_while_later_ones_train() -> None:
    model, x, _ = small()
    graph = prunus.trace(model, x)
    names = {id(p): n for n, p in model.named_parameters()}

    def trained(group: str, which: str) -> set[str]:
        return {names[id(p)].split(".")[0] for p in trainable_from(model, graph, [graph.group(group)], which)}

    assert trained("3", "later") == {"3", "4", "8", "10"}
    assert trained("8", "later") == {"8", "10"}
    assert trained("8", "all") == trained("0", "later") == {"0", "1", "3", "4", "8", "10"}
    assert trained("0", "none") == set()
    method = replace(QUICK, tune_epochs=0, beta=0.0)
    whole = {"0": 6, "3": 8, "8": 10}
    frozen = run(replace(method, train_weights="none"), target=whole).model
    assert torch.equal(frozen[0].weight, model[0].weight)  # type: ignore[index, union-attr]
    assert not torch.equal(run(method, target=whole).model[0].weight, model[0].weight)  # type: ignore[index, union-attr]


def test_a_finished_run_comes_back_even_as_a_rewritten_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = ZOO["hard_coded_view"].make(), ZOO["hard_coded_view"].inputs(8)
    y = torch.arange(8) % 3
    method = replace(QUICK, simultaneous=True, beta=30.0, lr=0.1, epochs=20)

    def pruned(resume: bool = False) -> Result:
        file = prunus.Checkpoint(tmp_path / "s.pt", resume)
        return prune(model, x, method=method, data=[(x, y)], loss_fn=F.cross_entropy, checkpoint=file)

    first = pruned()
    assert first.verification.rewritten
    again = pruned(resume=True)
    assert again.verification.rewritten
    assert again.verification.max_error == first.verification.max_error
    assert all(torch.equal(a, b) for a, b in zip(outputs(first.model, x), outputs(again.model, x), strict=True))
    with pytest.raises(ConfigError, match="rewritten graph"):
        prune(
            model, x, method=replace(method, simultaneous=False), data=[(x, y)], loss_fn=F.cross_entropy,
        )  # fmt: skip


def test_nothing_to_prune_is_said() -> None:
    model, x, batches = small()
    with pytest.raises(ConfigError, match="nothing to score"):
        prune(model, x, method=QUICK, data=batches, loss_fn=F.cross_entropy, ignored_layers=[nn.Conv2d, nn.Linear])


@pytest.mark.parametrize(
    "bad", [{"beta": -1.0}, {"train_weights": "some"}, {"epochs": 0}, {"noise": 0.0}, {"floor": 2.0}]
)
def test_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RecursiveBayesianPruning(**bad)  # type: ignore[arg-type]


NOISE_METHODS: dict[str, Any] = {name: METHODS[name] for name in ("sbp", "bmrs", "vib", "l0")}
RELATIVES = [m(epochs=6, beta=30.0, lr=0.1) for m in NOISE_METHODS.values()]


@pytest.mark.parametrize("method", RELATIVES, ids=lambda m: m.name)
def test_relatives_go_through_the_same_door(method: StagedMethod) -> None:
    model, x, batches = small()
    result = prune(model, x, method=method, data=batches, loss_fn=F.cross_entropy)
    assert [s.groups for s in result.stages] == [("0", "3", "8")]
    assert result.verification.max_error < 1e-5
    assert result.plan.method == method.name
    one_by_one = prune(
        model, x, method=replace(method, simultaneous=False), data=batches, loss_fn=F.cross_entropy,
    )  # fmt: skip
    assert len(one_by_one.stages) == 3


def test_the_bottleneck_counts_every_position() -> None:
    class Unweighted(VariationalInformationBottleneck):
        def unit_weight(self, positions: int) -> float:
            return 0.0

    def learned(method: StagedMethod) -> Tensor:
        model, x, batches = small()
        groups = prunus.trace(model, x).groups()
        scores = fit(model, groups, method, batches, F.cross_entropy, num_data=100, precision="fp32")
        return torch.cat([scores.values[g.name] for g in groups])

    strong, none = {"epochs": 2, "beta": 30.0, "warmup": 0.0}, {"epochs": 2, "beta": 0.0}
    without = learned(VariationalInformationBottleneck(**none))  # type: ignore[arg-type]
    torch.testing.assert_close(learned(Unweighted(**strong)), without)  # type: ignore[arg-type]
    assert not torch.allclose(learned(VariationalInformationBottleneck(**strong)), without)  # type: ignore[arg-type]
    assert VariationalInformationBottleneck().unit_weight(144) == 144
    assert RecursiveBayesianPruning(complexity_per="position").unit_weight(144) == 144
    assert RecursiveBayesianPruning(complexity_per="root").unit_weight(144) == 12
    assert all(m().unit_weight(144) == 1 for n, m in NOISE_METHODS.items() if n != "vib")


def test_one_stage_methods_have_nothing_to_resume(tmp_path: Path) -> None:
    model, x, batches = small()
    with pytest.raises(ConfigError, match="no stages"):
        prune(
            model, x, method="l1", target="macs<=50%", data=batches, loss_fn=F.cross_entropy,
            checkpoint=prunus.Checkpoint(tmp_path / "s.pt", resume=True),
        )  # fmt: skip


def test_a_frozen_network_is_pruned_and_not_tuned() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval().requires_grad_(False)
    data = [(torch.randn(16, 6), torch.arange(16) % 3)]
    method = RecursiveBayesianPruning(epochs=1, tune_epochs=1)
    options: Any = {"data": data, "loss_fn": F.cross_entropy, "progress": False}
    result = prunus.prune(model, data[0][0], method=method, target={"0": 4}, **options)
    assert result.model[0].out_features == 4
    assert not any(p.requires_grad for p in result.model.parameters())
