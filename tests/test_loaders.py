"""Data as people have them: loaders, data sets, dicts of transformers, targets of every kind, metrics of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import prunus
from prunus.data import ACCURACY, ArrayDataset, DataSource, DenseOutputs, Metric, Splits, evaluate, mean_iou, source_of
from prunus.data.datasets import judged_at_once
from prunus.data.evaluation import Evaluation
from prunus.data.fitting import at_chance
from prunus.data.losses import own_loss
from prunus.errors import ConfigError, DataError
from prunus.recovery import FinetuneConfig, finetune

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 3
BRIEF = FinetuneConfig(epochs=2, batch_size=16, lr=0.05)
UNTIMED = prunus.RunSettings(modes=(), batch_size=16)


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs)).eval()


def parts(targets: Tensor = Y) -> list[TensorDataset]:
    return [TensorDataset(X[s], targets[s]) for s in (slice(0, 32), slice(32, 40), slice(40, 48))]


def loaders(targets: Tensor = Y, **settings: Any) -> list[DataLoader[Any]]:
    return [DataLoader(part, 16, **settings) for part in parts(targets)]


class Stream(IterableDataset[Any]):
    """Examples one after another, of no known number."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in range(len(self.data)))  # type: ignore[arg-type]


def compressed(data: Any, model: nn.Module | None = None, **settings: Any) -> Any:
    settings = {"method": "taylor", "target": 0.5, "recovery": BRIEF, "progress": False, "run": UNTIMED, **settings}
    return prunus.compress(model or network(), data, **settings)


def test_every_form_of_the_same_data_gives_the_same_evaluation() -> None:
    model = network()
    wanted = evaluate(model, ArrayDataset(X, Y))
    batches = [(X[i : i + 7], Y[i : i + 7]) for i in range(0, 48, 7)]
    whole = TensorDataset(X, Y)
    dicts = [{"input": x, "labels": y} for x, y in batches]
    for data in (whole, DataLoader(whole, 10), DataLoader(Stream(whole), 9), batches, dicts):
        found = evaluate(model, data)
        assert found.accuracy == wanted.accuracy
        assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
        assert found.num_examples == 48


def test_compress_takes_loaders_data_sets_and_streams() -> None:
    streams = [DataLoader(Stream(part), 16) for part in parts()]
    for data in (tuple(loaders()), dict(zip(("train", "val", "test"), parts(), strict=True)), tuple(streams)):
        done = compressed(data)
        assert set(done.accuracy) == {"dense", "one_shot", "batch_norm", "recovered", "dense_test", "test"}
        assert done.summary["kept"] == {"0": [6, 12]}
        assert (
            evaluate(done.model, data["test"] if isinstance(data, dict) else data[2]).accuracy == done.accuracy["test"]
        )


def test_without_a_test_part_nothing_is_said_of_it() -> None:
    done = compressed(Splits(*loaders()[:2]))
    assert "test" not in done.accuracy
    from prunus.reports.tables import before_and_after

    rows = list(before_and_after({**done.summary, "speed": {"modes": []}}).columns[0].cells)
    assert "validation accuracy" in rows
    assert not any("test" in str(row) for row in rows)


def test_recovery_of_a_loader_is_that_of_its_data_set() -> None:
    """In the order of the examples a loader and what is in memory learn the same, and are chosen by the same."""
    train, validation, _ = loaders()
    arrays = [ArrayDataset(*(torch.cat(p) for p in zip(*loader, strict=True))) for loader in (train, validation)]
    config = FinetuneConfig(epochs=1, batch_size=32, lr=0.05, distillation=0.0)
    one, other = network(), network()
    finetune(one, (DataLoader(train.dataset, 32), validation), config, progress=False)
    finetune(other, DataSource("arrays", *arrays, num_classes=3), config, progress=False)  # one batch: no order
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_same_seed_gives_the_same_weights_whatever_the_workers() -> None:
    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return X[index] + torch.rand(6), Y[index]

    found = []
    for workers in (0, 2):
        source = DataSource("noisy", Noisy(), parts()[1], num_classes=3, workers=workers)
        model = network()
        finetune(model, source, BRIEF, progress=False)
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*found)


def test_regression_is_judged_by_its_loss_or_by_a_metric_of_ones_own() -> None:
    targets = X.sum(1, keepdim=True)
    source = DataSource("sums", *parts(targets), loss_fn=nn.MSELoss())
    model = network(1)
    found = evaluate(model, parts(targets)[2], loss_fn=nn.MSELoss())
    with torch.no_grad():
        by_hand = float(F.mse_loss(model(X[40:]), targets[40:]))
    assert (found.metric, found.better) == ("loss", "lower")
    assert found.score == found.loss == pytest.approx(by_hand, rel=1e-6)
    with pytest.raises(ConfigError, match="what was measured is loss"):
        _ = found.accuracy
    done = compressed(source, model)
    assert done.scores["recovered"] <= min(done.scores["one_shot"], done.scores["batch_norm"])
    assert done.summary["metric"] == {"name": "loss", "better": "lower", "unit": ""}
    far = Metric("distance", lambda outputs, y: (outputs - y).abs().mean(1), better="lower", unit="m")
    from dataclasses import replace

    done = compressed(replace(source, metric=far), model)
    with torch.no_grad():
        assert done.scores["dense_test"] == pytest.approx(float((model(X[40:]) - targets[40:]).abs().mean()), rel=1e-6)
    assert done.summary["distance"]["test"] == done.scores["test"]
    assert done.summary["metric"]["better"] == "lower"


def test_the_epoch_is_chosen_by_the_metric_and_its_direction() -> None:
    for better, pick in (("higher", max), ("lower", min)):
        size = Metric("size", lambda outputs, _: outputs.abs().mean(1), better=better)
        source = DataSource("toy", *parts(), num_classes=3, metric=size)
        result = finetune(network(), source, FinetuneConfig(epochs=4, batch_size=8, lr=0.2), progress=False)
        scores = [epoch.validation_score for epoch in result.history]
        assert result.validation.score == pick(scores) == scores[result.best_epoch]


def test_sums_add_up_over_batches() -> None:
    """The quotient of sums is not the mean of the batches' quotients; by hand on batches of unequal size."""
    labels = torch.tensor([[0, 0, 1, -100], [1, 1, 1, 2], [2, 0, 0, 0]])
    logits = F.one_hot(torch.tensor([[0, 1, 1, 2], [1, 1, 0, 2], [0, 0, 0, 2]]), 3).float().movedim(2, 1)
    batches = [(logits[:1], labels[:1]), (logits[1:], labels[1:])]
    found = evaluate(nn.Identity(), batches, metric=mean_iou(3))
    # Class by class: intersection over union.
    assert found.score == pytest.approx(100 * (3 / 7 + 3 / 5 + 1 / 3) / 3)
    plain = evaluate(nn.Identity(), batches)
    assert plain.score == pytest.approx(100 * 7 / 11)
    assert plain.num_examples == 11
    assert ACCURACY.score(ACCURACY.add(None, logits, labels)) == plain.score


def test_metrics_that_keep_their_own_state_as_torchmetrics_do() -> None:
    class Largest:
        def reset(self) -> None:
            self.value = -math.inf

        def update(self, outputs: Tensor, _: Tensor) -> None:
            self.value = max(self.value, float(outputs.max()))

        def compute(self) -> Tensor:
            return torch.tensor(self.value)

    metric = Metric("largest", Largest())
    model = network()
    for _ in range(2):
        found = evaluate(model, loaders()[0], metric=metric)
        assert found.score == pytest.approx(float(model(X[:32]).detach().max()))
    for wrong in (3, None):
        with pytest.raises(ConfigError, match="can't be called"):
            Metric("wrong", wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no direction"):
        Metric("wrong", Largest(), better="up")  # type: ignore[arg-type]
    for name, settings in (("loss", {}), ("accuracy", {}), ("agreement", {"unit": "%", "better": "lower"})):
        with pytest.raises(ConfigError, match="so is called"):
            Metric(name, Largest(), **settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="returned a str"):
        evaluate(model, loaders()[0], metric=Metric("wrong", lambda *_: "good"))


def test_a_model_that_computes_its_own_loss_gets_its_labels() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.net(values)
            return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    dicts = [[{"values": x, "labels": y} for x, y in loader] for loader in loaders()]
    model = Own().eval()
    source = source_of(tuple(dicts), model)
    assert source.loss_fn is own_loss
    assert set(source.example_inputs) == {"values"}
    found = evaluate(model, dicts[2], loss_fn=own_loss)
    wanted = evaluate(model.net, parts()[2])
    assert (found.accuracy, found.num_examples) == (wanted.accuracy, wanted.num_examples)
    assert found.loss == pytest.approx(wanted.loss)
    done = compressed(tuple(dicts), model)
    assert done.accuracy["recovered"] >= max(done.accuracy["one_shot"], done.accuracy["batch_norm"])


def test_a_loss_on_all_outputs_and_targets_of_any_kind() -> None:
    """As detectors have them: the answer is in parts, the targets are a list of dicts."""

    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.kind, self.box = nn.Linear(6, 12), nn.Linear(12, 3), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.body(x).relu()
            return {"kinds": self.kind(x), "boxes": self.box(x)}

    def collate(rows: list[Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        return torch.stack([x for x, _ in rows]), [{"kind": y, "box": x[:4]} for x, y in rows]

    def loss(found: dict[str, Tensor], wanted: list[dict[str, Tensor]]) -> Tensor:
        boxes, kinds = torch.stack([w["box"] for w in wanted]), torch.stack([w["kind"] for w in wanted])
        return F.cross_entropy(found["kinds"], kinds) + (found["boxes"] - boxes).abs().mean()

    def right(found: dict[str, Tensor], wanted: list[dict[str, Tensor]]) -> Tensor:
        return (found["kinds"].argmax(1) == torch.stack([w["kind"] for w in wanted])).float()

    torch.manual_seed(0)
    metric = Metric("right kinds", right, unit="%")
    source = DataSource("boxes", *loaders(collate_fn=collate), loss_fn=loss, metric=metric, outputs="all")
    done = compressed(source, Boxes().eval())
    assert done.scores["recovered"] >= max(done.scores["one_shot"], done.scores["batch_norm"])
    assert set(done.summary["right kinds"]) >= {"dense", "recovered", "test"}


def test_large_examples_are_judged_in_smaller_batches() -> None:
    small, large = (ArrayDataset(torch.zeros(9, 3, side, side), torch.zeros(9).long()) for side in (32, 1024))
    assert judged_at_once(small, 500) == 500
    assert judged_at_once(large, 500) == judged_at_once(TensorDataset(large.inputs, large.labels), 500) == 1
    assert judged_at_once(DataLoader(TensorDataset(large.inputs)), 500) == 500


def test_a_network_that_knows_nothing_is_told_of() -> None:
    source = DataSource("toy", *parts(), num_classes=4)
    for score, told in ((25.0, True), (46.6, True), (46.8, False), (90.0, False)):  # two standard errors: 21.65 points
        assert (at_chance(Evaluation(score, 1.0, 16), source) is not None) == told
    assert at_chance(Evaluation(0.0, 1.0, 16, "dense"), source) is None
    assert at_chance(Evaluation(0.0, 1.0, 16, metric="loss"), source) is None


def test_loaders_without_labels() -> None:
    batches = [[X[:16], X[16:32]], [X[32:40]], [X[40:]]]
    done = compressed(DataSource("unlabelled", *([(x,) for x in part] for part in batches), loss_fn=DenseOutputs()))
    assert done.agreement["dense"] == 100.0
    assert done.loss["recovered"] < done.loss["one_shot"]


def test_what_can_not_be_learned_from_is_refused_at_once() -> None:
    train, validation, _ = loaders()
    with pytest.raises(ConfigError, match="no held-out part"):
        compressed(train)
    with pytest.raises(ConfigError, match="lacks a part"):
        compressed({"train": train})
    with pytest.raises(DataError, match="nothing says by which loss"):
        compressed(tuple(loaders(X.sum(1, keepdim=True))), network(1))
    with pytest.raises(DataError, match="labels from 1 to 3, and the network has 3"):
        compressed(tuple(loaders(Y + 1)))
    with pytest.raises(DataError, match="its loss fails"):
        compressed(DataSource("toy", train, validation, loss_fn=nn.NLLLoss(weight=torch.ones(2))))
    with pytest.raises(DataError, match="have no targets"):
        compressed(([(X[:8],)], [(X[8:16],)]))
    with pytest.raises(DataError, match="network fails"):
        compressed(([(X[:8, :3], Y[:8])], [(X[:8, :3], Y[:8])]))


def test_no_number_is_worse_than_any() -> None:
    for better in ("higher", "lower"):
        one, other = (Evaluation(score, 1.0, 8, metric="own", better=better) for score in (1.0, math.nan))
        assert one.better_than(other)
        assert not other.better_than(one)


def test_metrics_that_are_modules_go_where_the_outputs_are() -> None:
    class Largest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("value", torch.zeros(()))

        def reset(self) -> None:
            self.value = torch.zeros_like(self.value)

        def update(self, outputs: Tensor, _: Tensor) -> None:
            assert self.value.device == outputs.device
            self.value = torch.maximum(self.value, outputs.max())

        def compute(self) -> Tensor:
            return self.value

    metric = Metric("largest", Largest())
    for device in ("meta", "cpu"):
        metric.start() if device == "cpu" else None
        metric.add(None, torch.ones(2, 3, device=device), torch.ones(2, device=device))
        metric.measure.value = torch.zeros(())


@pytest.mark.parametrize("captured", [False, True])
def test_a_last_batch_of_one_example_is_learned_from(captured: bool) -> None:
    """One value of a channel has no variance: there the batch norm goes by its running statistics."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    train, validation, _ = ([(X[:16], Y[:16]), (X[16:17], Y[16:17])], [(X[17:], Y[17:])], None)
    if captured:
        call = torch.ops.aten.batch_norm.default
        norm = model[1]
        norm.forward = lambda x: call(  # type: ignore[method-assign]
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.training, 0.1, 1e-5, True
        )
    result = finetune(model, (train, validation), FinetuneConfig(epochs=1, lr=0.05), progress=False)
    assert len(result.history) == 2
    assert math.isfinite(result.history[1].validation_loss)
    assert all(bool(torch.isfinite(t).all()) for t in model.state_dict().values())


def test_the_same_seed_gives_the_same_network_whatever_was_drawn_before() -> None:
    """The order of a loader that shuffles is the seed's, where statistics are taken from its first batches too."""
    found = []
    for drawn in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).eval()
        data = tuple(DataLoader(part, 1 + (len(part) == 32), shuffle=True) for part in parts()[:2])
        torch.manual_seed(drawn)
        config = FinetuneConfig(epochs=0.1, lr=0.05, batch_norm="compensated")
        finetune(model, data, config, progress=False)
        done = compressed(data, model, recovery=config)
        found.append(torch.cat([t.flatten().double() for t in done.model.state_dict().values()]))
    assert torch.equal(*found)


def test_one_example_a_batch_gives_no_statistics_and_a_result_all_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).eval()
    single = tuple(DataLoader(part, 1) for part in parts()[:2])
    told: list[str] = []
    run = prunus.RunSettings(modes=(), say=told.append)
    done = compressed(single, model, recovery=None, repair=False, run=run)
    assert done.scores["batch_norm"] == done.scores["one_shot"]
    assert any("no new batch norm statistics" in line for line in told)
