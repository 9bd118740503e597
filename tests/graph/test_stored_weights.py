"""Weights that reach their layer through operations: removal equals zeros, in fp64, for any plan and batch size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_zoo import gap, halved
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import prunus
import zoo_weights as weights
from prunus.errors import SurgeryError
from prunus.gates import gate
from prunus.methods.criteria import L1
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.proof.masked import masked
from prunus.runtime.calling import outputs
from prunus.runtime.copies import copied
from prunus.surgery.cut import cut_
from zeroed import zeroed_
from zoo import ZOO

SUBJECTS = [
    "cast_weights", "pointwise_as_linear", "equalised_learning_rate", "standardised_weights", "low_rank_added",
    "fused_from_pieces", "pieces_of_one", "stored_matmul", "splines", "read_twice", "autocast_inside",
    "torch_prune_masks", "parametrized_elementwise", "weight_norm", "weight_norm_by_hook", "weight_norm_of_all",
    "weight_norm_along_inputs", "weight_norm_vocoder", "weight_norm_vocoder_by_hook", "weight_norm_grouped",
    "masks_grouped", "einsum_with_a_parameter", "einsum_heads", "parameter_on_the_left", "kernel_for_each_position",
    "transposed_grouped", "transposed_depthwise", "transposed_multiplied", "transposed_grouped_1d",
    "transposed_grouped_3d", "volumes", "functional_conv", "functional_conv_in_a_block", "tied_transposed",
]  # fmt: skip
FUNCTIONAL = ["stored_matmul", "splines", "read_twice", "einsum_heads", "parameter_on_the_left", "pieces_of_one"]


def doubles(value: Any) -> Any:
    return tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, value)


@pytest.mark.parametrize("name", SUBJECTS)
def test_removal_equals_zeros_in_the_users_class_for_any_batch(name: str) -> None:
    animal = ZOO[name]
    model = animal.make().double()
    graph = prunus.trace(model, doubles(animal.inputs(2)))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        chosen = [g for g in graph.groups() if rng.random() < 0.7] or list(graph.groups())
        kept = {g.name: halved(g, rng, None if seed else 1) for g in chosen if g.units > g.multiple}
        pruned, proof = apply_and_verify_(copied(model), Plan.from_kept(graph, kept), doubles(animal.inputs(2)))
        assert type(pruned) is type(model)
        assert proof.passed
        reference = zeroed_(copied(model), graph, kept)
        for batch in (1, 2, 3):
            inputs = doubles(animal.inputs(batch))
            assert gap(outputs(reference, inputs), outputs(pruned, inputs)) < 1e-9


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_gates_stand_before_products_that_are_no_modules(name: str) -> None:
    """Zeros at the gates are the masked model; each example has its own draw, and its own gradient."""
    animal = ZOO[name]
    model, inputs = animal.make(), animal.inputs(3)
    graph = prunus.trace(model, inputs)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    for group in graph.groups():
        keep = torch.ones(group.units)
        keep[0] = 0
        with gate.attach(model, [group]) as gates:
            gates.off()
            assert gap(outputs(model, inputs), outputs(model, inputs)) == 0
            gates.fix({group.name: keep})
            gated = outputs(model, inputs)
            gates.fix({group.name: torch.stack([torch.ones(group.units), keep, torch.ones(group.units)])})
            second = outputs(model, inputs)
            gates.probe()
            torch.stack([t.square().sum() for t in outputs_with_gradients(model, inputs)]).sum().backward()
            gradient = gates.probes[group.name].grad
        with masked(model, Plan.from_kept(graph, {group.name: range(1, group.units)})):
            assert gap(outputs(model, inputs), gated) < 1e-6
        clean = outputs(model, inputs)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(clean, second, strict=True))
        assert all(torch.allclose(a[1], b[1], atol=1e-6) for a, b in zip(gated, second, strict=True))
        assert gradient is not None
        assert gradient.shape == (3, group.units)
        assert bool((gradient.abs().sum(0) > 0).any())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_all_groups_are_gated_at_once(name: str) -> None:
    """A product may be read along several dimensions: heads and what is inside them."""
    animal = ZOO[name]
    model, inputs = animal.make(), animal.inputs(3)
    graph = prunus.trace(model, animal.inputs(2))
    groups = list(graph.groups())
    keep = {g.name: torch.tensor([0.0] + [1.0] * (g.units - 1)) for g in groups}
    with gate.attach(model, groups) as gates:
        gates.fix(keep)
        gated = outputs(model, inputs)
    with masked(model, Plan.from_kept(graph, {g.name: range(1, g.units) for g in groups})):
        assert gap(outputs(model, inputs), gated) < 1e-6


def outputs_with_gradients(model: nn.Module, inputs: Any) -> list[Tensor]:
    result = model(inputs)
    return list(result) if isinstance(result, tuple) else [result]


def test_a_pass_that_breaks_leaves_nothing_behind() -> None:
    model = weights.StoredMatmul()
    graph = prunus.trace(model, torch.randn(2, 6))
    with gate.attach(model, list(graph.groups())) as gates:
        gates.probe()
        with pytest.raises(RuntimeError, match="shape"):
            model(torch.randn(2, 5))
        assert torch.overrides._get_current_function_mode() is None
        model(torch.randn(2, 6))
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("method", ["l1", "l2", "random", "taylor", "dirichlet"])
@pytest.mark.parametrize("name", ["splines", "weight_norm", "torch_prune_masks", "einsum_with_a_parameter"])
def test_methods_judge_them(name: str, method: str) -> None:
    animal = ZOO[name]
    model = animal.make()
    out = outputs(model, animal.inputs(2))[0]
    data = [(animal.inputs(4), torch.zeros(4, *out.shape[1:]))] * 2
    before = {n: t.clone() for n, t in model.state_dict().items()}
    needs = {} if method in ("l1", "l2", "random") else {"data": data, "loss_fn": nn.functional.mse_loss}
    result = prunus.prune(model, animal.inputs(2), method=method, target=0.4, progress=False, **needs)
    assert result.verification.passed
    assert result.plan.after.params < result.plan.before.params
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_weight_norm_is_judged_by_its_weight() -> None:
    """Directions have any length: a long one says nothing."""
    model = weights.layers(weights.weight_norm)
    graph = prunus.trace(model, torch.randn(2, 3, 8, 8))
    scores = L1(normalize="none").score(model, graph.group("0"), 0)
    with torch.no_grad():
        model[0].parametrizations.weight.original1[3] *= 100
    assert torch.allclose(scores, L1(normalize="none").score(model, graph.group("0"), 0), rtol=1e-4)
    assert torch.allclose(scores, model[0].weight.abs().sum((1, 2, 3)), rtol=1e-4)


def test_norms_that_come_off_after_removal_leave_the_same_network() -> None:
    x = torch.randn(2, 5, 6)
    model = weights.vocoder(weights.weight_norm_by_hook)
    pruned = prunus.prune(model, x, method="l1", target=0.5, progress=False).model
    before = outputs(pruned, x)
    for module in pruned.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    assert gap(before, outputs(pruned, x)) < 1e-5


def test_what_torch_masked_stays_masked() -> None:
    """Rows that torch's tool set to zero go first; what stays is still the stored weight times its mask."""
    x, model = torch.randn(2, 3, 8, 8), weights.layers(weights.masked)
    alive = np.flatnonzero(model[0].weight_mask.flatten(1).any(1)).tolist()
    result = prunus.prune(model, x, method="l1", target={"0": len(alive)}, progress=False)
    layer = result.model.get_submodule("0")
    assert list(result.plan.kept["0"]) == alive
    assert len(alive) < 8
    assert layer.weight_mask.shape == layer.weight_orig.shape == layer.weight.shape
    assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask)


@pytest.mark.parametrize("stepped", [False, True])
def test_copies_don_t_need_leaves(stepped: bool) -> None:
    """Masked weights are results of a computation, and so may any attribute be after a training step."""
    model, x = weights.layers(weights.masked), torch.randn(2, 3, 8, 8)
    if stepped:
        model.last = model(x)
    twin = copied(model)
    assert gap(outputs(model, x), outputs(twin, x)) == 0
    with torch.no_grad():
        twin[0].weight_orig.zero_()
    assert gap(outputs(model, x), outputs(twin, x)) > 0


def test_a_filter_of_which_only_zeros_stay_has_no_length() -> None:
    model, x = weights.layers(weights.weight_norm), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model[2].parametrizations.weight.original1[1, 4:] = 0
    graph = prunus.trace(model, x)
    pruned, proof = apply_and_verify_(copied(model), Plan.from_kept(graph, {"0": range(4, 8)}), x)
    assert proof.passed
    assert bool((pruned.get_submodule("2").weight[1] == 0).all())


@pytest.mark.parametrize("wrap", [weights.weight_norm, weights.weight_norm_by_hook, weights.masked])
def test_dimensions_inside_heads_go_from_computed_weights(wrap: Any) -> None:
    """There every layer's output is compared, as far as the plan knows what stays of it."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (wrap(nn.Linear(6, 16)) for _ in range(3))
            self.merge = wrap(nn.Linear(16, 3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (m(x).unflatten(-1, (4, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
            scores = (q @ k.transpose(-1, -2) * 0.5).softmax(-1)
            return self.merge((scores @ v).transpose(1, 2).flatten(2))

    model, x = Attention().eval(), torch.randn(2, 5, 6)
    graph = prunus.trace(model, x)
    kept = {g.name: halved(g, np.random.default_rng(0)) for g in graph.groups() if g.inside_heads}
    assert len(kept) == 2
    pruned, proof = apply_and_verify_(copied(model), Plan.from_kept(graph, kept), x)
    assert proof.passed
    assert gap(outputs(zeroed_(copied(model), graph, kept), x), outputs(pruned, x)) < 1e-5


class OneSizeOnly(nn.Module):
    """A parametrization that runs on the weight it was made for alone."""

    def forward(self, weight: Tensor) -> Tensor:
        """Twice the weight of ten rows."""
        if not torch.compiler.is_exporting() and len(weight) != 10:
            raise ValueError("ten rows are wanted")
        return 2 * weight


def test_a_weight_that_can_not_be_computed_after_the_cut_leaves_the_model_whole() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 10)
    nn.utils.parametrize.register_parametrization(layer, "weight", OneSizeOnly())
    model, x = nn.Sequential(layer, nn.ReLU(), nn.Linear(10, 2)).eval(), torch.randn(3, 4)
    plan = Plan.from_kept(prunus.trace(model, x), {"0": [1, 3, 5]})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SurgeryError, match="ten rows are wanted"):
        cut_(model, plan)
    with pytest.raises(SurgeryError, match="ten rows are wanted"):
        prunus.apply_(model, plan, x, rewrite_graph=False)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before)
    rewritten = prunus.apply_(model, plan, x)
    assert torch.allclose(rewritten(x), zeroed_(copied(model), prunus.trace(model, x), plan.kept)(x), atol=1e-6)


@pytest.mark.parametrize("attention", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_heads_that_a_norm_of_the_whole_weight_reads_stay(attention: Any) -> None:
    model, x = HeadsThen(attention).eval(), torch.randn(2, 5, 3)
    graph = prunus.trace(model, x)
    assert "spectral norm is a number of the whole weight" in str(graph.group("qkv.heads").locked)
    assert prunus.trace(HeadsThen(lambda layer: layer).eval(), x).group("qkv.heads").locked is None


class HeadsThen(nn.Module):
    """Four heads of two, put together by a layer that may be reparametrised."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(3, 24), change(nn.Linear(8, 8)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 3] -> [B, 2]."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 2).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.out(y)).mean(1)
