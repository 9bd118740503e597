"""Batches, loaders and losses as people write them: taken, or refused with the reason, and never half-read."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import prunus
from prunus.data.batches import Form, as_batches, unpack
from prunus.data.datasets import ArrayDataset, Batches
from prunus.data.losses import mean_of, sum_of
from prunus.errors import ConfigError, DataError
from prunus.learning.fit import fit
from prunus.methods.base import Method
from prunus.methods.criteria import Taylor
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.pipeline.prune import prune
from prunus.recovery.batchnorm import reestimate_batch_norm

X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
METHODS: list[Method] = [
    Taylor(),
    DirichletPruning(min_steps=2),
    RecursiveBayesianPruning(epochs=1, tune_epochs=1, simultaneous=True),
]
Pair = namedtuple("Pair", ["x", "y"])


class Net(nn.Module):
    """One input, and a second one that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        h = self.a(x).relu()
        return self.b(h if scale is None else h * scale)


class Two(Net):
    """Two inputs."""

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:  # type: ignore[override]
        return self.b(self.a(x1 + x2).relu())


class Own(Net):
    """Returns its loss when it is given labels, as transformers' models do."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        logits = super().forward(input_ids)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Reads(Net):
    """Reads a dict by key."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["image"] + batch["noise"])


def halves(*tensors: Any) -> list[tuple[Any, ...]]:
    return [tuple(t[:6] for t in tensors), tuple(t[6:] for t in tensors)]


def kept(model: nn.Module, data: Any, loss_fn: Any, method: Method, inputs: Any = None) -> dict[str, tuple[int, ...]]:
    inputs = X[:2] if inputs is None else inputs
    result = prune(model, inputs, method=method, data=data, loss_fn=loss_fn, target=0.5)
    return result.plan.kept


PAIRS = halves(X, Y)
CE = F.cross_entropy
FORMS: dict[str, tuple[Callable[[], nn.Module], Any, Any, Any]] = {
    "list": (Net, [[x, y] for x, y in PAIRS], CE, None),
    "named tuple": (Net, [Pair(x, y) for x, y in PAIRS], CE, None),
    "DataLoader": (Net, DataLoader(TensorDataset(X, Y), 6), CE, None),
    "dict under the model's names": (Net, [{"x": x, "labels": y} for x, y in PAIRS], CE, None),
    "dict of one input under another name": (Net, [{"image": x, "label": y} for x, y in PAIRS], CE, None),
    "dict that is no dict": (Net, [UserDict({"x": x, "labels": y}) for x, y in PAIRS], CE, None),
    "inputs as a dict beside targets": (Net, [({"x": x}, y) for x, y in PAIRS], CE, None),
    "targets in a dict": (Net, [(x, {"y": y}) for x, y in PAIRS], lambda o, t: CE(o, t["y"]), None),
    "targets in a list of dicts": (
        Net, [(x, [{"y": one} for one in y]) for x, y in PAIRS],
        lambda o, t: CE(o, torch.stack([one["y"] for one in t])), None,
    ),
    "two targets": (Net, [(x, y, y) for x, y in PAIRS], lambda o, t: CE(o, t[0]) + 0 * t[1].sum(), None),
    "a number as target": (Net, [(x, 0.0) for x, _ in PAIRS], lambda o, t: CE(o, Y[:6]) + t, None),
    "a text as target": (Net, [(x, "words") for x, _ in PAIRS], lambda o, t: CE(o, Y[:6]), None),
    "no targets": (Net, [(x, None) for x, _ in PAIRS], lambda o, t: CE(o, Y[:6]), None),
    "inputs alone in tuples": (Net, [(x,) for x, _ in PAIRS], lambda o, t: CE(o, Y[:6]), None),
    "inputs alone": (Net, DataLoader(X, 6), lambda o, t: CE(o, Y[:6]), None),  # type: ignore[arg-type]
    "two inputs": (Two, [(x, 0 * x, y) for x, y in PAIRS], CE, (X[:2], X[:2])),
    "two inputs in a tuple": (Two, [((x, 0 * x), y) for x, y in PAIRS], CE, (X[:2], X[:2])),
    "two inputs without targets": (Two, [(x, 0 * x) for x, _ in PAIRS], lambda o, t: CE(o, Y[:6]), (X[:2], X[:2])),
    "a second input that may be missing": (
        Net, [(x, torch.ones(6, 1), y) for x, y in PAIRS], CE, (X[:2], torch.ones(2, 1))
    ),
    "a dict that the model reads": (
        Reads, [{"image": x, "noise": 0 * x, "labels": y} for x, y in PAIRS], CE, {"image": X[:2], "noise": X[:2]}
    ),
    "the model's own loss": (Own, [{"input_ids": x, "labels": y} for x, y in PAIRS], None, None),
    "labels of a model with a loss": (
        Own, [{"input_ids": x, "labels": y} for x, y in PAIRS], lambda o, t: CE(o["logits"], t), None
    ),
    "a loss module": (Net, PAIRS, nn.CrossEntropyLoss(), None),
    "a loss module that sums": (Net, PAIRS, nn.CrossEntropyLoss(reduction="sum"), None),
    "a loss module per example": (Net, PAIRS, nn.CrossEntropyLoss(reduction="none"), None),
    "a loss without reduction": (Net, PAIRS, lambda o, t: CE(o, t), None),
    "a loss per example without reduction": (Net, PAIRS, lambda o, t: CE(o, t, reduction="none"), None),
}  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> list[dict[str, tuple[int, ...]]]:
    return [kept(Net(), PAIRS, CE, method) for method in METHODS]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_plan_of_pairs(form: str, reference: list[dict[str, tuple[int, ...]]]) -> None:
    make, data, loss_fn, inputs = FORMS[form]
    first = ("a number", "a text", "no targets", "inputs alone", "two inputs without")  # judged by the first labels
    for method, expected in zip(METHODS, reference, strict=True):
        found = kept(make(), data, loss_fn, method, inputs)
        assert sum(map(len, found.values())) == 4
        if not form.startswith(first) and (not isinstance(data, DataLoader) or method is METHODS[0]):
            assert found == expected  # a DataLoader draws from the state that posteriors draw from


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Examples without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


class Again:
    """Batches anew in every pass, and no length."""

    def __iter__(self) -> Iterator[Any]:
        yield from PAIRS


@pytest.mark.parametrize("data", [DataLoader(Stream(), 6), Again()], ids=["IterableDataset", "object"])
def test_loaders_without_a_length_are_counted(data: Any, reference: list[dict[str, tuple[int, ...]]]) -> None:
    assert len(as_batches(data)) == 2
    assert as_batches(data).num_labels() == 12
    found = [kept(Net(), data, CE, method) for method in METHODS]
    assert found[0] == reference[0]
    assert all(sum(map(len, f.values())) == 4 for f in found)


class Once(IterableDataset):  # type: ignore[type-arg]
    """A generator in disguise."""

    def __init__(self) -> None:
        self.examples = iter(list(zip(X, Y, strict=True)))

    def __iter__(self) -> Iterator[Any]:
        return self.examples


REFUSED: dict[str, Callable[[], Any]] = {
    "empty list": list,
    "empty loader": lambda: DataLoader(TensorDataset(X[:0], Y[:0]), 6),
    "nothing left by drop_last": lambda: DataLoader(TensorDataset(X, Y), 64, drop_last=True),
    "generator": lambda: (pair for pair in PAIRS),
    "iterator": lambda: iter(PAIRS),
    "zip": lambda: zip(X.chunk(2), Y.chunk(2), strict=True),
    "generator in a loader": lambda: DataLoader(Once(), 6),
    "data set": lambda: TensorDataset(X, Y),
    "tensor": lambda: X,
    "one batch": lambda: (X, Y),
    "words": lambda: "mnist",
    "number": lambda: 5,
    "batches of words": lambda: ["a", "b"],
    "batches of numbers": lambda: [(1, 2)],
    "empty batches": lambda: [()],
    "inputs as arrays": lambda: [(X.numpy(), Y)],
    "dict of unknown names": lambda: [{"x": X, "idx": Y, "labels": Y}],
    "nothing": lambda: [None],
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_what_can_not_be_read_is_refused(case: str, method: Method) -> None:
    model = Net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(DataError, match="fix:"):
        prune(model, X[:2], method=method, data=REFUSED[case](), loss_fn=CE, target=0.5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("case", ["generator", "empty list", "empty batches"])
def test_every_loop_refuses_alike(case: str) -> None:
    model, make = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), REFUSED[case]
    groups = prunus.trace(model, X[:2]).groups()
    with pytest.raises(DataError):
        fit(model, groups, Taylor(), make(), CE, num_data=12)
    with pytest.raises(DataError):
        prune(model, X[:2], method=DynamicProbabilisticPruning("weight 50%", epochs=1), data=make(), loss_fn=CE)
    with pytest.raises(DataError):
        reestimate_batch_norm(model, make())


def test_losses_that_teach_nothing_are_refused() -> None:
    for loss_fn, kind in (
        (lambda o, t: 0.5, DataError),
        (lambda o, t: {"loss": CE(o, t)}, DataError),
        (lambda o, t: CE(o.detach(), t), DataError),
        (lambda o, t: torch.tensor(1.0), DataError),
        ("cross_entropy", ConfigError),
    ):
        for method in METHODS:
            with pytest.raises(kind, match="loss"):
                prune(Net(), X[:2], method=method, data=PAIRS, loss_fn=loss_fn, target=0.5)  # type: ignore[arg-type]


def test_what_the_users_own_code_raises_passes_as_it_is() -> None:
    class MineError(Exception):
        """Raised by the user's code."""

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        raise MineError

    class Broken:
        def __iter__(self) -> Iterator[Any]:
            yield PAIRS[0]
            raise MineError

    for method in METHODS:
        for data, loss in ((PAIRS, loss_fn), (Broken(), CE)):
            with pytest.raises(MineError):
                prune(Net(), X[:2], method=method, data=data, loss_fn=loss, target=0.5)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_inputs_of_another_precision_are_refused_by_name(method: Method) -> None:
    with pytest.raises(DataError, match=r"torch\.float64, the model's weights torch\.float32"):
        prune(Net(), X[:2], method=method, data=halves(X.double(), Y), loss_fn=CE, target=0.5)


def test_numbers_of_a_loss_are_means_and_sums() -> None:
    outputs = torch.randn(6, 3)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]))
    for loss_fn in (
        CE,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum"),
        FORMS["a loss module per example"][2],
    ):
        torch.testing.assert_close(mean_of(loss_fn)(outputs, Y[:6]), CE(outputs, Y[:6]))
        torch.testing.assert_close(sum_of(loss_fn)(outputs, Y[:6], 6), CE(outputs, Y[:6], reduction="sum"))
    total = F.cross_entropy(outputs, Y[:6], weight=weighted.weight, reduction="sum")
    torch.testing.assert_close(sum_of(weighted)(outputs, Y[:6], 6), total)
    assert weighted.reduction == "mean"
    mean = lambda o, t: CE(o, t)  # noqa: E731
    torch.testing.assert_close(sum_of(mean)(outputs, Y[:6], 6), 6 * CE(outputs, Y[:6]))


def test_labels_are_counted_whatever_the_loader_is() -> None:
    tokens, labels = torch.randint(0, 9, (8, 16)), torch.randint(0, 9, (8, 16))
    labels[:, :3] = -100
    expected = 8 * 13
    pairs = [(tokens[:4], labels[:4]), (tokens[4:], labels[4:])]
    dicts = [{"input_ids": t, "labels": y} for t, y in pairs]
    loader: DataLoader[Any] = DataLoader(TensorDataset(tokens, labels), 4)
    for data in (pairs, dicts, loader, Batches(ArrayDataset(tokens, labels), 4)):
        assert as_batches(data).num_labels() == expected
    assert as_batches(PAIRS).num_labels() == 12
    assert as_batches(DataLoader(TensorDataset(X, Y), 6)).num_labels() == 12
    half = SubsetRandomSampler(range(6))
    assert as_batches(DataLoader(TensorDataset(X, Y), 3, sampler=half)).num_labels() == 6
    shard: Any = DistributedSampler(TensorDataset(X, Y), num_replicas=2, rank=0)
    assert as_batches(DataLoader(TensorDataset(X, Y), 3, sampler=shard)).num_labels() == 12


def test_labels_are_not_counted_where_nobody_asks() -> None:
    class Unread:
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("read")

    assert prune(Net(), X[:2], method="l1", target=0.5, data=Unread(), loss_fn=CE, repair=False).plan.kept

    class Counting(Dataset):  # type: ignore[type-arg]
        read = 0

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            self.read += 1
            return X[index], Y[index]

    data = Counting()
    assert as_batches(DataLoader(data, 3)).num_labels() == 12
    assert data.read <= 3


def test_samplers_learn_which_epoch_begins() -> None:
    class Sampler(DistributedSampler):  # type: ignore[type-arg]
        seen: list[int]

        def set_epoch(self, epoch: int) -> None:
            self.seen = [*getattr(self, "seen", []), epoch]
            super().set_epoch(epoch)

    data = TensorDataset(X, Y)
    sampler = Sampler(data, num_replicas=1, rank=0)
    batched = torch.utils.data.BatchSampler(sampler, 6, drop_last=False)
    for loader in (DataLoader(data, 6, sampler=sampler), DataLoader(data, batch_sampler=batched)):
        sampler.seen = []
        model = Net()
        fit(model, prunus.trace(model, X[:2]).groups(), DirichletPruning(min_steps=6), loader, CE, num_data=12)
        assert sampler.seen == [0, 1, 2]


def test_a_structure_is_told_in_the_refusal() -> None:
    with pytest.raises(DataError, match=r"a dict of 'x': float32 \[12, 6\], 'idx': int64 \[12\]"):
        unpack({"x": X, "idx": Y}, Form(names=frozenset({"x"})))
    with pytest.raises(DataError, match="the model takes 3 inputs"):
        unpack((X, Y), Form(arguments=3, required=3))
    with pytest.raises(ConfigError, match="num_data"):
        fit(Net(), prunus.trace(Net(), X[:2]).groups(), Taylor(), PAIRS, CE, num_data=0)


def test_processes_with_the_same_data_are_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.data.batches.distributed", lambda: True)
    monkeypatch.setattr("prunus.data.batches.gathered", lambda t: [t, t.clone()])
    with pytest.warns(RuntimeWarning, match="DistributedSampler"):
        as_batches(PAIRS).warn_of_shared_data()
    assert as_batches(PAIRS).num_labels() == 12  # not counted once per process
    monkeypatch.setattr("prunus.data.batches.gathered", lambda t: [t, t + 1])
    monkeypatch.setattr("prunus.data.batches.summed", lambda t: 2 * t)
    assert not as_batches(PAIRS).same_on_all_ranks()
    assert as_batches(PAIRS).num_labels() == 24


def test_broken_weights_are_named_and_half_precision_is_not_trained() -> None:
    for method in METHODS:
        model = Net()
        with torch.no_grad():
            model.b.weight[0, 0] = torch.nan
        with pytest.raises(DataError, match=r"as in the weights: b\.weight"):
            prune(model, X[:2], method=method, data=PAIRS, loss_fn=CE, target=0.5)
    half = halves(X.half(), Y)
    with pytest.raises(ConfigError, match="fp16"):
        prune(Net().half(), X[:2].half(), method=METHODS[2], data=half, loss_fn=CE, target={"a": 4})
    assert kept(Net().half(), half, CE, METHODS[1], X[:2].half())
    brain = halves(X.bfloat16(), Y)
    assert kept(Net().bfloat16(), brain, CE, METHODS[2], X[:2].bfloat16())
