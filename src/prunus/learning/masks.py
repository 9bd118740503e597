"""The loop that learns masks inside weights: draw, fix the best, train the survivors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.data.batches import Loader, as_batches, forward
from prunus.data.losses import mean_of
from prunus.errors import ConfigError
from prunus.gates.gate import Draws
from prunus.graph.grouping import Graph
from prunus.masks.activations import QuantizedInput, quantized_inputs
from prunus.masks.filter_masks import MaskedUnits
from prunus.masks.filters import gated_filters, plan_of_filters
from prunus.masks.layers import MaskedWeight, MaskSet, attach, bake_, layer_of
from prunus.masks.metrics import (
    confidence,
    diversity,
    entropy,
    flip_rate,
    inclusion_probabilities,
    mean_inclusion,
    probabilities,
)
from prunus.masks.patterns import Layout, Pattern, takes_pattern
from prunus.masks.sampling import gumbel, largest
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.proof.apply import apply_and_verify_
from prunus.proof.verification import Verification
from prunus.recovery.batchnorm import reestimate_if_better
from prunus.runtime.copies import copied
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed
from prunus.runtime.modes import eval_mode, modes_kept
from prunus.runtime.precision import Precision, autocast, deciding, full_precision, to_device, widened
from prunus.runtime.processes import average_over_ranks_, distributed, model_device, running_statistics
from prunus.runtime.progress import Bar, progress_bar
from prunus.runtime.seeds import seeded
from prunus.runtime.training import BatchSource, LossFunction, Training, only_trainable
from prunus.surgery.configuration import keep_configuration_true_

INCLUSION_DRAWS = 50
"""Masks from which the result's inclusion probabilities are estimated."""


@dataclass(frozen=True)
class MaskEpoch:
    """What the masks looked like after an epoch; per layer.

    Attributes:
        loss: mean over the epoch's batches, masks drawn; NaN before the first epoch.
        confidence: see `masks.metrics.confidence`, at the noise of that moment.
        diversity: generalised Jensen-Shannon divergence of the rows, nats.
        flips: expected share of the kept that the next draw replaces.
        entropy: mean over the rows of the entropy of softmax(logits / c), nats.
        inclusion: mean probability of the most probable mask's elements to be drawn.
    """

    loss: float
    confidence: Mapping[str, float]
    diversity: Mapping[str, float]
    flips: Mapping[str, float]
    entropy: Mapping[str, float]
    inclusion: Mapping[str, float]


@dataclass(frozen=True)
class Masked:
    """A network with masks inside its weights.

    Attributes:
        model: a copy of the given one, trained, with zeros where nothing is kept, or without the filters that are not
            kept; in eval mode.
        masks: bool [R, n] by layer, k True in every row.
        layouts: how each mask lies on its layer's weight.
        logits: what was learned, fp32 [R, n] by layer.
        inclusion: probability of every element to be drawn at the last noise, fp32 [R, n] by layer, rows sum to k;
            estimated from 50 draws, so to 0.07 at worst (one standard error). Empty if nothing was drawn.
        inputs: the grids that the layers' inputs lie on, by layer; empty without `activation_bits`. They are not in
            the model: `quantized_inputs` puts them around it, the int8 ONNX export writes them down.
        history: one entry per epoch of drawing; entry 0 is before the first. Empty if nothing was drawn.
        sampled_loss: mean loss with masks drawn at the last noise, before they were fixed.
        fixed_loss: mean loss with the fixed masks, before any tuning.
        proof: that filters were removed as they were masked; None for masks inside weights.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    layouts: Mapping[str, Layout]
    logits: Mapping[str, Tensor]
    inclusion: Mapping[str, Tensor]
    inputs: Mapping[str, QuantizedInput]
    history: tuple[MaskEpoch, ...]
    sampled_loss: float
    fixed_loss: float
    proof: Verification | None = None


@entry()
def fit_masks(
    model: nn.Module,
    layers: Sequence[str],
    method: DynamicProbabilisticPruning,
    batches: BatchSource,
    loss_fn: LossFunction,
    *,
    graph: Graph | None = None,
    judge: BatchSource | None = None,
    seed: int = 0,
    precision: Precision = "auto",
    progress: bool = True,
) -> Masked:
    """Learn which k of n stay in each of the named layers, together with the weights.

    Args:
        model: the network, trained or not; not touched.
        layers: names of linear and convolution layers.
        method: pattern, schedule, learning rates.
        batches: re-iterable (inputs, targets) with a length.
        loss_fn: mean loss of a batch.
        graph: of `trace(model, example_inputs)`; filter patterns need it, to mask filters where they are read and to
            take them out.
        judge: data to compare drawn masks on (`best_of`) and to report losses; must not be the test data. Without it
            the training batches are used.
        seed: of logits and draws, which are the same on every rank, and of dropout.
        precision: as for `fit` while masks are drawn and compared; once they are fixed, `auto` takes bf16 where the
            hardware is faster in it.
        progress: show a bar where there is a terminal.

    Raises:
        ConfigError: no layers, the pattern does not fit one, or filters without `graph`; nothing has been trained then.
        DataError: NaN or infinity in the loss, naming epoch and step.
    """
    if not layers:
        raise ConfigError("layers", "there is nothing to mask", "name linear or convolution layers")
    twice = sorted({n for n in layers if list(layers).count(n) > 1})
    if isinstance(layers, str) or twice:
        found = f"{', '.join(twice)} named twice" if twice else f"{layers!r} is no list"
        raise ConfigError("layers", found, "give a list of names, each once")
    seed, work = as_seed(seed), copied(model)
    masks = method.masks(work, list(layers), seed)
    device = model_device(work)
    loader = as_batches(batches, work)
    seen = as_batches(judge, work) if judge is not None else loader
    gates = _gates(work, masks, graph, method.draws)
    _, left, _ = _without_filters(copied(work), masks, graph, seen)  # refused before training, if at all
    if len(left) < len(masks) and (method.bits or method.activation_bits):
        found = "the model's code holds sizes, so its graph is rewritten, where no layer is left to put on a grid"
        raise ConfigError(type(model).__name__, found, "write flatten(1) for view(-1, ...), or leave bits away")
    if method.rescale:
        with torch.no_grad():
            for name, mask in masks.items():
                layer_of(work, name).weight.mul_(math.sqrt(mask.layout.n / mask.layout.k))
    steps = _epochs(method) * len(loader)
    with seeded(seed, device), progress_bar("dpp", steps, progress) as bar:  # masks draw from seeds of their own
        inputs = {n: QuantizedInput(method.activation_bits).to(device) for n in masks} if method.activation_bits else {}
        with quantized_inputs(work, inputs), attach(work, masks) as attached, gates:
            drawn = range(method.epochs)
            history = _train(work, attached, inputs, method, drawn, loader, loss_fn, precision, bar, drawing=True)
            attached.mode_("mode")
            sampled = _sampled_loss(work, attached, seen, loss_fn, precision, method.best_of, seed)
            attached.settle_(sampled[1])
            inclusion = {n: _inclusion(m, seed) for n, m in masks.items() if history}
        work, left, proof = _without_filters(work, masks, graph, seen)
        with quantized_inputs(work, inputs), attach(work, left) as attached:
            tuned = range(method.epochs, _epochs(method))
            if not tuned:
                reestimate_if_better(work, loader, lambda m: mean_loss(m, seen, loss_fn, precision))
            fixed = mean_loss(work, seen, loss_fn, precision)
            _train(work, attached, inputs, method, tuned, loader, loss_fn, precision, bar, drawing=False)
        bake_(work, left)
    return Masked(
        model=work.eval(),
        masks={n: m.fixed.cpu() for n, m in masks.items()},
        layouts={n: m.layout for n, m in masks.items()},
        logits={n: m.logits.detach().cpu() for n, m in masks.items()},
        inclusion=inclusion,
        inputs={n: q.cpu().eval() for n, q in inputs.items()},
        history=tuple(history),
        sampled_loss=sampled[0],
        fixed_loss=fixed,
        proof=proof,
    )


def _gates(
    model: nn.Module, masks: Mapping[str, MaskedWeight], graph: Graph | None, draws: Draws
) -> AbstractContextManager[None]:
    """Where masks of filters act; nothing for masks inside weights."""
    units = {n: m for n, m in masks.items() if isinstance(m, MaskedUnits)}
    if not units:
        return nullcontext()
    if graph is None:
        found = "they are masked where they are read, and taken out: that needs the analysed model"
        raise ConfigError("filter patterns", found, "give graph=prunus.trace(model, example_inputs)")
    return gated_filters(model, graph, units, draws)


def _without_filters(
    model: nn.Module, masks: Mapping[str, MaskedWeight], graph: Graph | None, batches: Loader
) -> tuple[nn.Module, Mapping[str, MaskedWeight], Verification | None]:
    """The network without what masks of filters leave out, and the masks that remain: all there is of each filter.

    Where the captured graph had to be rewritten and a layer is none of its own, no mask of it remains.
    """
    units = {n: m for n, m in masks.items() if isinstance(m, MaskedUnits)}
    if not units or graph is None:
        return model, masks, None
    first = batches.first()[0]
    examples = torch.utils._pytree.tree_map_only(Tensor, lambda t: t[: graph.inputs[0].shape[0]], first)
    plan = plan_of_filters(graph, {n: m.fixed for n, m in units.items()})
    small, proof = apply_and_verify_(model, plan, examples)
    keep_configuration_true_(small, plan)
    layers = dict(small.named_modules())
    left = {}
    for name, mask in units.items():
        layer = layers.get(name)
        if takes_pattern(layer):
            layout = Pattern.parse("filter 100%").layout(layer, name)
            left[name] = MaskedWeight(
                layout,
                torch.zeros(1, layout.n, dtype=torch.float32, device="cpu"),
                bits=mask.bits,
                per_channel=mask.per_channel,
                scheme=mask.scheme,
            )
            left[name].settle_()
    return small, left, proof


def mean_loss(model: nn.Module, batches: BatchSource, loss_fn: LossFunction, precision: Precision = "auto") -> float:
    """Mean of the batches' losses in eval mode, over all ranks' batches; summed in fp64, `auto` is fp32."""
    device, loader, loss_of = model_device(model), as_batches(batches, model), mean_of(loss_fn)
    total = 0.0
    with eval_mode(model), torch.no_grad(), full_precision():
        for x, y in loader:
            with autocast(device, deciding(precision)):
                answer = widened(forward(model, to_device(x, device)))
                total += float(loss_of(answer, widened(to_device(y, device))))
    if not distributed():
        return total / len(loader)
    mean = torch.tensor(total / len(loader), dtype=torch.float64, device=device)
    average_over_ranks_([mean])
    return float(mean)


def _train(
    model: nn.Module,
    masks: MaskSet,
    grids: Mapping[str, QuantizedInput],
    method: DynamicProbabilisticPruning,
    epochs: range,
    batches: Loader,
    loss_fn: LossFunction,
    precision: Precision,
    bar: Bar,
    *,
    drawing: bool,
) -> list[MaskEpoch]:
    """Weights and logits while masks are drawn, the weights alone once they are fixed; one cosine over both."""
    weights = _weights(model, masks.logits()) if method.train_weights else []
    peaks = [(masks.logits() if drawing else [], method.lr * method.logit_lr_mult), (weights, method.lr)]
    groups: list[dict[str, Any]] = [{"params": p, "lr": peak, "peak": peak} for p, peak in peaks if p]
    if not groups or not epochs:
        return []
    optimizer = torch.optim.Adam(groups, fused=True)
    total = _epochs(method) * len(batches)
    history = []
    if drawing:
        masks.schedule_(*method.schedule(0))
        history.append(_observed(masks, math.nan))
    precision = deciding(precision) if drawing else precision  # fixed masks decide nothing any more
    # Cached: a layer that is called twice has one mask in a step, not two.
    training = Training(model, precision, bar, optimizer, parametrize.cached)
    penalty = partial(_weighted_entropy, masks, method) if drawing and method.entropy_weight else None
    loss_of = mean_of(loss_fn)
    with only_trainable(model, training.trained), modes_kept(model), full_precision() if drawing else nullcontext():
        model.train()
        for epoch in epochs:
            batches.set_epoch(epoch)
            running = torch.zeros((), device=model_device(model), dtype=torch.float32)
            for step, batch in enumerate(batches):
                if drawing:
                    masks.schedule_(*method.schedule(epoch + step / len(batches)))
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * (epoch * len(batches) + step) / total))
                running += training.step(
                    batch, lambda x, y: loss_of(forward(model, x), y), f"epoch {epoch}, step {step}", penalty
                )
            if drawing:
                history.append(_observed(masks, float(running) / len(batches)))
    average_over_ranks_([*running_statistics(model), *(q.largest for q in grids.values())])
    return history


def _weighted_entropy(masks: MaskSet, method: DynamicProbabilisticPruning) -> Tensor:
    return method.entropy_weight * masks.entropy()


def _epochs(method: DynamicProbabilisticPruning) -> int:
    """Passes over the data: with frozen weights there is nothing to tune."""
    return method.epochs + (method.tune_epochs if method.train_weights else 0)


def _observed(masks: MaskSet, loss: float) -> MaskEpoch:
    sure, differ, flips, spread, likely = {}, {}, {}, {}, {}
    for name, mask in masks.masks.items():
        k, noise = mask.layout.k, mask.noise_scale
        p = probabilities(mask.logits, max(noise, 1e-6))  # without noise: the limit, all mass on the largest
        sure[name] = confidence(p, k)
        differ[name] = diversity(p)
        flips[name] = flip_rate(mask.logits, k, noise_scale=noise, draws=2)
        spread[name] = float(entropy(p).mean())
        likely[name] = mean_inclusion(mask.logits, k, noise_scale=noise, draws=2)
    return MaskEpoch(loss, sure, differ, flips, spread, likely)


def _inclusion(mask: MaskedWeight, seed: int) -> Tensor:
    found = inclusion_probabilities(
        mask.logits, mask.layout.k, noise_scale=mask.noise_scale, draws=INCLUSION_DRAWS, seed=seed
    )
    return found.float()


def _sampled_loss(
    model: nn.Module,
    masks: MaskSet,
    judge: Loader,
    loss_fn: LossFunction,
    precision: Precision,
    best_of: int,
    seed: int,
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss over drawn masks, and the best of them and the most probable one by loss."""
    best = {n: largest(m.logits.detach(), m.layout.k) for n, m in masks.masks.items()}
    lowest = mean_loss(model, judge, loss_fn, precision) if best_of > 1 else math.inf
    losses = []
    for number in range(best_of):
        drawn = {n: _draw(m, (m.seed, seed, number)) for n, m in masks.masks.items()}
        masks.settle_(drawn)
        losses.append(mean_loss(model, judge, loss_fn, precision))
        if losses[-1] < lowest and best_of > 1:
            best, lowest = drawn, losses[-1]
    return sum(losses) / len(losses), best


def _draw(mask: MaskedWeight, seed: tuple[int, ...]) -> Tensor:
    noise = gumbel(mask.layout.rows, mask.layout.n, seed, mask.logits.device)
    return largest(mask.logits.detach() + mask.noise_scale * noise, mask.layout.k)


def _weights(model: nn.Module, logits: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """What trains besides the logits: every parameter that required a gradient."""
    own = {id(p) for p in logits}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in own]
