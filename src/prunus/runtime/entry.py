"""What stands before every public function: one call at a time, in an ordinary state, on a model that can be worked on.

Capturing, hooks on the given model, and PyTorch's modes and random generators are of the whole process, so that two
calls at once would see each other's. Callers may be anywhere: under `no_grad`, `inference_mode` or autocast, with
another default device. None of that is meant for the work inside.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import random
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunus.errors import ConfigError, TraceError
from prunus.runtime.precision import accelerators
from prunus.runtime.snapshot import state_kept

P = ParamSpec("P")
R = TypeVar("R")


class _Turn:
    """Whose turn it is: a lock that its holder may take again, and how often it has."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.depth = 0


_turn = _Turn()


def _after_fork() -> None:
    """In a forked process only the forking thread lives on: a turn that another one had never ends."""
    global _turn
    _turn = _Turn()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[bool]:
    """Within the context no other thread is in one; calls inside calls pass. Yields whether it is the outermost."""
    turn = _turn
    with turn.lock:
        turn.depth += 1
        try:
            yield turn.depth == 1
        finally:
            turn.depth -= 1


def entry(*, meta: bool = False, unchanged: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a public function run alone and in an ordinary state, and refuse models that nothing can be done with.

    Args:
        meta: parameters on the device `meta` will do: nothing but shapes is looked at.
        unchanged: the model holds afterwards what it held before, its classes included, whose copies share those.

    Raises (the function, besides its own):
        ConfigError: an argument of another class than its annotation names; see `check_model`.
        TraceError: see `check_model`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        takes_model = next(iter(signature.parameters), "") == "model"
        kinds = functools.cache(lambda: _kinds(function))

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            with one_at_a_time() as outermost:
                if not outermost:
                    return function(*args, **kwargs)
                model: Any = (args[0] if args else kwargs.get("model")) if takes_model else None
                if takes_model:
                    check_model(model, meta=meta)
                _check_kinds(signature.bind_partial(*args, **kwargs).arguments, kinds())
                with ordinary(model), state_kept(model) if unchanged else contextlib.nullcontext():
                    return function(*args, **kwargs)

        return called

    return decorate


def _kinds(function: Callable[..., Any]) -> dict[str, tuple[type, ...]]:
    """The classes that each argument may be of, where its annotation says so in classes alone; not the model's."""
    found = {}
    for name, hint in get_type_hints(function).items():
        of = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        classes = tuple(get_origin(kind) or kind for kind in of)
        checkable = all(kind is Mapping or kind is types.NoneType or _is_ours(kind) for kind in classes)
        if checkable and name not in ("model", "return"):
            found[name] = classes
    return found


def _is_ours(kind: Any) -> bool:
    """A class of this package or of torch that arguments can be held against: no protocol, no alias."""
    known = isinstance(kind, type) and kind.__module__.partition(".")[0] in ("prunus", "torch")
    return known and not getattr(kind, "_is_protocol", False)


def _check_kinds(given: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise ConfigError for an argument of another class than its annotation names."""
    for name, value in given.items():
        if name in kinds and not isinstance(value, kinds[name]):
            wanted = " or ".join("None" if k is types.NoneType else k.__name__ for k in kinds[name])
            raise ConfigError(name, f"a {type(value).__name__} is no {wanted}", f"give a {wanted}")


@contextlib.contextmanager
def ordinary(model: Any = None) -> Iterator[None]:
    """Gradients on, inference mode and autocast off, tensors where the model is; random generators are put back.

    The default dtype stays: the model's own code may count on it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", *accelerators()):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):
            tensors = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
            stack.enter_context(next((t.device for t in tensors), torch.device("cpu")))
        if isinstance(model, nn.Module) and _is_compiled(model):
            # What was compiled before doesn't see hooks that come later.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(generators_kept())
        yield


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """After the context the global random generators of Python, NumPy and PyTorch are as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


def check_model(model: Any, *, meta: bool = False) -> None:
    """Refuse what is no model, or one whose tensors hold no values; on the device `meta` they may, if so said.

    Raises:
        ConfigError: no module; parameters that are on `meta`, not yet made, or made in inference mode.
        TraceError: TorchScript.
    """
    if not isinstance(model, nn.Module):
        fix = "pass its .module()" if isinstance(model, torch.export.ExportedProgram) else "pass a torch.nn.Module"
        raise ConfigError("model", f"{type(model).__name__} is no torch.nn.Module", fix)
    if isinstance(model, torch.jit.ScriptModule):
        what = "it is TorchScript, whose code can't be captured"
        raise TraceError(f"model {type(model).__name__}", what, "pass the Python module that it was made from")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        problem = _without_values(tensor)
        if problem is not None and not (meta and tensor.device.type == "meta"):
            raise ConfigError(f"model {type(model).__name__}, {name!r}", *problem)


def _without_values(tensor: Tensor) -> tuple[str, str] | None:
    from torch._subclasses.fake_tensor import FakeTensor

    if is_lazy(tensor):
        return "it is lazy and has no shape yet", "run the model once on example inputs"
    if isinstance(tensor, FakeTensor):
        return "it is a fake tensor, without values", "make the model anew, outside of a fake mode"
    if tensor.device.type == "meta":
        return "it is on the device 'meta', without values", "load the weights: model.to_empty(device='cpu') and state"
    if tensor.is_inference():
        fix = "make it outside, or pass copy.deepcopy(model) made outside of inference_mode"
        return "it was made in inference mode, where nothing learns", fix
    return None


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())
