"""Loops that differ between processors give the same answers, and each processor gets its own."""

from __future__ import annotations

import pytest
import torch

from prunus.kernels import processor
from prunus.kernels import products as loops
from test_packed import weight

pytest.importorskip("numba")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_single_examples_are_the_same_with_gathers_and_loads(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 300)
    for kept in (1, 15, 16, 17, 100):
        values, index = weight(9, kept, 300)
        dense = torch.zeros(9, 300).scatter_(1, index, values.to(kind).float())
        for slow in (True, False):
            monkeypatch.setattr(loops, "slow_gathers", lambda slow=slow: slow)
            loops._gather.cache_clear()
            found = loops.looped(x, values.to(kind), index.to(torch.int16))
            assert torch.allclose(found, x @ dense.t(), rtol=1e-5, atol=1e-5)
    loops._gather.cache_clear()


@pytest.mark.parametrize("kept", [1, 2, 7, 40])
def test_many_bf16_examples_are_the_same_with_products_of_pairs_and_without(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, index = weight(20, kept, 90)
    x = torch.randn(70, 90).bfloat16()
    wanted = x.float() @ torch.zeros(20, 90).scatter_(1, index, values.bfloat16().float()).t()
    for fast in {processor.fast_dots(), False}:
        monkeypatch.setattr(loops, "fast_dots", lambda fast=fast: fast)
        loops._by_rows.cache_clear()
        found = loops.looped(x, values.bfloat16(), index.to(torch.int16))
        assert torch.allclose(found.float(), wanted, rtol=2**-8, atol=1e-5)
    loops._by_rows.cache_clear()


def test_processors_are_told_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from llvmlite import binding

    cases = [("znver4", True, True, True), ("znver3", False, True, False), ("sapphirerapids", True, False, False)]
    for name, pairs, slow, fast in cases:
        monkeypatch.setattr(binding, "get_host_cpu_name", lambda name=name: name)
        monkeypatch.setattr(binding, "get_host_cpu_features", lambda pairs=pairs: {"avx512bf16": pairs})
        processor.slow_gathers.cache_clear()
        processor.fast_dots.cache_clear()
        assert processor.slow_gathers() is slow
        assert processor.fast_dots() is fast
    processor.slow_gathers.cache_clear()
    processor.fast_dots.cache_clear()
