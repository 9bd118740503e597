"""Masks on disk: packed bits by layer, with the pattern each belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from prunus.errors import ArtifactError, PruneError
from prunus.masks.layers import layer_of
from prunus.masks.patterns import Layout, Pattern
from prunus.masks.quantize import Bits, stored_bits


@dataclass(frozen=True)
class LayerMask:
    """What is kept inside one weight.

    Attributes:
        pattern: the text of the pattern.
        mask: bool [R, n], k True in every row.
        bits: of the values, if they lie on a grid.
        input_scale: step of the 8-bit grid that the layer's inputs were trained on, if they were.
    """

    pattern: str
    mask: Tensor
    bits: int | None = None
    input_scale: float | None = None

    @property
    def kept(self) -> int:
        """Elements of the choices that stay, all rows together."""
        return int(self.mask.sum())

    def layout(self, model: torch.nn.Module, name: str) -> Layout:
        """How the mask lies on the layer of that name. Raises ConfigError if the pattern does not fit it."""
        return Pattern.parse(self.pattern).layout(layer_of(model, name), name)

    def stored_bytes(self, weights_per_element: int = 1) -> int:
        """Bytes of values and indices, counted exactly: kept values x bits and one index per element."""
        rows, n = self.mask.shape
        k = int(self.mask[0].sum())
        bits = self.bits or 32
        indices = stored_bits(k, n, rows, 0)
        return -(-(rows * k * weights_per_element * bits + indices) // 8)


def packed_masks(masks: Mapping[str, LayerMask]) -> bytes:
    """Masks as packed bits, in the safetensors format."""
    packed = {name: np.packbits(m.mask.cpu().numpy(), axis=1) for name, m in masks.items()}
    about = {name: f"{m.pattern}|{m.mask.shape[1]}|{m.bits or ''}|{m.input_scale or ''}" for name, m in masks.items()}
    return save(packed, metadata=about)


def read_masks(path: Path) -> dict[str, LayerMask]:
    """Read masks.

    Raises:
        ArtifactError: the file is damaged, or a row does not keep as many as the others.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            return {name: _unpacked(name, file.get_tensor(name), about[name]) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, PruneError) as error:
        raise ArtifactError(str(path), f"damaged: {error}", "copy the artifact again") from error


def _unpacked(name: str, packed: Any, about: str) -> LayerMask:
    pattern, n, bits, scale = about.split("|")
    Pattern.parse(pattern)
    if packed.dtype != np.uint8 or packed.ndim != 2 or -(-int(n) // 8) != packed.shape[1] or not packed.size:
        raise ValueError(f"{name!r} holds {packed.dtype} {list(packed.shape)}, no bits of rows of {n}")
    if (bits and int(bits) not in get_args(Bits)) or (scale and not 0 < float(scale) < math.inf):
        raise ValueError(f"{name!r} tells of {bits!r} bits and of a scale of {scale!r}")
    rows = np.unpackbits(packed, axis=1, count=int(n)).astype(bool)
    if len(set(rows.sum(1).tolist())) != 1:
        raise ValueError(f"rows of {name!r} keep different numbers")
    return LayerMask(pattern, torch.from_numpy(rows), int(bits) if bits else None, float(scale) if scale else None)
