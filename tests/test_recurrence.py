"""LSTM and GRU taken apart, pruned, and packed again: the same outputs at every step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import prunus
from prunus.errors import ConfigError
from prunus.layers.recurrence import SeparateRecurrence, StackedRecurrence, join_recurrence_, separate_recurrence_
from prunus.runtime.calling import flat_outputs

OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True, "num_layers": 2},
    {"bidirectional": True, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.4},
]


def packed(kind: type[nn.RNNBase], **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return kind(3, 6, **options).eval()  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_states_and_way_back_are_the_packed_module_s(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    module = packed(kind, **options)
    apart, x = separate_recurrence_(copy.deepcopy(module)), torch.randn(4, 5, 3)
    assert isinstance(apart, SeparateRecurrence)
    again = join_recurrence_(apart)
    assert type(again) is kind
    size = (
        options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1),
        x.shape[0 if options.get("batch_first") else 1],
        6,
    )
    h = torch.randn(size)
    start: Any = (h, torch.randn(size)) if kind is nn.LSTM else h
    for inputs in ((x,), (x, start), (x[0],)):
        wanted = flat_outputs(module(*inputs))
        for other in (apart, again):
            found = flat_outputs(other(*inputs))
            assert [t.shape for t in found] == [t.shape for t in wanted]
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))
    assert sum(p.numel() for p in apart.parameters()) == sum(p.numel() for p in module.parameters())


class Net(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(4, 5), kind(5, 8, batch_first=True, **options)  # type: ignore[call-overload]
        self.head = nn.Linear(16 if options.get("bidirectional") else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(self.embed(x))[0].mean(1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}])
def test_hidden_units_go_and_the_rest_is_packed_again(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Net(kind, **options).eval(), torch.randn(3, 6, 4)
    dense = model(x)
    separate_recurrence_(model)
    assert torch.allclose(model(x), dense, atol=1e-6)
    graph = prunus.trace(model, x)
    groups = [g for g in graph.groups() if g.name.startswith("memory")]
    assert len(groups) == len(model.memory.cells)
    assert all(g.units == 8 for g in groups)
    assert any(g.name == "embed" for g in graph.groups())
    for counts, kept_class in (([5] * len(groups), kind), (list(range(2, 2 + len(groups))), None)):
        kept = {g.name: list(range(8 - n, 8)) for g, n in zip(groups, counts, strict=True)} | {"embed": [0, 2]}
        smaller = prunus.apply_(copy.deepcopy(model), prunus.Plan.from_kept(graph, kept), x)
        wanted = smaller(x)
        joined = join_recurrence_(copy.deepcopy(smaller))
        assert type(joined.memory) is (kept_class or (kind if len(set(counts)) == 1 else StackedRecurrence))
        assert torch.allclose(joined(x), wanted, atol=1e-6)
        longer = torch.randn(2, 11, 4)
        assert torch.allclose(joined(longer), smaller(longer), atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_gates_reach_what_hidden_units_do_at_every_step(kind: type[nn.RNNBase]) -> None:
    """Four units that neither the head nor the memory itself reads are worth nothing, one that only memory reads is."""
    torch.manual_seed(0)
    model, x = Net(kind).eval(), torch.randn(64, 5, 4)
    with torch.no_grad():
        model.memory.weight_hh_l0[:, 4:] = 0
        model.head.weight[:, 3:] = 0
    y = model(x).argmax(1)
    separate_recurrence_(model)
    result = prunus.prune(
        model, x[:2], method="taylor", target={"memory.cells.0.inputs.0": 4}, data=[(x, y)],
        loss_fn=nn.functional.cross_entropy, progress=False,
    )  # fmt: skip
    scores = result.scores.values["memory.cells.0.inputs.0"]
    assert (scores[4:] == 0).all()
    assert (scores[:4] > 0).all()
    assert result.plan.kept["memory.cells.0.inputs.0"] == (0, 1, 2, 3)
    assert torch.allclose(result.model(x), model(x), atol=1e-5)


class Last(nn.Module):
    """Reads the last states: of the last layer, or of all."""

    def __init__(self, every: bool) -> None:
        super().__init__()
        self.memory, self.every = nn.LSTM(5, 8, num_layers=2), every
        self.head = nn.Linear(16 if every else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, c) = self.memory(x)
        return self.head(h.transpose(0, 1).flatten(1) if self.every else h[-1] + c[-1])


@pytest.mark.parametrize(("every", "groups"), [(False, 2), (True, 1)])
def test_last_states_tie_the_layers_only_where_all_are_read(every: bool, groups: int) -> None:
    torch.manual_seed(0)
    model, x = Last(every).eval(), torch.randn(4, 3, 5)
    dense = model(x)
    separate_recurrence_(model)
    assert torch.allclose(model(x), dense, atol=1e-6)
    graph = prunus.trace(model, x)
    assert len(graph.groups()) == groups
    kept = {g.name: list(range(n, 8)) for n, g in enumerate(graph.groups(), 2)}
    smaller = prunus.apply_(copy.deepcopy(model), prunus.Plan.from_kept(graph, kept), x)
    joined = join_recurrence_(copy.deepcopy(smaller))
    assert torch.allclose(joined(x), smaller(x), atol=1e-6)


def test_what_cannot_be_taken_apart_is_refused_and_the_model_stays() -> None:
    model = nn.ModuleDict({"good": nn.LSTM(3, 4), "odd": nn.LSTM(3, 4, proj_size=2)})
    with pytest.raises(ConfigError, match=r"'odd'(?s:.*)proj_size=2"):
        separate_recurrence_(model)
    assert isinstance(model["good"], nn.LSTM)
    with pytest.raises(ConfigError, match="RNN"):
        separate_recurrence_(nn.RNN(3, 4))
    with pytest.raises(ConfigError, match="PackedSequence"):
        separate_recurrence_(nn.GRU(3, 4))(pack_sequence([torch.randn(3, 3)]))
    frozen = nn.GRU(3, 4).requires_grad_(False)
    frozen.weight_hh_l0.requires_grad_(True)
    apart = separate_recurrence_(frozen)
    assert all(p.requires_grad == (".hidden." in n and n.endswith("weight")) for n, p in apart.named_parameters())
    assert [n for n, p in join_recurrence_(apart).named_parameters() if p.requires_grad] == ["weight_hh_l0"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_an_artifact_of_a_network_with_recurrence_loads_without_its_class(
    kind: type[nn.RNNBase], tmp_path: Any
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(separate_recurrence_(packed(kind, batch_first=True)), _Outputs(), nn.Linear(6, 2)).eval()
    x = torch.randn(2, 5, 3)
    result = prunus.prune(model, x, method="l1", pruning_ratio=0.3, progress=False)
    prunus.save(tmp_path / "artifact", result.model, result.plan, example_inputs=x)
    more = torch.randn(3, 5, 3)  # a batch of another size: the program's batch is free
    assert torch.allclose(prunus.load(tmp_path / "artifact")(more), result.model(more), atol=1e-6)


class _Outputs(nn.Module):
    def forward(self, answer: tuple[Tensor, Any]) -> Tensor:
        return answer[0]
