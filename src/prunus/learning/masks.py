"""Learning masks inside weights: draw, fix the best, cut what whole filters leave, tune the survivors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.data.batches import forward
from prunus.data.evaluation import mean_loss
from prunus.data.losses import mean_of
from prunus.data.passes import Loop
from prunus.errors import ConfigError
from prunus.files.steps import Stateful
from prunus.learning.findings import LearnedMasks, MaskEpoch
from prunus.learning.kept import made_from
from prunus.learning.problem import Learning, Problem
from prunus.masks.activations import QuantizedInput, quantized_inputs
from prunus.masks.filter_masks import MaskedUnits
from prunus.masks.filters import check_filters, gated_filters, plan_of_filters, sole_writers
from prunus.masks.layers import MaskedWeight, MaskSet, layer_of, make_permanent_, masked_weights
from prunus.masks.maskable import maskable_layers
from prunus.masks.metrics import (
    confidence,
    diversity,
    drawn,
    entropy,
    flip_rate,
    inclusion_probabilities,
    mean_inclusion,
    probabilities,
)
from prunus.masks.patterns import Pattern, takes_pattern
from prunus.masks.sampling import largest
from prunus.methods.base import MaskMethod
from prunus.proof.apply import apply_and_verify_
from prunus.proof.ownclass import survives
from prunus.proof.verification import Verification
from prunus.recovery.batchnorm import reestimate_if_better
from prunus.runtime.copies import copied
from prunus.runtime.curves import point
from prunus.runtime.modes import modes_kept
from prunus.runtime.precision import deciding, full_precision, lower
from prunus.runtime.processes import average_over_ranks_, model_device, running_statistics
from prunus.runtime.progress import Bar, progress_bar
from prunus.runtime.seeds import seeded
from prunus.runtime.training import Training, only_trainable
from prunus.surgery.configuration import keep_configuration_true_

KEEP_DRAWS = 50
"""Masks from which the result's inclusion probabilities are estimated."""
Refit = Callable[[Mapping[str, Tensor]], nn.Module | None]
"""From fixed masks, by layer, to a copy of the dense network refitted under them; None if there can't be one."""


@dataclass(frozen=True)
class _Run:
    """What every part of one learning shares.

    Attributes:
        method: pattern, schedule, learning rates.
        learning: data and loss.
        grids: of the layers' inputs, by layer.
        bar: counts the steps.
    """

    method: MaskMethod
    learning: Learning
    grids: Mapping[str, QuantizedInput]
    bar: Bar

    def loss(self, model: nn.Module) -> float:
        """Mean loss on what is judged by."""
        learning = self.learning
        loader = learning.loader if learning.validation is None else learning.validation
        return mean_loss(model, loader, learning.loss_fn, learning.precision)


def patterns_of(method: MaskMethod, problem: Problem) -> dict[str, str]:
    """The pattern of every layer that gets one: those that the target names, or all that `maskable_layers` takes.

    Raises:
        ConfigError: layers that are named and others that are ignored; a layer that takes no pattern; filters that are
            locked, shared or mixed with other patterns; no layer at all. What does not fit its layer is refused later.
    """
    asked, model, graph = problem.request.patterns, problem.model, problem.graph
    if isinstance(asked, Mapping) and problem.ignored_layers:
        what = "they choose among all layers, and the target names some"
        raise ConfigError("ignored_layers", what, "leave one of them out")
    if isinstance(asked, Mapping):
        by_filter = {Pattern.parse(text).granularity == "filter" for text in asked.values()}
        if len(by_filter) > 1:
            what = "some of these patterns take filters out, others lie inside weights"
            raise ConfigError("target", what, "prune twice: first the filters, then what they leave")
        patterns = {str(name): text for name, text in asked.items()}
        for name in patterns:
            layer_of(model, name)
    else:
        text = asked or method.pattern
        by_filter = {Pattern.parse(text).granularity == "filter"}
        patterns = dict.fromkeys(maskable_layers(model, problem.ignored_layers), text)
        if True in by_filter:
            patterns = {n: p for n, p in patterns.items() if n in sole_writers(graph)}
    if True in by_filter:
        check_filters(graph, list(patterns))
    if not patterns:
        raise ConfigError("model", "no layer is left to put a pattern on", "ignore fewer layers")
    return patterns


def learn_masks(
    method: MaskMethod,
    problem: Problem,
    learning: Learning,
    patterns: Mapping[str, str],
    refit: Refit | None = None,
) -> tuple[nn.Module, LearnedMasks, Verification | None]:
    """Learn which k of n stay in each layer, together with the weights.

    Args:
        method: schedule, learning rates, bits.
        problem: the network, which is not touched, and its analysis.
        learning: data and loss; `auto` precision is fp32 while masks are drawn and compared, and once they are fixed
            what the hardware is faster in. Drawn masks are compared, and losses reported, on its validation.
        patterns: the pattern of each layer, as text.
        refit: gives another network for the masks once they are fixed; whichever loses less is tuned. Not asked where
            filters go or where numbers lie on a grid.

    Returns:
        A trained copy of the network, in eval mode, with zeros where nothing is kept or without the filters that are
        not kept; what was learned; and the proof that filters were removed as they were masked.

    Raises:
        ConfigError: a pattern that does not fit its layer, or bits without a layer to put on a grid; nothing has been
            trained then.
        DataError: NaN or infinity in the loss, naming epoch and step.
    """
    work, seed = copied(problem.model), learning.seed
    masks = _masks(method, work, patterns, seed)
    device = model_device(work)
    gates = _gates(work, masks, problem, method)
    _check_cut(work, masks, problem, method)
    if method.rescale:
        with torch.no_grad():
            for name, mask in masks.items():
                layer_of(work, name).weight.mul_(math.sqrt(mask.layout.n / mask.layout.k))
    steps = method.passes * len(learning.loader)
    with seeded(seed, device), progress_bar(method.name, steps, learning.progress) as bar:
        # Masks draw from seeds of their own.
        grids = {n: QuantizedInput(method.activation_bits).to(device) for n in masks} if method.activation_bits else {}
        run = _Run(method, learning, grids, bar)
        with quantized_inputs(work, grids), masked_weights(work, masks) as attached, gates:
            history = draw(work, attached, run)
            sampled = freeze(work, attached, run)
            likely = {n: _keep_probability(m, seed) for n, m in masks.items() if history}
        work, left, proof = _without_filters(work, masks, problem)
        taken = False
        if refit is not None and proof is None and not (method.bits or method.activation_bits):
            work, taken = _better(work, refit({n: m.fixed.cpu() for n, m in masks.items()}), masks, run)
        with quantized_inputs(work, grids), masked_weights(work, left) as attached:
            fixed = tune(work, attached, run)
        make_permanent_(work, left)
    found = LearnedMasks(
        masks={n: m.fixed.cpu() for n, m in masks.items()},
        layouts={n: m.layout for n, m in masks.items()},
        logits={n: m.logits.detach().cpu() for n, m in masks.items()},
        keep_probability=likely,
        inputs={n: q.cpu().eval() for n, q in grids.items()},
        history=tuple(history),
        sampled_loss=sampled,
        fixed_loss=fixed,
        refitted=taken,
        method=method.name,
    )
    return work.eval(), found, proof


def draw(model: nn.Module, masks: MaskSet, run: _Run) -> list[MaskEpoch]:
    """Train weights and logits while masks are drawn; what the masks looked like before, and after each epoch."""
    return _train(model, masks, run, range(run.method.epochs), drawing=True)


def freeze(model: nn.Module, masks: MaskSet, run: _Run) -> float:
    """Fix the most probable masks, or the best of several; the mean loss of the drawn ones."""
    masks.mode_("likeliest")
    best = {n: largest(m.logits.detach(), m.layout.k) for n, m in masks.masks.items()}
    lowest = run.loss(model) if run.method.best_of > 1 else math.inf
    losses = []
    for number in range(run.method.best_of):
        tried = {
            n: drawn(m.logits, m.layout.k, m.noise_scale, (m.seed, run.learning.seed, number))
            for n, m in masks.masks.items()
        }
        masks.freeze_(tried)
        losses.append(run.loss(model))
        if losses[-1] < lowest and run.method.best_of > 1:
            best, lowest = tried, losses[-1]
    masks.freeze_(best)
    return sum(losses) / len(losses)


def _better(
    model: nn.Module, other: nn.Module | None, masks: Mapping[str, MaskedWeight], run: _Run
) -> tuple[nn.Module, bool]:
    """Whichever network loses less under the masks, and whether that is the other one.

    Masks of frozen weights were fitted to the very examples that the loss is measured on, and nothing was trained that
    could be worth keeping.
    """
    if other is None:
        return model, False
    if not run.method.train_weights:
        return other, True
    losses = []
    for tried in (other, model):
        with masked_weights(tried, masks):
            losses.append(run.loss(tried))
    return (other, True) if lower(losses[0], than=losses[1]) else (model, False)


def tune(model: nn.Module, masks: MaskSet, run: _Run) -> float:
    """Train the weights on under fixed masks, or estimate statistics anew; the mean loss before the training."""
    tuned = range(run.method.epochs, run.method.passes)
    if not tuned:
        reestimate_if_better(model, run.learning.loader.inputs, run.loss)
    fixed = run.loss(model)
    _train(model, masks, run, tuned, drawing=False)
    return fixed


def _masks(method: MaskMethod, model: nn.Module, patterns: Mapping[str, str], seed: int) -> dict[str, MaskedWeight]:
    """The method's masks, in the order of the patterns."""
    found: dict[str, MaskedWeight] = {}
    for text in dict.fromkeys(patterns.values()):
        names = [name for name, other in patterns.items() if other == text]
        found |= replace(method, **{"pattern": text}).masks(model, names, seed)
    return {name: found[name] for name in patterns}


def _gates(
    model: nn.Module, masks: Mapping[str, MaskedWeight], problem: Problem, method: MaskMethod
) -> AbstractContextManager[None]:
    """Where masks of filters act; nothing for masks inside weights."""
    units = _of_filters(masks)
    return gated_filters(model, problem.graph, units, method.draws) if units else nullcontext()


def _of_filters(masks: Mapping[str, MaskedWeight]) -> dict[str, MaskedUnits]:
    return {n: m for n, m in masks.items() if isinstance(m, MaskedUnits)}


def _check_cut(model: nn.Module, masks: Mapping[str, MaskedWeight], problem: Problem, method: MaskMethod) -> None:
    """Refuse before training what can't be cut after it; the model is as it was.

    What its own class survives is cut and put back. Only where the class does not, a copy is cut as after the training.

    Raises:
        ConfigError: bits, and a graph that has to be rewritten, where no layer is left to put on a grid.
        SurgeryError: filters can't be taken out at all.
    """
    units = _of_filters(masks)
    if not units:
        return
    kept = plan_of_filters(problem.graph, {n: m.fixed for n, m in units.items()}).kept
    if survives(model, problem.graph, kept, problem.example_inputs) is None:
        return
    _, left, _ = _without_filters(copied(model), masks, problem)
    if len(left) < len(masks) and (method.bits or method.activation_bits):
        what = "the model's code holds sizes, so its graph is rewritten, where no layer is left to put on a grid"
        raise ConfigError(type(model).__name__, what, "write flatten(1) for view(-1, ...), or leave bits away")


def _without_filters(
    model: nn.Module, masks: Mapping[str, MaskedWeight], problem: Problem
) -> tuple[nn.Module, Mapping[str, MaskedWeight], Verification | None]:
    """The network without what masks of filters leave out, and the masks that remain: all there is of each filter.

    Where the captured graph had to be rewritten and a layer is none of its own, no mask of it remains.
    """
    units = _of_filters(masks)
    if not units:
        return model, masks, None
    plan = plan_of_filters(problem.graph, {n: m.fixed for n, m in units.items()})
    small, proof = apply_and_verify_(model, plan, problem.example_inputs)
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
            left[name].freeze_()
    return small, left, proof


def _train(model: nn.Module, masks: MaskSet, run: _Run, epochs: range, *, drawing: bool) -> list[MaskEpoch]:
    """Weights and logits while masks are drawn, the weights alone once they are fixed; one cosine over both."""
    method, batches, precision = run.method, run.learning.loader, run.learning.precision
    weights = _weights(model, masks.logits()) if method.train_weights else []
    peaks = [(masks.logits() if drawing else [], method.lr * method.logit_lr_mult), (weights, method.lr)]
    groups: list[dict[str, Any]] = [{"params": p, "lr": peak, "peak": peak} for p, peak in peaks if p]
    if not groups or not epochs:
        return []
    optimizer = torch.optim.Adam(groups, fused=True)
    total = method.passes * len(batches)
    nothing = torch.zeros((), device=model_device(model), dtype=torch.float32)
    values: dict[str, Any] = {"running": nothing, "history": []}
    origin = made_from(model, method, run.learning, {"epochs": epochs, "layers": list(masks.masks)})
    precision = deciding(precision) if drawing else precision  # fixed masks decide nothing any more
    # Cached: a layer that is called twice has one mask in a step, not two.
    training = Training(model, precision, run.bar, optimizer, parametrize.cached)
    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "masks": masks, "pieces": training.pieces}
    parts |= {f"grid {n}": grid for n, grid in run.grids.items()}
    loop = Loop(run.learning.steps, "drawing" if drawing else "tuning", origin, batches, parts, values)
    run.bar.skip(loop.step + loop.epoch * len(batches))
    resumed = loop.resumed
    if drawing and not resumed:
        masks.schedule_(*method.schedule(0))
        values["history"].append(asdict(_observed(masks, math.nan)))
    penalty = partial(_weighted_entropy, masks, method) if drawing and method.entropy_weight else None
    loss_of = mean_of(run.learning.loss_fn)
    with only_trainable(model, training.trained), modes_kept(model), full_precision() if drawing else nullcontext():
        model.train()
        for epoch in loop.epochs(epochs):
            for step, batch in loop.within(epoch):
                if drawing:
                    masks.schedule_(*method.schedule(epoch + step / len(batches)))
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * (epoch * len(batches) + step) / total))
                loss = training.step(
                    batch, lambda x, y: loss_of(forward(model, x), y), f"epoch {epoch}, step {step}", penalty
                )
                values["running"] = values["running"] + loss
            average_over_ranks_([values["running"]])
            mean = float(values["running"]) / len(batches)
            point("drawing/loss" if drawing else "tuning/loss", mean, epoch + 1)
            if drawing:
                values["history"].append(asdict(_observed(masks, mean)))
            values["running"] = nothing
    if drawing and resumed:  # the last step's, where no step was taken here
        masks.schedule_(*method.schedule(epochs[-1] + (len(batches) - 1) / len(batches)))
    average_over_ranks_([*running_statistics(model), *(q.largest for q in run.grids.values())])
    return [MaskEpoch(**seen) for seen in values["history"]]


def _weighted_entropy(masks: MaskSet, method: MaskMethod) -> Tensor:
    return method.entropy_weight * masks.entropy()


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


def _keep_probability(mask: MaskedWeight, seed: int) -> Tensor:
    found = inclusion_probabilities(
        mask.logits, mask.layout.k, noise_scale=mask.noise_scale, draws=KEEP_DRAWS, seed=seed
    )
    return found.float()


def _weights(model: nn.Module, logits: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """What trains besides the logits: every parameter that required a gradient."""
    own = {id(p) for p in logits}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in own]
