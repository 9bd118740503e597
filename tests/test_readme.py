"""The Python code that the documents show runs as it stands, on a small stand-in for the reader's network and data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus
from documents import DOCUMENTS, blocks
from prunus.data.registry import DATA_SOURCES
from prunus.formats import EXPORTERS
from prunus.graph.registry import RULES
from prunus.kernels import masks, products
from prunus.methods import METHODS
from prunus.models.loaded import MODEL_SOURCES
from prunus.models.registry import import_all
from prunus.plan.resources import RESOURCES

ROOT = Path(__file__).parents[1]
WITH_CODE = [document for document in DOCUMENTS if blocks(document, "python")]


class MyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


def stand_ins() -> dict[str, Any]:
    """What the documents take from their reader."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(16, 4, 6, 6), torch.randint(4, (16,)))
    numbers = TensorDataset(torch.randn(16, 3), torch.randn(16, 1))
    regressor = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    shown = {"model": MyModel().eval(), "MyModel": MyModel, "loader": DataLoader(data, 8)}
    shown["validation_loader"] = DataLoader(data, 8)
    shown |= {"regressor": regressor, "dataset": numbers}
    return {**shown, "example_inputs": data.tensors[0][:2], "prunus": prunus, "torch": torch, "F": F}


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """What the documents register is forgotten afterwards; torch knows the operations that they take for granted."""
    import_all("prunus.formats")  # what registers itself at its first import is not the documents'
    registries: list[dict[str, Any]] = [EXPORTERS, RULES, METHODS, MODEL_SOURCES.kinds, DATA_SOURCES.kinds, RESOURCES]
    before = [dict(known) for known in registries]
    library = torch.library.Library("mylib", "FRAGMENT")
    library.define("swish_and_scale(Tensor x) -> Tensor")
    library.define("as_image(Tensor x, int channels) -> Tensor")
    yield
    library._destroy()
    for known, old in zip(registries, before, strict=True):
        known.clear()
        known.update(old)


@pytest.mark.parametrize("document", WITH_CODE)
def test_python_code_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Compiling the loops would take longer than all documents together.
    monkeypatch.setattr(masks, "available", lambda: False)
    monkeypatch.setattr(products, "available", lambda: False)
    names = stand_ins()
    for block in blocks(document, "python"):
        code = compile(block.text, f"{document}, line {block.line}", "exec")
        if not block.reason:
            exec(code, names)


def test_the_readme_fits_one_screen() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 120
