"""A plan from a file is what its writer meant, or a typed refusal before anything is touched."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from prunus.errors import PlanError, PruneError
from prunus.plan.plan import Plan


class Net(nn.Module):
    """A plain and a grouped convolution, so that a plan has columns too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, groups=2)
        self.third = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)).relu()).mean((2, 3))


MODEL, X = Net(), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
PLAN = prunus.prune(MODEL, X, method="l1", target=0.5).plan
DATA: dict[str, Any] = json.loads(PLAN.to_json())
HUGE = 2**70
VALUES = (None, -1, 3.5, True, "7", [], {}, [[0]], HUGE, 10**9, "../../etc/passwd")


def paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        found += paths(value, (*path, key))
    return found


def changed(path: tuple[Any, ...], value: Any) -> Any:
    data = copy.deepcopy(DATA)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


PATHS = paths(DATA)


def test_a_plan_comes_back_as_it_was() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


@given(st.sampled_from(PATHS), st.sampled_from(VALUES))
@settings(max_examples=150)
def test_a_changed_plan_is_refused_or_applied_or_found_out(path: tuple[Any, ...], value: Any) -> None:
    model = copy.deepcopy(MODEL)
    try:
        prunus.apply_(model, Plan.from_json(json.dumps(changed(path, value))), X)
    except PruneError:
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), MODEL.parameters(), strict=True))


def edit(**values: Any) -> Callable[[], str]:
    def text() -> str:
        data = copy.deepcopy(DATA)
        name = next(n for n, e in data["tensors"].items() if "0" in e["keep"])
        data["tensors"][name] |= values
        return json.dumps(data)

    return text


@pytest.mark.parametrize(
    "text",
    [
        lambda: "",
        lambda: "[]",
        lambda: "null",
        lambda: "[" * 200_000,
        lambda: '{"a":' * 200_000,
        lambda: json.dumps({**DATA, "format": 99}),
        lambda: json.dumps({**DATA, "surprise": 1}),
        lambda: json.dumps(changed(("before", "macs"), float("nan"))),
        lambda: json.dumps(changed(("before", "macs"), -5)),
        lambda: json.dumps({k: v for k, v in DATA.items() if k != "masked"}),
        edit(keep={"0": [0, 1, 10**9]}),
        edit(keep={"0": [-1, 0]}),
        edit(keep={"0": [1, 1]}),
        edit(keep={"0": []}),
        edit(keep={"7": [0]}),
        edit(keep={"-1": [0]}),
        edit(keep={"0": [True, False]}),
        edit(keep={"0": ["0"]}),
        edit(shape=[HUGE, 3, 3, 3]),
        edit(shape=[10**9, 10**9, 3, 3]),
        edit(columns=[[0], [0, 1]]),
        edit(columns=[[99]] * 8),
        lambda: json.dumps({**DATA, "inputs": [[[2, 3, 6, 6], "nn"]]}),
        lambda: json.dumps({**DATA, "inputs": [[[10**6, 10**6], "float32"]]}),
        lambda: json.dumps(changed(("masked", 0, "removed"), [HUGE])),
        lambda: json.dumps(changed(("groups", 0, "keep_probability"), [2.0] * DATA["groups"][0]["units"])),
    ],
)
def test_what_cannot_be_true_is_refused(text: Callable[[], str]) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text())


def test_a_mask_larger_than_the_model_is_never_made() -> None:
    data = changed(("masked", 0, "size"), 10**12)
    with pytest.raises(PlanError, match="1,000,000,000,000"):
        prunus.apply_(copy.deepcopy(MODEL), Plan.from_json(json.dumps(data)), X)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00plan")
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path / "plan.json")
