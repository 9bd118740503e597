"""`prune`, `compress`, artifacts and exports, end to end on small networks: pruned = masked, round trips, refusals."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.data.datasets import ArrayDataset, Batches, DataSource
from prunus.errors import ArtifactError, ConfigError, DataError, ExportError, PlanError, PruneError, TraceError
from prunus.formats.artifact import is_artifact, load, read_manifest, save
from prunus.formats.onnx import export_onnx, export_program
from prunus.gates.frozen import frozen
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.registry import resolve
from prunus.pipeline.compress import compress
from prunus.pipeline.planning import make_plan, score
from prunus.pipeline.prune import prune
from prunus.pipeline.settings import RunSettings
from prunus.plan.allocation import Allocation
from prunus.plan.budget import Budget
from prunus.plan.plan import Plan
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import finetune


class Net(nn.Module):
    """Two convolutions with batch norm, a hard-coded view if asked."""

    def __init__(self, coded: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 4, 4)
        self.coded = coded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.view(-1, 48) if self.coded else x.flatten(1))


def network(coded: bool = False) -> Net:
    torch.manual_seed(0)
    model = Net(coded)
    for norm in (model.bn1, model.bn2):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.bias)
    return model.eval()


def source(examples: int = 96) -> DataSource:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(examples) % 4
    images = torch.randn(examples, 1, 8, 8, generator=generator) + labels.reshape(-1, 1, 1, 1) - 1.5
    parts = [ArrayDataset(images[i::3], labels[i::3]) for i in range(3)]
    return DataSource("toy", *parts, 4)


X = torch.randn(2, 1, 8, 8)


def test_one_call_makes_a_proven_smaller_model_and_leaves_the_given_one() -> None:
    model, data = network(), source()
    before = copy.deepcopy(model.state_dict())
    result = prune(model, X, target="macs<=50%", data=Batches(data.train, 16), loss_fn=F.cross_entropy)
    assert result.plan.after.macs <= 0.5 * result.plan.before.macs
    assert result.verification.passed
    assert result.verification.max_error < 1e-4
    assert isinstance(result.model, Net)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(result.scores.posteriors) == {"conv1", "conv2"}
    assert all(len(g.keep_probability or ()) == g.units for g in result.plan.groups if len(g.kept) < g.units)
    assert prunus.trace(result.model, X).groups()[0].units == len(result.plan.kept["conv1"])


def test_same_seed_same_plan() -> None:
    data = source()
    plans = [
        prune(network(), X, target=0.4, data=Batches(data.train, 16), loss_fn=F.cross_entropy, seed=s).plan
        for s in (3, 3)
    ]
    assert plans[0] == plans[1]


def test_weight_criteria_need_no_data_and_counts_can_be_given() -> None:
    result = prune(network(), X, method="l1", target={"conv1": 3})
    assert len(result.plan.kept["conv1"]) == 3
    assert "conv2" not in result.plan.kept


@pytest.mark.parametrize("entry", ["conv2", "conv[2]", nn.Conv2d])
def test_ignored_layers_keep_their_outputs(entry: object) -> None:
    kwargs = {"method": "l2", "target": "macs<=70%", "ignored_layers": [entry]}
    if entry is nn.Conv2d:
        with pytest.raises(PruneError):
            prune(network(), X, **kwargs)  # type: ignore[arg-type]
        return
    result = prune(network(), X, **kwargs)  # type: ignore[arg-type]
    assert set(result.plan.kept) == {"conv1"}
    module = network()
    again = prune(module, X, method="l2", target="macs<=70%", ignored_layers=[module.conv2])
    assert again.plan.kept == result.plan.kept


def test_bad_requests_are_refused_and_nothing_changes() -> None:
    model, data = network(), source()
    before = copy.deepcopy(model.state_dict())
    batches = Batches(data.train, 16)
    poisoned = [(x.clone().fill_(float("nan")), y) for x, y in batches]
    cases: list[tuple[type[PruneError], dict[str, object], torch.Tensor]] = [
        (ConfigError, {"target": "macs<=50%", "ignored_layers": ["no.such.layer"]}, X),
        (ConfigError, {"target": "macs<=50%", "method": "magic"}, X),
        (ConfigError, {"target": "macs<=50%"}, X),
        (ConfigError, {"method": "l1"}, X),
        (ConfigError, {"method": "l1", "target": {"nothing": 3}}, X),
        (PruneError, {"method": "l1", "target": "macs<=0.01%"}, X),
        (TraceError, {"method": "l1", "target": "macs<=50%"}, torch.randn(2, 3, 8, 8)),
        (DataError, {"method": "l1", "target": "macs<=50%"}, torch.full((2, 1, 8, 8), float("nan"))),
        (DataError, {"target": "macs<=50%", "data": poisoned, "loss_fn": F.cross_entropy}, X),
        (DataError, {"target": "macs<=50%", "data": [], "loss_fn": F.cross_entropy}, X),
    ]
    for kind, kwargs, inputs in cases:
        with pytest.raises(kind) as caught:
            prune(model, inputs, **kwargs)  # type: ignore[arg-type]
        assert "what:" in str(caught.value)
        assert "fix:" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("coded", [False, True])
def test_artifacts_come_back_equal(tmp_path: Path, coded: bool) -> None:
    result = prune(network(coded), X, method="l1", target="macs<=50%")
    assert result.verification.rewritten == coded
    folder = save(tmp_path / "a", result.model, result.plan, metrics={"accuracy": 1.0}, example_inputs=X)
    assert is_artifact(folder)
    assert read_manifest(folder).metrics == {"accuracy": 1.0}
    expected = result.model.eval()(X)
    with_code, without = load(folder, lambda: Net(coded)), load(folder)
    assert torch.allclose(with_code(X), expected, atol=1e-6)
    assert torch.allclose(without(X), expected, atol=1e-6)
    assert without(torch.randn(5, 1, 8, 8)).shape == (5, 4)
    assert isinstance(with_code, Net) or coded
    without.train()(torch.randn(5, 1, 8, 8)).sum().backward()
    save(tmp_path / "a", result.model, result.plan)  # an artifact may be replaced
    assert "Net" in (folder / "README.md").read_text()


def test_damaged_artifacts_are_refused(tmp_path: Path) -> None:
    result = prune(network(), X, method="l1", target="macs<=50%")
    folder = save(tmp_path / "a", result.model, result.plan)
    with pytest.raises(ArtifactError, match="another architecture"):
        load(folder, lambda: nn.Sequential(nn.Conv2d(1, 8, 3)))
    wider = lambda: nn.Sequential(Net())  # noqa: E731
    with pytest.raises(ArtifactError):
        load(folder, wider)
    weights = folder / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    for factory in (None, Net):
        with pytest.raises(ArtifactError, match="truncated or damaged"):
            load(folder, factory)
    weights.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load(folder)
    with pytest.raises(ArtifactError):
        load(tmp_path / "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("keep me")
    with pytest.raises(ArtifactError, match="something else"):
        save(other, result.model, result.plan)
    assert (other / "mine.txt").read_text() == "keep me"
    (folder / "manifest.json").write_text(json.dumps({"format": 99, "sha256": {}}))
    with pytest.raises(ArtifactError, match="format"):
        load(folder)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 8)
            self.a = nn.Linear(8, 8)
            self.b = nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.stem(x))
            return self.head(F.relu(self.b(F.relu(self.a(x)))))

    torch.manual_seed(0)
    x = torch.randn(2, 6)
    result = prune(Tied(), x, method="l1", target=0.5)
    assert result.model.a.weight is result.model.b.weight
    folder = save(tmp_path / "t", result.model, result.plan)
    back = load(folder, Tied)
    assert back.a.weight is back.b.weight
    assert torch.allclose(back(x), result.model.eval()(x), atol=1e-6)


def test_onnx_and_program_agree(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = prune(network(), X, method="l1", target="macs<=50%")
    assert export_onnx(result.model, X[:1], tmp_path / "m.onnx") < 1e-4
    program = torch.export.load(export_program(result.model, X, tmp_path / "m.pt2")).module()
    assert torch.allclose(program(X), result.model(X), atol=1e-6)
    with pytest.raises(ExportError):
        export_onnx(nn.Sequential(nn.Linear(3, 2)), torch.randn(2, 4), tmp_path / "bad.onnx")
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.pt2"}


def test_plans_are_read_and_refused(tmp_path: Path) -> None:
    plan = prune(network(), X, method="l1", target="macs<=50%").plan
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert "the plans keep the same units" in plan.diff(plan)
    other = prune(network(), X, method="random", target="macs<=50%").plan
    assert "kept" in plan.diff(other)
    assert "macs" in plan.explain()
    assert plan.with_notes("a remark").notes == ("a remark",)
    for text in ("{", "[]", '{"format": 7}'):
        with pytest.raises(PlanError):
            Plan.from_json(text)
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")
    applied = prunus.apply_(network(), plan)  # no example inputs: random ones of the recorded shapes
    assert prunus.count_cost(prunus.trace(applied, X)) == plan.after


def test_compress_writes_everything(tmp_path: Path) -> None:
    done = compress(
        network(),
        source(),
        method=DirichletPruning(),
        target="macs<=60%",
        allocation=Allocation(cost_exponent=0.5),
        recovery=FinetuneConfig(epochs=1, batch_size=16, lr=0.01),
        run=RunSettings(batch_size=16, modes=("eager",)),
        out=tmp_path / "run",
        progress=False,
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["after"]["macs"] <= 0.6 * summary["before"]["macs"]
    assert set(summary["accuracy"]) == {"dense", "one_shot", "batch_norm", "recovered", "dense_test", "test"}
    assert Plan.load(tmp_path / "run" / "plan.json") == done.result.plan
    assert torch.allclose(load(tmp_path / "run" / "artifact")(X), done.model(X), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target": "flops<=50%"}, "flops"),
        ({"budget": "macs<=60%", "pruning_ratio": 0.5}, "give one of budget, pruning_ratio"),
        ({"target": "macs<=60%", "modes": ("eager", "fast")}, "fast"),
        ({"target": "macs<=60%", "recovery": FinetuneConfig(label_smoothing=0.1)}, "label_smoothing"),
        ({"target": "macs<=60%", "run": RunSettings(resume=True)}, "no folder to go on in"),
    ],
)
def test_compress_refuses_before_it_works(options: dict[str, Any], named: str) -> None:
    def loss_fn(*_: Any, reduction: str = "mean") -> Any:
        raise AssertionError("the work has begun")

    with pytest.raises(PruneError, match=named):
        compress(network(), replace(source(), loss_fn=loss_fn), method="taylor", progress=False, **options)


@pytest.mark.parametrize("after", [0.5, 1.5])
def test_a_slower_result_is_said_aloud(monkeypatch: pytest.MonkeyPatch, after: float) -> None:
    monkeypatch.setattr(sys.modules["prunus.measure.speed"], "interleaved", lambda *_: ([1.0] * 3, [after] * 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = compress(network(), source(), method="l1", budget="macs<=60%", modes=("eager",), progress=False)
    said = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert [s.startswith("the smaller network is slower: eager") for s in said] == [True] * (after > 1)
    assert all(done.comparison.warnings[0] in s and "batch size" in s for s in said)


FAST = RunSettings(batch_size=16, modes=("eager",))


def test_statistics_that_make_it_worse_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: nn.Module, *_: object, **__: object) -> None:
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(1e-8)

    settings = {"method": "l1", "target": 0.25, "progress": False, "repair": False}
    monkeypatch.setattr(sys.modules["prunus.recovery.batchnorm"], "reestimate_batch_norm", spoil)
    said: list[str] = []
    done = compress(network(), source(), **settings, run=replace(FAST, say=said.append))  # type: ignore[arg-type]
    assert any("old statistics are better" in line for line in said)
    assert done.loss["batch_norm"] > done.loss["one_shot"]
    assert done.loss["test"] < done.loss["batch_norm"]
    wanted = prune(network(), X, method="l1", target=0.25).model
    assert torch.allclose(done.model(X), wanted(X), atol=1e-6)
    held = FinetuneConfig(epochs=2, batch_size=16, batch_norm="eval")
    recovered = compress(network(), source(), **settings, run=FAST, recovery=held)  # type: ignore[arg-type]
    statistics = {n: b for n, b in wanted.named_buffers() if "running" in n}
    assert statistics
    assert all(torch.equal(b, statistics[n]) for n, b in recovered.model.named_buffers() if n in statistics)


def test_where_new_statistics_harm_recovery_compensates_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def watched(model: nn.Module, data: DataSource, config: FinetuneConfig, **options: Any) -> Any:
        asked.append(config.batch_norm)
        return finetune(model, data, config, **options)

    recovering = sys.modules["prunus.pipeline.recovering"]
    monkeypatch.setattr(recovering, "finetune", watched)
    settings = {"method": "l1", "target": 0.25, "progress": False, "repair": False, "run": FAST}

    def found(better: bool) -> Callable[..., bool]:
        def told(model: nn.Module, _: Any, loss: Callable[[nn.Module], float], **__: Any) -> bool:
            return loss(model) == loss(model) and better

        return told

    for better in (True, False):
        monkeypatch.setattr(recovering, "reestimate_if_better", found(better))
        compress(network(), source(), **settings, recovery=FinetuneConfig(epochs=1, batch_size=16))  # type: ignore[arg-type]
    assert asked == ["auto", "compensated"]


def test_methods_say_how_their_scores_are_compared() -> None:
    model = network()
    graph = prunus.trace(model, X)
    groups = list(graph.groups())
    data, loss = [(X, torch.zeros(len(X), dtype=torch.long))], nn.functional.cross_entropy
    for name, exponent in (("l1", 0.0), ("taylor", 1.0), ("dirichlet", 1.0)):
        scores = score(model, groups, resolve(name), data, loss)
        assert scores.cost_exponent == exponent
        budget = Budget.parse("macs<=60%")
        by_default = make_plan(graph, groups, scores, budget=budget)
        by_hand = make_plan(graph, groups, scores, budget=budget, allocation=Allocation(cost_exponent=exponent))
        assert by_default.kept == by_hand.kept


@pytest.mark.parametrize("examples", [1, 3])
def test_code_that_fixes_the_batch_size_is_named(examples: int) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).relu().view(len(x), 8 * 16))

    x = torch.randn(examples, 3, 4, 4)
    with pytest.warns(RuntimeWarning, match=f"batches of {examples} alone"):
        result = prune(Fixed().eval(), x, method="l1", target=0.5)
    assert result.verification.rewritten
    assert result.model(x).shape == (examples, 3)


def test_a_rewritten_model_in_training_stays_in_training() -> None:
    rewritten = prune(network(coded=True), X, method="l1", target="macs<=50%").model.train()

    def written() -> list[object]:
        return [n.args for n in rewritten.graph.nodes if "batch_norm" in str(n.target)]

    before = written()
    assert "True" in str(before)
    prunus.trace(rewritten, X)
    with frozen(rewritten):
        assert "True" not in str(written())
    assert written() == before
    assert all(m.training for m in rewritten.modules())


def test_what_is_no_plan_no_path_and_no_factory_is_refused(tmp_path: Path) -> None:
    result = prune(network(), X, method="l1", target="macs<=50%")
    folder, no_plan = save(tmp_path / "a", result.model, result.plan), cast(Any, None)
    for call in (
        lambda: save(tmp_path / "b", result.model, no_plan),
        lambda: prunus.apply_(network(), no_plan),
    ):
        with pytest.raises(ConfigError, match="NoneType is no Plan"):
            call()
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="no path"):
        load(cast(Any, 3))
    for factory in (lambda: None, result.model, 3):
        with pytest.raises(ConfigError, match=r"makes no model|no torch\.nn\.Module"):
            load(folder, cast(Any, factory))


def test_arguments_of_other_kinds_are_named() -> None:
    model, loader = network(), cast(Any, [(X, torch.zeros(len(X), dtype=torch.int64))])
    groups = prunus.trace(model, X).groups()
    wrong: dict[str, Callable[[], Any]] = {
        "data": lambda: compress(model, loader, method="l1", target="macs<=50%"),
        "recovery": lambda: compress(model, source(), method="l1", target="macs<=50%", recovery=cast(Any, 5)),
        "run": lambda: compress(model, source(), method="l1", target="macs<=50%", run=cast(Any, 5)),
        "budget": lambda: prunus.allocate(prunus.trace(model, X), groups, {}, budget=cast(Any, "macs<=50%")),
        "scores": lambda: prunus.select(groups, {}, {}),
    }
    for name, call in wrong.items():
        with pytest.raises(ConfigError, match=f"^{name}\n"):
            call()
    with pytest.raises(ConfigError, match=r"^data\n"):
        finetune(model, loader)
    with pytest.raises(ConfigError, match=r"^method\n"):
        prunus.fit(model, groups, cast(Any, "l1"), loader, F.cross_entropy, num_data=4)
