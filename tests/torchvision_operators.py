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


def stand_in_for_suppression() -> None:
    """Let detectors run beside another build of torch: suppression of overlapping boxes by plain torch."""
    declare_torchvision_operators()
    if not _libraries or importlib.util.find_spec("torchvision") is None:
        return
    from torchvision import extension
    from torchvision.ops import boxes

    if extension._has_ops() or boxes._assert_has_ops is not extension._assert_has_ops:
        return
    _libraries[0].impl("nms", suppressed, "CPU")
    boxes._assert_has_ops = lambda: None


def suppressed(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Places of the boxes [N, 4] that overlap no better one by more than the threshold, the best first."""
    left = scores.argsort(descending=True)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    found = []
    while len(left):
        best, left = left[0], left[1:]
        found.append(best)
        low, high = torch.maximum(boxes[best, :2], boxes[left, :2]), torch.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        left = left[shared <= threshold * (areas[best] + areas[left] - shared)]
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.int64)
