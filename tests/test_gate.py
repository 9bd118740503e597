"""Gates: the identity at one, masks at zero and one, the same draw everywhere, exact gradients, no trace left."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError, DataError
from prunus.gates.gate import attach, recompute_products
from prunus.graph.grouping import Graph
from prunus.plan.plan import Plan
from prunus.posteriors.dirichlet import DirichletPosterior
from prunus.proof.masked import masked
from prunus.runtime.calling import call, flat_outputs, outputs
from traced import traced
from zoo import ZOO

NAMES = [
    "plain_cnn", "mlp", "mlp_on_sequences", "flatten_to_linear", "hard_coded_view", "residual_option_a",
    "residual_option_b", "dense_concat", "mobilenet_v2", "resnext", "squeeze_excite_conv", "squeeze_excite_linear",
    "conv_transpose_unet", "shared_conv", "tied_linear", "channel_shuffle", "split_by_size", "glu", "pixel_shuffle",
    "pixel_unshuffle", "conv1d", "conv3d", "concat_with_input", "inplace_relu", "two_inputs", "keyword_inputs",
    "dict_output", "attention_module",
]  # fmt: skip


def subject(name: str) -> tuple[nn.Module, Graph, Any]:
    animal, model, graph = traced(name)
    return copy.deepcopy(model), graph, animal.inputs(4)


def ones(graph: Graph) -> dict[str, Tensor]:
    return {g.name: torch.ones(g.units) for g in graph.groups()}


def hooks(model: nn.Module) -> list[tuple[int, int]]:
    return [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("placement", ["reader", "writer"])
@pytest.mark.parametrize("name", NAMES)
def test_gates_at_one_change_nothing(name: str, placement: Any) -> None:
    model, graph, inputs = subject(name)
    before = outputs(model, inputs)
    with attach(model, graph.groups(), placement=placement) as gates:
        gates.fix(ones(graph))
        assert equal(before, outputs(model, inputs))
        gates.probe()
        assert equal(before, outputs(model, inputs))
        gates.off()
        assert equal(before, outputs(model, inputs))
    assert equal(before, outputs(model, inputs))


@pytest.mark.parametrize("name", NAMES)
def test_gates_of_zero_and_one_are_the_mask(name: str) -> None:
    model, graph, inputs = subject(name)
    kept, values = {}, ones(graph)
    for group in graph.groups():
        rows = torch.zeros(group.units).numpy() if group.rows is None else group.rows
        stays = [u for row in set(rows.tolist()) for u in (rows == row).nonzero()[0].tolist()[::2]]
        kept[group.name] = stays
        values[group.name] = torch.zeros(group.units).index_fill_(0, torch.tensor(stays), 1.0)
    with masked(model, Plan.from_kept(graph, kept)):
        expected = outputs(model, inputs)
    with attach(model, graph.groups()) as gates:
        gates.fix(values)
        assert equal(expected, outputs(model, inputs))


def test_hooks_are_gone_after_use_and_after_failure() -> None:
    model, graph, inputs = subject("residual_option_b")
    model.register_forward_hook(lambda *_: None)
    before = hooks(model)
    with attach(model, graph.groups(), DirichletPosterior):
        assert hooks(model) != before
        model(inputs)
    assert hooks(model) == before
    with pytest.raises(ZeroDivisionError), attach(model, graph.groups()):
        raise ZeroDivisionError
    assert hooks(model) == before
    other = prunus.trace(ZOO["preact_wide_resnet"].make(), inputs)
    with pytest.raises(ConfigError, match="trace this model"), attach(model, other.groups()):
        pass
    assert hooks(model) == before


def test_locked_groups_are_refused() -> None:
    model, graph, _ = subject("softmax_over_channels")
    with pytest.raises(ConfigError, match="softmax"), attach(model, [graph.group("stem.0")]):
        pass


def seen_multipliers(draws: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Ratios of gated to plain input at every reader of the residual stream, [B, K] each; and the gates' own record."""
    model, graph, inputs = subject("residual_option_b")
    group = graph.group("0.0")
    ratios: dict[str, Tensor] = {}
    with attach(model, [group], DirichletPosterior, draws=draws) as gates:
        plain: dict[str, Tensor] = {}
        before = {}
        for reader in group.readers:
            module, name = model.get_submodule(reader.module), reader.module
            first = module.register_forward_pre_hook(
                lambda _, args, name=name: plain.update({name: args[0]}), prepend=True
            )
            last = module.register_forward_pre_hook(
                lambda _, args, name=name: ratios.update({name: args[0] / plain[name]})
            )
            before[name] = (first, last)
        model(inputs)
        multiplier = gates.multiplier(group)
    assert multiplier is not None
    assert len(ratios) >= 2
    return {n: r.flatten(2).nanmedian(2).values for n, r in ratios.items()}, multiplier.detach()


def test_all_readers_share_one_draw_per_example() -> None:
    torch.manual_seed(0)
    ratios, multiplier = seen_multipliers("example")
    assert multiplier.shape == (4, 8)
    assert not torch.allclose(multiplier[0], multiplier[1])
    for ratio in ratios.values():
        known = ~ratio.isnan()
        torch.testing.assert_close(ratio[known].detach(), multiplier[known])


def test_all_readers_share_one_draw_per_batch() -> None:
    torch.manual_seed(0)
    ratios, multiplier = seen_multipliers("batch")
    assert multiplier.shape == (1, 8)
    for ratio in ratios.values():
        known = ~ratio.isnan()
        torch.testing.assert_close(ratio[known].detach(), multiplier.expand(4, -1)[known])


def test_every_forward_pass_draws_anew() -> None:
    model, graph, inputs = subject("plain_cnn")
    with torch.no_grad(), attach(model, graph.groups(), DirichletPosterior) as gates:
        assert not torch.allclose(model(inputs), model(inputs))
        gates.mean()
        assert torch.equal(model(inputs), model(inputs))


def test_only_named_groups_are_gated() -> None:
    model, graph, inputs = subject("plain_cnn")
    first, second = graph.groups()
    with attach(model, graph.groups(), DirichletPosterior) as gates:
        gates.sample([second.name])
        model(inputs).sum().backward()
        assert gates.posterior(first.name).rho.grad is None  # type: ignore[union-attr]
        assert bool((gates.posterior(second.name).rho.grad != 0).any())  # type: ignore[union-attr]
        assert gates.penalty(7).item() == pytest.approx(gates.posterior(second.name).complexity().item() / 7)


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("plain_cnn", [16, 1]),  # the second is read after global pooling
        ("flatten_to_linear", [16, 1]),  # sixteen columns of the linear layer belong to a channel
        ("mlp_on_sequences", [7, 7]),
        ("conv1d", [9, 1]),
    ],
)
def test_complexity_can_count_once_per_position(name: str, positions: list[int]) -> None:
    model, graph, inputs = subject(name)
    with attach(model, graph.groups(), DirichletPosterior) as gates:
        assert gates.penalty(7, float).item() == pytest.approx(gates.penalty(7).item())  # nothing has run yet
        call(model, inputs)
        assert [gates.positions[g.name] for g in graph.groups()] == positions
        terms = [p * gates.posterior(g.name).complexity() for p, g in zip(positions, graph.groups(), strict=True)]
        assert gates.penalty(7, float).item() == pytest.approx(sum(t.item() for t in terms) / 7)


@pytest.mark.parametrize(
    "name", ["plain_cnn", "residual_option_b", "shared_conv", "keyword_inputs", "conv_transpose_unet"]
)
def test_probe_gradients_are_finite_differences_per_example(name: str) -> None:
    model, graph, inputs = subject(name)
    model = model.double()
    inputs = torch.utils._pytree.tree_map_only(Tensor, Tensor.double, inputs)
    group = graph.groups()[0]

    def losses() -> Tensor:
        return torch.stack([t.flatten(1).tanh().sum(1) for t in flat_outputs(call(model, inputs))]).sum(0)

    with attach(model, graph.groups()) as gates:
        gates.probe()
        losses().sum().backward()
        found = gates.probes[group.name].grad
        assert found is not None
        assert found.shape == (4, group.units)
        step = 1e-4
        for unit in range(group.units):
            ends = []
            for sign in (1, -1):
                gates.fix({group.name: torch.ones(group.units).index_fill_(0, torch.tensor([unit]), 1 + sign * step)})
                with torch.no_grad():
                    ends.append(losses())
            slope = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(found[:, unit].double(), slope, rtol=5e-3, atol=5e-4)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", ["plain_cnn", "residual_option_b", "mobilenet_v2", "shared_conv", "conv3d", "mlp"])
def test_recomputed_products_give_the_same_gradients(name: str, frozen: bool) -> None:
    model, graph, inputs = subject(name)
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    found = []
    for recompute in (False, True):
        with attach(model, graph.groups(), lambda k: DirichletPosterior(k)) as gates:
            torch.manual_seed(0)
            with recompute_products() if recompute else contextlib.nullcontext():
                loss = sum(o.square().mean() for o in flat_outputs(call(model, inputs)))
            wanted = gates.parameters() + ([] if frozen else list(model.parameters()))
            found.append(torch.autograd.grad(loss, wanted, allow_unused=True))
    for kept, recomputed in zip(*found, strict=True):
        assert (kept is None) == (recomputed is None)
        if kept is not None:
            torch.testing.assert_close(recomputed, kept)


def test_uniform_switch_after_batch_norm_is_the_frozen_network() -> None:
    """Oracle 5: K times a uniform point of the simplex multiplies by one."""
    for scale in ("units", "max"):
        model, graph, inputs = subject("residual_option_b")
        before = outputs(model, inputs)
        with attach(model, graph.groups(), lambda k, s=scale: DirichletPosterior(k, scale=s)) as gates:
            gates.mean()
            for a, b in zip(before, outputs(model, inputs), strict=True):
                torch.testing.assert_close(a, b)


def switch_gradient(placement: Any) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    ).double()  # fmt: skip
    inputs = ZOO["plain_cnn"].inputs(8)
    graph = prunus.trace(copy.deepcopy(model).float(), inputs)
    model.train()
    with attach(model, graph.groups(), DirichletPosterior, draws="batch", placement=placement) as gates:
        gates.sample()
        F.cross_entropy(model(inputs.double()), torch.arange(8) % 3).backward()
        gradient = gates.posterior("0").rho.grad
    assert gradient is not None
    return float(gradient.abs().max())


def test_batch_norm_in_train_mode_cancels_a_switch_before_it() -> None:
    """Oracle 5: before batch norm nothing can be learned; at the readers it can."""
    assert switch_gradient("writer") < 1e-5
    assert switch_gradient("reader") > 1e-4


def test_bf16_autocast_keeps_gates_in_fp32() -> None:
    model, graph, inputs = subject("residual_option_b")
    with attach(model, graph.groups(), DirichletPosterior) as gates:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(inputs)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
        for group in graph.groups():
            multiplier = gates.multiplier(group)
            assert multiplier is not None
            assert multiplier.dtype == torch.float32
            gradient = gates.posterior(group.name).rho.grad  # type: ignore[union-attr]
            assert isinstance(gradient, Tensor)
            assert bool(torch.isfinite(gradient).all())
            assert bool((gradient != 0).any())


def test_an_input_of_another_batch_size_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten(0, 1), nn.Linear(8, 3))
    inputs = torch.randn(2, 5, 6)
    graph = prunus.trace(model, inputs)
    with attach(model, graph.groups(), DirichletPosterior), pytest.raises(DataError, match="batch size 10"):
        model(inputs)
    with attach(model, graph.groups(), DirichletPosterior, draws="batch"):
        assert model(inputs).shape == (10, 3)
