"""Methods that are wrong on purpose, and what the check says of each."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.groups import ChannelGroup
from prunus.methods import (
    L1,
    L2,
    METHODS,
    DynamicProbabilisticPruning,
    RecursiveBayesianPruning,
    StagedMethod,
    Taylor,
    WeightCriterion,
)
from prunus.methods.base import PosteriorMethod
from prunus.posteriors import DecidingPosterior, GaussianPosterior, Posterior
from prunus.testing import check_method

pytestmark = pytest.mark.usefixtures("names_of_methods_kept")


@dataclass(frozen=True)
class Own(WeightCriterion):
    """The norm of what a layer writes, as it should be."""

    name: ClassVar[str] = "own"
    power: float = 2.0

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        (slot,) = group.writers
        weight = model.get_parameter(slot.tensor).detach().movedim(slot.dim, 0).flatten(1)
        return weight.abs().pow(self.power).sum(1).pow(1 / self.power)


class Upside(Own):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return -super().score(model, group, seed)


class Tall(Own):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return super().score(model, group, seed)[:, None]


class Double(Own):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return super().score(model, group, seed).double()


class Infinite(Own):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return super().score(model, group, seed).log()


class Flat(Own):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return torch.ones(group.units)


class Attached(Own):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return model.get_parameter(group.writers[0].tensor).abs().sum(1)


class Unseeded(Own):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return super().score(model, group, seed) + 0.1 * torch.rand(group.units)


class Counting(Own):
    calls: ClassVar[Iterator[int]] = itertools.count()

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return super().score(model, group, seed) * (1 + next(self.calls))


class Meddling(Own):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        model.get_parameter(group.writers[0].tensor).data.mul_(0.5)
        return super().score(model, group, seed)


class Positional(Own):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return super().score(model, group, seed) * torch.linspace(1.5, 1.0, group.units)


class UpsideTaylor(Taylor):
    def finish(self, total: Tensor, num_examples: int) -> Tensor:
        return -super().finish(total, num_examples)


class DeafTaylor(Taylor):
    def contribution(self, gradient: Tensor) -> Tensor:
        return torch.arange(gradient.shape[1]) * 1.0


def staged(**answers: Any) -> type[RecursiveBayesianPruning]:
    """Recursive pruning with a posterior, some of whose answers are others."""
    wrong = type("Wrong", (GaussianPosterior,), answers)

    class Staged(RecursiveBayesianPruning):
        def posterior(self, units: int) -> GaussianPosterior:
            return wrong(units, noise=self.noise, threshold=self.threshold)

    METHODS["rbp"] = Staged
    return Staged


class Undecided(RecursiveBayesianPruning):
    def posterior(self, units: int) -> DecidingPosterior:
        return Plain(units)  # type: ignore[return-value]


class Plain(Posterior):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.inner, self.units = GaussianPosterior(units), units

    def rsample(self, n: int) -> Tensor:
        return self.inner.rsample(n)

    def mean(self) -> Tensor:
        return self.inner.mean()

    def complexity(self) -> Tensor:
        return self.inner.complexity()

    def score(self) -> Tensor:
        return self.inner.score()

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        return self.inner.interval(level)


class Warped(RecursiveBayesianPruning):
    def beta_at(self, progress: float, num_data: int) -> float:
        return -1.0


class Nameless(WeightCriterion):
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        return torch.ones(group.units)


class Squatter(Own):
    name: ClassVar[str] = "l1"


class Undressed(Own):
    depth: int = 3


@dataclass(frozen=True)
class Unwritable(Own):
    table: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Altered(Own):
    label: str = " padded "


@dataclass(frozen=True)
class Careless(Own):
    depth: int = 3

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class Needy(Own):
    depth: int = field(kw_only=True)


@dataclass(frozen=True)
class Half(WeightCriterion):
    name: ClassVar[str] = "half"


WRONG: dict[Any, str] = {
    Upside: "score up to -0, units that carry an input alone -1 and more; higher must mean keep",
    UpsideTaylor: "units that are dead or that nothing reads score up to -0.*higher must mean keep",
    DeafTaylor: "higher must mean keep: the score is upside down, or does not look",
    Tall: "the score of Tall is float32 [16, 1], it must be float32 [16], one number per unit",
    Double: "the score of Double is float64 [16], it must be float32 [16]",
    Infinite: "the score of Infinite holds NaN or infinity",
    Flat: "gives every unit the same score",
    Attached: "carry no gradient",
    Unseeded: "Unseeded: the same seed gave two results; nothing but the seed may decide",
    Counting: "the same seed gave two results; nothing but the seed may decide",
    Meddling: "Meddling changes the network that it scores: 0.weight",
    Positional: "a unit's score depends on where among the others it stands",
    Undecided: "posterior() has no kept(): a StagedMethod's is a DecidingPosterior",
    Warped: "beta_at(0.0, 1024) is -1.0: it must be a number, 0 or more",
    Nameless: 'Nameless has no name: class Nameless(..., name="...")',
    Squatter: "the name 'l1' belongs to prunus.methods.criteria.L1; give it another",
    Undressed: "depth can't be set: put @dataclass(frozen=True) above the class",
    Unwritable: "Unwritable.table can't be given as text: 'table={}' is refused",
    Altered: "Altered.label can't be given as text: 'label= padded ' is read as 'padded'",
    Careless: "is not checked: call super().__post_init__() first",
    Needy: "Needy: depth has no default: give it one, or a value to check with",
    Half: "Half does not define score",
    nn.Linear: "is no subclass of prunus.methods.Method",
    StagedMethod: "StagedMethod does not define posterior",
}


@pytest.mark.parametrize("kind", WRONG, ids=lambda k: k.__name__)
def test_what_is_wrong_is_said(kind: Any) -> None:
    if issubclass(kind, Taylor | RecursiveBayesianPruning):  # it stands in for the one whose name it has
        METHODS[kind.name] = kind
    told = said(kind)
    assert re.search(".*".join(map(re.escape, WRONG[kind].split(".*"))), told), told


def said(kind: Any, **settings: Any) -> str:
    with pytest.raises(AssertionError) as told:
        check_method(kind, **settings)
    return str(told.value)


def masks(**answers: Any) -> type[DynamicProbabilisticPruning]:
    """Dynamic probabilistic pruning, some of whose answers are others."""
    kind = type("Masks", (DynamicProbabilisticPruning,), answers)
    METHODS["dpp"] = kind
    return kind


def turned(method: DynamicProbabilisticPruning, model: nn.Module, names: Sequence[str], seed: int = 0) -> Any:
    found = DynamicProbabilisticPruning.masks(method, model, names, seed)
    for mask in found.values():
        mask.logits.data.neg_()
    return found


def unseeded(method: DynamicProbabilisticPruning, model: nn.Module, names: Sequence[str], seed: int = 0) -> Any:
    return DynamicProbabilisticPruning.masks(method, model, names, random.randrange(10**6))


def meddling(method: DynamicProbabilisticPruning, model: nn.Module, names: Sequence[str], seed: int = 0) -> Any:
    with torch.no_grad():
        model.get_parameter(f"{names[0]}.weight").mul_(2)
    return DynamicProbabilisticPruning.masks(method, model, names, seed)


@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        (turned, "lets go of the only weight that carries anything, in 12 of 16 rows: a larger logit must mean keep"),
        (unseeded, "Masks: the same seed gave two results; nothing but the seed may decide"),
        (meddling, "its plan, applied to the dense network, makes another: 0.weight"),
    ],
)
def test_methods_of_masks_are_checked(lie: Any, sentence: str) -> None:
    assert sentence in said(masks(masks=lie))


def test_a_method_of_masks_that_is_right_passes() -> None:
    check_method(masks(), prior=0.5)


SCORE, KEPT, COMPLEXITY = GaussianPosterior.score, GaussianPosterior.kept, GaussianPosterior.complexity
ANSWERS: dict[str, tuple[Any, str]] = {
    "score": (lambda q: -SCORE(q), "the score is upside down"),
    "complexity": (lambda q: -COMPLEXITY(q), "its sign is turned"),
    "kept": (lambda q: torch.zeros(q.units, dtype=torch.bool), "kept() keeps nothing"),
    "rsample": (lambda q, n: q.mu.detach() + 0.05 * torch.randn(n, q.units) + 0 * q.mu, "does not reach mu"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_posteriors_of_methods_are_checked(answer: str) -> None:
    lie, sentence = ANSWERS[answer]
    assert sentence in said(staged(**{answer: lie}))


def test_all_three_lies_of_one_method_are_found_one_after_the_other() -> None:
    lies = {name: lie for name, (lie, _) in ANSWERS.items() if name != "rsample"}
    while lies:
        told = said(staged(**lies))
        caught = [name for name in lies if ANSWERS[name][1] in told]
        assert caught, told
        del lies[caught[0]]
    check_method(staged())


def test_a_right_method_passes_with_and_without_a_name() -> None:
    check_method(Own)
    check_method(Own, power=1.0)

    class Named(Own, name="named"):
        pass

    check_method(Named)
    assert "own" not in METHODS


def test_settings_out_of_range_are_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="normalize"):
        check_method(L2, normalize="median")
    with pytest.raises(AssertionError, match="does not define"):
        check_method(PosteriorMethod)
    check_method(L1, normalize="max")
