"""The only loop that learns gates. `fit` leaves the model exactly as it was; `fit_with_weights` trains it along."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import as_batches, forward
from prunus.data.losses import mean_of, sum_of
from prunus.data.passes import Loop
from prunus.data.taught import Taught, taught
from prunus.errors import ConfigError, DataError
from prunus.files.steps import Stateful
from prunus.gates.dealt import Dealt
from prunus.gates.frozen import frozen
from prunus.gates.gate import GateSet, attach, recompute_products
from prunus.graph.groups import ChannelGroup
from prunus.learning.findings import Scores
from prunus.learning.kept import keep_scores, kept_scores, made_from, scored_groups
from prunus.learning.problem import Learning
from prunus.learning.routes import route_scores
from prunus.learning.spread import SIGNS, Spread, signs_of
from prunus.learning.strength import Strength
from prunus.methods.base import (
    GradientCriterion,
    Method,
    PosteriorMethod,
    RoutingCriterion,
    StagedMethod,
    WeightCriterion,
)
from prunus.runtime.arguments import examples_in
from prunus.runtime.curves import point
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed, check_kind
from prunus.runtime.modes import eval_mode, modes_kept
from prunus.runtime.precision import Precision, deciding, full_precision
from prunus.runtime.processes import average_over_ranks_, distributed, model_device, running_statistics, summed
from prunus.runtime.progress import Bar, progress_bar
from prunus.runtime.renamed import another_word, renamed
from prunus.runtime.seeds import seeded
from prunus.runtime.training import BatchSource, LossFunction, Training, only_trainable


@renamed(another_word("loader", "batches"))
@entry()
def fit(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    method: Method,
    loader: BatchSource,
    loss_fn: LossFunction,
    *,
    num_data: int,
    seed: int = 0,
    precision: Precision = "auto",
    progress: bool = False,
) -> Scores:
    """Score the units of the groups.

    Args:
        model: the trained network; frozen here, and unchanged afterwards (weights, buffers, flags, hooks).
        groups: prunable groups of its graph.
        method: a criterion on weights or gradients, or a method with a posterior.
        loader: re-iterable (inputs, targets), or another form that `as_batches` takes; unused by weight criteria.
        loss_fn: `loss_fn(outputs, targets)`, a mean; see `data.losses.sum_of` for gradient criteria, which want sums.
            `prunus.data.DenseOutputs()` learns from the model's own outputs, whatever the targets.
        num_data: number of training examples N in the bound.
        seed: seeds every draw; the global random state is put back.
        precision: of the network's forward and backward pass; gates are always fp32. `auto` is fp32 on every
            processor: the scores decide what stays. `bf16` has to be asked for by name, and rounds what decides.
        progress: show a bar where there is a terminal.

    Raises:
        ConfigError: no groups, or no method.
        DataError: NaN or infinity in inputs or loss, naming epoch and step; or no batches.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> loader = [(torch.randn(32, 8), torch.randint(4, (32,)))]
        >>> groups = prunus.trace(net, torch.randn(2, 8)).groups()
        >>> method = prunus.DirichletPruning(min_steps=10)
        >>> scores = prunus.fit(net, groups, method, loader, F.cross_entropy, num_data=32)
        >>> scores.values["0"].shape, scores.posteriors["0"].interval(0.9)[0].shape
        (torch.Size([16]), torch.Size([16]))
    """
    check_kind("method", method, Method, "one, such as DirichletPruning()")
    if not groups:
        raise ConfigError("groups", "there is nothing to score", "graph.explain() says what is locked and why")
    seed, batches = as_seed(seed), as_batches(loader if method.needs_data else [], model)
    if method.needs_data and num_data < 1:
        raise ConfigError("num_data", f"{num_data} labels", "give the number of labels in the training data")
    if method.needs_data and len(batches) == 0:
        raise DataError("data", "there are no batches", "pass a non-empty loader")
    batches, loss_fn = taught(model, batches, loss_fn, seed) if method.needs_data else (batches, loss_fn)
    learning = Learning(batches, loss_fn, num_data=num_data, seed=seed, precision=precision, progress=progress)
    return score_units(method, model, groups, learning)


def score_units(method: Method, model: nn.Module, groups: Sequence[ChannelGroup], learning: Learning) -> Scores:
    """Score the units of the groups, by the kind of the method; the model is unchanged."""
    steps = learning.steps if method.needs_data else None
    origin = made_from(model, method, learning, {"groups": scored_groups(groups)}) if steps is not None else {}
    found = kept_scores(steps, origin, method)
    if found is None:
        found = replace(_scored(method, model, groups, learning), cost_exponent=method.cost_exponent)
        keep_scores(steps, origin, found)
    return found


@singledispatch
def _scored(method: Method, model: nn.Module, groups: Sequence[ChannelGroup], learning: Learning) -> Scores:
    raise ConfigError("method", f"{type(method).__name__} gives no scores of units", "use prunus.prune")


@_scored.register(WeightCriterion)
def _by_weights(
    method: WeightCriterion, model: nn.Module, groups: Sequence[ChannelGroup], learning: Learning
) -> Scores:
    with eval_mode(model):
        return Scores({g.name: method.score(model, g, learning.seed) for g in groups}, method=method.name)


@entry()
def fit_with_weights(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    method: StagedMethod,
    learning: Learning,
    weights: Sequence[nn.Parameter],
) -> Scores:
    """Learn the posteriors of all groups together while `weights` train along; the model is changed.

    Args:
        model: the network; in train mode meanwhile, afterwards in the mode it was in.
        groups: gated groups.
        method: makes the posteriors and says how strong their complexity counts.
        learning: data, loss and settings.
        weights: the parameters of the model that are trained; the others stay. None at all: as `fit`.

    Raises:
        ConfigError: no groups.
        DataError: NaN or infinity, naming epoch and step; the weights are as at that step.
    """
    if not groups:
        raise ConfigError("groups", "there is nothing to score", "graph.explain() says what is locked and why")
    if not weights:
        return score_units(method, model, groups, learning)
    learning = learning.counted()
    with (
        seeded(learning.seed, model_device(model), alike=True),
        only_trainable(model, weights),
        modes_kept(model),
        full_precision(),
    ):
        model.train()
        scores = _learn(model, groups, method, learning, [{"params": list(weights), "lr": method.weight_lr}])
        average_over_ranks_(running_statistics(model))
    return replace(scores, cost_exponent=method.cost_exponent)


@_scored.register(GradientCriterion)
def _by_gradients(
    method: GradientCriterion, model: nn.Module, groups: Sequence[ChannelGroup], learning: Learning
) -> Scores:
    if isinstance(learning.loader, Taught):  # whose outputs are those of gates at one: another pass tells nothing
        learning = replace(learning, loader=learning.loader.inputs, loss_fn=learning.loader.loss.drawn)
    with seeded(learning.seed, model_device(model)), frozen(model), full_precision():
        return _accumulate(model, groups, method, learning)


@_scored.register(PosteriorMethod)
def _by_posteriors(
    method: PosteriorMethod, model: nn.Module, groups: Sequence[ChannelGroup], learning: Learning
) -> Scores:
    learning, train_bn = learning.counted(), method.bn_mode == "train"
    with (
        seeded(learning.seed, model_device(model), alike=True),
        frozen(model, train_bn=train_bn),
        full_precision(),
    ):
        return _learn(model, groups, method, learning)


@_scored.register(RoutingCriterion)
def _by_routes(
    method: RoutingCriterion, model: nn.Module, groups: Sequence[ChannelGroup], learning: Learning
) -> Scores:
    if isinstance(learning.loader, Taught):
        learning = replace(learning, loader=learning.loader.inputs)
    return route_scores(method, model, groups, learning)


def _accumulate(
    model: nn.Module, groups: Sequence[ChannelGroup], method: GradientCriterion, learning: Learning
) -> Scores:
    # Row 0 sums what every batch adds; the others take every batch with a sign of their own.
    totals = {g.name: torch.zeros(1 + SIGNS, g.units, dtype=torch.float64, device="cpu") for g in groups}
    device, loss_of = model_device(model), sum_of(learning.loss_fn)
    with attach(model, groups) as gates, progress_bar(method.name, len(learning.loader), learning.progress) as bar:
        gates.probe()
        training = Training(model, deciding(learning.precision), bar, around=recompute_products)

        def summed_loss(inputs: Any, targets: Any) -> Tensor:
            return loss_of(forward(model, inputs), targets, examples_in(inputs))

        values: dict[str, Any] = {"totals": totals, "examples": 0}
        origin = made_from(model, method, learning, {"groups": scored_groups(groups)})
        loop = Loop(learning.steps, "learning", origin, learning.loader, {}, values)
        bar.skip(loop.step + loop.epoch * len(learning.loader))
        for epoch in loop.epochs([0]):
            for step, batch in loop.within(epoch):
                signs = signs_of(step)
                training.step(batch, summed_loss, f"epoch {epoch}, step {step}")
                for group in groups:
                    probe = gates.probes.get(group.name)
                    if probe is not None and probe.grad is not None:
                        values["totals"][group.name] += signs * method.contribution(probe.grad.float()).cpu()
                values["examples"] += examples_in(batch[0])
        totals, examples = values["totals"], values["examples"]
    if distributed():
        totals = {name: summed(total.to(device)).cpu() for name, total in totals.items()}
        examples = int(summed(torch.tensor(float(examples), device=device, dtype=torch.float64)))
    values = {n: method.finish(t[0], examples).float() for n, t in totals.items()}
    replicas = {
        n: torch.stack([method.finish(t[0] + sign * other, examples).float() for other in t[1:] for sign in (1, -1)])
        for n, t in totals.items()
    }
    told = replicas if len(learning.loader) > 1 else {}  # one batch doesn't say how others differ
    if any(_folded(t, values[n]) for n, t in totals.items()):
        told = {}  # what noise moves to the other side of zero comes back on this one
    return Scores(values, method=method.name, replicas=told)


def _folded(totals: Tensor, values: Tensor) -> bool:
    """Whether scores are magnitudes of sums of both signs."""
    lowest = (totals[0] - totals[1:].abs()).min()
    return bool(lowest < -1e-9 * totals.abs().max()) and bool((values >= 0).all())


def _learn(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    method: PosteriorMethod,
    learning: Learning,
    also: Sequence[dict[str, Any]] = (),
) -> Scores:
    """The posteriors, learned together or one group after the other; `also` trains in the same steps."""
    batches = len(learning.loader)
    rounds: list[list[str] | None] = [None] if method.joint else [[g.name] for g in groups]
    total = batches * method.passes(batches) * len(rounds)
    history: list[float] = []
    replicas: dict[str, Tensor] = {}
    with (
        attach(model, groups, method.posterior, draws=method.draws, placement=method.placement) as gates,
        progress_bar(method.name, total, learning.progress) as bar,
    ):
        for names in rounds:
            gates.mean(names) if method.estimator == "point" else gates.sample(names)
            losses, spread = _learn_round(model, gates, names, method, learning, bar, also)
            history += losses
            if spread is not None:
                replicas |= spread.replicas({n: gates.posterior(n) for n in names or [g.name for g in groups]})
        posteriors = {g.name: gates.posterior(g.name).cpu() for g in groups}
    values = {name: p.score().detach().cpu() for name, p in posteriors.items()}
    return Scores(values, posteriors, method.name, tuple(history), replicas=replicas)


def _learn_round(
    model: nn.Module,
    gates: GateSet,
    names: list[str] | None,
    method: PosteriorMethod,
    learning: Learning,
    bar: Bar,
    also: Sequence[dict[str, Any]],
) -> tuple[list[float], Spread | None]:
    batches, num_data = learning.loader, learning.labels
    parameters = gates.parameters() if names is None else [p for n in names for p in gates.posterior(n).parameters()]
    passes, worth = method.passes(len(batches)), learning.worth
    strength = None if worth is None else Strength.of(worth, gates.groups, method, num_data, passes * len(batches))
    lr = method.lr if strength is None else strength.step_size(method.lr)
    optimizer = torch.optim.Adam([{"params": parameters, "lr": lr}, *also], weight_decay=0.0)
    spread = Spread(optimizer, parameters) if method.finds_spread else None
    dealt = Dealt(learning.seed, model_device(model), in_blocks=batches.in_blocks) if distributed() else None
    gates.dealt = dealt
    around = recompute_products if dealt is None else partial(_shared_draws, dealt)
    training = Training(model, deciding(learning.precision), bar, optimizer, around)
    loss_of = _sampled_loss(model, method, learning.loss_fn)
    last, nothing = max(passes * len(batches) - 1, 1), torch.zeros((), device=model_device(model), dtype=torch.float32)
    values: dict[str, Any] = {"running": nothing, "history": []}
    origin = made_from(model, method, learning, {"groups": scored_groups(gates.groups), "round": names})
    parts: dict[str, Stateful | None] = {
        "posteriors": gates.posteriors,
        "optimizer": optimizer,
        "spread": spread,
        "strength": strength,
    }
    parts["pieces"] = training.pieces
    parts |= {"model": model} if also or method.bn_mode == "train" else {}
    loop = Loop(learning.steps, "learning", origin, batches, {n: p for n, p in parts.items() if p is not None}, values)
    bar.skip(loop.step + loop.epoch * len(batches))
    for epoch in loop.epochs(range(passes)):
        for step, batch in loop.within(epoch):
            progress = (epoch * len(batches) + step) / last
            for group in gates.groups:
                method.anneal_(gates.posterior(group.name), progress)
            weight = method.beta_at(progress, num_data)
            penalty = None
            if weight and strength is not None:
                penalty = partial(strength.penalty, gates, weight)
            elif weight:
                penalty = partial(_weighted_penalty, gates, weight, num_data, method.unit_weight)
            if spread is not None:
                spread.displace_()
            counted = loss_of if dealt is None else partial(_weighted, loss_of, dealt.share_(examples_in(batch[0])))
            loss = training.step(batch, counted, f"epoch {epoch}, step {step}", penalty)
            values["running"] = values["running"] + loss
            if strength is not None:
                average_over_ranks_([loss])
                strength.see(float(loss))
        average_over_ranks_([values["running"]])
        values["history"].append(float(values["running"]) / len(batches))
        values["running"] = nothing
        point("learning/loss", values["history"][-1], epoch + 1)
    return values["history"], spread


@contextmanager
def _shared_draws(dealt: Dealt) -> Iterator[None]:
    with recompute_products(), dealt.apart():
        yield


def _weighted(loss_of: Callable[[Any, Any], Tensor], share: float, inputs: Any, targets: Any) -> Tensor:
    return share * loss_of(inputs, targets)


def _weighted_penalty(gates: GateSet, weight: float, num_data: int, unit_weight: Callable[[int], float]) -> Tensor:
    return weight * gates.penalty(num_data, unit_weight)


def _sampled_loss(model: nn.Module, method: PosteriorMethod, loss_fn: LossFunction) -> Callable[[Any, Any], Tensor]:
    """The mean loss of a batch over the draws of the gates that each forward pass makes."""
    loss_of = mean_of(loss_fn)

    def loss(inputs: Any, targets: Any) -> Tensor:
        draws = [forward(model, inputs) for _ in range(method.samples if method.estimator == "mc" else 1)]
        if method.loss_reduction == "loss_of_mean":
            return loss_of(torch.stack(draws).mean(0), targets)
        return torch.stack([loss_of(out, targets) for out in draws]).mean()

    return loss
