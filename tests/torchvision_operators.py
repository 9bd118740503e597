"""torchvision's compiled part fails to load beside another build of torch; timm and transformers need the rest."""

from __future__ import annotations

import importlib.util

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []


def declare_torchvision_operators() -> None:
    """Declare the two operators that torchvision's Python part registers a fake for, once, if it is installed."""
    if _libraries or torch.cuda.is_available() or importlib.util.find_spec("torchvision") is None:
        return
    _libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
    for schema in SCHEMAS:
        _libraries[0].define(schema)
