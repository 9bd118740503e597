"""The quantiser (oracle 18): idempotent, at most half a step off, zeros stay, gradients pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import ConfigError
from prunus.masks.quantize import on_grid, quantized, scale_of, stored_bits


@given(bits=st.sampled_from([8, 4, 2, 1]), per_channel=st.booleans(), seed=st.integers(0, 2**20))
def test_idempotent_close_and_zeros_stay(bits: int, per_channel: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    values[torch.rand(4, 6, generator=generator) < 0.4] = 0
    once = quantized(values, bits, per_channel=per_channel)  # type: ignore[arg-type]
    assert torch.equal(once == 0, (once == 0) | (values == 0))
    twice = quantized(once, bits, per_channel=per_channel)  # type: ignore[arg-type]
    assert torch.allclose(twice, once, rtol=1e-12, atol=0)
    scale = scale_of(values, bits, per_channel=per_channel)
    levels = on_grid(values, scale, bits)
    assert torch.equal(levels, levels.round())
    if bits > 1:
        assert float(levels.abs().max()) <= 2 ** (bits - 1) - 1
        assert bool(((levels - values / scale).abs() <= 0.5 + 1e-9).all())
    else:
        assert torch.equal(levels, values.sign())


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_the_gradient_passes_as_it_is(bits: int) -> None:
    values = torch.randn(3, 5, requires_grad=True)
    weight = torch.randn(3, 5)
    (quantized(values, bits) * weight).sum().backward()  # type: ignore[arg-type]
    assert values.grad is not None
    assert torch.equal(values.grad, weight)


def test_the_binary_step_is_the_best_one() -> None:
    values = torch.randn(50, dtype=torch.float64)
    best = min(
        torch.linspace(0.1, 3, 3000, dtype=torch.float64).tolist(),
        key=lambda s: float((values - s * values.sign()).square().sum()),
    )
    assert float(scale_of(values, 1)) == pytest.approx(best, abs=2e-3)


def test_the_released_scheme() -> None:
    values = torch.tensor([-2.0, -0.4, 0.0, 0.1, 1.0], requires_grad=True)
    found = quantized(values, 8, scheme="released")
    assert found.tolist() == torch.tensor([-127.5, -25.5, 0, 6.375, 63.75]).round().tolist()
    found.sum().backward()
    assert values.grad is not None
    # d/dv of s clip(0.4 v): 0.4 s for the others, and through s = 127.5 / max|v| for the largest one.
    scale = 127.5 / 2
    inner = (0.4 * values.detach()).clamp(-1, 1)
    assert values.grad[1:].tolist() == pytest.approx([0.4 * scale] * 4)
    assert float(values.grad[0]) == pytest.approx(0.4 * scale + float(inner.sum()) * scale / 2, rel=1e-5)


def test_all_zero_and_sizes() -> None:
    assert torch.equal(quantized(torch.zeros(3), 8), torch.zeros(3))
    assert torch.equal(quantized(torch.zeros(3), 8, scheme="released"), torch.zeros(3))
    assert stored_bits(kept=410, n=4096, rows=4096, bits=8) == 4096 * 410 * (8 + 12)
    assert stored_bits(kept=2, n=4, rows=3, bits=4) == 3 * 2 * (4 + 2)
    assert stored_bits(kept=1, n=1, rows=1, bits=8) == 8


def test_other_settings_are_refused() -> None:
    for options in ({"bits": 3}, {"bits": 4, "scheme": "released"}, {"bits": 8, "scheme": "other"}):
        with pytest.raises(ConfigError, match="quantisation"):
            quantized(torch.ones(2), **options)  # type: ignore[arg-type]
