"""Weights from files: compared with the model by name, shape and dtype before a single tensor is read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from prunus.errors import ArtifactError, ConfigError

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.complex64: "C64",
}  # fmt: skip
"""As the safetensors format writes them."""
WRAPPED = ("state_dict", "model_state_dict", "model")
"""Where checkpoints of training loops hold the weights."""
PREFIXES = ("module.", "_orig_mod.")
"""Of the names in data-parallel and in compiled modules."""


def load_weights_(model: nn.Module, path: Path) -> None:
    """Copy the tensors of a safetensors file into the model, which must have exactly these.

    Tied tensors are stored once, under their first name. NaN and infinity are loaded and warned of.

    Args:
        model: takes the values; nothing of it has changed if this raises.
        path: the file.

    Raises:
        ArtifactError: the file is damaged, or has other names, shapes or dtypes than the model.
    """
    wanted = unique_tensors(model)
    try:
        with safe_open(path, framework="pt") as file:
            _compare(_described(file), {n: (tuple(t.shape), DTYPES.get(t.dtype)) for n, t in wanted.items()}, path)
            stored = {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(str(path), f"cannot be read: {error}", "copy the artifact again") from error
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])
    if odd := not_finite(stored):
        warnings.warn(f"{path}: {odd[0]!r} holds NaN or infinity", RuntimeWarning, stacklevel=3)


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and stored buffers under their first name, the tensors themselves; tied ones appear once."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    floating = {n: t for n, t in tensors.items() if t.is_floating_point() or t.is_complex()}
    return [n for n, t in floating.items() if not bool(torch.isfinite(t).all())]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Weights by name from `.safetensors`, or from a file of `torch.save` that holds tensors alone.

    A file that wraps them as `{"state_dict": ...}`, `"model_state_dict"` or `"model"` is understood. The names are the
    file's.

    Raises:
        ConfigError: the file can't be read without running code that is in it, holds something else than tensors, or
            NaN or infinity.
    """
    where, fix = f"--weights {path}", "give the state_dict of this model: torch.save(model.state_dict(), path)"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(where, "no such file", fix) from error
    except Exception as error:  # the archive's, the unpickler's and torch's own
        held = "it holds more than tensors, which only running code from it could restore"
        what = (
            held if "weights_only" in str(error) or "Unsupported" in str(error) else "it is damaged or of no known kind"
        )
        raise ConfigError(where, what, fix) from error
    for name in WRAPPED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ConfigError(where, f"it holds a {type(found).__name__}, not tensors by name", fix)
    if odd := not_finite(found):
        raise ConfigError(where, f"{odd[0]!r} holds NaN or infinity", "give weights of a training that converged")
    return {str(name): tensor for name, tensor in found.items()}


def load_state_dict_(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights by name, also those of a data-parallel or compiled wrapper.

    Raises:
        ConfigError: names or shapes that don't fit, with the first of each kind; the model is as it was.
    """
    wanted = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    while not state.keys() & wanted.keys():
        shorter = {_unwrapped(name): tensor for name, tensor in state.items()}
        if shorter.keys() == state.keys():
            break
        state = shorter
    lacking, more = ([n for n in a if n not in b] for a, b in ((wanted, state), (state, wanted)))
    unlike = [
        f"{n} is {list(state[n].shape)}, the model's {list(t.shape)}"
        for n, t in wanted.items()
        if n in state and state[n].shape != t.shape
    ]
    kinds = (("of another shape: ", unlike), ("not in the file: ", lacking), ("not in the model: ", more))
    wrong = [f"{told}{_first(names)}" for told, names in kinds if names]
    if wrong:
        fitting = sum(n in state for n in wanted) - len(unlike)
        what = f"{fitting} of {len(wanted)} tensors fit; {'; '.join(wrong)}"
        raise ConfigError(where, what, "give a state_dict of this model, or make the model as it was trained")
    model.load_state_dict(dict(state))


def _unwrapped(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _first(names: list[str], count: int = 4) -> str:
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(names[:count])}{rest}"


def _described(file: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return {name: (tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}


def _compare(stored: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    odd = sorted(n for n in {*stored, *expected} if stored.get(n) != expected.get(n))
    if odd:
        raise ArtifactError(
            str(path),
            f"its tensors don't fit the model, first {odd[0]!r}: stored {_text(stored.get(odd[0]))}, the model has "
            f"{_text(expected.get(odd[0]))}",
            "pass the factory of the model that the plan was made for, in the same dtype; of a model pruned twice, "
            "that is the result of the first time",
        )


def _text(described: tuple[tuple[int, ...], str] | None) -> str:
    return "none" if described is None else f"{described[1]} {list(described[0])}"
