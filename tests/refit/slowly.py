"""What a refitted layer must equal: a column for every weight, made by the layer itself, and `lstsq` over all rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[Tensor], Tensor]


def fitted_slowly(
    call: Call, old: Tensor, wanted: Tensor, present: Tensor, outputs: Tensor, constant: bool
) -> tuple[Tensor, Tensor]:
    """The weight of least squares, and what is added to each output; fp64.

    Args:
        call: what the layer makes with a weight, without a bias; channels along dimension 1.
        old: its weight; parts that nothing is read with keep their numbers.
        wanted: what it should make.
        present: which elements of the weight read inputs that stay.
        outputs: which outputs stay.
        constant: whether there is one.
    """
    new, added = old.clone(), torch.zeros(wanted.shape[1], dtype=torch.float64)
    columns: list[list[tuple[int, Tensor]]] = [[] for _ in range(wanted.shape[1])]
    for place in present.reshape(-1).nonzero()[:, 0].tolist():
        single = torch.zeros_like(old).reshape(-1)
        single[place] = 1.0
        made = call(single.reshape(old.shape))
        for output in range(wanted.shape[1]):
            if made[:, output].any():
                columns[output].append((place, made[:, output].reshape(-1)))
    for output in outputs.nonzero()[:, 0].tolist():
        places = [place for place, _ in columns[output]]
        x = torch.stack([column for _, column in columns[output]], 1)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1) if constant else x
        found = torch.linalg.lstsq(x, wanted[:, output].reshape(-1, 1), driver="gelsd").solution[:, 0]
        new.reshape(-1)[places] = found[: len(places)]
        added[output] = found[-1] if constant else 0.0
    return new, added
