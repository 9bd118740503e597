"""Being here puts this folder on the import path, so that every test can import the zoo."""

import dataclasses
import importlib
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from prunus.methods import METHODS
from torchvision_operators import declare_torchvision_operators

settings.register_profile("same every time", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("explore" if os.environ.get("PRUNUS_EXPLORE") else "same every time")

declare_torchvision_operators()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bf16-helps", action="store_true", help="as on a processor that trains faster in bf16")


@pytest.fixture(autouse=True)
def _processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` means doesn't depend on the processor that the tests run on."""
    helps = bool(request.config.getoption("--bf16-helps"))
    for module in ("prunus.runtime.precision", "prunus.recovery.placement"):
        monkeypatch.setattr(importlib.import_module(module), "bf16_helps", lambda _: helps)


@pytest.fixture
def names_of_methods_kept() -> Iterator[None]:
    """Names that a test gives away are free again afterwards."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget on latency counts bytes in the place of milliseconds: whether it is met doesn't hang on other work."""
    gauged = importlib.import_module("prunus.measure.gauged")
    bytes_alive = gauged._memory

    def counted(model: object, graph: object, *given: object) -> object:
        live = bytes_alive(model, graph, *given)
        gauge = gauged._started("latency", live.gauge.rough, graph, live.dense)
        return dataclasses.replace(live, resource="latency", gauge=gauge)

    monkeypatch.setattr(gauged, "_latency", counted)
