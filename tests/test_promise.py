"""Promises: read or refused, shown by p-values that are valid at every size, and kept by the network that comes out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import gammaln, xlogy
from torch import Tensor, nn

import prunus
from prunus.data.batches import Splits, as_batches
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.outcomes import losses_of
from prunus.errors import BudgetError, ConfigError, DataError
from prunus.pipeline import repairing
from prunus.pipeline.texts import target_of
from prunus.plan.bounded import betting_p, rate_p
from prunus.plan.evidence import Evidence, fewest
from prunus.plan.paired import paired_p
from prunus.plan.promise import Promise
from prunus.plan.sequence import search
from prunus.refit.calibration import calibration

X = torch.randn(2, 12)


@pytest.mark.parametrize(
    ("text", "metric", "margin", "relative"),
    [
        ("accuracy>=dense-1%@95%", "accuracy", 0.01, True),
        (" Accuracy >= dense - .5 % @ 99.9 % ", "accuracy", 0.005, True),
        ("accuracy>=90%@95%", "accuracy", 0.1, False),
        ("agreement>=98%@95%", "agreement", 0.02, False),
        ("loss<=dense+0.05@95% in 0..2", "loss", 0.05, True),
        ("loss<=0.3@90% in -1..1", "loss", 0.3, False),
    ],
)
def test_promises_are_read(text: str, metric: str, margin: float, relative: bool) -> None:
    found = Promise.parse(target_of(text))
    assert (found.metric, found.margin, found.relative) == (metric, margin, relative)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accuracy>=dense-1%", "@95%"),
        ("accuracy>=dense-1%@100%", "at least 50 %"),
        ("accuracy>=dense-0%@95%", "above 0 and below 1"),
        ("accuracy>=dense+1%@95%", "agreement>=98%@95%"),
        ("accuracy>=dense-1%@95%, macs<=50%", "one promise at a time"),
        ("agreement>=dense-1%@95%", "agreement>=98%@95%"),
        ("loss<=dense+0.05@95%", "of any size"),
        ("loss<=dense+3@95% in 0..2", "below 2"),
        ("loss<=dense+3@95% in 2..0", "smallest first"),
    ],
)
def test_what_nothing_can_show_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("+", r"\+")):
        prunus.prune(net(), X, method="l1", target=text)


def boundary(n: int, margin: float, p: np.ndarray, lost: np.ndarray, won: np.ndarray, level: float) -> float:
    """Largest probability to reject over networks that lose just as much as the margin, or a little more."""
    worst, rates = 0.0, np.concatenate([np.geomspace(1e-6, 0.05, 10), np.linspace(0, 1)])
    for more, rate in itertools.product((1.0, 1.2), rates):
        more_lost, differing = margin * more, min(margin * more + rate, 1.0)
        chances = (differing + more_lost) / 2, (differing - more_lost) / 2, 1 - differing
        counts = lost, won, n - lost - won
        log = gammaln(n + 1) + sum(xlogy(k, c) - gammaln(k + 1) for k, c in zip(counts, chances, strict=True))
        worst = max(worst, float(np.exp(log)[p <= level].sum()))
    return worst


@pytest.mark.parametrize(("n", "margin"), [(9, 0.3), (16, 0.15), (20, 0.2)])
def test_the_paired_test_is_valid_whatever_the_rates(n: int, margin: float) -> None:
    lost, won = np.array([(a, b) for a in range(n + 1) for b in range(n + 1 - a)]).T
    p = np.array([paired_p(int(a), int(b), n, margin, 0.1) for a, b in zip(lost, won, strict=True)])
    for level in (0.02, 0.05, 0.1, 0.2, 0.5):
        assert boundary(n, margin, p, lost, won, level) <= level
    assert boundary(n, margin, p, lost, won, 0.1) > 0.04  # and has not thrown its level away


def test_betting_is_valid_in_every_sequence() -> None:
    n, margin = 7, 0.2
    values = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=n)))
    p = np.array([betting_p(v, -1, 1, margin, 0.1) for v in values])
    for won in np.linspace(0, 0.4, 9):
        chance = np.prod(np.choose(values.astype(int) + 1, [won, 1 - 2 * won - margin, won + margin]), 1)
        assert all(chance[p <= level].sum() <= level for level in (0.05, 0.1, 0.3, 0.5))


def test_rates_and_fewest_examples() -> None:
    assert rate_p(0, 299, 0.01) <= 0.05 < rate_p(0, 298, 0.01)
    assert fewest(Promise.parse("agreement>=99%@95%"), whole=True) == 299
    paired = Promise.parse("accuracy>=dense-1%@95%")
    least = fewest(paired, whole=True)
    assert paired_p(0, 0, least, 0.01, 0.05) <= 0.05 < paired_p(0, 0, least - 1, 0.01, 0.05)


def test_evidence_knows_its_limit_and_what_it_lacks() -> None:
    promise = Promise.parse("accuracy>=dense-1%@95%")
    few = Evidence(promise, np.repeat([1.0, -1.0, 0.0], [12, 7, 981]), whole=True)
    assert few.p > 0.05
    assert few.p_at(few.limit()) <= 0.05 < few.p_at(few.limit() - 1e-3)
    needed = few.needed()
    assert needed is not None
    many = Evidence(promise, np.tile(few.losses, -(-needed // 1000)), whole=True)
    assert many.p < 0.05
    assert Evidence(promise, np.repeat([1.0, 0.0], [30, 970]), whole=True).needed() is None


def test_a_sequence_stops_at_the_first_that_is_not_shown() -> None:
    made = []

    def candidates() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            yield number

    found = search(candidates(), [0.01, 0.04, 0.9, 0.0, 0.0].__getitem__, 0.05)
    assert (found.kept, found.failed, found.tested, made) == (1, 2, 3, [0, 1, 2])
    assert search([0], lambda _: 0.5, 0.05).kept is None
    assert search([0, 1], lambda _: 0.0, 0.05).failed is None


def net() -> nn.Sequential:
    """Eight of sixteen hidden units do nothing; one class is where the sum of some inputs is positive."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight[8:] *= 1e-3
        model[2].weight[:, 8:] *= 1e-3
    return model.eval()


def batches(model: nn.Module, seed: int, count: int = 6, flipped: float = 0.1) -> list[tuple[Tensor, Tensor]]:
    """Labels as the network has them, but for some."""
    stream = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        x = torch.randn(100, 12, generator=stream)
        with torch.no_grad():
            y = model(x).argmax(1)
        found.append((x, torch.where(torch.rand(100, generator=stream) < flipped, (y + 1) % 3, y)))
    return found


def asked(target: Any, data: Any, **settings: Any) -> prunus.Result:
    settings = {"method": "taylor", "loss_fn": F.cross_entropy, "allocation": prunus.Allocation(round_to=1)} | settings
    return prunus.prune(net(), X, target=target, data=data, progress=False, **settings)


def brier(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.softmax(1) - F.one_hot(labels, 3)).square().sum(1).mean()


def test_the_smallest_network_that_keeps_a_promise() -> None:
    model = net()
    train, held_out = batches(model, 1), batches(model, 2)
    found = asked("accuracy>=dense-2%@95%", Splits(train, held_out))
    assert len(found.plan.kept["0"]) <= 8
    assert found.plan.asked == "accuracy>=dense-2%@95%"
    losses = losses_of(model, found.model, as_batches(held_out), "accuracy", relative=True)
    assert Evidence(Promise.parse(found.plan.asked), losses, whole=True).p <= 0.05
    notes = " | ".join(found.plan.notes)
    assert "95 % confidence on 600 held-out examples" in notes
    assert "not shown at" in notes
    assert "as prune made it" in notes
    assert found.scores.values.keys() == {"0"}


def test_what_repair_needs_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = net(), []
    monkeypatch.setattr(repairing, "calibration", lambda *given: made.append(1) or calibration(*given))  # type: ignore[func-returns-value]
    found = asked("accuracy>=dense-2%@95%", Splits(batches(model, 1), batches(model, 2)))
    assert found.refits
    assert len(made) == 1


def test_a_promise_as_an_object() -> None:
    model = net()
    target: Any = Promise.parse("accuracy>=85%@95%")
    assert len(asked(target, Splits(batches(model, 1), batches(model, 2))).plan.kept["0"]) <= 10


def test_a_bounded_loss_and_agreement_without_labels() -> None:
    model = net()
    train, held_out = batches(model, 1), batches(model, 2, count=2)
    found = asked("loss<=dense+0.1@95% in 0..2", Splits(train, held_out), loss_fn=brier)
    assert "loss: " in " ".join(found.plan.notes)
    unlabelled = [(x,) for x, _ in held_out]
    assert asked("agreement>=98%@95%", Splits(train, unlabelled)).plan.after.macs < found.plan.before.macs
    with pytest.raises(DataError, match="outside"):
        asked("loss<=dense+0.01@95% in 0..0.1", Splits(train, held_out))


def test_compress_takes_a_promise_as_well() -> None:
    model = net()
    parts = [zip(*batches(model, seed, count=3), strict=True) for seed in (1, 2)]
    train, validation = (ArrayDataset(*map(torch.cat, part)) for part in parts)
    data = DataSource("made up", train, validation, validation, 3)
    run = prunus.RunSettings(modes=())
    done = prunus.compress(model, data, method="l1", target=target_of("agreement>=90%@95%"), progress=False, run=run)
    assert done.result.plan.asked == "agreement>=90%@95%"
    unlabelled = dataclasses.replace(data, loss_fn=DenseOutputs())
    with pytest.raises(ConfigError, match="none are to be looked at"):
        prunus.compress(model, unlabelled, method="l1", target="accuracy>=dense-5%@95%", progress=False, run=run)


def test_what_is_learned_without_labels_is_shown_by_agreement() -> None:
    model = net()
    train, held_out = ([(x,) for x, _ in batches(model, seed)] for seed in (1, 2))
    found = asked("agreement>=95%@95%", Splits(train, held_out), loss_fn=None)
    assert any("without labels" in note for note in found.plan.notes)


def test_positions_of_one_example_are_not_taken_for_independent() -> None:
    class PerPosition(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    x, y = torch.randn(5, 4, 3), torch.randint(3, (5, 4))
    y[0] = -100
    y[1, 2:] = -100
    lost = losses_of(PerPosition(), PerPosition(), as_batches([(x, y)]), "accuracy")
    wrong = (x.argmax(-1) != y).double()
    assert torch.allclose(torch.from_numpy(lost), torch.stack([wrong[1, :2].mean(), *wrong[2:].mean(1)]))


class Unread(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise AssertionError("learned before the promise was refused")


@pytest.mark.parametrize(
    ("target", "data", "error", "said"),
    [
        ("accuracy>=dense-2%@95%", Unread(), ConfigError, "Splits"),
        ("accuracy>=dense-2%@95%", Splits(Unread(), [(X,)]), ConfigError, "labels"),
        ("accuracy>=dense-2%@95%", Splits(Unread(), [(X, torch.randn(2))]), ConfigError, "labels"),
        ("accuracy>=dense-2%@95%", Splits(Unread(), [(X, torch.zeros(2).long())]), BudgetError, "at least 1"),
        ("agreement>=98%@95%", Splits(same := Unread(), same), ConfigError, "hold some out"),
    ],
)
def test_refused_before_the_learning(target: str, data: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        asked(target, data)


def test_too_little_evidence_and_methods_that_take_no_promise() -> None:
    model = net()
    data = Splits(batches(model, 1), batches(model, 2, count=2))
    with pytest.raises(BudgetError, match=r"not even the network with(.|\n)*not likely to help"):
        asked("accuracy>=95%@95%", data)
    with pytest.raises(BudgetError, match=r"give about [\d,]+ examples"):
        asked("accuracy>=86%@95%", data)
    with pytest.raises(ConfigError, match="a promise, which method 'rbp' can't take"):
        asked("accuracy>=dense-2%@95%", data, method="rbp", allocation=None)
    with pytest.raises(ConfigError, match="a promise, which method 'dpp' can't take"):
        asked("accuracy>=dense-2%@95%", data, method="dpp", allocation=None)
