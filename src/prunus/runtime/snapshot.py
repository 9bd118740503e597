"""What code may change in a model by running it, and how that is put back: attributes, buffers, containers, flags.

`forward` may make an attribute at its first call, count calls in a buffer, keep its last features in a list. Where the
model is run only to look at it, all of that is undone.
"""

from __future__ import annotations

import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DEPTH = 4
"""How many containers and objects deep below a module its state is looked for."""

_NUMBERS = (str, bytes, int, float, complex, type(None))
_OPAQUE = (*_NUMBERS, type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_FOREIGN = frozenset(sys.stdlib_module_names) | {"torch", "numpy"}


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """After the context the model holds what it held before, whatever its code made or changed meanwhile.

    That is: every attribute of every submodule and of the plain objects, lists, dicts and sets in them; numbers in
    buffers and other tensors that are no parameters; the storage, the gradient and `requires_grad` of parameters; what
    its classes hold in containers and tensors. Numbers written into a parameter in place are not undone.
    """
    snapshot = _Snapshot(model)
    try:
        yield
    finally:
        snapshot.restore()


class _Snapshot:
    def __init__(self, model: nn.Module) -> None:
        self._seen: dict[int, Any] = {}
        self._undo: list[Callable[[], None]] = []
        for module in model.modules():
            self._visit(module, DEPTH)

    def restore(self) -> None:
        """Put everything back that differs; what is as it was is not touched."""
        for undo in self._undo:
            undo()

    def _visit(self, value: Any, depth: int) -> None:
        if isinstance(value, _OPAQUE) or id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._seen[id(value)] = value
            if value.layout == torch.strided and value.device.type != "meta":
                self._undo.append(_parameter(value) if isinstance(value, nn.Parameter) else _tensor(value))
        elif isinstance(value, nn.Module):
            self._seen[id(value)] = value
            self._class(type(value))
            self._mapping(value.__dict__, DEPTH)
        elif depth > 0:
            self._seen[id(value)] = value
            self._container(value, depth)

    def _container(self, value: Any, depth: int) -> None:
        if isinstance(value, dict):
            self._mapping(value, depth)
        elif isinstance(value, list | deque):
            self._undo.append(_sequence(value))
            self._each(value, depth)
        elif isinstance(value, set):
            self._undo.append(_set(value))
        elif isinstance(value, tuple | frozenset):
            self._each(value, depth)
        elif hasattr(value, "__dict__") and _is_the_users(value):
            self._mapping(vars(value), depth)

    def _each(self, values: Any, depth: int) -> None:
        for value in list(values):
            self._visit(value, depth - 1)

    def _mapping(self, mapping: dict[Any, Any], depth: int) -> None:
        self._undo.append(_mapping(mapping))
        self._each(mapping.values(), depth)

    def _class(self, kind: type) -> None:
        """What a class holds for all its instances, assigned (`type(self).cache = h`) or changed in place."""
        for base in kind.__mro__:
            if id(base) in self._seen or base.__module__.startswith(("torch.", "builtins")):
                continue
            self._seen[id(base)] = base
            own = {n: v for n, v in vars(base).items() if isinstance(v, Tensor | list | dict | set | deque)}
            self._undo.append(_class_attributes(base))
            self._each(own.values(), 2)


def _is_the_users(value: Any) -> bool:
    package = type(value).__module__.partition(".")[0]
    return package not in _FOREIGN or isinstance(value, types.SimpleNamespace)


def _mapping(mapping: dict[Any, Any]) -> Callable[[], None]:
    before = list(mapping.items())
    kind = OrderedDict if isinstance(mapping, OrderedDict) else dict

    def undo() -> None:
        if _differ(before, list(mapping.items())):
            kind.clear(mapping)
            kind.update(mapping, before)

    return undo


def _sequence(sequence: Any) -> Callable[[], None]:
    before = list(sequence)

    def undo() -> None:
        if len(before) != len(sequence) or any(a is not b for a, b in zip(before, sequence, strict=True)):
            sequence.clear()
            sequence.extend(before)

    return undo


def _set(values: set[Any]) -> Callable[[], None]:
    before = set(values)

    def undo() -> None:
        if values != before:
            values.clear()
            values.update(before)

    return undo


def _class_attributes(kind: type) -> Callable[[], None]:
    before = dict(vars(kind))

    def undo() -> None:
        now = dict(vars(kind))
        for name in now.keys() - before.keys():
            delattr(kind, name)
        for name, value in before.items():
            if now.get(name) is not value and not name.startswith("__"):
                setattr(kind, name, value)

    return undo


def _parameter(parameter: nn.Parameter) -> Callable[[], None]:
    storage, needs, gradient = parameter.data, parameter.requires_grad, parameter.grad

    def undo() -> None:
        if _moved(parameter, storage):
            parameter.data = storage
        if parameter.requires_grad != needs:
            parameter.requires_grad_(needs)
        if parameter.grad is not gradient:
            parameter.grad = gradient

    return undo


def _tensor(tensor: Tensor) -> Callable[[], None]:
    storage = tensor.detach()
    values = storage.clone()

    def undo() -> None:
        with torch.no_grad():
            if _moved(tensor, storage):
                tensor.data = storage
            if not torch.equal(storage, values):
                storage.copy_(values)

    return undo


def _moved(tensor: Tensor, storage: Tensor) -> bool:
    """Whether `.data` was assigned meanwhile."""
    return (tensor.shape, tensor.dtype, tensor.data_ptr()) != (storage.shape, storage.dtype, storage.data_ptr())


def _differ(before: list[tuple[Any, Any]], now: list[tuple[Any, Any]]) -> bool:
    if len(before) != len(now):
        return True
    return any((k is not j and k != j) or v is not w for (k, v), (j, w) in zip(before, now, strict=True))
