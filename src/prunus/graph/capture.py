"""From a model and example inputs to an exported program, with refusals that name the line that broke it."""

from __future__ import annotations

import re
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prunus.errors import TraceError, first_line
from prunus.graph.branches import Replay, recorded
from prunus.modes import eval_mode


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments: a tensor, a tuple or list of them, or a dict of keywords."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def capture(
    model: nn.Module, example_inputs: Any, *, dynamic_batch: bool = False, follow_branches: bool = False
) -> ExportedProgram:
    """Export the model in eval mode, without gradients; training flags are put back afterwards.

    Args:
        model: any module that `torch.export` can capture.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        dynamic_batch: leave dimension 0 of every tensor input free, and dimension 1 of integers (the length of texts).
        follow_branches: where the code branches on data, go the way that the example inputs go.

    Raises:
        TraceError: the inputs don't fit the model, or its code cannot be captured.
    """
    args, kwargs = as_arguments(at_least_two(example_inputs) if dynamic_batch else example_inputs)
    try:
        shapes = _batch_shapes(args, kwargs) if dynamic_batch else None
        way = Replay(recorded(model, args, kwargs)) if follow_branches else None
        with eval_mode(model), torch.no_grad(), warnings.catch_warnings(), way or nullcontext():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, args, kwargs or None, dynamic_shapes=shapes, strict=False)
        if way is not None:
            way.finish()
        return program
    except TraceError:
        raise
    except Exception as error:
        with eval_mode(model):
            _check_inputs(model, args, kwargs)
        raise TraceError(
            f"model {type(model).__name__}",
            f"torch.export cannot capture it: {first_line(error)}{_user_line(error)}",
            "if a branch or loop depends on data, pass follow_branches=True to go the way of the example inputs, or "
            "rewrite it (torch.where, torch.cond); or trace the submodule that can be captured",
        ) from error


def at_least_two(example_inputs: Any) -> Any:
    """The inputs with a batch of one doubled: a batch of one would be captured as a constant."""

    def double(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == 1 else tensor

    return torch.utils._pytree.tree_map_only(Tensor, double, example_inputs)


def _check_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        shapes = [tuple(a.shape) if isinstance(a, Tensor) else type(a).__name__ for a in (*args, *kwargs.values())]
        raise TraceError(
            "example_inputs",
            f"the model {type(model).__name__} does not run on inputs of shape {shapes}: {first_line(error)}",
            "pass a tensor, a tuple of arguments or a dict of keywords as the model's forward expects them",
        ) from error


def _batch_shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | dict[str, Any]:
    def free(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return None
        texts = value.dim() == 2 and not value.is_floating_point()
        return {0: Dim.AUTO, 1: Dim.AUTO} if texts else {0: Dim.AUTO}

    return {k: free(v) for k, v in kwargs.items()} if kwargs else tuple(free(a) for a in args)


def _user_line(error: BaseException) -> str:
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]+\n\s*([^\n]*)', str(error))
    own = [f for f in frames if "/torch/" not in f[0].replace("\\", "/")]
    if own:
        path, line, code = own[-1]
        return f" at {path.rsplit('/', 1)[-1]}:{line}  {code.strip()}"
    trace, own_frame = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename.replace("\\", "/")
        if "/torch/" not in name and "/prunus/" not in name and name.endswith(".py"):
            own_frame = f" at {name.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return own_frame
