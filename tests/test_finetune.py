"""Recovery: schedule, distillation, best weights, resuming, refusals; batch norm statistics; evaluation."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn

from prunus.data.datasets import ArrayDataset, DataSource
from prunus.data.evaluation import evaluate
from prunus.errors import ArtifactError, ConfigError, DataError
from prunus.files.fingerprint import tree_digest
from prunus.pipeline.demo import lenet5, train_dense
from prunus.recovery.batchnorm import reestimate_batch_norm
from prunus.recovery.finetuning import FinetuneConfig, distillation_loss, finetune, learning_rate_factor, make_optimizer
from prunus.recovery.placement import runs_channels_last
from prunus.surgery.rewritten import as_module

# The package may give the name of the module to its function.
finetune_module = importlib.import_module("prunus.recovery.finetuning")


def toy_data(count: int = 96, seed: int = 0) -> DataSource:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 1, 6, 6, generator=generator) + (labels - 1).view(-1, 1, 1, 1)
    part = ArrayDataset(images, labels)
    third = torch.arange(count // 3)
    parts = [part.subset(third + n * (count // 3)) for n in range(3)]
    return DataSource("toy", *parts, num_classes=3)


def toy_model(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3)
        )


def config(**changes: Any) -> FinetuneConfig:
    return dataclasses.replace(
        FinetuneConfig(epochs=3, lr=0.05, batch_size=8, precision="fp32", channels_last=False), **changes
    )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_schedule_rises_linearly_and_falls_along_a_cosine() -> None:
    found = [learning_rate_factor(s, 100, 0.1) for s in range(100)]
    assert found[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert found[10:] == pytest.approx([(1 + math.cos(math.pi * s / 90)) / 2 for s in range(90)])
    assert learning_rate_factor(0, 1, 0.0) == 1.0
    assert all(0 < f <= 1 for f in found)


def test_distillation_loss_is_the_divergence_by_hand() -> None:
    student, teacher, t = torch.randn(5, 4), torch.randn(5, 4), 3.0
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    by_hand = t * t * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, t), by_hand)
    assert float(distillation_loss(teacher, teacher, t)) == pytest.approx(0.0, abs=1e-6)


def test_it_learns_and_reports() -> None:
    model, data = toy_model(), toy_data()
    result = finetune(model, data, config(epochs=8), progress=False)
    assert result.model is model
    assert [e.number for e in result.history] == list(range(9))
    assert result.validation.accuracy > result.history[0].validation_accuracy
    assert result.history[result.best_epoch].validation_accuracy == result.validation.accuracy
    assert evaluate(model, data.validation) == result.validation
    assert result.validation.accuracy == max(e.validation_accuracy for e in result.history)
    assert not model.training
    assert result.history[1].lr == pytest.approx(0.05 * learning_rate_factor(3, 32, 0.05))


def test_same_seed_same_result_and_global_random_state_stays() -> None:
    results = []
    for seed in (1, 1, 2):
        model = toy_model()
        torch.manual_seed(len(results))
        before = torch.get_rng_state()
        finetune(model, toy_data(), config(seed=seed), progress=False)
        assert torch.equal(before, torch.get_rng_state())
        results.append(weights(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_nothing_of_accelerate_stays() -> None:
    model = toy_model()
    keys = set(vars(model))
    finetune(model, toy_data(), config(epochs=1), progress=False)
    assert not PartialState._shared_state
    assert not AcceleratorState._shared_state
    assert set(vars(model)) == keys
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("patience", [None, 2])
def test_best_weights_come_back_and_patience_stops(monkeypatch: pytest.MonkeyPatch, patience: int | None) -> None:
    accuracies, seen = iter([30.0, 50.0, 80.0, 70.0, 80.0, 60.0, 10.0]), []

    def scripted(model: nn.Module, *_: Any, **__: Any) -> Any:
        seen.append(weights(model))
        return finetune_module.Evaluation(next(accuracies), 1.0, 32)

    monkeypatch.setattr(finetune_module, "evaluate", scripted)
    model = toy_model()
    result = finetune(model, toy_data(), config(epochs=6, patience=patience), progress=False)
    assert result.best_epoch == 2
    assert same(weights(model), seen[2])
    assert result.stopped_early == (patience is not None)
    assert len(result.history) == (5 if patience else 7)


def test_a_model_that_only_gets_worse_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter([90.0, 80.0, 70.0, 60.0])
    monkeypatch.setattr(finetune_module, "evaluate", lambda *_, **__: finetune_module.Evaluation(next(falling), 1.0, 9))
    model = toy_model()
    before = weights(model)
    result = finetune(model, toy_data(), config(), progress=False)
    assert result.best_epoch == 0
    assert same(before, weights(model))


def test_the_test_split_is_not_read() -> None:
    data = toy_data()
    poisoned = ArrayDataset(torch.full_like(data.test.inputs, math.nan), data.test.labels)
    one, other = toy_model(), toy_model()
    finetune(one, data, config(), progress=False)
    finetune(other, dataclasses.replace(data, test=poisoned), config(), progress=False)
    assert same(weights(one), weights(other))


@pytest.mark.parametrize("stop_after", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resuming_equals_the_unbroken_run_bit_for_bit(tmp_path: Path, optimizer: Any, stop_after: int) -> None:
    settings = config(optimizer=optimizer, lr=0.01, epochs=4)
    teacher = toy_model(9)
    unbroken = toy_model()
    whole = finetune(unbroken, toy_data(), settings, teacher=teacher, progress=False)
    path = tmp_path / "deep" / "run.pt"
    broken = toy_model()
    with pytest.raises(KeyboardInterrupt):
        finetune(broken, interrupting(stop_after), settings, teacher=teacher, progress=False, checkpoint=path)
    fresh = toy_model()
    rest = finetune(fresh, toy_data(), settings, teacher=teacher, progress=False, checkpoint=path, resume=True)
    assert same(weights(fresh), weights(unbroken))
    assert repr(rest.history) == repr(whole.history)
    assert rest.best_epoch == whole.best_epoch
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]
    again = finetune(fresh, toy_data(), settings, teacher=teacher, checkpoint=path, resume=True)
    assert same(weights(again.model), weights(unbroken))


def interrupting(epochs: int) -> DataSource:
    """The toy data, with Ctrl-C in the middle of the epoch after `epochs`."""
    calls = 0

    def loss(outputs: Tensor, labels: Tensor, **extra: Any) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls > 4 * epochs + 2:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, labels, **extra)

    return dataclasses.replace(toy_data(), loss_fn=loss)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    finetune(toy_model(), toy_data(), config(epochs=1), progress=False, checkpoint=path)
    with pytest.raises(ConfigError, match="lr"):
        finetune(toy_model(), toy_data(), config(epochs=1, lr=0.1), checkpoint=path, resume=True)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    before = weights(other)
    with pytest.raises(ArtifactError, match="another architecture"):
        finetune(other, toy_data(), config(epochs=1), checkpoint=path, resume=True)
    assert same(before, weights(other))
    frozen = toy_model()
    frozen[0].requires_grad_(False)
    with pytest.raises(ArtifactError, match="other parameters"):
        finetune(frozen, toy_data(), config(epochs=1), checkpoint=path, resume=True)
    data = toy_data()
    shifted = dataclasses.replace(data, train=ArrayDataset(data.train.inputs + 1, data.train.labels))
    for named, given, teacher in (
        ("model", (toy_model(5), data), None),
        ("data", (toy_model(), shifted), None),
        ("teacher", (toy_model(), data), toy_model(9)),
    ):
        with pytest.raises(ArtifactError, match=f"another {named}: .* there, .* here"):
            finetune(*given, config(epochs=1), teacher=teacher, checkpoint=path, resume=True)
    whole = torch.load(path, weights_only=True)
    nan = {n: t * math.nan for n, t in whole["model"].items()}
    edits = ({"model": nan}, {"model": 3}, {"state": {}}, {"state": {**whole["state"], "epoch": 9}}, {"config": []})
    for edit in edits:
        rest = {k: v for k, v in {**whole, **edit}.items() if k not in ("format", "digest")}
        torch.save({"format": whole["format"], "digest": tree_digest(rest), **rest}, path)
        with pytest.raises(ArtifactError):
            finetune(toy_model(), toy_data(), config(epochs=1), checkpoint=path, resume=True)
    torch.save(whole, path)
    for content in (path.read_bytes()[:-200], b"nothing"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="damaged"):
            finetune(toy_model(), toy_data(), config(epochs=1), checkpoint=path, resume=True)
    torch.save({"format": "other"}, path)
    with pytest.raises(ArtifactError, match="not a checkpoint"):
        finetune(toy_model(), toy_data(), config(epochs=1), checkpoint=path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        finetune(toy_model(), toy_data(), config(epochs=1), progress=False, checkpoint=tmp_path / "file" / "run.pt")


def test_resuming_without_a_file_starts(tmp_path: Path) -> None:
    one, other = toy_model(), toy_model()
    finetune(one, toy_data(), config(), progress=False)
    finetune(other, toy_data(), config(), progress=False, checkpoint=tmp_path / "new.pt", resume=True)
    assert same(weights(one), weights(other))


def test_frozen_parameters_stay() -> None:
    model = toy_model()
    model[0].requires_grad_(False)
    before = weights(model[0])
    finetune(model, toy_data(), config(weight_decay=0.1), progress=False)
    assert same(before, weights(model[0]))
    assert not model[0].weight.requires_grad
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen"):
        finetune(model, toy_data(), config())


def test_decay_spares_biases_and_norms() -> None:
    matrices, vectors = make_optimizer(toy_model(), config(weight_decay=0.1)).param_groups
    assert {p.dim() for p in matrices["params"]} == {2, 4}
    assert {p.dim() for p in vectors["params"]} == {1}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)


def test_nan_is_refused_and_the_best_weights_come_back() -> None:
    calls = 0

    def loss(outputs: Tensor, labels: Tensor, **extra: Any) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        value = F.cross_entropy(outputs, labels, **extra)
        return value * (math.nan if calls == 7 else 1.0)

    model, clean = toy_model(), toy_model()
    with pytest.raises(DataError, match="epoch 2, step 3"):
        finetune(model, dataclasses.replace(toy_data(), loss_fn=loss), config(), progress=False)
    settings = config(epochs=3)
    with pytest.raises(KeyboardInterrupt):
        finetune(clean, interrupting(1), settings, progress=False)
    assert same(weights(model), weights(clean))
    assert not PartialState._shared_state


def test_infinite_inputs_are_refused() -> None:
    data = toy_data()
    data.train.inputs[5] = math.inf
    model = toy_model()
    before = weights(model)
    with pytest.raises(DataError, match="epoch 1"):
        finetune(model, data, config(), progress=False)
    assert same(before, weights(model))


def test_the_teacher_teaches_and_stays_as_it_was() -> None:
    teacher = toy_model(3).train()
    teacher[1].eval()
    before = weights(teacher)
    modes = [m.training for m in teacher.modules()]
    taught, alone = toy_model(), toy_model()
    finetune(taught, toy_data(), config(distillation=1.0), teacher=teacher, progress=False)
    finetune(alone, toy_data(), config(), progress=False)
    assert same(before, weights(teacher))
    assert modes == [m.training for m in teacher.modules()]
    assert not same(weights(taught), weights(alone))
    with pytest.raises(ConfigError, match="teacher"):
        finetune(teacher, toy_data(), config(), teacher=teacher)


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(x.size(0), -1))


def test_channels_last_only_where_the_code_allows_it() -> None:
    data, device = toy_data(), torch.device("cpu")
    assert runs_channels_last(toy_model(), data, device)
    assert not runs_channels_last(Viewing(), data, device)
    captured = as_graph(toy_model(), data.example_inputs)
    assert not runs_channels_last(captured, data, device)


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"channels_last": True}, {"clip_grad_norm": 0.1}])
def test_options_run_and_leave_plain_weights(changes: dict[str, Any]) -> None:
    model, teacher = toy_model(), toy_model(4)
    result = finetune(model, toy_data(), config(label_smoothing=0.1, **changes), teacher=teacher, progress=False)
    both = [*model.parameters(), *teacher.parameters()]
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in both)
    assert result.precision == changes.get("precision", "fp32")
    assert result.channels_last == changes.get("channels_last", False)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"optimizer": "adam"},
        {"warmup": 1.0},
        {"label_smoothing": -0.1},
        {"distillation": 1.1},
        {"temperature": 0.0},
        {"patience": 0},
        {"precision": "fp16"},
        {"channels_last": "yes"},
        {"clip_grad_norm": 0.0},
        {"batch_size": 0},
    ],
)
def test_settings_outside_their_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        FinetuneConfig(**change)


def test_requests_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        finetune(toy_model(), toy_data(), config(), resume=True)
    plain = dataclasses.replace(toy_data(), loss_fn=lambda outputs, labels, reduction="mean": outputs.sum())
    with pytest.raises(ConfigError, match="label_smoothing"):
        finetune(toy_model(), plain, config(label_smoothing=0.1))


def test_evaluation_is_the_textbook_number() -> None:
    model, data = toy_model().train(), toy_data()
    found = evaluate(model, data.test, batch_size=7)
    assert model.training
    with torch.no_grad():
        outputs = copy.deepcopy(model).eval()(data.test.inputs)
    assert found.accuracy == pytest.approx(100 * float((outputs.argmax(1) == data.test.labels).float().mean()))
    assert found.loss == pytest.approx(float(F.cross_entropy(outputs, data.test.labels)), rel=1e-5)
    assert found.num_examples == 32


def test_evaluation_refuses_nan() -> None:
    model = toy_model()
    with torch.no_grad():
        model[5].bias[0] = math.nan
    with pytest.raises(DataError, match="32 of 32"):
        evaluate(model, toy_data().test)


def as_graph(model: nn.Module, x: Tensor) -> nn.Module:
    free = {0: torch.export.Dim.AUTO}  # the number of examples
    return as_module(torch.export.export(model.eval(), (x,), dynamic_shapes=(free,)))


@pytest.mark.parametrize("wrap", [lambda m, _: m, as_graph], ids=["module", "captured"])
def test_batch_norm_statistics_are_the_closed_form(wrap: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    batches = [(torch.randn(8, 3, 5, 5) * (n + 1) + n, None) for n in range(4)]
    model = wrap(nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5)), batches[0][0]).train()
    counter = next(b.clone() for n, b in model.named_buffers() if n.endswith("tracked"))
    code = getattr(model, "code", None)
    assert reestimate_batch_norm(model, batches, num_batches=3) is model
    everything = torch.cat([x for x, _ in batches[:3]]).transpose(0, 1).flatten(1)
    buffers = dict(model.named_buffers())
    torch.testing.assert_close(buffers["0.running_mean"], everything.mean(1))
    torch.testing.assert_close(buffers["0.running_var"], everything.var(1))
    assert torch.equal(buffers["0.num_batches_tracked"], counter)
    assert model.training
    assert getattr(model, "code", None) == code


@pytest.mark.parametrize("sizes", [[32, 32, 32], [90, 6], [96]], ids=["sorted", "uneven", "one"])
def test_batch_norm_statistics_do_not_depend_on_how_the_data_are_cut(sizes: list[int]) -> None:
    x = torch.cat([torch.randn(32, 2) * 0.2, torch.randn(64, 2) * 3 + 5])
    norm = nn.BatchNorm1d(2)
    reestimate_batch_norm(norm, [(part, None) for part in x.split(sizes)])
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    torch.testing.assert_close(norm.running_var, x.var(0))


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x) * 3 + 1)


def test_a_shared_norm_averages_over_all_its_calls() -> None:
    batches = [(torch.randn(16, 2) + n, None) for n in range(3)]
    module = SharedNorm()
    captured = as_graph(copy.deepcopy(module), batches[0][0])
    reestimate_batch_norm(module, batches)
    reestimate_batch_norm(captured, batches)
    means = torch.stack([x.mean(0) for x, _ in batches] + 3 * [torch.ones(2)]).mean(0)
    torch.testing.assert_close(module.norm.running_mean, means)
    for name, buffer in captured.named_buffers():
        torch.testing.assert_close(buffer, module.get_buffer(name), msg=name)


def test_reestimation_changes_nothing_else() -> None:
    model = toy_model()
    model[1].momentum = 0.25
    model[4].train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    parameters = {n: p.clone() for n, p in model.named_parameters()}
    reestimate_batch_norm(model, [(toy_data().train.inputs, None)])
    assert modes == [m.training for m in model.modules()]
    assert model[1].momentum == 0.25
    assert same(parameters, dict(model.named_parameters()))
    plain = nn.Sequential(nn.Linear(2, 2))
    before = weights(plain)
    assert reestimate_batch_norm(plain, []) is plain
    assert same(before, weights(plain))


def test_reestimation_refuses_and_puts_back() -> None:
    model = toy_model()
    before = weights(model)
    with pytest.raises(DataError, match="NaN"):
        reestimate_batch_norm(model, [(torch.full((4, 1, 6, 6), math.nan), None)])
    with pytest.raises(DataError, match="none"):
        reestimate_batch_norm(model, [])
    with pytest.raises(ConfigError):
        reestimate_batch_norm(model, [], num_batches=0)
    assert same(before, weights(model))


def test_the_demo_network_trains() -> None:
    labels = torch.arange(120) % 10
    images = torch.zeros(120, 1, 28, 28)
    images[torch.arange(120), 0, 2 * labels + 4] = 1.0
    part = ArrayDataset(images, labels)
    model, inputs = lenet5()
    assert model(inputs).shape == (2, 10)
    result = train_dense(model, DataSource("rows", part, part, part, 10), epochs=8, batch_size=20, progress=False)
    assert result.validation.accuracy > 90
    assert all(torch.equal(p, q) for p, q in zip(lenet5()[0].parameters(), lenet5()[0].parameters(), strict=True))


def test_a_captured_model_recovers_too() -> None:
    data = toy_data()
    captured = as_module(
        torch.export.export(
            toy_model().eval(), (data.train.inputs[:4],), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    )
    result = finetune(captured, data, config(epochs=4), progress=False)
    assert result.validation.accuracy > result.history[0].validation_accuracy


@pytest.fixture
def clean_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_launcher_settings_cannot_scale_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, launched = toy_model(), toy_model()
    finetune(plain, toy_data(), config(epochs=1), progress=False)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    finetune(launched, toy_data(), config(epochs=1), progress=False)
    assert same(weights(plain), weights(launched))


@pytest.mark.usefixtures("clean_accelerate")
def test_the_callers_accelerator_is_neither_used_nor_changed() -> None:
    plain, joined = toy_model(), toy_model()
    finetune(plain, toy_data(), config(epochs=1), progress=False)
    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4, cpu=True)
    finetune(joined, toy_data(), config(epochs=1), progress=False)
    assert same(weights(plain), weights(joined))
    assert "forward" not in vars(joined)
    assert own.mixed_precision == "bf16"
    assert own.gradient_accumulation_steps == 4


def test_evaluation_leaves_a_captured_graph_in_its_mode() -> None:
    model = as_graph(toy_model(), toy_data().test.inputs).train()
    code = model.code
    evaluate(model, toy_data().test)
    assert model.training
    assert model.code == code


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_statistics_stand_still_when_asked(rewritten: bool, held: bool) -> None:
    model: nn.Module = toy_model()
    if rewritten:
        model = as_graph(model, toy_data().train.inputs[:8])
    before = {n: b.clone() for n, b in model.named_buffers()}
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    finetune(model, toy_data(), config(batch_norm="eval" if held else "auto"), progress=False)
    assert not all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    still = all(torch.equal(b, before[n]) for n, b in model.named_buffers() if "running" in n)
    assert still == held


def test_a_regression_goes_on_as_if_it_had_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances from the teacher are in units of the very first batch's variance."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 4, generator=generator) * torch.linspace(0.1, 4, 32)[:, None]
    part = ArrayDataset(x, x.sum(1, keepdim=True))
    source = DataSource("sums", part, part, loss_fn=nn.MSELoss())

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    teacher, settings = network(1), FinetuneConfig(epochs=3, batch_size=8, lr=0.01)
    whole, stopped = network(0), network(0)
    finetune(whole, source, settings, teacher=teacher, progress=False)
    epoch = finetune_module._Recovery._epoch

    def once(self: Any, training: Any, state: Any) -> None:
        if state.epoch == 1:
            raise KeyboardInterrupt
        epoch(self, training, state)

    settled = {"teacher": teacher, "progress": False, "checkpoint": tmp_path / "c.pt"}
    with monkeypatch.context() as patched:
        patched.setattr(finetune_module._Recovery, "_epoch", once)
        with pytest.raises(KeyboardInterrupt):
            finetune(stopped, source, settings, **settled)
    finetune(stopped, source, settings, resume=True, **settled)
    for one, other in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(one, other)
