"""What the command line adds to a saved run for others' tools: an ONNX file, a folder for `from_pretrained`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from prunus.errors import PruneError
from prunus.export.onnx import onnx_bytes
from prunus.export.pretrained import write_pretrained
from prunus.export.run import RunFolder
from prunus.plan.plan import Plan
from prunus.surgery.configuration import expressed

TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")


def add_onnx(saved: RunFolder, model: nn.Module, example_inputs: Any, say: Callable[[str], None]) -> None:
    """Write `model.onnx` into the folder; `say` receives how well it agrees with the model."""
    with saved.standing():
        data, error = onnx_bytes(model, example_inputs)
        saved.add("model.onnx", data)
    say(f"ONNX agrees with PyTorch: largest relative difference {error:.1e}")


def add_pretrained(
    saved: RunFolder, model: nn.Module, plan: Plan, example_inputs: Any, origin: Path, say: Callable[[str], None]
) -> None:
    """Write `pretrained/` for stock `from_pretrained` where the configuration can say the widths; `say` receives which.

    Args:
        saved: the run's folder.
        model: the smaller model.
        plan: how it was cut.
        example_inputs: inputs to compare with.
        origin: where the dense model came from; a tokenizer's files that lie there are copied.
        say: receives a line of text.
    """
    try:
        config = expressed(model, plan)
        with saved.adding("pretrained") as folder:
            folder.mkdir()
            write_pretrained(model, config, folder, example_inputs)
            for file in origin.iterdir() if origin.is_dir() else ():
                if not (folder / file.name).exists() and file.suffix in TOKENIZER_FILES:
                    shutil.copy2(file, folder)
    except PruneError as error:
        say(f"no folder for from_pretrained: {error.what}; prunus.load reads the artifact")
        return
    say(f"from_pretrained reads {saved.path / 'pretrained'}")
