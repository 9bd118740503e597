"""How the pictures of a model are prepared: as the settings say, as the model's configuration does, or as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from prunus.data.preparation import Preparation
from prunus.data.registry import Change, DataRequest, Reading
from prunus.errors import ConfigError, DataError, first_line
from prunus.runtime.extras import from_extra

PREPARATION = "preparation.json"
"""File of an artifact that says how its pictures are prepared."""
SMALL = 64
"""Pictures of no more pixels a side are cropped at random, larger ones zoomed."""


def preparation_of(
    asked: DataRequest, sizes: set[tuple[int, int]], where: str
) -> tuple[Preparation, tuple[Change, ...]]:
    """What is done to pictures for a model, and what at random to train it.

    Args:
        asked: model, network and settings.
        sizes: that the pictures have, as far as was looked.
        where: names the data in refusals.

    Raises:
        ConfigError: the model's own configuration can't be read, or numbers that don't fit the channels.
        DataError: pictures of several sizes, and nothing says which the network takes.
    """
    reading = asked.reading
    own = own_preparation(asked.model, asked.network) or Preparation()
    channels = reading.channels or own.channels
    mean, std = reading.mean or own.mean, reading.std or own.std
    if {len(mean), len(std)} - {1, channels}:
        what = f"mean {mean} and std {std} do not fit {channels} channels"
        raise ConfigError(where, what, f"give one value, or {channels}")
    size, resize = _sizes(own, reading)
    if size is None:
        if len(sizes) > 1:
            some = ", ".join(f"{h} x {w}" for h, w in sorted(sizes)[:4])
            what = f"its pictures have several sizes ({some}, ...), and nothing says which the network takes"
            raise DataError(where, what, "say it: --load size=224 (Reading(size=224)), for example")
        size = next(iter(sizes), None)
    interpolation = reading.interpolation or own.interpolation
    made = Preparation(size, resize, mean, std, interpolation, channels, own.floors)
    return made, _changes(reading, size)


def _sizes(own: Preparation, reading: Reading) -> tuple[tuple[int, int] | None, int | tuple[int, int] | None]:
    """What the network gets, and what pictures are resized to before the crop."""
    if reading.size is None and reading.crop is None:
        return own.size, own.resize
    given = own.size if reading.size is None else reading.size
    if given is None:
        raise ConfigError("crop", "a share of a size that nobody has said", "say size=224, for example, too")
    height, width = (given, given) if isinstance(given, int) else given
    crop = 1.0 if reading.crop is None else reading.crop
    if height == width:
        return (height, width), math.floor(height / crop)
    return (height, width), (math.floor(height / crop), math.floor(width / crop))


def _changes(reading: Reading, size: tuple[int, int] | None) -> tuple[Change, ...]:
    if reading.augment == "none":
        return ()
    if reading.augment != "auto":
        return reading.augment
    return ("crop", "mirror") if size is None or max(size) <= SMALL else ("zoom", "mirror")


def own_preparation(model: str | None, network: nn.Module | None) -> Preparation | None:
    """As the artifact, the network's own configuration (timm) or its processor (transformers) says; None if none does.

    Raises:
        ConfigError: it is there and can't be read, or asks for more than resizing, cropping and normalising.
    """
    held = None if model is None else Path(model) / PREPARATION
    if held is not None and held.is_file():
        return _read(held)
    trained = getattr(network, "pretrained_cfg", None)
    if isinstance(trained, Mapping) and trained.get("input_size"):
        return of_timm(trained)
    if model is not None and model.startswith("hf:"):
        return of_processor(model.removeprefix("hf:"))
    return None


def _read(path: Path) -> Preparation:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in held.items()}
        return Preparation(**fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(str(path), f"it can't be read: {first_line(error)}", "write the artifact again") from error


def written(preparation: Preparation) -> bytes:
    """What `own_preparation` reads in an artifact."""
    return json.dumps(asdict(preparation), indent=1).encode()


def of_timm(trained: Mapping[str, Any]) -> Preparation:
    """As `timm.data.create_transform` does it for evaluation: resized by the shorter side, the middle kept."""
    channels, height, width = trained["input_size"]
    crop = trained.get("crop_pct") or 0.875
    squash = trained.get("crop_mode") == "squash" or height != width
    resize: int | tuple[int, int] = math.floor(height / crop)
    if squash:
        resize = (math.floor(height / crop), math.floor(width / crop))
    mean, std = (tuple(map(float, trained.get(k) or d)) for k, d in (("mean", (0.0,)), ("std", (1.0,))))
    return Preparation((height, width), resize, mean, std, trained.get("interpolation") or "bicubic", channels)


def of_processor(name: str) -> Preparation | None:
    """As the image processor of a transformers model does it; None if it has none.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigError: a processor that does more than resize, crop its middle and normalise.
    """
    where = f"image processor of 'hf:{name}'"
    transformers = from_extra("transformers", "hf", where)
    try:
        found: Any = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):  # a model of texts has none
        return None
    scale = getattr(found, "rescale_factor", 1 / 255) if getattr(found, "do_rescale", True) else 1.0
    if abs(scale * 255 - 1) > 1e-6 or getattr(found, "do_pad", False):
        fix = "use FILE.py:callable that returns data prepared by it"
        raise ConfigError(where, "it does more than resize, crop and normalise", fix)
    normal = getattr(found, "do_normalize", False)
    mean, std = (
        (tuple(map(float, getattr(found, k))) for k in ("image_mean", "image_std")) if normal else ((0.0,), (1.0,))
    )
    resample = getattr(found, "resample", None)
    words = {0: "nearest", 1: "lanczos", 3: "bicubic"}
    word = "bilinear" if resample is None else words.get(int(resample), "bilinear")
    size, resize = _processor_sizes(found)
    return Preparation(size, resize, mean, std, word, floors=True)


def _processor_sizes(found: Any) -> tuple[tuple[int, int] | None, int | tuple[int, int] | None]:
    size, resize = None, None
    given, short = _pair(getattr(found, "size", None)), _short(getattr(found, "size", None))
    share = getattr(found, "crop_pct", None)
    if getattr(found, "do_resize", False) and short is not None and share is not None:  # ConvNeXT's own way
        if short >= 384:
            return (short, short), (short, short)
        return (short, short), int(short / share)
    if getattr(found, "do_resize", False):
        size, resize = given, given if given is not None else short
    if getattr(found, "do_center_crop", False):
        size = _pair(getattr(found, "crop_size", None)) or size
    if size is None and short is not None:
        size = (short, short)
    return size, resize


def _pair(size: Any) -> tuple[int, int] | None:
    height, width = (
        getattr(size, k, None) or (size.get(k) if isinstance(size, Mapping) else None) for k in ("height", "width")
    )
    return None if height is None or width is None else (int(height), int(width))


def _short(size: Any) -> int | None:
    found = getattr(size, "shortest_edge", None) or (size.get("shortest_edge") if isinstance(size, Mapping) else None)
    return None if found is None else int(found)
