"""Copies of a model that holds tensors made by a forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import CellType, FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn

from prunus.errors import ConfigError, first_line
from prunus.runtime.arguments import plain, tensors_in

Module = TypeVar("Module", bound=nn.Module)


def copied(model: Module) -> Module:
    """A deep copy, of a model too that keeps results of a forward pass as attributes (masked weights, features).

    torch refuses to copy what has a gradient function; in the copy such a tensor is the same numbers without one.

    Args:
        model: the network; not touched.

    Raises:
        ConfigError: see `check_copyable`.
    """
    check_copyable(model)
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in _held_tensors(model) if not t.is_leaf})


def twin(model: Module) -> Module:
    """A copy with modules, buffers and hooks of its own that shares the parameters: it costs next to no memory.

    Raises:
        ConfigError: see `check_copyable`.
    """
    check_copyable(model)
    held = {id(t): t.detach().clone() for t in _held_tensors(model) if not t.is_leaf}
    return copy.deepcopy(model, held | {id(p): p for p in model.parameters()})


def check_copyable(model: nn.Module) -> None:
    """Find out whether a model can be copied, without copying a number.

    Raises:
        ConfigError: it holds what Python can't copy, or a `forward` was replaced by a function that holds the model,
            so that the copy would run the original.
    """
    _check_forwards(model)
    try:
        tensors = [*model.parameters(), *model.buffers(), *_held_tensors(model)]
        copy.deepcopy(model, {id(t): t for t in tensors})
    except Exception as error:
        fix = "keep locks, files and the like outside of the model"
        raise ConfigError(f"model {type(model).__name__}", f"it can't be copied: {first_line(error)}", fix) from error


def _held_tensors(model: nn.Module) -> list[Tensor]:
    """Tensors in the attributes of modules, in lists and dicts there, and in the plain objects among them."""
    held: list[Any] = [plain(dict(vars(module))) for module in model.modules()]
    return tensors_in(held)


def _check_forwards(model: Module) -> None:
    originals = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if isinstance(forward, FunctionType) and originals & {id(held) for held in _held(forward)}:
            raise ConfigError(
                f"module {name!r}" if name else f"model {type(model).__name__}",
                "its forward was replaced by a function that holds the module, so that a copy would run the original",
                "put the class's own forward back: del module.forward",
            )


def _held(function: FunctionType) -> Iterator[Any]:
    """What a function's closure and defaults hold: objects, and those whose methods they are."""
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    for held in (*defaults, *cells):
        yield getattr(held, "__self__", held)
        if isinstance(held, FunctionType) and held is not function:
            yield from _held(held)
