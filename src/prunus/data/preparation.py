"""How a picture becomes what the network gets: resized, cropped, scaled, normalised; and changed at random to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.data.registry import Change

SIXTEEN = ("PNG", "PPM")
"""Files whose pixels are read as numbers of 32 bits where they hold 16."""
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of a random part of a picture, as the networks of the trade are trained with."""
BEYOND = 8
"""The edges are widened by this part of the size for random crops."""


def eight_bits(image: Any) -> Any:
    """A picture of 16 bits a pixel in 8, where Pillow's own conversion cuts off at 255; others as they are.

    Raises:
        ValueError: whole numbers of 32 bits or real ones, whose range nobody knows.
    """
    if image.mode in ("I", "F") and not (image.mode == "I" and image.format in SIXTEEN):
        raise ValueError(
            f"its pixels are numbers of 32 bits (mode {image.mode}), of no known range: save it in 8 or 16"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image


@dataclass(frozen=True)
class Preparation:
    """What is done to every picture.

    Attributes:
        size: height and width that the network gets; None takes them as they are.
        resize: height and width before the crop, or the length of the shorter side; None leaves the picture as it is.
        mean: per channel, of pixels from 0 to 1.
        std: per channel.
        interpolation: name of one of Pillow's.
        channels: 3 (RGB) or 1 (grey).
        floors: the middle of an odd rest is rounded down, as transformers does it, and not to the even number.
    """

    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: str = "bilinear"
    channels: int = 3
    floors: bool = False

    @property
    def mode(self) -> str:
        """Pillow's word for the channels."""
        return "RGB" if self.channels == 3 else "L"

    def describe(self, augment: tuple[Change, ...]) -> str:
        """In one line."""
        across = "sizes as they are" if self.size is None else f"{self.size[0]} x {self.size[1]} pixels"
        numbers = [",".join(f"{v:g}" for v in values) for values in (self.mean, self.std)]
        changed = " and ".join(augment) or "nothing"
        return f"{self.mode}, {across}, mean {numbers[0]}, std {numbers[1]}; at random in training: {changed}"

    def prepared(self, image: Any, augment: tuple[Change, ...] = ()) -> Tensor:
        """A picture of Pillow's as uint8 [C, H, W]; random changes are drawn from torch's global generator.

        Raises:
            ValueError: smaller than the crop, and nothing says that it is resized; or numbers of no known range.
        """
        image = eight_bits(image).convert(self.mode)
        if "zoom" in augment and self.size is not None:
            image = self._zoomed(image)
        else:
            image = self._cropped(self._resized(image), "crop" in augment)
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, self.channels).permute(2, 0, 1)
        if "mirror" in augment and float(torch.rand(())) < 0.5:
            pixels = pixels.flip(2)
        return pixels.contiguous()

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 [B, C, H, W] or [C, H, W] as float32 with mean and deviation taken out."""
        scaled = pixels.float().div_(255.0)
        if self.mean == (0.0,) and self.std == (1.0,):
            return scaled
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=pixels.device).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        return scaled.sub_(mean).div_(std)

    def _resized(self, image: Any) -> Any:
        if self.resize is None:
            return image
        if isinstance(self.resize, int):
            short, long = sorted(image.size)
            other = int(self.resize * long / short)
            width, height = (self.resize, other) if image.width <= image.height else (other, self.resize)
        else:
            height, width = self.resize
        return image if image.size == (width, height) else image.resize((width, height), self._resample)

    def _cropped(self, image: Any, anywhere: bool) -> Any:
        height, width = self.size or (image.height, image.width)
        if (image.height < height or image.width < width) or (self.resize is None and image.size != (width, height)):
            raise ValueError(f"it has {image.height} x {image.width} pixels, not {height} x {width}")
        half = (lambda rest: rest // 2) if self.floors else (lambda rest: round(rest / 2))
        top, left = half(image.height - height), half(image.width - width)
        if anywhere:
            beyond = (round(height / BEYOND), round(width / BEYOND))
            rests = (image.height - height, image.width - width)
            top, left = (int(torch.randint(-b, r + b + 1, ())) for b, r in zip(beyond, rests, strict=True))
        box = (left, top, left + width, top + height)
        return image if box == (0, 0, *image.size) else image.crop(box)  # black beyond the edges

    def _zoomed(self, image: Any) -> Any:
        assert self.size is not None
        width, height = image.size
        for _ in range(TRIES):
            area = width * height * float(torch.empty(()).uniform_(*AREA))
            ratio = math.exp(float(torch.empty(()).uniform_(math.log(RATIO[0]), math.log(RATIO[1]))))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        left, top = (int(torch.randint(0, rest + 1, ())) for rest in (width - w, height - h))
        return image.resize(self.size[::-1], self._resample, box=(left, top, left + w, top + h))

    @property
    def _resample(self) -> Any:
        from PIL import Image

        return Image.Resampling[self.interpolation.upper()]
