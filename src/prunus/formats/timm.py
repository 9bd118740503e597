"""Pruned models of timm as a folder that stock timm loads, where its string of shapes can say the widths.

timm makes the dense model, then puts layers of the shapes in a string into it, as it does for pruned models of its own
(`adapt_model_from_string`). That knows convolutions, depthwise ones among grouped, batch norms and the classifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from prunus.errors import ConfigError, ExportError, first_line
from prunus.formats.registry import Exportable, Exported, exporter
from prunus.proof.comparison import difference
from prunus.runtime.calling import outputs
from prunus.runtime.extras import from_extra

SHAPES, WEIGHTS = "shapes.txt", "model.safetensors"
WHERE = "export 'timm'"


def _timm() -> Any:
    return from_extra("timm", "timm", WHERE)


def _from_timm(subject: Exportable) -> bool:
    return subject.origin.startswith("timm:")


@exporter("timm", file="timm", help="a folder for stock timm of a timm model", check=_timm, suits=_from_timm)
def write_timm_folder(subject: Exportable, path: Path) -> Exported:
    """A folder of `config.json`, `model.safetensors` and the string of shapes, loaded by stock timm and compared.

    Raises:
        ConfigError: no timm model in its own class, or the string can't say its widths.
        ExportError: the loaded model computes something else.
    """
    model = subject.model
    if not (getattr(model, "pretrained_cfg", None) or {}).get("architecture"):
        what = f"a {type(model).__name__} was not made by timm.create_model (a rewritten graph has lost its class)"
        raise ConfigError(WHERE, what, "save an artifact with prunus.save")
    _timm()
    from timm.models import save_for_hf

    save_for_hf(model, path, safe_serialization=True)
    weights = {n: t for n, t in model.state_dict().items() if n.endswith(".weight")}
    (path / SHAPES).write_text("***".join(f"{n}:{list(t.shape)}" for n, t in weights.items()))
    again = _loaded(model, path)
    error, tolerance = difference([outputs(model, subject.example_inputs)], [outputs(again, subject.example_inputs)])
    if not error <= tolerance:
        raise ExportError(str(path), f"the loaded model differs by {error:.1e} (relative)", "report the model")
    return Exported(path, error, f"stock timm reads it (relative difference {error:.1e})")


def _loaded(model: nn.Module, folder: Path) -> nn.Module:
    """What stock timm makes of the folder.

    Raises:
        ConfigError: it has otherwise shaped tensors than the model, or none at all.
    """
    from timm import create_model
    from timm.models import adapt_model_from_string, load_checkpoint

    fix = "save an artifact with prunus.save, or leave the layers that it has no word for whole (ignored_layers)"
    try:
        made: nn.Module = adapt_model_from_string(create_model(f"local-dir:{folder}"), (folder / SHAPES).read_text())
    except Exception as failure:
        what = f"timm can't make the smaller model of its shapes: {first_line(failure)}"
        raise ConfigError(WHERE, what, fix) from failure
    own, found = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, made))
    odd = next((n for n in own | found if own.get(n) != found.get(n)), None)
    if odd is not None:
        what = f"timm makes {odd!r} {found.get(odd)} of the shapes, the pruned model has {own.get(odd)}"
        raise ConfigError(WHERE, what, fix)
    load_checkpoint(made, str(folder / WEIGHTS))
    return made.to(next(model.parameters())).eval()
