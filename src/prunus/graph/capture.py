"""From a model and example inputs to an exported program, with refusals that name the line that broke it."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map, tree_map_only

from prunus.errors import PruneError, TraceError, first_line
from prunus.graph.branches import Recording, Replay
from prunus.graph.deadcode import remove_dead_code_
from prunus.graph.numberless import called
from prunus.runtime.arguments import as_arguments, is_plain, plain, signature_of, tensors_in
from prunus.runtime.entry import one_at_a_time
from prunus.runtime.modes import eval_mode


def capture(
    model: nn.Module,
    example_inputs: Any,
    *,
    dynamic_batch: bool = False,
    follow_branches: bool = False,
    free_sizes: bool = False,
) -> ExportedProgram:
    """Export the model in eval mode, without gradients and dead code; the model holds afterwards what it held before.

    Args:
        model: any module that `torch.export` can capture.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        dynamic_batch: leave dimension 0 of every tensor input free, and dimension 1 of integers (the length of texts)
            where the code does: not where it hands `length > 1` to an operation.
        follow_branches: where the code branches on data, go the way that the example inputs go.
        free_sizes: with `dynamic_batch`, leave height and width (and depth) of images free too, where the code does.

    Raises:
        TraceError: the inputs don't fit the model, or its code cannot be captured.
    """
    _check(model, example_inputs)
    given = at_least_two(example_inputs) if dynamic_batch else example_inputs
    args, kwargs = as_arguments(given, model)
    with one_at_a_time(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result, answers = _run(model, args, kwargs)

        def exported(free: Callable[[Any], Any] | None) -> ExportedProgram:
            way = Replay(answers) if follow_branches else None
            with eval_mode(model), way or contextlib.nullcontext(), _plain_outputs(model, result):
                program = _export(model, args, kwargs, free)
            if way is not None:
                way.finish()
            return program

        free = partial(_free, images=free_sizes) if dynamic_batch else None
        try:
            try:
                program = exported(free)
            except Exception as error:
                if not dynamic_batch or not any(map(_is_text, tensors_in((args, kwargs)))):
                    raise
                try:
                    program = exported(partial(_free, images=free_sizes, texts=False))
                except Exception:
                    raise error from None
        except PruneError:
            raise
        except Exception as error:
            what = f"torch.export cannot capture it: {first_line(error)}{_user_line(error)}"
            raise TraceError(f"model {type(model).__name__}", what, _advice(error, follow_branches, model)) from error
    remove_dead_code_(program.graph)
    program.graph_module.recompile()
    return program


def at_least_two(example_inputs: Any) -> Any:
    """The inputs with a batch of one doubled: a batch of one would be captured as a constant."""

    def double(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == 1 else tensor

    return tree_map_only(Tensor, double, example_inputs)


def _check(model: nn.Module, example_inputs: Any) -> None:
    kind = type(model).__name__
    if isinstance(model, nn.parallel.DistributedDataParallel) or getattr(model, "device_ids", None):
        fix = "pass model.module, and wrap the smaller one again"
        raise TraceError(f"model {kind}", "it spreads another model over processes or devices", fix)
    if any(tensor.layout != torch.strided for tensor in tensors_in(example_inputs)):
        raise TraceError("example_inputs", "there is a sparse tensor among them", "pass it dense: tensor.to_dense()")


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Run the model once for what it is: its outputs, and the numbers that its code asks tensors for.

    So inputs that don't fit are told from code that can't be captured, and what the code keeps outside of the model
    (a cached table of positions) is made of numbers before it would be made of what stands for them while capturing.
    """
    names = _parameter_names(model)
    with eval_mode(model), Recording() as mode:
        try:
            result = called(model, args, kwargs)
        except PruneError:
            raise
        except Exception as error:
            shapes = [tuple(a.shape) if isinstance(a, Tensor) else type(a).__name__ for a in (*args, *kwargs.values())]
            raise TraceError(
                "example_inputs",
                f"the model {type(model).__name__} does not run on inputs of shape {shapes}: {first_line(error)}",
                "pass a tensor, a tuple of arguments or a dict of keywords as the model's forward expects them",
            ) from error
        made = _parameter_names(model) - names
    if made:
        what = f"its parameters {sorted(made)[:3]} are made by the first call"
        raise TraceError(f"model {type(model).__name__}", what, "run the model once on the example inputs, then trace")
    return result, mode.answers


def _parameter_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free: Callable[[Any], Any] | None
) -> ExportedProgram:
    """The exported program; `free` says which dimensions of a value are free."""
    signature = signature_of(model)
    shapes: Any = None
    with contextlib.ExitStack() as stack:
        # Torch prints the whole graph to stderr where it fails.
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        if free and signature is not None:
            named = stack.enter_context(_named_keywords(model, signature, kwargs))
            shapes = {n: tree_map(free, value) for n, value in named.bind(*args, **kwargs).arguments.items()}
        elif free:
            shapes = {k: free(v) for k, v in kwargs.items()} if kwargs else tuple(free(a) for a in args)
        return torch.export.export(model, args, kwargs or None, dynamic_shapes=shapes, strict=False)


def _is_text(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_floating_point()


def _free(value: Any, images: bool, texts: bool = True) -> Any:
    if not isinstance(value, Tensor) or not value.dim():
        return None
    inner = range(2, value.dim()) if images and value.dim() > 3 and value.is_floating_point() else range(0)
    return dict.fromkeys((0, 1) if texts and _is_text(value) else (0, *inner), Dim.AUTO)


@contextlib.contextmanager
def _named_keywords(model: Any, signature: inspect.Signature, kwargs: dict[str, Any]) -> Iterator[inspect.Signature]:
    """Within the context `**kwargs` in a model's signature are those given: `torch.export` asks for shapes by name."""
    parameters = list(signature.parameters.values())
    if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        yield signature
        return
    names = [k for k in kwargs if k not in signature.parameters]
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    own: Callable[..., Any] = model.forward

    def forward(*args: Any, **keywords: Any) -> Any:
        return own(*args, **keywords)

    forward.__signature__ = signature.replace(parameters=[*parameters[:-1], *extra])  # type: ignore[attr-defined]
    before = vars(model).get("forward")
    model.forward = forward
    try:
        yield forward.__signature__  # type: ignore[attr-defined]
    finally:
        del model.forward
        if before is not None:
            model.forward = before


@contextlib.contextmanager
def _plain_outputs(model: nn.Module, result: Any) -> Iterator[None]:
    """Within the context a model returns tuples, lists and dicts where it returned objects of other types."""
    if is_plain(result):
        yield
        return
    with model.register_forward_hook(lambda _, inputs, outputs: plain(outputs)):
        yield


def _advice(error: Exception, followed: bool, model: nn.Module) -> str:
    said = f"{type(error).__name__} {error}".lower()
    part = "trace the submodule that can be captured"
    if "data-dependent" in said or "datadependent" in said or "dynamicvalueerror" in said:
        if getattr(getattr(model, "config", None), "_experts_implementation", None) == "eager":
            return "its loop over experts depends on data: call model.set_experts_implementation('grouped_mm') first"
        if followed:
            return f"a size depends on the values of the inputs, which can't be followed: rewrite it, or {part}"
        return (
            "if a branch or loop depends on data, pass follow_branches=True (prune: allow=('follow_branches',)) to go "
            f"the way of the example inputs, or rewrite it (torch.where, torch.cond); or {part}"
        )
    if "unsupported input type" in said:
        return "pass tensors in tuples, lists and dicts, or name the type to torch.export.register_dataclass"
    if "fx.node" in said or "unsupported output" in said or "output type" in said:
        return "return tensors in tuples, lists, dicts or dataclasses"
    return f"write that line without what it names, or {part}"


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
