"""The compiled loops give what torch's operations give, and what the formulas say."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunus.errors import DataError
from prunus.kernels import masks as compiled
from prunus.kernels import noise as noise_loops
from prunus.masks import layers, sampling
from prunus.masks.layers import MaskedWeight
from prunus.masks.patterns import Pattern
from prunus.masks.sampling import Order, gumbel, largest, vector_jacobian

pytestmark = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")


@given(
    st.integers(1, 5), st.integers(1, 40), st.data(), st.sampled_from(["draw", "index"]),
    st.sampled_from([0.3, 1.0, 5.0]), st.sampled_from([0.1, 1.0, 20.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_gradient_is_that_in_fp64(
    rows: int, n: int, data: Any, order: Order, temperature: float, spread: float
) -> None:
    k = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    z = spread * torch.randn(rows, n, generator=generator)
    g = torch.randn(rows, n, generator=generator)
    mask = largest(z, k)
    found = vector_jacobian(z, mask, g.clone(), k, temperature, order)
    exact = vector_jacobian(z.double(), mask, g.double(), k, temperature, order)
    scale = float(exact.abs().max()) + 1e-6 * float(g.abs().max()) * k / temperature
    assert float((found - exact).abs().max()) <= 2e-5 * scale + 1e-30


def test_equal_values_leave_in_the_order_of_their_columns() -> None:
    z, g = torch.zeros(1, 6), torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    mask = largest(z, 4)
    found = vector_jacobian(z, mask, g.clone(), 4, 1.0, "draw")
    assert torch.allclose(found, vector_jacobian(z, mask, g.clone(), 4, 1.0, "index"))


def test_a_gradient_that_is_a_view_is_overwritten_in_place() -> None:
    z = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    mask, g = largest(z, 2), torch.randn(5, 7).t()
    exact = vector_jacobian(z.double(), mask, g.double(), 2, 1.0, "draw")
    assert torch.allclose(vector_jacobian(z, mask, g, 2, 1.0, "draw").double(), exact, atol=1e-6)


def test_noise_is_the_formula_to_rounding_at_both_ends() -> None:
    top = 2**31 - 1
    bits = np.array([0, 1, 2, 5000, 2**20, 2**30, top - 10**8, -1, -(2**31)], np.int32)
    u = ((bits.astype(np.int64) & top) + 0.5) / 2**31
    exact = -np.log(-np.log1p(-u))
    found = np.empty(len(bits), np.float32)
    noise_loops.gumbel_loops()[0](bits, found)
    # u itself is rounded to fp32, which shows at the lower end alone.
    assert np.abs(found - exact)[:7].max() < 4e-6
    assert found[7] == pytest.approx(-math.log(25 * math.log(2)), abs=1e-5)
    assert found[8] == found[0]


def test_random_words_are_splitmix64() -> None:
    """Its first numbers from 1234567, as the generator's public C code gives them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert noise_loops.words(4, np.uint64(1234567)).tolist() == published


@pytest.mark.parametrize("n", [1, 2, 7, 100, 101])
def test_a_row_of_bits_is_the_same_compiled(n: int) -> None:
    found = np.empty((5, 2 * ((n + 1) // 2)), np.int32)
    for row in range(5):
        noise_loops.row_of_bits()(noise_loops.key_of((n, 1)), row, found[row])
    wanted = noise_loops.random_bits(5, n, (n, 1))
    assert np.array_equal(found[:, :n], wanted)
    assert (wanted >= 0).all()
    assert len(np.unique(wanted)) == wanted.size  # 505 of 2^31: a repetition would be one in 10,000 seeds


def test_noise_without_numba_is_the_same_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    with_numba = gumbel(30, 101, (3, 4))
    monkeypatch.setattr(sampling.kernels, "available", lambda: False)
    without = gumbel(30, 101, (3, 4))
    assert float((with_numba - without).abs().max()) < 4e-6
    assert torch.equal(largest(with_numba, 10), largest(without, 10))


def test_noise_is_standard_gumbel() -> None:
    """Kolmogorov-Smirnov distance below the 1 in 10,000 bound, 2.23 / sqrt(n)."""
    values = gumbel(1, 200_001, (5,)).double().sort().values[0]
    cdf = (-(-values).exp()).exp()
    steps = torch.arange(1, len(values) + 1) / len(values)
    assert float((cdf - steps).abs().max()) < 2.23 / math.sqrt(len(values))


@pytest.mark.parametrize(
    ("layer", "pattern", "direct"),
    [
        (nn.Linear(12, 5), "weight 25%", True),
        (nn.Linear(12, 5), "2:4", True),
        (nn.Conv2d(4, 6, 3), "weight 50%", True),
        (nn.Conv2d(4, 6, 3), "2:4", False),
        (nn.Conv2d(4, 6, 3), "kernel 50%", False),
        (nn.ConvTranspose2d(4, 6, 3), "weight 50%", False),
    ],
)
@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("plain", "draw"),
        ("plain", "index"),
        ("ties", "draw"),
        ("far", "draw"),
        ("likeliest", "draw"),
        ("frozen", "draw"),
    ],
)
def test_a_masked_weight_in_one_pass_is_that_of_torch(
    monkeypatch: pytest.MonkeyPatch, layer: nn.Linear, pattern: str, direct: bool, kind: str, order: Order
) -> None:
    """Also where the pass must give up: equal values, and drawn ones too far apart for sums of exponentials."""
    layout = Pattern.parse(pattern).layout(layer, "layer")
    assert layout.direct == direct
    generator = torch.Generator().manual_seed(0)
    logits = (400 if kind == "far" else 1) * torch.randn(layout.rows, layout.n, generator=generator)
    if kind == "ties":
        logits = torch.full_like(logits, 1e9)  # the noise is below their resolution
    gradient = torch.randn(layer.weight.shape, generator=generator)
    found = []
    for one_pass in (True, False):
        if not one_pass:
            monkeypatch.setattr(layers, "_in_one_pass", lambda *_: False)
        mask = MaskedWeight(layout, logits, seed=3, order=order)
        mask.mode, mask.temperature = "likeliest" if kind == "likeliest" else "sample", 0.7
        mask.logits.requires_grad_(kind != "frozen")
        weight = layer.weight.detach().clone().requires_grad_()
        masked = mask(weight)
        masked.backward(gradient)
        found.append((masked.detach(), weight.grad, mask.logits.grad))
        assert (mask.logits.grad is None) == (kind == "frozen")
    (masked, by_weight, by_logits), (others_masked, others_by_weight, others_by_logits) = found
    assert torch.equal(masked, others_masked)
    assert torch.equal(by_weight, others_by_weight)
    if by_logits is None or others_by_logits is None:
        assert by_logits is others_by_logits
    else:  # far apart, torch's way goes through logarithms in fp32
        assert torch.allclose(by_logits, others_by_logits, rtol=1e-6, atol=1e-4 if kind == "far" else 1e-7)


@given(
    st.integers(1, 4), st.integers(2, 300), st.data(),
    st.sampled_from([0.0, 0.01, 3.0, 1e4]), st.sampled_from([0.1, 1.0, 30.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_counting_finds_the_k_largest_of_any_row(rows: int, n: int, data: Any, spread: float, scale: float) -> None:
    k, seed = data.draw(st.integers(1, n - 1)), data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    logits, weight = spread * torch.randn(rows, n, generator=generator), torch.randn(rows, n, generator=generator)
    found = compiled.draw(logits, weight, (seed,), scale, k, by_draw=True)
    wanted = logits + scale * gumbel(rows, n, (seed,))
    if found is None:
        falling = wanted.sort(1, descending=True).values
        some = min(n, k + 8) - 1  # many of a row are equal
        assert bool((falling[:, k - 1] - falling[:, some] <= 1e-6 * falling[:, k - 1].abs()).any())
        return
    perturbed, mask, masked, drawn = found
    assert mask is not None
    assert torch.allclose(perturbed, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(mask, largest(perturbed, k))
    assert torch.equal(masked, weight * mask)
    assert torch.equal(perturbed.gather(1, drawn.long()), perturbed.topk(k, 1).values)
    assert torch.equal(drawn.long().sort(1).values, mask.nonzero()[:, 1].view(rows, k))
    others = compiled.draw(logits, weight, (seed,), scale, k, by_draw=False, with_mask=False)
    assert others is not None
    assert others[1] is None
    assert torch.equal(others[2], masked)
    assert torch.equal(others[3], drawn.sort(1).values)


def test_of_equals_at_the_limit_the_first_are_drawn_and_gradients_know_it() -> None:
    """Few equals are no reason for the slow way: with 784 fp32 numbers a row some row of a layer has them often."""
    layout = Pattern.parse("weight 50%").layout(nn.Linear(40, 3), "layer")
    logits = torch.randn(3, 40)
    falling = logits[1].argsort(descending=True)
    logits[1, falling[layout.k - 2 : layout.k + 2]] = logits[1, falling[layout.k]].item()
    weight, gradient = torch.randn(3, 40), torch.randn(3, 40)
    found = compiled.draw(logits, weight, (0,), 0.0, layout.k, by_draw=True)
    assert found is not None
    perturbed, mask, _, drawn = found
    wanted = largest(logits, layout.k)
    assert mask is not None
    assert torch.equal(mask, wanted)
    both = compiled.gradients(perturbed, drawn, weight, gradient, 0.7)
    assert both is not None
    assert torch.equal(both[1], gradient * wanted)
    by_mask = vector_jacobian(logits, wanted, gradient * weight, layout.k, 0.7, "draw")
    assert torch.allclose(both[0], by_mask, rtol=1e-5, atol=1e-7)


def test_nan_among_logits_is_refused_in_one_pass_too() -> None:
    layout = Pattern.parse("weight 50%").layout(nn.Linear(4, 2), "layer")
    mask = MaskedWeight(layout, torch.zeros(2, 4))
    with torch.no_grad():
        mask.logits[0, 1] = torch.nan
    with pytest.raises(DataError, match="NaN among what is ranked"):
        mask(torch.ones(2, 4))


def test_draws_do_not_depend_on_the_default_dtype() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, weight = (torch.randn(5, 40, generator=generator) for _ in range(2))
    expected = compiled.draw(logits, weight, (0,), 0.3, 7, by_draw=True)
    torch.set_default_dtype(torch.float64)
    try:
        found = compiled.draw(logits, weight, (0,), 0.3, 7, by_draw=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert expected is not None
    assert found is not None
    assert found[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None)
