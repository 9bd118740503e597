"""Settings and attributes of the release before: they do what they did, and say their new names."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from prunus.errors import ConfigError
from prunus.files.stagefile import Stage
from prunus.learning.findings import MaskEpoch
from prunus.masks import layers
from prunus.masks.patterns import Pattern
from prunus.methods.base import StagedMethod
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.methods.registry import resolve
from prunus.posteriors.base import DecidingPosterior

OLD: list[tuple[Any, str]] = [(DirichletPruning, "kl_weight"), (RecursiveBayesianPruning, "kappa")]


@pytest.mark.parametrize(("kind", "old"), OLD)
def test_the_old_names_of_beta_are_taken_everywhere(kind: Any, old: str) -> None:
    new = kind(beta=3.0)
    with pytest.warns(DeprecationWarning, match=r"next release: write beta=3\.0") as told:
        assert kind(**{old: 3.0}) == new
    assert told[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="write beta"):
        assert replace(kind(beta=9.0), **{old: 3.0}) == new
    with pytest.warns(DeprecationWarning, match="write beta"):
        assert resolve(kind.name, [f"{old}=3"]) == new
    with pytest.warns(DeprecationWarning, match="write beta") as told:
        assert getattr(new, old) == 3.0
    assert told[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="write beta_at"):
        assert new.complexity_weight(1.0, 1000) == new.beta_at(1.0, 1000) == 3.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("kind", "old"), OLD)
def test_both_spellings_together_are_refused(kind: Any, old: str) -> None:
    with pytest.raises(ConfigError, match="give beta alone"):
        kind(beta=1.0, **{old: 1.0})
    with pytest.raises(ConfigError, match="set twice"):
        resolve(kind.name, ["beta=1", f"{old}=1"])
    with pytest.raises(ConfigError, match=r"not allowed|not be negative|not negative"):
        kind(**{old: -1.0})


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_other_names_are_unknown_as_ever_and_copies_say_nothing() -> None:
    method = RecursiveBayesianPruning(beta=2.0)
    with pytest.raises(AttributeError, match="'kapa'"):
        method.kapa  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(TypeError, match="kl_weight"):
        RecursiveBayesianPruning(kl_weight=1.0)  # type: ignore[call-arg]
    assert method == copy.deepcopy(method) == pickle.loads(pickle.dumps(method))
    assert "beta" in inspect.signature(RecursiveBayesianPruning).parameters


def test_a_class_that_defines_the_old_names_has_the_new_ones() -> None:
    with pytest.warns(DeprecationWarning, match=r"Own\.(complexity_weight|kappa).*write beta") as told:

        @dataclass(frozen=True)
        class Own(StagedMethod):
            kappa: float = 7.0

            def posterior(self, units: int) -> DecidingPosterior:
                raise NotImplementedError

            def complexity_weight(self, progress: float, num_data: int) -> float:
                return 2 * self.beta

    assert {w.filename for w in told} == {__file__}
    assert (Own().beta, Own(beta=3.0).beta_at(0.0, 10)) == (7.0, 6.0)


def test_results_answer_to_their_old_names() -> None:
    stage = Stage(("0",), (2,), (1,), (1,), {"0": (0.5, 2.0)}, {"0": (0.1, 0.9)}, 0.3, 0.0)
    epoch = MaskEpoch(0.3, {}, {}, {}, {}, {"0": 0.7})
    for found, old, now in (
        (stage, "importance", "score"),
        (stage, "probability", "keep_probability"),
        (epoch, "inclusion", "keep_probability"),
    ):
        with pytest.warns(DeprecationWarning, match=f"{old} goes with the next release: write {now}"):
            assert getattr(found, old) is getattr(found, now)


def test_functions_and_modules_answer_to_their_old_names() -> None:
    for old, now in (("attach", "masked_weights"), ("bake_", "make_permanent_")):
        with pytest.warns(DeprecationWarning, match=f"write {now}") as told:
            assert getattr(layers, old) is getattr(layers, now)
        assert told[0].filename == __file__
    with pytest.raises(AttributeError, match="'bake'"):
        layers.bake  # type: ignore[attr-defined]  # noqa: B018
    masks = layers.MaskSet(
        {"a": layers.MaskedWeight(Pattern.parse("2:4").layout(nn.Linear(8, 2), "a"), torch.randn(4, 4))}
    )
    for settle in (lambda: masks.settle_(), lambda: masks.masks["a"].settle_()):  # type: ignore[attr-defined]
        masks.mode_("likeliest")
        with pytest.warns(DeprecationWarning, match="write freeze_"):
            settle()
        assert masks.masks["a"].mode == "fixed"
