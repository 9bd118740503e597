"""Settings of a method as text: every field can be set, and what is wrong is refused with what would be right."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from prunus.errors import ConfigError
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.methods.registry import METHODS, resolve
from prunus.methods.settings import configure

KINDS = [*METHODS.values(), DynamicProbabilisticPruning]


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
        ("kappa=10", 10.0),
        ("kappa = 1e-3", 1e-3),
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
    settings = ["temperature=4,1", "bits=none", "pattern=2:4"]
    found = configure(DynamicProbabilisticPruning, settings, activation_bits=8)
    assert (found.temperature, found.bits, found.pattern, found.activation_bits) == ((4.0, 1.0), None, "2:4", 8)
    assert configure(DirichletPruning, ["kl_weight=7.5"]).kl_weight == 7.5
    assert configure(DirichletPruning, ["kl_weight=auto"]).kl_weight == "auto"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["kapa=3"], "use kappa"),
        (["zzz=3"], "there are .*kappa=1.0"),
        (["kappa"], "NAME=VALUE"),
        (["kappa="], "NAME=VALUE"),
        (["kappa=many"], "give a number"),
        (["kappa=nan"], "give a number"),
        (["kappa=-1"], "must not be negative"),
        (["epochs=1.5"], "give a whole number"),
        (["train_weights=some"], "give one of later, all, none"),
        (["simultaneous=2"], "give true or false"),
        (["complexity_per=pixel"], "give one of unit, position, root"),
        (["kappa=1", "kappa=2"], "set twice"),
    ],
)
def test_wrong_settings_are_refused(settings: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        resolve("rbp", settings)


def test_what_has_an_option_of_its_own_is_not_set_twice() -> None:
    with pytest.raises(ConfigError, match="option of its own"):
        configure(DynamicProbabilisticPruning, ["bits=4"], bits=8)
    with pytest.raises(ConfigError, match="2 values"):
        configure(DynamicProbabilisticPruning, ["temperature=4"])
    with pytest.raises(ConfigError, match="complexity_per"):
        RecursiveBayesianPruning(complexity_per="pixel")  # type: ignore[arg-type]
