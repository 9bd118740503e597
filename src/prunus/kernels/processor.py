"""What is known of the processor's vectors that LLVM's model of it doesn't tell (numba, extra `sparse`)."""

from __future__ import annotations

from functools import cache


@cache
def slow_gathers() -> bool:
    """Whether gathers are slower than single loads: AMD's are made of many small steps."""
    return _name().startswith("znver")


@cache
def fast_dots() -> bool:
    """Whether products of bf16 pairs come at twice the rate of fp32 ones: on AMD's, not on Intel's without AMX."""
    return _name().startswith("znver") and has_dots()


def has_dots() -> bool:
    """Whether there are products of bf16 pairs in 512-bit vectors."""
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx512bf16"))


def _name() -> str:
    from llvmlite import binding

    return str(binding.get_host_cpu_name())
