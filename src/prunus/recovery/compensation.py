"""New running statistics that change nothing: scale and shift of each batch norm take the difference up.

A repaired network keeps the dense one's statistics, and its own are others, since what is fitted by least squares
varies less than what it is fitted to. In training mode a batch norm goes by what it sees, so that a part of the
repair would be undone before the first step. After this, both modes compute the same but for the noise of a batch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data.batches import as_batches
from prunus.errors import DataError
from prunus.recovery.batchnorm import HALF, Moments, Watch
from prunus.runtime.calling import call
from prunus.runtime.entry import entry
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision, to_device
from prunus.runtime.processes import model_device


@dataclass(frozen=True)
class _Layer:
    """One batch norm: y = weight * (x - mean) / sqrt(variance + eps) + bias."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def compensate_(self, seen: Moments) -> None:
        """Take the statistics over and leave y as it is."""
        assert self.weight is not None
        assert self.bias is not None
        old_mean, old = self.mean.cpu().double().clone(), (self.variance.cpu().double() + self.eps).sqrt()
        seen.write_(self.mean, self.variance)
        new_mean, new = self.mean.cpu().double(), (self.variance.cpu().double() + self.eps).sqrt()
        weight, bias = self.weight.cpu().double(), self.bias.cpu().double()
        self.bias.copy_(bias + weight * (new_mean - old_mean) / old)
        self.weight.copy_(weight * new / old)


class _Standing(Watch):
    """Normalises by the running statistics, as eval mode does, and remembers what the layers saw meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[int, _Layer] = {}
        self.alike = True

    def normalised(self, x: Tensor, mean: Tensor, variance: Tensor, call: dict[str, Any]) -> Tensor:
        """The layer's output in eval mode."""
        _, _, pooled = self.found.setdefault(id(mean), (mean, variance, Moments(len(mean))))
        weight, bias, eps = call.get("weight"), call.get("bias"), call.get("eps", 1e-5)
        first = self.layers.setdefault(id(mean), _Layer(mean, variance, weight, bias, eps))
        self.alike &= first.weight is weight and first.bias is bias and first.eps == eps
        kind, values = torch.float32 if mean.dtype in HALF else mean.dtype, x.numel() // max(x.shape[1], 1)
        if values > 1:
            seen_mean, seen_variance = torch.zeros_like(mean, dtype=kind), torch.zeros_like(variance, dtype=kind)
            F.batch_norm(x, seen_mean, seen_variance, None, None, True, 1.0, eps)
            pooled.merge(values, seen_mean.double().cpu(), seen_variance.double().cpu() * (values - 1))
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


@entry()
def compensate_batch_norm(model: nn.Module, loader: Iterable[Any], *, num_batches: int | None = None) -> bool:
    """Replace running statistics by those of the data, and scale and shift so that the network computes what it did.

    In place, all batch norms or none: none where one lacks scale or shift, has frozen ones, or shares them with
    another layer. One forward pass in eval mode.

    Args:
        model: any module, captured graphs too.
        loader: batches in any form that `as_batches` takes; targets are not used. Under several processes the data of
            all of them count.
        num_batches: stop after as many; None takes all.

    Returns:
        Whether it was done: False where a layer can't take the difference up, or there is none.

    Raises:
        DataError: no batch, or NaN or infinity in the new statistics; the old ones stay.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)).eval(), torch.randn(64, 8)
        >>> before = net(x)
        >>> prunus.recovery.compensate_batch_norm(net, [(x, None)])
        True
        >>> torch.allclose(net(x), before, atol=1e-5), torch.allclose(net.train()(x), before, atol=0.05)
        (True, True)
    """
    device = model_device(model)
    with eval_mode(model), torch.no_grad(), full_precision(), _Standing() as watch:
        for inputs, _ in itertools.islice(as_batches(loader, model), num_batches):
            call(model, to_device(inputs, device))
    if not watch.layers or not watch.alike or not _can_take(model, watch.layers):
        return False
    pooled = {key: moments.over_ranks(device) for key, (_, _, moments) in watch.found.items()}
    if not all(m.count > 1 and bool(torch.isfinite(m.mean + m.squares).all()) for m in pooled.values()):
        raise DataError("batch norm statistics", "NaN, infinity or single values", "check inputs and weights for NaN")
    with torch.no_grad():
        for key, layer in watch.layers.items():
            layer.compensate_(pooled[key])
    return True


def _can_take(model: nn.Module, layers: dict[int, _Layer]) -> bool:
    """True if every layer has a scale and a shift that learn and are its own."""
    names = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    tensors = [t for layer in layers.values() for t in (layer.weight, layer.bias)]
    uses = Counter(map(id, tensors))
    return all(t is not None and t.requires_grad and names[id(t)] == uses[id(t)] == 1 for t in tensors)
