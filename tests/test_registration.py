"""A method makes itself known: names, clashes, classes in files and modules, methods of installed packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.groups import ChannelGroup
from prunus.methods import L1, METHODS, DirichletPruning, StagedMethod, Taylor, WeightCriterion, method_names, resolve

EXAMPLE = Path(__file__).parents[1] / "examples" / "variational_dropout.py"
METHOD = """
from dataclasses import dataclass
import torch
from prunus.methods import WeightCriterion

@dataclass(frozen=True)
class Flat(WeightCriterion, name="{name}"):
    height: float = 1.0

    def score(self, model, group, seed):
        return torch.full((group.units,), self.height)

tall = Flat(height=9.0)

def made():
    return Flat(height=4.0)

def broken():
    raise OSError("no such table")
"""


pytestmark = pytest.mark.usefixtures("names_of_methods_kept")


def flat(name: str | None, **words: Any) -> type[WeightCriterion]:
    class Flat(WeightCriterion, name=name, **words):
        def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
            return torch.ones(group.units)

    return Flat


def test_what_has_a_name_is_known() -> None:
    assert sorted(METHODS) == [
        "bmrs", "bn_scale", "dirichlet", "dpp", "fisher", "fpgm", "frequency", "l0", "l1", "l2", "random", "rbp",
        "reap", "sbp", "taylor", "vib",
    ]  # fmt: skip
    assert all(kind.name == name for name, kind in METHODS.items())
    found = flat("flat")
    assert METHODS["flat"] is found
    assert resolve("flat") == found()
    assert "flat" in method_names()


def test_what_has_no_name_is_not() -> None:
    before = dict(METHODS)
    nameless = flat(None)
    assert before == METHODS
    assert resolve(nameless()) == nameless()
    assert not hasattr(WeightCriterion, "name")


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError) as told:
        flat("l1")
    assert "test_registration.flat.<locals>.Flat" in str(told.value)
    assert "prunus.methods.criteria.L1" in str(told.value)
    assert METHODS["l1"] is L1


@pytest.mark.parametrize("name", ["", "two words", "FILE.py:Class", "1st", "-x"])
def test_names_that_cannot_be_typed_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a method"):
        flat(name)


def test_an_abstract_class_cannot_have_a_name() -> None:
    with pytest.raises(ConfigError, match="does not define posterior"):

        class Half(StagedMethod, name="half"):
            pass

    assert "half" not in METHODS


def test_a_class_with_slots_is_known_as_it_ends() -> None:
    @dataclass(frozen=True, slots=True)
    class Slotted(WeightCriterion, name="slotted"):
        height: float = 2.0

        def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
            return torch.full((group.units,), self.height)

    assert METHODS["slotted"] is Slotted
    assert resolve("slotted", ["height=3"]) == Slotted(3.0)


@pytest.mark.parametrize("name", ["Flat", "tall", "made"])
def test_a_file_names_a_class_an_object_or_what_makes_one(name: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(METHOD.format(name="own"))
    found: Any = resolve(f"{file}:{name}")
    assert type(found).__name__ == "Flat"
    assert found.height == {"Flat": 1.0, "tall": 9.0, "made": 4.0}[name]
    assert resolve(f"{file}:{name}", ["height=5"]).height == 5.0  # type: ignore[attr-defined]
    assert type(resolve("own")) is METHODS["own"]
    assert METHODS["own"].__module__ == found.__module__
    with pytest.raises(ConfigError, match="use height"):
        resolve(f"{file}:{name}", ["heigth=5"])


def test_a_file_that_is_read_again_replaces_itself_and_another_does_not(tmp_path: Path) -> None:
    file, copy = tmp_path / "own.py", tmp_path / "copy.py"
    file.write_text(METHOD.format(name="own"))
    copy.write_text(METHOD.format(name="own"))
    first = type(resolve(f"{file}:Flat"))
    second = type(resolve(f"{file}:Flat"))
    assert METHODS["own"] is second is not first
    with pytest.raises(ConfigError, match="belongs to prunus_spec_own"):
        resolve(f"{copy}:Flat")


def test_a_module_names_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sparselab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "flat.py").write_text(METHOD.format(name="labflat"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("sparselab.flat:Flat", ["height=2"]) == METHODS["labflat"](height=2.0)
    assert resolve("prunus.methods:DirichletPruning.as_released") == DirichletPruning.as_released()
    assert resolve(DirichletPruning, ["epochs=2"]) == DirichletPruning(epochs=2)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("{}:METHODS", "has no 'METHODS'"),
        ("{}:torch", "a module is no method"),
        ("{}:WeightCriterion", "does not define score"),
        ("{}:dataclass", "calling it failed|is no method"),
        ("{}:broken", "no such table"),
        ("nowhere.py:Flat", "there is no file"),
        ("torch.nn:Linear", "Linear is no method"),
        ("no_such_package:Flat", "importing no_such_package failed"),
        ("flt", "there is none of that name"),
    ],
)
def test_what_names_no_method_is_refused(spec: str, match: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(METHOD.format(name="own"))
    with pytest.raises(ConfigError, match=match):
        resolve(spec.format(file))
    with pytest.raises(ConfigError, match="no method"):
        resolve(3)  # type: ignore[arg-type]


def test_a_setting_without_a_default_is_asked_for() -> None:
    @dataclass(frozen=True)
    class Needy(WeightCriterion, name="needy"):
        height: int

        def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
            return torch.full((group.units,), self.height)

    with pytest.raises(ConfigError, match=r"Needy\.height.*\n.*no default.*\n.*a whole number"):
        resolve("needy")
    assert resolve("needy", ["height=3"]) == Needy(3)


def installed(folder: Path, name: str, target: str) -> None:
    """What an installer leaves of a package `sparselab` that names one method."""
    notes = folder / "sparselab-1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: sparselab\nVersion: 1.0\n")
    (notes / "entry_points.txt").write_text(f"[prunus.methods]\n{name} = {target}\n")


def test_installed_packages_add_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sparselab_installed.py").write_text(METHOD.format(name="installed"))
    installed(tmp_path, "installed", "sparselab_installed:Flat")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "installed" in method_names()
    assert "installed" not in METHODS
    assert resolve("installed", ["height=3"]).height == 3.0  # type: ignore[attr-defined]
    assert "installed" in METHODS
    with pytest.raises(ConfigError, match="installed"):
        resolve("no_such")


def test_an_installed_package_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "gone", "sparselab_gone:Flat")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="installed package sparselab failed"):
        resolve("gone")


def test_the_example_is_a_method() -> None:
    found = resolve(f"{EXAMPLE}:VariationalDropout", ["beta=3"])
    assert (found.name, found.beta, found.simultaneous) == ("vdrop", 3.0, True)  # type: ignore[attr-defined]


def test_settings_of_an_object_are_set() -> None:
    assert resolve(Taylor(), ["per_example=false"]) == Taylor(per_example=False)
    assert resolve(method := Taylor()) is method
