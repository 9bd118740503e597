"""Pictures as text that a page can hold: PNG in data addresses."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt


def png_address(pixels: npt.NDArray[np.uint8]) -> str:
    """A `data:` address with the picture in PNG format.

    Args:
        pixels: uint8 [H, W] grey, or [H, W, 3] colours.

    Example:
        >>> png_address(np.zeros((1, 1), np.uint8))[:30]
        'data:image/png;base64,iVBORw0K'

    Reference:
        PNG specification, third edition (W3C 2025): signature, IHDR, one IDAT with filter 0 in each row, IEND.
    """
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    parts = _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(raw, 9)) + _chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
