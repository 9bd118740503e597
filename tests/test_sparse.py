"""Condensed layers: outputs and gradients of the masked ones (oracle 19), through compile, export and saving."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunus.errors import ConfigError, DataError
from prunus.kernels import products as loops
from prunus.masks.patterns import Layer, Pattern
from prunus.masks.sampling import gumbel, largest
from prunus.sparse import operations as kernels
from prunus.sparse.layers import CondensedConv2d, CondensedLinear, condense, condense_, densify_

CASES = [
    (nn.Linear(24, 10), "weight 25%", (24,)),
    (nn.Linear(24, 10, bias=False), "2:4", (24,)),
    (nn.Linear(24, 10), "tile 4 2/6", (24,)),
    (nn.Linear(24, 10), "weight 25% shared", (24,)),
    (nn.Conv2d(8, 6, 3, padding=1), "weight 10%", (8, 7, 9)),
    (nn.Conv2d(8, 6, 3, stride=2, dilation=2, padding=(2, 1), bias=False), "kernel 25%", (8, 9, 11)),
    (nn.Conv2d(8, 6, (1, 3)), "tap 1/3", (8, 5, 6)),
]


def masked(layer: Layer, text: str) -> tuple[Layer, nn.Module]:
    layer = copy.deepcopy(layer)
    layout = Pattern.parse(text).layout(layer, "l")
    mask = largest(gumbel(layout.rows, layout.n, (3,)), layout.k)
    with torch.no_grad():
        layer.weight.mul_(layout.on_weight(mask))
    return layer, condense(layer, layout, mask)


class Conv1D(nn.Linear):
    """GPT-2's linear layer, told by its name: the weight is [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(outputs, inputs)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def test_a_weight_of_inputs_by_outputs_is_condensed_by_output() -> None:
    dense, small = masked(Conv1D(24, 10), "weight 25%")
    x = torch.randn(3, 5, 24)
    assert isinstance(small, CondensedLinear)
    assert small.values.shape == (10, 6)
    assert torch.allclose(small(x), dense(x), atol=1e-5)
    assert torch.equal(small.dense_weight(), dense.weight.t())


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize(("layer", "text", "shape"), CASES, ids=[f"{type(c[0]).__name__} {c[1]}" for c in CASES])
def test_condensed_is_masked(layer: Layer, text: str, shape: tuple[int, ...], batch: int) -> None:
    dense, small = masked(layer, text)
    x = torch.randn(batch, *shape, requires_grad=True)
    wanted, found = dense(x), small(x)
    assert torch.allclose(found, wanted, atol=1e-5)
    probe = torch.randn_like(wanted)
    (for_x,) = torch.autograd.grad((found * probe).sum(), x, retain_graph=True)
    (wanted_x,) = torch.autograd.grad((wanted * probe).sum(), x, retain_graph=True)
    assert torch.allclose(for_x, wanted_x, atol=1e-5)
    (for_values,) = torch.autograd.grad((found * probe).sum(), small.values)
    (for_weight,) = torch.autograd.grad((wanted * probe).sum(), dense.weight)
    index = kernels.wide(small.index).long()  # type: ignore[arg-type]
    assert torch.allclose(for_values, for_weight.reshape(len(for_weight), -1).gather(1, index), atol=1e-4)
    assert torch.equal(small.dense_weight(), dense.weight)  # type: ignore[operator]
    assert bool((index[:, 1:] > index[:, :-1]).all())


@pytest.mark.parametrize("batch", [1, 20])
def test_both_ways_of_the_kernel_agree_without_numba_too(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, small = masked(nn.Linear(64, 32), "weight 25%")
    x = torch.randn(batch, 64)
    first = small(x)
    with torch.no_grad():
        assert torch.equal(small(x), first)
    monkeypatch.setattr(loops, "available", lambda: False)
    assert torch.allclose(small(x), first, atol=1e-5)


@pytest.mark.parametrize("given_as", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index_as", [torch.int16, torch.int32, torch.int64])
def test_every_number_of_examples_weights_and_rows(
    given_as: torch.dtype, kind: torch.dtype, index_as: torch.dtype
) -> None:
    """The loops' edges: vectors and tiles that are not full, weights that are no multiple of what is added at once."""
    pytest.importorskip("numba")
    for kept, rows, inputs in ((1, 7, 40), (2, 16, 32), (5, 33, 74), (8, 1, 8), (21, 48, 47)):
        index = torch.stack([torch.randperm(inputs)[:kept].sort().values for _ in range(rows)])
        values = torch.randn(rows, kept).to(kind)
        dense = torch.zeros(rows, inputs).scatter_(1, index, values.float())
        columns = index.to(index_as)
        for examples in (0, 1, 3, 4, 15, 16, 17, 32, 33, 48, 64, 65, 96, 200):
            x = torch.randn(inputs, examples).t().to(given_as)
            found = kernels.product(x, values, columns)
            assert found.shape == (examples, rows)
            assert found.dtype == given_as
            assert found.is_contiguous()
            # The sums are fp32, so that only the output's own rounding is left.
            wanted = x.float() @ dense.t()
            assert torch.allclose(found.float(), wanted, rtol=torch.finfo(given_as).eps, atol=1e-5)


def test_examples_that_share_a_word_of_bf16_do_not_mix() -> None:
    index = torch.stack([torch.randperm(40)[:8].sort().values for _ in range(20)])
    values = torch.randn(20, 8)
    x = torch.randn(64, 40).bfloat16()
    before = kernels.product(x, values, index)
    for broken, value in ((3, float("nan")), (18, float("inf")), (63, -0.0), (40, 1e-40)):
        x[broken] = value
    after = kernels.product(x, values, index)
    others = [i for i in range(64) if i not in (3, 18, 63, 40)]
    assert torch.equal(after[others], before[others])
    assert after[3].isnan().all()
    assert not after[18].isfinite().any()
    assert not after[63].any()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("batch", [2, 40])
def test_in_autocast_it_answers_as_the_dense_layers(grad: bool, batch: int) -> None:
    net, layouts, masks = small_net()
    small = condense_(copy.deepcopy(net), layouts, masks)  # type: ignore[arg-type]
    x = torch.randn(batch, 3, 8, 8)
    with torch.set_grad_enabled(grad):
        exact = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            wanted, found = net(x), small(x)
            assert net[0](x).dtype == small[0](x).dtype == torch.bfloat16  # type: ignore[index, operator]
            assert found.dtype == wanted.dtype
            if grad:
                found.float().sum().backward()
                gradients = [p.grad for p in small.parameters()]
                assert all(g is not None and g.isfinite().all() for g in gradients)
        # Its weights are not rounded to bf16, those of the dense layers are.
        assert (found - exact).norm() <= 1.5 * (wanted - exact).norm()
    with torch.autocast("cpu", torch.bfloat16):
        double = copy.deepcopy(small).double()
        assert double(x.double()).dtype == torch.float64


def test_a_tile_is_transposed_and_nothing_else_is_written() -> None:
    numba = pytest.importorskip("numba")
    from prunus.kernels.tiles import transposed_tile

    tile = transposed_tile()
    x, out = torch.randn(20, 37), torch.zeros(40, 19)
    numba.njit(lambda given, made: tile(given, 3, 21, made, 9, 2))(x.numpy(), out.numpy())
    wanted = torch.zeros(40, 19)
    wanted[9:25, 2:18] = x[3:19, 21:37].t()
    assert torch.equal(out, wanted)


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    _, small = masked(nn.Linear(64, 133), "weight 25%")
    x = torch.randn(20, 64)
    alone = kernels.product(x, small.values, small.index)  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(loops, "PRODUCTS_FOR_A_THREAD", 1)
    assert torch.equal(kernels.product(x, small.values, small.index), alone)  # type: ignore[arg-type]


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    }
)


@given(
    setting=CONVOLUTIONS, size=st.tuples(st.integers(10, 25), st.integers(10, 25)), channels=st.integers(1, 3),
    batch=st.integers(1, 3), share=st.floats(0, 1), kind=st.sampled_from([torch.float32, torch.bfloat16]),
    given_as=st.sampled_from([torch.float32, torch.bfloat16]),
    flip=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_convolutions_of_every_geometry(
    setting: dict[str, Any], size: tuple[int, int], channels: int, batch: int, share: float, kind: torch.dtype,
    given_as: torch.dtype, flip: bool, seed: int,
) -> None:  # fmt: skip
    pytest.importorskip("numba")
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, 5, **setting)
    flat = conv.weight[0].numel()
    kept = max(1, round(share * flat))
    index = torch.stack([torch.randperm(flat)[:kept].sort().values for _ in range(5)])
    with torch.no_grad():
        conv.weight.copy_(conv.weight.to(kind))
        conv.weight.mul_(torch.zeros(5, flat).scatter_(1, index, 1.0).view_as(conv.weight))
    small = CondensedConv2d(conv, index)
    small.values = nn.Parameter(small.values.detach().to(kind))
    x = torch.randn(batch, channels, *size).to(given_as)
    x = x.transpose(2, 3).contiguous().transpose(2, 3) if flip else x
    with torch.no_grad():
        wanted, found = conv(x.float()), small(x)
        assert found.shape == wanted.shape
        assert found.dtype == given_as
        # The bias is added after the first rounding, which a larger sum than the output may have had.
        close = {"rtol": 0.0, "atol": 1e-5 + (0.02 if given_as == torch.bfloat16 else 0.0)}
        assert torch.allclose(found.float(), wanted, **close)
        # Without the compiled loops the patches are copied out.
        with mock.patch.object(loops, "available", return_value=False):
            assert torch.allclose(small(x).float(), wanted, **close)


def test_images_of_another_shape_are_refused_and_single_ones_taken() -> None:
    dense, small = masked(nn.Conv2d(4, 6, 3), "weight 25%")
    x = torch.randn(4, 7, 9)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            assert torch.allclose(small(x), dense(x), atol=1e-5)
            for wrong in (torch.randn(2, 3, 7, 9), torch.randn(2, 5, 7, 9), torch.randn(4, 7)):
                with pytest.raises(DataError, match=r"give \[B, 4, H, W\]"):
                    small(wrong)
    pytest.importorskip("numba")
    with torch.no_grad(), pytest.raises(DataError, match="does not fit"):
        small(torch.randn(1, 4, 2, 9))


def test_inputs_of_another_width_are_refused() -> None:
    """The loops would read beyond the example; 32 x 2 numbers must not pass for one example of 64 either."""
    _, small = masked(nn.Linear(64, 32), "weight 25%")
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            for wrong in (torch.randn(2, 32), torch.randn(63), torch.randn(2, 2, 65)):
                with pytest.raises(DataError, match=r"give \[\.\.\., 64\]"):
                    small(wrong)
            assert small(torch.randn(64)).shape == (32,)
            assert small(torch.randn(0, 64)).shape == (0, 32)


def test_columns_beyond_a_signed_short_survive() -> None:
    index = torch.tensor([[0, 32_767, 32_768, 65_535], [5, 40_000, 50_000, 60_000]])
    layer = CondensedLinear(torch.randn(2, 4), index, 65_536)
    assert layer.index.dtype == torch.int16
    assert torch.equal(kernels.wide(layer.index).long(), index)
    x = torch.randn(1, 65_536)
    wanted = (layer.values * x[0][index]).sum(1)
    assert torch.allclose(layer(x)[0], wanted + 0, atol=1e-5)
    assert torch.allclose(layer(x.expand(20, -1))[7], wanted, atol=1e-5)
    assert CondensedLinear(torch.randn(1, 2), torch.tensor([[0, 70_000]]), 70_001).index.dtype == torch.int32


def small_net() -> tuple[nn.Module, dict[str, object], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    layouts, masks = {}, {}
    for name, text in (("0", "weight 20%"), ("4", "weight 25%")):
        layer = net.get_submodule(name)
        layouts[name] = Pattern.parse(text).layout(layer, name)  # type: ignore[arg-type]
        masks[name] = largest(gumbel(layouts[name].rows, layouts[name].n, (1,)), layouts[name].k)
        with torch.no_grad():
            layer.weight.mul_(layouts[name].on_weight(masks[name]))  # type: ignore[operator, union-attr]
    return net.eval(), layouts, masks  # type: ignore[return-value]


def test_a_model_is_condensed_exported_compiled_saved_and_made_dense_again() -> None:
    net, layouts, masks = small_net()
    x = torch.randn(4, 3, 8, 8)
    wanted = net(x)
    small = condense_(copy.deepcopy(net), layouts, masks)  # type: ignore[arg-type]
    assert isinstance(small[0], CondensedConv2d)  # type: ignore[index]
    assert torch.allclose(small(x), wanted, atol=1e-5)
    program = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.randn(11, 3, 8, 8)
    assert torch.allclose(program.module()(more), net(more), atol=1e-5)
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), wanted, atol=1e-5)
    twin = condense_(copy.deepcopy(net), layouts, masks)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    twin.load_state_dict(small.state_dict())
    assert torch.equal(twin(x), small(x))
    back = densify_(copy.deepcopy(small))
    assert [type(m) for m in back] == [type(m) for m in net]  # type: ignore[attr-defined]
    assert torch.equal(back(x), wanted)


def test_the_operation_passes_torchs_own_checks() -> None:
    index = torch.tensor([[0, 2], [1, 3], [0, 3]], dtype=torch.int32)
    x, values = torch.randn(12, 4, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    torch.library.opcheck(kernels.condensed, (x, values, index))
    images = torch.randn(2, 1, 5, 4, requires_grad=True)
    torch.library.opcheck(kernels.condensed_conv2d, (images, values, index, [2, 2], [1, 2], [1, 0], [2, 1]))


def test_half_precision_values() -> None:
    dense, small = masked(nn.Linear(64, 32), "weight 25%")
    half = copy.deepcopy(small)
    half.values = nn.Parameter(half.values.detach().bfloat16())  # type: ignore[union-attr, operator]
    for batch in (1, 30):
        x = torch.randn(batch, 64)
        assert torch.allclose(half(x), dense(x), atol=0.03)


def test_what_can_not_be_condensed_is_refused_and_the_model_unchanged() -> None:
    net, layouts, masks = small_net()
    before = [type(m) for m in net]  # type: ignore[attr-defined]
    with torch.no_grad():
        net[4].weight.add_(1)  # type: ignore[index, union-attr, operator]
    with pytest.raises(ConfigError, match=r"(?s)'4'.*not zero"):
        condense_(net, layouts, masks)  # type: ignore[arg-type]
    assert [type(m) for m in net] == before  # type: ignore[attr-defined]
    layer = nn.Linear(8, 4)
    layout = Pattern.parse("filter 50%").layout(layer, "l")
    with pytest.raises(ConfigError, match="filter 50%"):
        condense(layer, layout, torch.tensor([[True, False, True, False]]))
    with pytest.raises(ConfigError, match="groups=2"):
        CondensedConv2d(nn.Conv2d(4, 4, 1, groups=2), torch.zeros(4, 1, dtype=torch.long))
    for index in ([[0, 0], [0, 1]], [[1, 0], [0, 1]], [[0, 4], [0, 1]], [[-1, 0], [0, 1]]):
        with pytest.raises(ConfigError, match="ascend"):
            CondensedLinear(torch.randn(2, 2), torch.tensor(index), 4)
    with pytest.raises(ConfigError, match="shape"):
        CondensedLinear(torch.randn(2, 2), torch.tensor([[0, 1]]), 4)


def test_it_trains() -> None:
    torch.manual_seed(0)
    _, small = masked(nn.Linear(12, 3), "weight 50%")
    x, y = torch.randn(40, 12), torch.randn(40, 3)
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(small(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
