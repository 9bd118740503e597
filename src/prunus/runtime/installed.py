"""What is installed, whether it fits together, and what this machine is good for."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from prunus.runtime.extras import EXTRAS
from prunus.runtime.precision import bf16_helps
from prunus.runtime.processor import processor_features, processor_name

NEEDED = ("torch", "numpy", "scipy", "safetensors", "accelerate", "typer", "rich", "jinja2", "pyyaml")
INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
"""Of a processor's features, those that multiply 8-bit numbers at more than the rate of fp32 ones."""


def installed() -> dict[str, str | None]:
    """Versions of what this package needs or can use, by distribution; None where it is not there."""
    wanted = dict.fromkeys([*NEEDED, *(name for names in EXTRAS.values() for name in names), "torchvision"])
    return {name: _version(name) for name in wanted}


def misfit() -> str | None:
    """Why torch and torchvision don't fit, and what to install; None where they do, or torchvision is not there."""
    there = _version("torchvision")
    if there is None:
        return None
    wanted = [r for r in requires("torchvision") or () if r.partition(";")[0].strip().startswith("torch=")]
    told = (
        f"torchvision {there} is built for {wanted[0] if wanted else 'another torch'}, and torch is {torch.__version__}"
    )
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # its compiled part looks for operators that another torch has
        return f"{told} ({error}): pip install torchvision in the version that belongs to this torch"
    return None


def machine() -> dict[str, str]:
    """What this machine is, and what that is good for, by what one would ask."""
    cpu = torch.backends.cpu.get_cpu_capability()
    features = processor_features()
    found = {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": f"{processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, {cpu}",
        "training in bf16": "faster than fp32: taken by itself" if bf16_helps("cpu") else "not faster on the processor",
        "8-bit ONNX": _eight_bits(features),
        "torch.compile": "a C++ compiler is there" if _compiler() else "no C++ compiler: compiled mode can't be timed",
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        faster = "bf16 taken by itself" if bf16_helps("cuda") else "fp32"
        found["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, training in {faster}"
    else:
        found["GPU"] = "none that torch can use"
    return found


def _eight_bits(features: frozenset[str]) -> str:
    if not features:
        return "not known here"
    return "products of 8 bits are fast" if features & INT8 else "products of 8 bits are no faster than fp32"


def _compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++", "cl"))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
