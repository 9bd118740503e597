"""What stands around a model's layers, run with weights that come when they are needed: how the layers are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from prunus.errors import ArtifactError, PruneError, TraceError, first_line
from prunus.files.shards import Shards
from prunus.runtime.arguments import as_arguments
from prunus.runtime.modes import eval_mode
from prunus.streaming.layerlist import Call, LayerList

Names = Mapping[str, str]
"""Parameter or buffer of the model -> what it is called in the shards."""


class _AllRun(Exception):
    """The last layer was called: what follows is of no interest."""


class _RowsFromShards(TorchFunctionMode):
    """Embeddings whose weight is on `meta` read the rows that are looked up, and no others."""

    def __init__(self, names: Mapping[int, str], shards: Shards, dtype: torch.dtype) -> None:
        super().__init__()
        self.names, self.shards, self.dtype = names, shards, dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.embedding and id(args[1]) in self.names:
            return self.shards.rows(self.names[id(args[1])], args[0]).to(self.dtype)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def recorded_calls(
    frame: nn.Module, listed: LayerList, batches: Sequence[Any], shards: Shards, names: Names, dtype: torch.dtype
) -> list[list[Call]]:
    """How each layer is called, by layer and batch; layers hand on what they get, as none of them has weights.

    Args:
        frame: the model with its parameters on `meta` and its buffers at hand; afterwards as it was.
        listed: its layers.
        batches: inputs.
        shards: the weights.
        names: what they are called there.
        dtype: to compute in.

    Raises:
        TraceError: the model does not run on a batch.
    """
    found: list[list[Call]] = [[] for _ in range(listed.count)]
    inside = {m for layer in listed.of(frame) for m in layer.modules()}
    outside = {n: m for n, m in frame.named_modules() if m not in inside}
    tables = {
        id(m.weight): names[f"{n}.weight"] for n, m in outside.items()
        if isinstance(m, nn.Embedding) and f"{n}.weight" in names
    }  # fmt: skip
    with eval_mode(frame), ExitStack() as within:
        for number, layer in enumerate(listed.of(frame)):
            within.enter_context(_handing_on(layer, found[number], listed, number))
        for name, module in outside.items():
            if not isinstance(module, nn.Embedding):
                within.enter_context(_filled_when_called(module, name, shards, names, dtype))
        within.enter_context(_RowsFromShards(tables, shards, dtype))
        for batch in batches:
            args, kwargs = as_arguments(batch, frame)
            try:
                frame(*args, **kwargs)
            except _AllRun:
                continue
            except PruneError:
                raise
            except Exception as failure:
                what = f"it does not run on the data: {first_line(failure)}"
                raise TraceError(f"model {type(frame).__name__}", what, "give batches of its inputs") from failure
    return found


@contextmanager
def _handing_on(layer: nn.Module, calls: list[Call], listed: LayerList, number: int) -> Iterator[None]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        call = Call.of(args, kwargs)
        calls.append(call)
        if number == listed.count - 1:
            raise _AllRun
        return listed.returned(call.leaves[listed.place[number]])

    layer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def _filled_when_called(
    module: nn.Module, name: str, shards: Shards, names: Names, dtype: torch.dtype
) -> Iterator[None]:
    """Within the context the module has its own weights while it is called, and only then."""
    own = {n: t for n, t in module._parameters.items() if t is not None}

    def fill(*_: Any) -> None:
        for attribute in own:
            stored = shards.read(_known(names, f"{name}.{attribute}" if name else attribute, shards))
            module._parameters[attribute] = nn.Parameter(stored.to(dtype), requires_grad=False)

    def empty(*_: Any) -> None:
        module._parameters.update(own)

    with module.register_forward_pre_hook(fill), module.register_forward_hook(empty, always_call=True):
        yield


def _known(names: Names, name: str, shards: Shards) -> str:
    if name not in names:
        what = f"no shard holds {name!r} under that name"
        raise ArtifactError(str(shards.folder), what, "write it anew with save_pretrained")
    return names[name]
