"""How often each unit is among the best of several drawn comparisons."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def times_best(values: Tensor, k: int, rows: npt.NDArray[np.int64] | None = None) -> Tensor:
    """In how many draws each unit is among the `k` largest, fp32 [K] on the CPU.

    Args:
        values: what units are compared by, [draws, K], on the CPU.
        k: units that stay.
        rows: row of each unit where the same number stays in every row, [K]; None: all are compared with all.
    """
    hits = torch.zeros(values.shape[1], dtype=torch.float32, device="cpu")
    count = 1 if rows is None else int(rows.max()) + 1
    for row in range(count):
        units = torch.arange(len(hits), device="cpu") if rows is None else torch.from_numpy(np.flatnonzero(rows == row))
        inside = values[:, units]
        best = torch.zeros(inside.shape, dtype=torch.float32, device="cpu")
        hits[units] = best.scatter_(1, inside.topk(k // count, dim=1).indices, 1.0).sum(0)
    return hits
