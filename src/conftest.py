"""What the examples in docstrings find in place (`pytest --doctest-modules src`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.kernels import masks, products

collect_ignore = [] if find_spec("triton") else ["prunus/kernels/triton.py"]


@pytest.fixture(autouse=True)
def names(doctest_namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prunus`, `torch`, `nn` and `F`, the same random numbers for each, and a folder to write to.

    Loops are not compiled: that takes longer than all examples together.
    """
    doctest_namespace.update(prunus=prunus, torch=torch, nn=nn, F=F)
    monkeypatch.chdir(tmp_path)
    for kernels in (masks, products):
        monkeypatch.setattr(kernels, "available", lambda: False)
    torch.manual_seed(0)
