"""The global random generators as plain data, so that a later process draws on from where an earlier one stood."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

Plain = dict[str, Any]
"""Tensors, numbers and texts, nested: what `files.resumable` writes."""


def random_state() -> Plain:
    """Where the generators of Python, NumPy and PyTorch stand, on the CPU and on every CUDA device in use."""
    _, words, spent, *gauss = np.random.get_state(legacy=True)
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if on_cuda else [],
        "python": list(random.getstate()[1]),
        "gauss": random.getstate()[2],
        "numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_rest": [int(spent), int(gauss[0]), float(gauss[1])],
    }


def restore_random_state(state: Plain) -> None:
    """Put the generators where `random_state` found them; devices that it did not see stay as they are."""
    torch.set_rng_state(state["torch"])
    for number, of_device in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(of_device, number)
    random.setstate((3, tuple(state["python"]), state["gauss"]))
    spent, has_gauss, gauss = state["numpy_rest"]
    words = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(spent), int(has_gauss), float(gauss)))


def generator_states(device: torch.device) -> list[tuple[torch.device, torch.Tensor]]:
    """Where PyTorch's generators of the CPU and of a CUDA device stand: little enough to note in every step."""
    cpu = [(torch.device("cpu"), torch.get_rng_state())]
    return [*cpu, (device, torch.cuda.get_rng_state(device))] if device.type == "cuda" else cpu


def restore_generators(states: list[tuple[torch.device, torch.Tensor]]) -> None:
    """Put them back."""
    for device, state in states:
        torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)
