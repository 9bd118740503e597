"""Is a method one? What it must be as a configuration, and what it must say of units whose worth is known."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import ConfigError, PruneError
from prunus.learning.findings import Scores
from prunus.learning.fit import fit
from prunus.methods.base import (
    METHODS,
    GradientCriterion,
    MaskMethod,
    Method,
    PosteriorMethod,
    RoutingCriterion,
    StagedMethod,
    WeightCriterion,
)
from prunus.methods.settings import as_text, configure
from prunus.pipeline.prune import prune
from prunus.plan.plan import Plan
from prunus.posteriors.base import DecidingPosterior
from prunus.proof.apply import apply_
from prunus.runtime.entry import generators_kept
from prunus.testing.demand import demand, demand_vector
from prunus.testing.experts import check_experts
from prunus.testing.masks import check_masks
from prunus.testing.planted import DEAD, EXAMPLES, GROUP, MUTE, PAIRS, UNITS, WHOLE, planted, planted_model
from prunus.testing.posteriors import check_posterior

LEARNING = {"epochs": 12, "min_steps": 0}
GLANCE = {"epochs": 1, "min_steps": 0, "tune_epochs": 0}


def check_method(kind: type[Method], /, *, looks: bool = True, **settings: Any) -> None:
    """Check that a method does what `prune`, `compress`, the command line and the report will ask of it.

    It must be its own configuration: frozen, with settings that are checked and can be written as text. On a small
    network with units of known worth (single carriers of an input, copies, units that nothing reads, dead units) its
    scores must have the right shape, depend on the seed alone, follow the units where they stand, and put what is
    useless last; the network must be left as it was, and the plan must be proven. Posteriors are checked by
    `check_posterior`. A method of masks must keep exactly k of n, those that carry something, and its plan must make
    the same network again. Takes a few seconds.

    Args:
        kind: the class.
        looks: False for a method that looks at nothing, such as random scores: what is useless it can't know.
        settings: fields of the method that are not to have their defaults.

    Raises:
        AssertionError: with what is wrong, in a sentence.

    Example:
        >>> from prunus.methods import Taylor
        >>> check_method(Taylor, normalize="mean")
    """
    method = _check_definition(kind, settings)
    with generators_kept():
        try:
            _check_work(kind.__qualname__, kind, method, looks)
        except PruneError as error:
            raise AssertionError(f"{kind.__qualname__} fails at work: {error}") from error


def _check_work(name: str, kind: type[Method], method: Method, looks: bool) -> None:
    _check_settings(name, kind, method)
    if isinstance(method, MaskMethod):
        frozen = _with(method, {"epochs": 2, "train_weights": False})
        assert isinstance(frozen, MaskMethod)
        check_masks(name, frozen)
        return
    if isinstance(method, RoutingCriterion):
        check_experts(name, method)
        return
    draws = False
    if isinstance(method, PosteriorMethod):
        _check_schedule(name, method)
        check_posterior(method.posterior)
        draws = not method.posterior(UNITS).mean().requires_grad
    _check_seed(name, _with(method, GLANCE))
    _check_worth(name, _with(method, LEARNING), looks)
    if looks and not draws:
        _check_order(name, _with(method, {**GLANCE, "estimator": "point"}))
    _check_plan(name, _with(method, GLANCE))


def _check_definition(kind: type[Method], settings: Mapping[str, Any]) -> Method:
    demand(isinstance(kind, type) and issubclass(kind, Method), f"{kind!r} is no subclass of prunus.methods.Method")
    name = kind.__qualname__
    missing = ", ".join(sorted(kind.__abstractmethods__))
    demand(not missing, f"{name} does not define {missing}")
    own = getattr(kind, "name", None)
    demand(isinstance(own, str) and bool(own), f'{name} has no name: class {kind.__name__}(..., name="...")')
    owner = METHODS.get(str(own), kind)
    clash = f"{name}: the name {own!r} belongs to {owner.__module__}.{owner.__qualname__}; give it another"
    demand(owner is kind, clash)
    kinds = (WeightCriterion, GradientCriterion, PosteriorMethod, RoutingCriterion, MaskMethod)
    told = ", ".join(k.__name__ for k in kinds)
    demand(issubclass(kind, kinds), f"{name} must be of one of the kinds {told}")
    annotated = [n for n, t in vars(kind).get("__annotations__", {}).items() if "ClassVar" not in str(t)]
    ignored = ", ".join(set(annotated) - {f.name for f in fields(kind)})
    demand(not ignored, f"{name}: {ignored} can't be set: put @dataclass(frozen=True) above the class")
    needed = [f.name for f in fields(kind) if "MISSING" in repr(f.default) and "MISSING" in repr(f.default_factory)]
    without = ", ".join(n for n in needed if n not in settings)
    demand(not without, f"{name}: {without} has no default: give it one, or a value to check with")
    return kind(**settings)


def _check_settings(name: str, kind: type[Method], method: Method) -> None:
    demand(is_dataclass(method) and method == replace(method), f"{name}: two of the same settings are not equal")
    for field in fields(method):
        try:
            setattr(method, field.name, getattr(method, field.name))
        except AttributeError:
            pass
        else:
            demand(False, f"{name}.{field.name} can be changed afterwards: use @dataclass(frozen=True)")
        try:
            kind(**{**{f.name: getattr(method, f.name) for f in fields(method)}, field.name: object()})
        except ConfigError:
            continue
        except Exception as error:
            demand(
                False, f"{name}.{field.name} is not checked: {type(error).__name__} for an object of no use, {error}"
            )
        demand(False, f"{name}.{field.name} is not checked: call super().__post_init__() first")
    for field, text in zip(fields(method), as_text(method), strict=True):
        try:
            read = getattr(configure(kind, [text]), field.name)
        except (PruneError, TypeError, ValueError) as error:
            demand(False, f"{name}.{field.name} can't be given as text: {text!r} is refused ({error})")
        same = read == getattr(method, field.name)
        demand(same, f"{name}.{field.name} can't be given as text: {text!r} is read as {read!r}")


def _check_schedule(name: str, method: PosteriorMethod) -> None:
    for progress in (0.0, 0.5, 1.0):
        weight = method.beta_at(progress, EXAMPLES)
        fits = isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0
        demand(fits, f"{name}.beta_at({progress}, {EXAMPLES}) is {weight}: it must be a number, 0 or more")
    weight = method.unit_weight(9)
    demand(math.isfinite(weight) and weight >= 0, f"{name}.unit_weight(9) is {weight}: it must be a number, 0 or more")
    demand(method.passes(10) >= 1, f"{name}.passes(10) is {method.passes(10)}: at least one pass over the data")
    if isinstance(method, StagedMethod):
        decides = isinstance(method.posterior(UNITS), DecidingPosterior)
        demand(decides, f"{name}.posterior() has no kept(): a StagedMethod's is a DecidingPosterior")


def _check_seed(name: str, method: Method) -> None:
    found = []
    for other in (1, 2):
        torch.manual_seed(other)
        random.seed(other)
        np.random.seed(other)
        model = planted_model()
        before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        found.append(_scores(model, method, batches=2))
        after = model.state_dict()
        changed = [n for n, t in before.items() if not torch.equal(t, after[n])]
        demand(not changed, f"{name} changes the network that it scores: {', '.join(changed)}")
        as_it_was = flags == [m.training for m in model.modules()] and all(p.grad is None for p in model.parameters())
        demand(as_it_was, f"{name} leaves modes or gradients in the network that it scores")
    demand(list(found[0]) == [GROUP], f"{name} scores the groups {list(found[0])}, it was given {[GROUP]}")
    value = found[0][GROUP]
    demand_vector(value, UNITS, f"the score of {name}")
    apart = not value.requires_grad and value.device.type == "cpu"
    demand(apart, f"the score of {name} must be on the CPU and carry no gradient")
    demand(len(set(value.tolist())) > 1, f"{name} gives every unit the same score: it tells nothing")
    same = torch.equal(value, found[1][GROUP])
    demand(same, f"{name}: the same seed gave two results; nothing but the seed may decide, no global random state")


def _check_worth(name: str, method: Method, looks: bool) -> None:
    found = _fitted(planted_model(), method)
    value = found.values[GROUP]
    sees_data = not isinstance(method, WeightCriterion)
    useless = [*DEAD, *MUTE] if sees_data else [*DEAD]
    what = "dead or that nothing reads" if sees_data else "dead"
    worst, best = float(value[useless].max()), float(value[[*WHOLE]].min())
    told = f"units that are {what} score up to {worst:.3g}, units that carry an input alone {best:.3g} and more"
    if looks:
        demand(worst < best, f"{name}: {told}; higher must mean keep: the score is upside down, or does not look")
        pair, whole = float(value[[*PAIRS]].min()), float(value[[*WHOLE]].max())
        told = f"both of two copies score above every unit that has none ({pair:.3g}, {whole:.3g})"
        demand(pair <= whole, f"{name}: {told}; higher must mean keep")
    posterior = found.posteriors.get(GROUP)
    if isinstance(method, PosteriorMethod):
        demand(posterior is not None, f"{name}: no posterior comes with the scores of {GROUP}")
    if isinstance(posterior, DecidingPosterior):
        kept = posterior.kept()
        demand(bool(kept.any()), f"{name}: kept() keeps nothing of a network that needs a third of its units")
        demand(bool(kept[[*WHOLE]].all()), f"{name}: kept() lets go of units that carry an input alone")
        agree = bool(kept.all()) or bool(value[kept].min() >= value[~kept].max())
        demand(agree, f"{name}: kept() disagrees with score(): it keeps a unit of a lower score than one that goes")


def _check_order(name: str, method: Method) -> None:
    """The same units elsewhere must have the same scores; without draws, which belong to positions."""
    order = torch.randperm(UNITS, generator=torch.Generator().manual_seed(1))
    one, two = (_scores(planted_model(o), method, batches=2)[GROUP] for o in (None, order))
    close = torch.allclose(two[order], one, rtol=1e-3, atol=1e-5)
    demand(close, f"{name}: a unit's score depends on where among the others it stands")


def _check_plan(name: str, method: Method) -> None:
    problem = planted()
    value = _scores(planted_model(), method, batches=2)[GROUP]
    plan = Plan.from_kept(problem.graph, {GROUP: value.topk(UNITS // 2).indices}, method=method.name)
    apply_(planted_model(), plan, problem.examples)
    if isinstance(method, StagedMethod):
        result = prune(
            planted_model(), problem.examples, method=method, data=problem.batches, loss_fn=F.mse_loss, progress=False
        )
        told = f"{name}: {len(result.stages)} stages for one group of units"
        demand(len(result.stages) == 1, told)
        demand(result.plan.method == method.name, f"{name}: the plan is by {result.plan.method!r}")


def _with(method: Method, changes: Mapping[str, Any]) -> Method:
    """The method with those of the settings changed that it has and lets be changed."""
    for name, value in changes.items():
        if name in {f.name for f in fields(method)}:
            try:
                method = replace(method, **{name: value})
            except ConfigError:
                continue
    return method


def _scores(model: nn.Module, method: Method, batches: int) -> Mapping[str, Tensor]:
    return _fitted(model, method, batches).values


def _fitted(model: nn.Module, method: Method, batches: int = EXAMPLES) -> Scores:
    problem = planted()
    groups, data = problem.graph.groups(), list(problem.batches[:batches])
    return fit(model, groups, method, data, F.mse_loss, num_data=EXAMPLES, seed=5, precision="fp32")
