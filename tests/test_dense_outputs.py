"""Learning without labels: from the dense network's own outputs, by distance and by gradients drawn from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.data.batches import as_batches
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.data.dense_outputs import DenseOutputs, kind_of
from prunus.data.evaluation import evaluate
from prunus.data.losses import cross_entropy, sum_of
from prunus.data.taught import Taught, taught
from prunus.errors import ConfigError, DataError
from prunus.methods.criteria import Fisher, Taylor
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.plan.allocation import Allocation
from prunus.recovery.finetuning import FinetuneConfig, distillation_loss, finetune
from prunus.runtime.copies import copied, twin

X = torch.randn(128, 6, generator=torch.Generator().manual_seed(1))


def net(classes: int = 3) -> nn.Sequential:
    """Of 8 hidden units each is worth less than the one before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, classes)).eval()
    with torch.no_grad():
        model[2].weight.mul_(6 * 0.6 ** torch.arange(8.0))
    return model


def batches(*targets: Any, of: Tensor = X) -> list[tuple[Any, ...]]:
    return [(part, *targets) for part in of.split(32)]


def test_a_posterior_orders_units_as_with_labels() -> None:
    model = net()
    groups = prunus.trace(model, X[:2]).groups()
    method = DirichletPruning(min_steps=60, lr=0.05)
    labelled = [(x, model(x).argmax(1)) for (x,) in batches()]
    with_labels = prunus.fit(model, groups, method, labelled, F.cross_entropy, num_data=128).values["0"]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    without = prunus.fit(model, groups, method, batches(), DenseOutputs(), num_data=128).values["0"]
    assert set(with_labels.argsort()[-3:].tolist()) == set(without.argsort()[-3:].tolist())
    assert float(torch.corrcoef(torch.stack([with_labels, without]).log())[0, 1]) > 0.9
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["logits", "values"])
def test_drawn_gradients_make_fisher_the_true_one(kind: Any) -> None:
    """Half the mean squared gradient is half the curvature of the loss at the dense network, in closed form."""
    model = net()
    few = X[:4]
    data = [(few.repeat(8000, 1),)]
    loss_fn = DenseOutputs(kind, spread=(2.5,) if kind == "values" else ())
    found = prunus.fit(model, prunus.trace(model, few).groups(), Fisher(), data, loss_fn, num_data=4).values["0"]
    with torch.no_grad():
        hidden, reads = model[1](model[0](few)), model[2].weight
        if kind == "values":
            curved = 2 / (3 * 2.5) * reads.square().sum(0)
            expected = 0.5 * (hidden.square() * curved).mean(0)
        else:
            p = model(few).softmax(1)
            curved = p @ reads.square() - (p @ reads).square()
            expected = 0.5 * (hidden.square() * curved).mean(0)
    assert torch.allclose(found, expected, rtol=0.04, atol=1e-5)


def test_targets_are_never_looked_at() -> None:
    model = net()
    groups = prunus.trace(model, X[:2]).groups()
    for method in (Taylor(), DirichletPruning(min_steps=3)):
        clean, poisoned = (
            prunus.fit(model, groups, method, data, DenseOutputs(), num_data=128).values["0"]
            for data in (batches(), batches(torch.tensor(float("nan"))))
        )
        assert torch.equal(clean, poisoned)


def test_the_same_seed_gives_the_same_plan_and_says_how_it_learned() -> None:
    model = net()
    loader: Any = DataLoader(TensorDataset(X), batch_size=32, shuffle=True)
    first, again, other = (
        prunus.prune(model, X[:2], method="fisher", target="macs<=50%", data=loader, seed=seed, progress=False)
        for seed in (3, 3, 4)
    )
    assert first.plan.kept == again.plan.kept
    assert torch.equal(first.scores.values["0"], again.scores.values["0"])
    assert not torch.equal(first.scores.values["0"], other.scores.values["0"])
    assert first.plan.notes[-1].startswith("learned without labels: by the divergence")
    assert "drawn" in first.plan.notes[-1]


def test_every_kind_of_method_learns_without_labels() -> None:
    model, data = net(), batches()
    ways: dict[str, Any] = {"data": data, "progress": False}
    staged = prunus.prune(model, X[:2], method=RecursiveBayesianPruning(epochs=1, tune_epochs=1), **ways)
    masks = DynamicProbabilisticPruning(pattern="weight 50%", epochs=1, tune_epochs=1)
    inside = prunus.prune(model, X[:2], method=masks, **ways)
    measured = prunus.prune(
        model, X[:2], method="l1", target=0.5, allocation=Allocation(scope="measured"), **ways
    )  # fmt: skip
    for result in (staged, inside, measured):
        assert any("without labels" in note for note in result.plan.notes)
    # The whole network is no distance away from itself.
    assert all(float(v.min()) >= 0 for v in measured.scores.measured.values())


class Parts(nn.Module):
    """Answers in parts."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"boxes": x * 1000, "score": x[:, :1], "number": torch.tensor([len(x)])}


def test_values_are_compared_in_units_of_their_spread() -> None:
    loader, loss = taught(Parts(), as_batches(batches()), DenseOutputs())
    assert isinstance(loader, Taught)
    assert loader.loss.kind == "values"
    x, target = next(iter(loader))
    moved = {"boxes": x * 1000 + 1000, "score": x[:, :1] + 1, "number": 0}
    assert 0.8 < float(loss(moved, target)) < 1.3
    assert float(loss(Parts()(x), target)) == 0
    with pytest.raises(DataError, match="can't be compared"):
        loss({"boxes": x[:5], "score": x[:5, :1]}, target)
    with pytest.raises(DataError, match="no floating-point tensor"):
        taught(nn.Identity(), as_batches([(torch.arange(6),)]), DenseOutputs())


@pytest.mark.parametrize(
    ("outputs", "problem", "kind"),
    [
        (torch.randn(4, 3), None, "logits"),
        (torch.randn(4, 3).softmax(1), None, "probabilities"),
        (torch.randn(4, 5, 7), None, "logits"),
        (torch.randn(4, 1), None, "values"),
        (torch.randn(4), None, "values"),
        (torch.randn(4, 3, 8, 8), None, "values"),
        ({"logits": torch.randn(4, 3, 8, 8)}, None, "logits"),
        (SimpleNamespace(logits=torch.randn(4, 2)), "single_label_classification", "logits"),
        ({"logits": torch.randn(4, 2)}, "regression", "values"),
        ({"logits": torch.randn(4, 2)}, "multi_label_classification", "values"),
        ((torch.randn(4, 3), torch.randn(4, 3)), None, "values"),
    ],
)
def test_kinds_of_outputs(outputs: Any, problem: str | None, kind: str) -> None:
    model = nn.Identity()
    model.config = SimpleNamespace(problem_type=problem)  # type: ignore[assignment]
    assert kind_of(model, outputs) == kind


class Tokens(nn.Module):
    """Logits [B, T, 5] for token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.table(input_ids)  # type: ignore[no-any-return]


def test_positions_count_once_each_and_padding_does_not() -> None:
    ids = torch.randint(9, (4, 7))
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[:, 5:] = 0
    padded: list[Mapping[str, Tensor]] = [{"input_ids": ids, "attention_mask": mask}]
    for data, count in (([(ids,)], 28), (padded, 20)):
        loader, loss = taught(Tokens(), as_batches(data), DenseOutputs())
        assert loader.num_labels() == count
        _, target = loader.first()
        logits = torch.randn(4, 7, 5)
        rows = F.kl_div(logits.log_softmax(-1), target[0][0], reduction="none", log_target=True).sum(-1)
        if count == 20:
            rows = rows[:, :5]
        assert torch.allclose(loss(logits, target), rows.mean())
        assert torch.allclose(sum_of(loss)(logits, target, 4), rows.sum())


def test_classes_that_are_ruled_out_count_nothing() -> None:
    loss = DenseOutputs("logits")
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    far = loss(logits, loss.target(None, torch.tensor([[1.0, 0.0, -torch.inf]])))
    far.backward()
    assert float(far.detach()) > 0
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_a_twin_shares_parameters_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    other = twin(model)
    assert other[0].weight is model[0].weight
    assert other[0] is not model[0]
    assert other[1].running_mean is not model[1].running_mean


def source(labels: Tensor) -> DataSource:
    parts = [ArrayDataset(X[:64], labels), ArrayDataset(X[64:96], labels[:32]), ArrayDataset(X[96:], labels[32:])]
    return DataSource("noise", *parts, num_classes=3, loss_fn=DenseOutputs())


def test_labels_that_are_garbage_change_nothing_from_scores_to_recovery() -> None:
    """Learned, planned, recovered and judged: bit for bit the same, whatever the labels are."""
    torch.manual_seed(0)
    poison = torch.randint(-(10**9), 10**9, (64,))
    ways: dict[str, Any] = {"method": "taylor", "target": 0.5, "progress": False, "run": prunus.RunSettings(modes=())}
    recovery = FinetuneConfig(epochs=2, batch_size=16)
    none, garbage = (
        prunus.compress(net(), source(labels), recovery=recovery, **ways)
        for labels in (torch.zeros(64, dtype=torch.int64), poison)
    )
    assert all(torch.equal(t, garbage.model.state_dict()[n]) for n, t in none.model.state_dict().items())
    assert none.agreement == garbage.agreement
    assert none.loss == garbage.loss
    assert not none.accuracy
    assert none.agreement["dense"] == none.agreement["dense_test"] == 100
    assert none.loss["recovered"] < none.loss["one_shot"]
    assert any("without labels" in note for note in none.result.plan.notes)


def test_recovery_learns_the_teachers_answers_alone() -> None:
    """As with labels and all weight on distillation, but for how the epoch is chosen."""
    data, config = source(torch.zeros(64, dtype=torch.int64)), FinetuneConfig(epochs=1, batch_size=16)
    torch.manual_seed(3)
    small = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    free, on_labels = copied(small), copied(small)
    done = finetune(free, data, config, teacher=net(), progress=False)
    full = replace(config, distillation=1.0)
    other = finetune(on_labels, replace(data, loss_fn=cross_entropy), full, teacher=net(), progress=False)
    assert done.best_epoch == 1
    assert done.history[1].train_loss == other.history[1].train_loss
    assert done.validation.against == "dense"
    judged = evaluate(free, data.validation, dense=net())
    same = (free(X[64:96]).argmax(1) == net()(X[64:96]).argmax(1)).float().mean()
    assert judged.accuracy == pytest.approx(100 * float(same))
    assert judged.loss == pytest.approx(done.validation.loss)


def test_refusals() -> None:
    model = net()
    data = source(torch.zeros(64, dtype=torch.int64))
    with pytest.raises(ConfigError, match="all there is to learn from"):
        finetune(model, data, FinetuneConfig(epochs=1))
    with pytest.raises(ConfigError, match="label_smoothing"):
        finetune(model, data, FinetuneConfig(epochs=1, label_smoothing=0.1), teacher=net())
    with pytest.raises(ConfigError, match="no dense network"):
        evaluate(model, data.validation, loss_fn=DenseOutputs())
    with pytest.raises(ConfigError, match="leave out loss_fn"):
        evaluate(model, data.validation, loss_fn=F.mse_loss, dense=net())
    with pytest.raises(DataError, match="no logits of classes"):
        evaluate(nn.Linear(6, 1), data.validation, dense=nn.Linear(6, 1))
    with pytest.raises(ConfigError, match="DenseOutputs"):  # with targets the choice has to be made
        prunus.prune(model, X[:2], method="taylor", target=0.5, data=batches(torch.zeros(32).long()))
    with pytest.raises(ConfigError, match=r"DenseOutputs\.kind"):
        DenseOutputs("logit")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has not seen yet"):
        DenseOutputs()(torch.randn(4, 3), ((torch.randn(4, 3),), None))
    with pytest.raises(DataError, match="no logits of classes"):
        DenseOutputs("logits").target(None, torch.randn(4))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_temperature_is_that_of_distillation(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 10, 5)
    wanted = distillation_loss(student, teacher, temperature)
    loss = DenseOutputs("logits", temperature=temperature)
    torch.testing.assert_close(loss(student, loss.target(None, teacher)), wanted)
    shares = DenseOutputs("probabilities", temperature=temperature)
    found = shares(student.softmax(1), shares.target(None, teacher.softmax(1)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert ("temperature 4" in loss.describe()) == (temperature == 4)
    with pytest.raises(ConfigError, match="temperature"):
        DenseOutputs(temperature=0.0)
