"""Models and layers called in every way that Python has: the right input is gated, masked, cut and proven."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError, PruneError
from prunus.runtime.arguments import as_arguments, change_input, plain
from prunus.runtime.calling import flat_outputs, outputs


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)


class ByKeyword(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(input=self.b(input=self.a(input=x).relu()).relu())  # type: ignore[no-any-return]


class Positional(Body):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.c(self.b(self.a(xs[0] + xs[-1]).relu()).relu())  # type: ignore[no-any-return]


class Keywords(Body):
    def forward(self, **given: Tensor) -> Tensor:
        return self.c(self.b(self.a(given["x"] * given["scale"]).relu()).relu())  # type: ignore[no-any-return]


class Both(Body):
    def forward(self, *xs: Tensor, **given: Tensor) -> Tensor:
        return self.c(self.b(self.a(xs[0] * given["scale"]).relu()).relu())  # type: ignore[no-any-return]


class KeywordOnly(Body):
    def forward(self, *, scale: Tensor, x: Tensor, mask: Tensor | None = None, times: int = 1) -> Tensor:
        y = self.a(x * scale) * times
        return self.c(self.b((y if mask is None else y * mask).relu()).relu())  # type: ignore[no-any-return]


class OneDict(Body):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.c(self.b(self.a(batch["x"] * batch["more"]["scale"]).relu()).relu())  # type: ignore[no-any-return]


class OneList(Body):
    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [self.c(self.b(self.a(x).relu()).relu()) for x in levels]


class Options(Body):
    def forward(self, x: Tensor, kind: str = "relu", flag: bool = True, mask: Tensor | None = None) -> Tensor:
        y = self.a(x)
        return self.c(self.b(getattr(y, kind)() if flag else y).relu())  # type: ignore[no-any-return]


class Pair(NamedTuple):
    x: Tensor
    scale: Tensor


class OneRecord(Body):
    def forward(self, batch: Pair) -> Tensor:
        return self.c(self.b(self.a(batch.x * batch.scale).relu()).relu())  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """A layer of its own whose input is its second argument."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))

    def forward(self, mode: str, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


class Second(Body):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mixer(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.mixer("plain", x=self.a(x).relu()).relu()).relu())  # type: ignore[no-any-return]


@dataclass
class Found:
    logits: Tensor
    extra: dict[str, Tensor]
    name: str = "found"


class Answers(Body):
    def forward(self, x: Tensor) -> Found:
        h = self.b(self.a(x).relu()).relu()
        return Found(self.c(h), {"h": h.sum(-1)})


X, SCALE = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.full((2, 4), 0.5)
WAYS: dict[str, tuple[type[Body], Any]] = {
    "layer by keyword": (ByKeyword, X),
    "*args": (Positional, (X, SCALE)),
    "**kwargs": (Keywords, {"x": X, "scale": SCALE}),
    "*args by one": (Positional, X),
    "keyword only, another order": (KeywordOnly, {"x": X, "scale": SCALE}),
    "optional arguments": (KeywordOnly, {"x": X, "mask": None, "scale": SCALE, "times": 2}),
    "one dict": (OneDict, {"x": X, "more": {"scale": SCALE}}),
    "one list": (OneList, ([X, X + 1, X + 2],)),
    "one list, not wrapped": (OneList, [X, X + 1, X + 2]),
    "words and flags": (Options, (X, "tanh", True, None)),
    "named tuple": (OneRecord, Pair(X, SCALE)),
    "second argument of a layer": (Second, X),
    "dataclass out": (Answers, X),
}


def given(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = as_arguments(inputs, model)
    return model(*args, **kwargs)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_pruned_proven_and_saved(way: str, tmp_path: Path) -> None:
    kind, inputs = WAYS[way]
    torch.manual_seed(0)
    model = kind().eval()
    result = prunus.prune(model, inputs, method="l1", target=0.5, progress=False)
    kept = {n: len(k) for n, k in result.plan.kept.items()}
    assert result.verification.passed
    assert not result.verification.rewritten
    assert kept["a"] < 8
    assert result.model.a.out_features == kept["a"]  # type: ignore[union-attr]
    prunus.save(tmp_path / "artifact", result.model, result.plan, example_inputs=inputs)
    loaded = [prunus.load(tmp_path / "artifact", kind)]
    if not isinstance(inputs, Pair):  # whose class no file can name
        loaded.append(prunus.load(tmp_path / "artifact"))
    expected = outputs(result.model, inputs)
    assert expected
    for again in loaded:
        for a, b in zip(expected, outputs(again, inputs), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("way", ["one dict", "**kwargs", "*args", "one list"])
def test_a_plan_knows_how_the_model_is_called(way: str, tmp_path: Path) -> None:
    kind, inputs = WAYS[way]
    torch.manual_seed(0)
    model = kind().eval()
    result = prunus.prune(model, inputs, method="l1", target=0.5, progress=False)
    prunus.save(tmp_path / "artifact", result.model, result.plan)
    again = prunus.load(tmp_path / "artifact")
    for a, b in zip(outputs(result.model, inputs), outputs(again, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("way", ["layer by keyword", "keyword only, another order", "second argument of a layer"])
@pytest.mark.parametrize("method", ["taylor", "dirichlet"])
def test_gates_find_the_input(way: str, method: str) -> None:
    kind, inputs = WAYS[way]
    torch.manual_seed(0)
    model = kind().eval()
    data = [(inputs, torch.randn(2, 3))]

    def loss_fn(out: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return nn.functional.mse_loss(out, target, reduction=reduction)

    result = prunus.prune(model, inputs, method=method, target=0.5, data=data, loss_fn=loss_fn, progress=False)
    assert result.verification.passed
    assert all(len(set(v.tolist())) > 1 for v in result.scores.values.values())


def test_by_keyword_or_by_position_a_plan_is_the_same() -> None:
    class ByPosition(Body):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()).relu())  # type: ignore[no-any-return]

    kept = []
    for kind in (ByPosition, ByKeyword):
        torch.manual_seed(0)
        data = [(X, torch.randn(2, 3))]
        result = prunus.prune(
            kind().eval(),
            X,
            method="taylor",
            target=0.5,
            data=data,
            loss_fn=nn.functional.mse_loss,
            progress=False,
        )
        kept.append(result.plan.kept)
    assert kept[0] == kept[1]


def test_inputs_are_spread_as_forward_takes_them() -> None:
    assert as_arguments({"x": X}, ByKeyword()) == ((), {"x": X})
    assert as_arguments({"y": X}, OneDict()) == (({"y": X},), {})
    assert list(as_arguments({"x": X, "scale": SCALE}, KeywordOnly())[1]) == ["scale", "x"]
    assert as_arguments(Pair(X, SCALE), OneRecord())[0] == (Pair(X, SCALE),)
    assert len(as_arguments((X, X), Positional())[0]) == 2
    with torch.inference_mode():
        made = X.clone()
    assert not as_arguments(made, ByKeyword())[0][0].is_inference()


def test_without_such_an_input_the_layer_is_named() -> None:
    with pytest.raises(ConfigError, match=r"module 'a'.*\n.*size 5 along dimension -1"):
        change_input(nn.Linear(4, 2), "a", (X,), {}, (-1, 5), lambda x: x)


def test_objects_are_taken_apart_where_they_hold_tensors() -> None:
    found = Found(X, {"h": SCALE})
    assert list(plain(found)) == ["logits", "extra"]
    assert [t is s for t, s in zip(flat_outputs([found, 3]), (X, SCALE), strict=True)] == [True, True]


@dataclass
class Given:
    x: Tensor


def test_an_input_of_an_unknown_type_is_told_from_a_branch() -> None:
    class Takes(Body):
        def forward(self, batch: Given) -> Tensor:
            return self.c(self.b(self.a(batch.x).relu()).relu())  # type: ignore[no-any-return]

    with pytest.raises(PruneError, match="register_dataclass") as refusal:
        prunus.trace(Takes().eval(), Given(X))
    assert "follow_branches" not in str(refusal.value)
