"""Batch norm's running statistics, computed anew: pruning changes what the layers see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from prunus.data.batches import as_batches
from prunus.errors import ConfigError, DataError
from prunus.graph.engine import operation
from prunus.runtime.calling import call
from prunus.runtime.entry import entry
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision, lower, to_device
from prunus.runtime.processes import distributed, gathered, model_device
from prunus.runtime.renamed import another_word, renamed

MEAN = 3
HALF = (torch.float16, torch.bfloat16)


class Moments:
    """Count, mean and sum of squared deviations of every channel, merged without cancellation, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0.0
        self.mean = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self.squares = torch.zeros(channels, dtype=torch.float64, device="cpu")

    def merge(self, count: float, mean: Tensor, squares: Tensor) -> None:
        """Take the moments of other data in."""
        total = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self.squares = self.squares + squares + shift.square() * (self.count * count / total)
        self.count = total

    def over_ranks(self, device: torch.device) -> Moments:
        """The moments of all processes' data together."""
        if not distributed():
            return self
        packed = torch.cat([torch.tensor([self.count], dtype=torch.float64, device="cpu"), self.mean, self.squares]).to(
            device
        )
        merged = Moments(len(self.mean))
        for part in (p.cpu() for p in gathered(packed)):
            mean, squares = part[1:].chunk(2)
            merged.merge(float(part[0]), mean, squares)
        return merged

    def write_(self, running_mean: Tensor, running_var: Tensor) -> None:
        """Write mean and unbiased variance into a layer's buffers."""
        running_mean.copy_(self.mean)
        running_var.copy_(self.squares / max(self.count - 1.0, 1.0))


class Watch(TorchFunctionMode):
    """Sees every batch norm call, of modules and of captured graphs alike, and normalises by the batch's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[Tensor, Tensor, Moments]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        elif func is torch.ops.aten.batch_norm.default:
            names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
        else:
            return func(*args, **kwargs)
        call = {"training": False, **dict(zip(names, args, strict=False)), **kwargs}
        if call.get("running_mean") is None or call["training"]:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return self.normalised(call["input"], call["running_mean"], call["running_var"], call)

    def normalised(self, x: Tensor, mean: Tensor, variance: Tensor, call: dict[str, Any]) -> Tensor:
        """The layer's output in training, whose kernel also tells the statistics of the batch."""
        _, _, pooled = self.found.setdefault(id(mean), (mean, variance, Moments(len(mean))))
        eps, values = call.get("eps", 1e-5), x.numel() // max(x.shape[1], 1)
        kind = torch.float32 if mean.dtype in HALF else mean.dtype
        batch_mean, batch_variance = torch.zeros_like(mean, dtype=kind), torch.zeros_like(variance, dtype=kind)
        weight, bias = (None if (t := call.get(name)) is None else t.to(kind) for name in ("weight", "bias"))
        if values > 1:
            # With momentum 1 the "running" statistics are the batch's own, and cost no pass over the activations.
            out = F.batch_norm(x, batch_mean, batch_variance, weight, bias, True, 1.0, eps)
            pooled.merge(values, batch_mean.double().cpu(), batch_variance.double().cpu() * (values - 1))
            return out
        if values:
            pooled.merge(1, x.detach().double().cpu().reshape(len(mean)), torch.zeros_like(pooled.squares))
        if pooled.count < 2:
            what = f"a batch norm over {len(mean)} channels sees {values} values of each in the first batch"
            raise DataError("batch norm statistics", what, "give batches of at least two examples")
        pooled.write_(batch_mean, batch_variance)
        return F.batch_norm(x, batch_mean, batch_variance, weight, bias, False, 0.0, eps)


@renamed(another_word("loader", "batches"))
@entry()
def reestimate_batch_norm(model: nn.Module, loader: Iterable[Any], *, num_batches: int | None = None) -> nn.Module:
    """Replace the running statistics of every batch norm by the mean and unbiased variance of all data, in place.

    The statistics are pooled over examples and positions, so neither a smaller last batch nor batches that differ from
    each other (sorted data) bias them; for one batch this is what PyTorch computes with `momentum=None`. While they are
    gathered each layer normalises by its batch, and the rest of the network runs in eval mode: one forward pass, about
    as dear as any. Nothing but running statistics changes. Works on modules and on captured graphs (`RewrittenModel`);
    under several processes the data of all of them count.

    A batch's statistics are those of PyTorch's training kernel: rounded to fp32, its sums fp64 on a CPU, and fp32 on
    GPUs and for tensors that are channels-last. Batches are merged in fp64, without cancellation.

    Args:
        model: any module; one without running statistics is returned as it is.
        loader: batches of (inputs, targets), or another form that `as_batches` takes; targets are not used.
        num_batches: stop after as many; None takes all.

    Returns:
        The same model.

    Raises:
        ConfigError: num_batches below 1.
        DataError: no batch, a first batch with one value of a channel, or NaN or infinity in the new statistics; the
            old ones stay.

    Example:
        >>> net, loader = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), [(torch.randn(32, 8), None)]
        >>> old = net[1].running_mean.clone()
        >>> net = prunus.reestimate_batch_norm(net, loader, num_batches=64)
        >>> torch.equal(net[1].running_mean, old)
        False
    """
    if num_batches is not None and num_batches < 1:
        raise ConfigError(f"num_batches={num_batches}", "no batch to estimate from", "give at least 1, or None")
    if not _has_statistics(model):
        return model
    device = model_device(model)
    with eval_mode(model), torch.no_grad(), full_precision(), Watch() as watch:
        for inputs, _ in itertools.islice(as_batches(loader, model), num_batches):
            call(model, to_device(inputs, device))
    pooled = [(mean, variance, moments.over_ranks(device)) for mean, variance, moments in watch.found.values()]
    if not all(bool(torch.isfinite(m.mean).all() and torch.isfinite(m.squares).all()) for _, _, m in pooled):
        raise DataError("batch norm statistics", "NaN or infinity", "check the inputs and the weights for NaN")
    with torch.no_grad():
        for mean, variance, moments in pooled:
            moments.write_(mean, variance)
    return model


@renamed(another_word("loader", "batches"))
@entry()
def reestimate_if_better(
    model: nn.Module, loader: Iterable[Any], loss: Callable[[nn.Module], float], *, num_batches: int | None = None
) -> bool:
    """Re-estimate as `reestimate_batch_norm` does, and put the old statistics back if the model is worse with the new.

    Weights that trained along (`rbp`) have adapted to the statistics as they were.

    Args:
        model: any module; changed in place.
        loader: as for `reestimate_batch_norm`.
        loss: what a model is judged by on data that it did not learn from, lower is better; called before and after,
            in eval mode and without gradients. A difference within the rounding of fp32 is none.
        num_batches: stop after as many; None takes all.

    Returns:
        Whether the new statistics stay.

    Raises:
        ConfigError, DataError: as `reestimate_batch_norm`. Whatever is raised, the old statistics stay.

    Example:
        >>> net, x, y = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4)), torch.randn(32, 8) + 3, torch.randn(32, 4)
        >>> prunus.reestimate_if_better(net, [(x, y)], lambda model: F.mse_loss(model(x), y).item())
        True
    """

    def judged() -> float:
        with eval_mode(model), torch.no_grad(), full_precision():
            return float(loss(model))

    before, old = judged(), {name: buffer.clone() for name, buffer in model.named_buffers()}
    better = False
    try:
        reestimate_batch_norm(model, loader, num_batches=num_batches)
        after = judged()
        better = not math.isnan(after) and not lower(before, than=after)
    finally:
        if not better:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(old[name])
    return better


def _has_statistics(model: nn.Module) -> bool:
    layers = any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())
    return layers or any(
        node.op == "call_function" and operation(node) == "batch_norm" and node.args[MEAN] is not None
        for m in model.modules()
        if isinstance(m, fx.GraphModule)
        for node in m.graph.nodes
    )
