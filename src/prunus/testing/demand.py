"""What every check is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.runtime.precision import dtype_name


def demand(fits: bool, sentence: str) -> None:
    """Raise AssertionError with a sentence that says what is wrong, also under `python -O`."""
    if not fits:
        raise AssertionError(sentence)


def demand_vector(value: Tensor, units: int, what: str, dtype: torch.dtype = torch.float32) -> None:
    """One finite number per unit, [units], of a dtype; `what` gave it."""
    demand(isinstance(value, Tensor), f"{what} is a {type(value).__name__}, it must be a tensor")
    found = f"{dtype_name(value.dtype)} {list(value.shape)}"
    wanted = f"{dtype_name(dtype)} [{units}], one number per unit"
    demand(value.shape == (units,) and value.dtype == dtype, f"{what} is {found}, it must be {wanted}")
    demand(bool(torch.isfinite(value).all()), f"{what} holds NaN or infinity")
