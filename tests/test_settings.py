"""Settings of a method as text: every field can be set, and what is wrong is refused with what would be right."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from prunus.errors import ConfigError
from prunus.methods.criteria import L1
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.methods.registry import METHODS, resolve
from prunus.methods.relatives import VariationalInformationBottleneck
from prunus.methods.settings import configure
from prunus.plan.allocation import Allocation
from prunus.posteriors.gaussian import GaussianPosterior
from prunus.recovery.config import FinetuneConfig
from prunus.runtime.fields import allows, hints_of
from prunus.runtime.ranges import Count, Fraction, Positive, Range

KINDS = list(METHODS.values())


def written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_default_can_be_written_as_text(kind: Any) -> None:
    default = kind()
    settings = [f"{f.name}={written(getattr(default, f.name))}" for f in fields(kind)]
    assert configure(kind, settings) == default


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("beta=10", 10.0),
        ("beta = 1e-3", 1e-3),
        ("epochs=3", 3),
        ("train_weights=none", "none"),
        ("simultaneous=true", True),
        ("complexity_per=position", "position"),
    ],
)
def test_a_value_has_its_fields_type(text: str, value: Any) -> None:
    found = getattr(configure(RecursiveBayesianPruning, [text]), text.split("=")[0].strip())
    assert found == value
    assert type(found) is type(value)


def test_tuples_and_unions() -> None:
    settings = ["temperature=4,1", "bits=none", "pattern=2:4", "activation_bits=8"]
    found = configure(DynamicProbabilisticPruning, settings)
    assert (found.temperature, found.bits, found.pattern, found.activation_bits) == ((4.0, 1.0), None, "2:4", 8)
    assert configure(DirichletPruning, ["beta=7.5"]).beta == 7.5
    assert configure(DirichletPruning, ["beta=auto"]).beta == "auto"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["bta=3"], "use beta"),
        (["zzz=3"], "there are .*beta=1.0"),
        (["beta"], "NAME=VALUE"),
        (["beta="], "NAME=VALUE"),
        (["beta=many"], "give a number"),
        (["beta=nan"], "give a number"),
        (["beta=-1"], "beta.*\n.*-1.0 is not allowed\n.*give a number of at least 0"),
        (["epochs=1.5"], "give a whole number"),
        (["train_weights=some"], "give one of later, all, none"),
        (["simultaneous=2"], "give true or false"),
        (["complexity_per=pixel"], "give one of information, unit, position, root"),
        (["beta=1", "beta=2"], "set twice"),
    ],
)
def test_wrong_settings_are_refused(settings: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        resolve("rbp", settings)


def test_too_few_values_and_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 values"):
        configure(DynamicProbabilisticPruning, ["temperature=4"])
    with pytest.raises(ConfigError, match="complexity_per"):
        RecursiveBayesianPruning(complexity_per="pixel")  # type: ignore[arg-type]


def choices(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) is Literal else []


@pytest.mark.parametrize("kind", [*KINDS, FinetuneConfig, Allocation], ids=lambda k: k.__name__)
def test_every_field_is_held_against_its_type_on_construction(kind: Any) -> None:
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        wrong: list[Any] = [object(), [1], b"x"]
        if str not in parts and not any(choices(p) for p in parts):
            wrong += ["nonsense", ""]
        elif str not in parts:
            wrong += ["nonsense"]
        if bool not in parts:
            wrong += [True, False]
        if float in parts or int in parts:
            wrong += [math.nan, math.inf, -math.inf]
        if int in parts and float not in parts:
            wrong += [2.5]
        if type(None) not in parts:
            wrong += [None]
        for value in wrong:
            with pytest.raises(ConfigError, match="fix:"):
                kind(**{field.name: value})
        for part in parts:
            for choice in choices(part):
                assert allows(hint, choice)
    assert kind() == replace(kind())


@pytest.mark.parametrize("kind", [*KINDS, FinetuneConfig], ids=lambda k: k.__name__)
@pytest.mark.parametrize("name", ["samples", "min_steps", "epochs", "tune_epochs", "lr", "batch_size"])
def test_counts_and_rates_below_nothing_are_refused(kind: Any, name: str) -> None:
    if name in {f.name for f in fields(kind)}:
        for value in (-1, -(10**9)):
            with pytest.raises(ConfigError):
                kind(**{name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    method = RecursiveBayesianPruning(epochs=np.int64(3), lr=np.float32(0.5))  # type: ignore[arg-type]
    assert (method.epochs, method.lr) == (3, 0.5)


def ranges(hint: Any) -> list[Range]:
    """The ranges in an annotation, of whatever part of it."""
    own = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Range)]
    return own + [r for part in get_args(hint) for r in ranges(part)]


@pytest.mark.parametrize("kind", [*KINDS, FinetuneConfig, Allocation], ids=lambda k: k.__name__)
def test_what_is_out_of_range_is_refused_with_field_and_range(kind: Any) -> None:
    hints = hints_of(kind)
    numbers = [f.name for f in fields(kind) if type(getattr(kind(), f.name)) in (int, float)]
    assert not numbers or any(ranges(hint) for hint in hints.values())
    for field in fields(kind):
        default = getattr(kind(), field.name)
        for interval in ranges(hints[field.name])[:1]:
            ends = [interval.least - 1, interval.above, interval.most + 1, interval.below]
            for end in (e for e in ends if math.isfinite(e)):
                value: Any = int(end) if isinstance(default, int) or default is None else float(end)
                wrong = (value, *default[1:]) if isinstance(default, tuple) else value
                with pytest.raises(ConfigError) as told:
                    kind(**{field.name: wrong})
                assert f"{kind.__name__}.{field.name}" in str(told.value)
                assert str(interval) in told.value.fix


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "text"),
    [
        (Range(above=0), [1e-9, 5], [0, -1], "above 0"),
        (Range(least=0), [0, 2.5], [-1e-9], "of at least 0"),
        (Range(least=0, most=1), [0, 0.5, 1], [-0.1, 1.1], "between 0 and 1"),
        (Range(above=0, most=0.3), [0.3], [0, 0.31], "above 0, at most 0.3"),
        (Range(least=0, below=1), [0, 0.99], [1, -1], "of at least 0, below 1"),
        (Range(), [-(10**9), 0.0], [], ""),
    ],
)
def test_a_range_holds_what_it_says(interval: Range, inside: list[float], outside: list[float], text: str) -> None:
    assert all(v in interval for v in inside)
    assert not any(v in interval for v in outside)
    assert str(interval) == text


def test_ranges_hold_for_classes_of_a_function_and_inside_unions_and_tuples() -> None:
    Hidden = int

    @dataclass(frozen=True)
    class Local(L1):
        share: Fraction = 0.5
        pair: tuple[Positive, Positive] = (1.0, 2.0)
        maybe: Count | None = None
        hidden: Hidden = 3

    assert Local(maybe=4, hidden="anything").share == 0.5  # type: ignore[arg-type]
    for wrong in ({"share": 1.5}, {"pair": (1.0, 0.0)}, {"maybe": 0}, {"normalize": "median"}):
        with pytest.raises(ConfigError, match=f"Local.{next(iter(wrong))}"):
            Local(**wrong)  # type: ignore[arg-type]
    assert configure(Local, ["pair=3,4", "maybe=none", "share=1"]) == Local(share=1.0, pair=(3.0, 4.0))


def test_settings_of_posteriors_are_held_against_the_same_annotations() -> None:
    for make, match in (
        (
            lambda: GaussianPosterior(0),
            r"GaussianPosterior\.units.*\n.*0 is not allowed\n.*a whole number of at least 1",
        ),
        (lambda: GaussianPosterior(2, noise=0.5), r"noise.*\n.*0\.5 is not allowed\n.*a number above 0, at most 0\.3"),
        (lambda: VariationalInformationBottleneck(noise=0.5), r"VariationalInformationBottleneck\.noise"),
    ):
        with pytest.raises(ConfigError, match=match):
            make()


def test_a_mode_without_an_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match="bn_mode"):
        RecursiveBayesianPruning(bn_mode="train")
    assert RecursiveBayesianPruning(bn_mode="train", train_weights="none").bn_mode == "train"
