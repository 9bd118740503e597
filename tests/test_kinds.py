"""Arguments of another class than the function takes are refused by name, before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import ConfigError, PlanError, SurgeryError
from prunus.proof.apply import apply_and_verify_

MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "count_cost": (lambda: prunus.count_cost(3), "a int is no Graph"),  # type: ignore[arg-type]
    "optimizer": (lambda: prunus.carry_optimizer(3, MODEL, MODEL, None), "a int is no Optimizer"),  # type: ignore[arg-type]
    "plan": (lambda: prunus.apply_(MODEL, 3), "a int is no Plan"),  # type: ignore[arg-type]
    "masks": (lambda: prunus.condense_(MODEL, None, None), "a NoneType is no Mapping"),  # type: ignore[arg-type]
    "features": (lambda: prunus.SelectInputs("a"), "features='a'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CASES)
def test_another_class_is_refused(name: str) -> None:
    call, said = CASES[name]
    with pytest.raises(ConfigError, match=said):
        call()


def test_gates_want_groups() -> None:
    with pytest.raises(ConfigError, match="a int is no ChannelGroup"), prunus.attach(MODEL, [3]):  # type: ignore[list-item]
        pass


@pytest.mark.parametrize("read", [prunus.Plan.load, prunus.Plan.from_json])
def test_a_plan_is_read_from_text(read: Callable[[Any], Any]) -> None:
    with pytest.raises(PlanError):
        read(3)


class Careful(nn.Linear):
    """Refuses what masking makes: an input that is zero in every example."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, after a check that only the dense network passes."""
        if not torch.compiler.is_exporting() and bool((x.abs().sum(0) == 0).any()):
            raise ValueError("a dead unit")
        return super().forward(x)


def test_what_fails_only_when_masked_does_not_blame_the_dense_model() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), Careful(4, 2)).eval(), torch.randn(2, 3)
    graph = prunus.trace(model, x)
    plan = prunus.Plan.from_kept(graph, {graph.groups()[0].name: [0, 1]})
    with pytest.raises(SurgeryError, match="with zeros in the place of what goes the model does not run"):
        apply_and_verify_(model, plan, x)
