"""Closed forms of the criteria on weights set by hand, and gradients against autograd done the long way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.data.datasets import ArrayDataset, Batches
from prunus.errors import ConfigError, DataError
from prunus.gates.gate import attach
from prunus.graph.groups import ChannelGroup
from prunus.learning.fit import fit
from prunus.methods.base import Method, WeightCriterion
from prunus.methods.criteria import FPGM, L1, L2, BatchNormScale, Fisher, Random, Taylor
from prunus.methods.registry import resolve
from traced import traced
from zoo import ZOO

CRITERIA: dict[str, Any] = {
    "random": Random, "l1": L1, "l2": L2, "bn_scale": BatchNormScale, "fpgm": FPGM, "taylor": Taylor, "fisher": Fisher,
}  # fmt: skip
WEIGHTS = [L1, L2, FPGM, BatchNormScale]


def tiny(rows: list[list[float]]) -> tuple[nn.Sequential, ChannelGroup]:
    """linear -> relu -> linear with given first weights; and the group of its hidden units."""
    hidden = len(rows)
    model = nn.Sequential(nn.Linear(len(rows[0]), hidden), nn.ReLU(), nn.Linear(hidden, 2)).eval()
    model[0].weight.data = torch.tensor(rows)
    return model, prunus.trace(model, torch.randn(2, len(rows[0]))).group("0")


def group_of(name: str, group: str) -> tuple[nn.Module, ChannelGroup]:
    return ZOO[name].make(), traced(name)[2].group(group)


def test_norms_in_closed_form() -> None:
    model, group = tiny([[3.0, -4.0], [0.0, 0.0], [1.0, 1.0]])
    assert L1(normalize="none").score(model, group, 0).tolist() == [7.0, 0.0, 2.0]
    torch.testing.assert_close(L2(normalize="none").score(model, group, 0), torch.tensor([5.0, 0.0, 2**0.5]))
    distances = torch.tensor([5.0 + (4 + 25) ** 0.5, 5.0 + 2**0.5, (4 + 25) ** 0.5 + 2**0.5])
    torch.testing.assert_close(FPGM(normalize="none").score(model, group, 0), distances)


@pytest.mark.parametrize(("how", "by"), [("none", 1.0), ("mean", 3.0), ("max", 7.0), ("sum", 9.0), ("l2", 53**0.5)])
def test_normalisation_in_closed_form(how: Any, by: float) -> None:
    model, group = tiny([[3.0, -4.0], [0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(L1(normalize=how).score(model, group, 0), torch.tensor([7.0, 0.0, 2.0]) / by)


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=list(CRITERIA))
def test_unknown_normalisation_is_refused_before_any_work(criterion: Any) -> None:
    with pytest.raises(ConfigError, match="normalize"):
        criterion(normalize="median")


@pytest.mark.parametrize("how", ["mean", "max", "l2", "sum"])
def test_a_group_of_zeros_stays_zero(how: Any) -> None:
    model, group = tiny([[0.0, 0.0], [0.0, 0.0]])
    assert L1(normalize=how).score(model, group, 0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_of_the_weights_does_not_matter(dtype: torch.dtype) -> None:
    model, group = tiny([[2.0**-13, 0.0], [2.0**-12, 0.0], [2.0**9, 0.0]])
    score = L2(normalize="none").score(model.to(dtype), group, 0)
    assert score.dtype == torch.float32
    assert score.tolist() == [2.0**-13, 2.0**-12, 2.0**9]


@pytest.mark.parametrize("criterion", WEIGHTS)
def test_nan_weights_are_refused_by_name(criterion: Any) -> None:
    model, group = group_of("plain_cnn", "0.0")
    with torch.no_grad():
        model.get_parameter("0.0.weight")[2, 0, 0, 0] = float("nan")
        model.get_parameter("0.1.weight")[2] = float("inf")
    with pytest.raises(DataError, match=r"0\.[01]\.weight"):
        criterion().score(model, group, 0)


def test_every_writer_of_a_group_counts() -> None:
    model, group = group_of("residual_option_b", "0.0")
    writers = [model.get_parameter(n) for n in ("0.0.weight", "1.conv2.weight")]
    assert {s.tensor for s in group.writers} == {"0.0.weight", "1.conv2.weight"}
    rows = [w.detach().flatten(1) for w in writers]
    torch.testing.assert_close(L1(normalize="none").score(model, group, 0), sum(r.abs().sum(1) for r in rows))
    both = torch.cat(rows, 1)
    torch.testing.assert_close(L2(normalize="none").score(model, group, 0), both.norm(dim=1))
    distances = sum((r[:, None] - r[None]).norm(dim=2).sum(1) for r in rows)
    torch.testing.assert_close(FPGM(normalize="none").score(model, group, 0), distances)


def test_units_of_transposed_convolutions_are_columns() -> None:
    model, group = group_of("conv_transpose_unet", "up2")
    weight = model.get_parameter("up2.weight").detach()
    torch.testing.assert_close(L1(normalize="none").score(model, group, 0), weight.abs().sum((0, 2, 3)))


def test_a_unit_may_be_written_by_several_filters() -> None:
    model, group = group_of("pixel_shuffle", "1")
    weight = model.get_parameter("1.weight").detach().reshape(group.units, -1)
    torch.testing.assert_close(L1(normalize="none").score(model, group, 0), weight.abs().sum(1))
    torch.testing.assert_close(L2(normalize="none").score(model, group, 0), weight.norm(dim=1))
    distances = (weight[:, None] - weight[None]).norm(dim=2).sum(1)
    torch.testing.assert_close(FPGM(normalize="none").score(model, group, 0), distances)


def test_a_filter_kept_in_a_buffer_counts() -> None:
    model, group = group_of("kernel_in_a_buffer", "kernel")
    kernel = model.get_buffer("kernel")
    torch.testing.assert_close(L1(normalize="none").score(model, group, 0), kernel.abs().sum((1, 2, 3)))
    assert bool(torch.isfinite(FPGM().score(model, group, 0)).all())


def test_batch_norms_after_a_concatenation_count_for_their_own_units() -> None:
    model, group = group_of("dense_concat", "1.conv")
    late = [model.get_parameter(n).detach()[8:12].abs() for n in ("2.bn.weight", "3.bn.weight", "4.weight")]
    torch.testing.assert_close(BatchNormScale(normalize="none").score(model, group, 0), torch.stack(late).sum(0))


def test_batch_norm_scales_in_closed_form() -> None:
    model, group = group_of("residual_option_b", "0.0")
    scales = model.get_parameter("0.1.weight").abs() + model.get_parameter("1.bn2.weight").abs()
    torch.testing.assert_close(BatchNormScale(normalize="none").score(model, group, 0), scales.detach())


def test_batch_norm_scale_refuses_a_group_without_one() -> None:
    model, group = tiny([[1.0], [2.0]])
    with pytest.raises(ConfigError, match=r"group '0'(.|\n)*another criterion"):
        BatchNormScale().score(model, group, 0)


def test_a_duplicate_is_nearest_the_median_and_a_zero_is_least() -> None:
    model, group = tiny([[2.0, 0.1], [2.0, 0.1], [2.0, 0.1], [-3.0, 4.0], [0.0, 0.0]])
    scores = FPGM(normalize="none").score(model, group, 0)
    assert scores[:3].max() < scores[3:].min()
    assert len(set(scores[:3].tolist())) == 1
    for norm in (L1(), L2()):
        assert int(norm.score(model, group, 0).argmin()) == 4


@pytest.mark.parametrize("criterion", WEIGHTS)
def test_permuting_units_permutes_scores(criterion: type[WeightCriterion]) -> None:
    model, group = group_of("plain_cnn", "0.0")
    order = torch.randperm(group.units, generator=torch.Generator().manual_seed(3))
    permuted = copy.deepcopy(model)
    with torch.no_grad():
        for slot in group.slots:
            tensor = dict([*permuted.named_parameters(), *permuted.named_buffers()])[slot.tensor]
            tensor.copy_(tensor.index_select(slot.dim, order))
    torch.testing.assert_close(criterion().score(permuted, group, 0), criterion().score(model, group, 0)[order])


def test_random_follows_the_seed_and_the_name() -> None:
    _, model, graph = traced("plain_cnn")
    one, two = (Random().score(model, g, 0)[:8] for g in graph.groups())
    assert not torch.equal(one, two)
    assert torch.equal(one, Random().score(model, graph.groups()[0], 0))
    assert not torch.equal(one, Random().score(model, graph.groups()[0], 1))


def data(name: str, size: int = 6) -> tuple[Tensor, Tensor]:
    return ZOO[name].inputs(size), torch.arange(size) % 3


def gradients_by_hand(model: nn.Module, group: ChannelGroup, x: Tensor, y: Tensor) -> Tensor:
    """d loss_n / d gate [B, K]: sum over all readers and positions of input times gradient, example by example."""
    rows = []
    for n in range(len(x)):
        seen: list[tuple[Tensor, Any]] = []

        def keep(
            _: nn.Module, args: tuple[Tensor, ...], *, reader: Any, seen: list[tuple[Tensor, Any]] = seen
        ) -> tuple[Tensor]:
            inside = args[0] * 1.0
            inside.retain_grad()
            seen.append((inside, reader))
            return (inside,)

        handles = [
            model.get_submodule(r.module).register_forward_pre_hook(lambda m, a, r=r, k=keep: k(m, a, reader=r))
            for r in group.readers
        ]
        F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]).backward()
        for handle in handles:
            handle.remove()
        row = torch.zeros(group.units)
        for inside, reader in seen:
            assert inside.grad is not None
            dims = [d for d in range(inside.dim()) if d != reader.input_dim % inside.dim()]
            units = torch.from_numpy(reader.units)
            row.index_add_(0, units[units >= 0], (inside * inside.grad).sum(dims).detach()[units >= 0])
        rows.append(row)
    return torch.stack(rows)


GRADIENT_SUBJECTS = [
    ("plain_cnn", "0.0"), ("residual_option_b", "0.0"), ("flatten_to_linear", "0.0"), ("dense_concat", "1.conv"),
    ("squeeze_excite_conv", "0.0"), ("shared_conv", "stem.0"), ("mlp", "2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "which"), GRADIENT_SUBJECTS)
def test_probe_gradients_are_activation_times_gradient(name: str, which: str) -> None:
    model, group = group_of(name, which)
    x, y = data(name)
    expected = gradients_by_hand(model, group, x, y)
    with attach(model, [group]) as gates:
        gates.probe()
        F.cross_entropy(model(x), y, reduction="sum").backward()
        found = gates.probes[group.name].grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_taylor_and_fisher_in_closed_form() -> None:
    gradient = torch.tensor([[1.0, -2.0], [-3.0, 0.0], [5.0, 4.0]])
    per_example, plain, fisher = Taylor(per_example=True), Taylor(per_example=False), Fisher()
    assert per_example.finish(per_example.contribution(gradient), 3).tolist() == [3.0, 2.0]
    torch.testing.assert_close(plain.finish(plain.contribution(gradient), 3), torch.tensor([1.0, 2 / 3]))
    torch.testing.assert_close(fisher.finish(fisher.contribution(gradient), 3), torch.tensor([35 / 6, 20 / 6]))


@pytest.mark.parametrize("method", [Taylor(), Taylor(per_example=False), Fisher()], ids=["taylor", "mean", "fisher"])
def test_scores_do_not_depend_on_how_the_data_are_batched(method: Method) -> None:
    model, group = group_of("plain_cnn", "0.0")
    x, y = data("plain_cnn")
    whole = fit(model, [group], method, [(x, y)], F.cross_entropy, num_data=6, precision="fp32")
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]
    split = fit(model, [group], method, parts, F.cross_entropy, num_data=6, precision="fp32")
    torch.testing.assert_close(whole.values[group.name], split.values[group.name], rtol=1e-4, atol=1e-7)
    by_hand = gradients_by_hand(model, group, x, y)
    expected = method.finish(method.contribution(by_hand), 6)  # type: ignore[attr-defined]
    torch.testing.assert_close(whole.values[group.name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [Taylor(), Fisher()], ids=["taylor", "fisher"])
def test_units_that_nobody_uses_score_zero(method: Method) -> None:
    model, group = group_of("plain_cnn", "0.0")
    with torch.no_grad():
        model.get_parameter("2.0.weight")[:, 5] = 0
    scores = fit(model, [group], method, [data("plain_cnn")], F.cross_entropy, num_data=6, precision="fp32")
    values = scores.values[group.name]
    assert values[5] == 0
    assert (values.argsort()[:1] == 5).all()


def test_every_criterion_has_its_name() -> None:
    assert all(resolve(name) == criterion() for name, criterion in CRITERIA.items())
    with pytest.raises(ConfigError, match="no_such"):
        resolve("no_such")


def test_gradients_do_not_depend_on_what_the_loader_was_used_for_before() -> None:
    model, group = group_of("mlp", "0")
    x, _ = data("mlp")
    part = ArrayDataset(x, torch.arange(len(x)) % 2)
    batches = Batches(part, 2, shuffle=True, seed=0)
    first = fit(model, [group], Taylor(), batches, F.cross_entropy, num_data=len(x))
    batches.set_epoch(3)
    again = fit(model, [group], Taylor(), batches, F.cross_entropy, num_data=len(x))
    assert torch.equal(first.values["0"], again.values["0"])
