"""Being here puts this folder on the import path, so that every test can import the zoo."""

import importlib.util
import os

import torch
from hypothesis import settings

settings.register_profile("same every time", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("explore" if os.environ.get("PRUNUS_EXPLORE") else "same every time")

if importlib.util.find_spec("torchvision") is not None and not torch.cuda.is_available():
    # transformers imports torchvision where it is installed; its compiled part may be for another build of torch.
    TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        TORCHVISION.define(schema)
