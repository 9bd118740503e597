"""Is a posterior one? Its answers, its gradients, and what it says of units whose need is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from prunus.posteriors.base import DecidingPosterior, Posterior
from prunus.runtime.precision import dtype_name
from prunus.testing.demand import demand, demand_vector

NEED = (0.0, 0.0, 0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Weight of the loss of a small multiplier, by unit: three that nothing needs, two (the last) that matter much."""
UNITS, USELESS, NEEDED = len(NEED), slice(0, 3), slice(6, 8)
DRAWS, STEPS, FAR = 512, 200, 100.0
BOUND = 10.0
"""Nats per unit that a complexity may fall, at most, between a parameter of 50 and one of 100."""

Make = Callable[[], Posterior]


def check_posterior(kind: Callable[..., Posterior], /, **settings: Any) -> None:
    """Check that a posterior answers as methods, allocation and report need it.

    Shapes, dtypes, seeds, intervals; gradients that reach every parameter; a finite complexity wherever the parameters
    go, which asks for silence and not for noise; scores, keep probabilities and `kept()` that agree on units whose need
    is known. Takes about a second.

    Args:
        kind: the class, or whatever makes one from a number of units.
        settings: more arguments for it.

    Raises:
        AssertionError: with what is wrong, in a sentence.

    Example:
        >>> from prunus.posteriors import HardConcretePosterior
        >>> check_posterior(HardConcretePosterior, beta=0.5)
    """
    name = getattr(kind, "__qualname__", type(kind).__name__)

    def make() -> Posterior:
        return kind(UNITS, **settings)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _check_answers(name, make)
        _check_interval(name, make())
        _check_gradients(name, make())
        _check_extremes(name, make)
        left_alone = _check_alone(name, make)
        _check_need(name, make, left_alone)


def _check_answers(name: str, make: Make) -> None:
    q = make()
    demand(isinstance(q, Posterior), f"{name} makes a {type(q).__name__}, which is no prunus.posteriors.Posterior")
    demand(getattr(q, "units", None) == UNITS, f"{name}: `units` is not the number of units it was made with")
    demand(any(p.requires_grad for p in q.parameters()), f"{name} has no parameters to learn: use nn.Parameter")
    one, same, other = (_seeded(q, seed) for seed in (1, 1, 2))
    what = f"{dtype_name(one.dtype)} {list(one.shape)}"
    shaped = one.shape == (DRAWS, UNITS) and one.dtype == torch.float32
    demand(shaped, f"{name}.rsample({DRAWS}) is {what}, it must be float32 [{DRAWS}, {UNITS}]")
    demand(bool(torch.isfinite(one).all()), f"{name}.rsample() holds NaN or infinity")
    demand(torch.equal(one, same), f"{name}.rsample() depends on something else than torch's seed")
    still = f"{name}.rsample() gives every unit the same number in all draws, or in all seeds: it must draw"
    demand(bool((one.std(0) > 0).all()) and not torch.equal(one, other), still)
    demand(one.requires_grad, f"{name}.rsample() is not differentiable: no gradient reaches the parameters")

    mean, score, complexity = q.mean(), q.score(), q.complexity()
    demand_vector(mean, UNITS, f"{name}.mean()")
    demand_vector(score, UNITS, f"{name}.score()")
    demand(not score.requires_grad, f"{name}.score() carries a gradient: detach it")
    demand(torch.equal(score, q.score()), f"{name}.score() is another when asked again: it must not draw")
    scalar = isinstance(complexity, Tensor) and complexity.ndim == 0 and complexity.dtype == torch.float32
    demand(scalar, f"{name}.complexity() must be one float32 number, summed over the units")
    slack = 1e-3 * one.abs().amax(0)
    inside = (mean >= one.amin(0) - slack) & (mean <= one.amax(0) + slack)
    demand(bool(inside.all()), f"{name}.mean() lies outside of what rsample() draws: it must be on its scale")
    if isinstance(q, DecidingPosterior):
        demand_vector(q.kept(), UNITS, f"{name}.kept()", torch.bool)
    for k in (1, UNITS // 2):
        probability = q.keep_probability(k)
        demand_vector(probability, UNITS, f"{name}.keep_probability({k})")
        whole = bool(((probability >= 0) & (probability <= 1)).all()) and abs(float(probability.sum()) - k) < 1e-3 * k
        demand(whole, f"{name}.keep_probability({k}) must lie between 0 and 1 and sum to {k}")
        again = torch.equal(probability, q.keep_probability(k))
        demand(again, f"{name}.keep_probability() depends on something else than its seed")


def _seeded(q: Posterior, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return q.rsample(DRAWS)


def _check_interval(name: str, q: Posterior, level: float = 0.9) -> None:
    low, high = q.interval(level)
    demand_vector(low, UNITS, f"the lower end of {name}.interval()")
    demand_vector(high, UNITS, f"the upper end of {name}.interval()")
    demand(bool((low <= high).all()), f"{name}.interval() has its lower end above the upper one")
    z = q.rsample(8 * DRAWS).detach()
    share = ((z >= low) & (z <= high)).float().mean(0)
    told = (
        f"{name}.interval({level}) holds {float(share.min()):.0%} to {float(share.max()):.0%} of what rsample() draws"
    )
    demand(bool((share > level - 0.05).all()), f"{told}: too narrow, or on another scale")
    # Where draws are cut, all that lies at the cut belongs to the interval.
    tied = bool((((z == z.amin(0)) | (z == z.amax(0))).float().mean(0) > 0.01).any())
    demand(tied or bool((share < level + 0.05).all()), f"{told}: too wide")


def _check_gradients(name: str, q: Posterior) -> None:
    torch.manual_seed(3)
    z = q.rsample(DRAWS)
    trained = {n: p for n, p in q.named_parameters() if p.requires_grad}
    for n, gradient in _gradients((z * torch.randn_like(z)).sum(), trained):
        missed = [i for i, g in enumerate(gradient.flatten().tolist()) if g == 0]
        which = "" if len(missed) == gradient.numel() else f" (elements {missed[:3]})"
        demand(
            not missed, f"{name}: the gradient of the draws does not reach {n}{which}: it is detached, cut or unused"
        )
    reached = torch.zeros(UNITS)
    for _, gradient in _gradients(q.complexity(), trained):
        per_unit = gradient.shape[:1] == (UNITS,)
        reached += gradient.abs().flatten(1).sum(1) if per_unit and gradient.ndim > 1 else gradient.abs()
    told = f"{name}: the gradient of the complexity reaches no parameter of some units: nothing asks them to go"
    demand(bool((reached > 0).all()), told)


def _gradients(value: Tensor, parameters: dict[str, nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
    found: Any = (None,) * len(parameters)
    if value.requires_grad:
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
    for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
        yield name, torch.zeros_like(parameter) if gradient is None else gradient


def _check_extremes(name: str, make: Make) -> None:
    for parameter in [n for n, p in make().named_parameters() if p.requires_grad]:
        for value in (FAR, -FAR):
            for units in (slice(0, 1), slice(None)):
                q = _moved(make, parameter, value, units)
                where = f"where {parameter} is {value:g}: keep it within a range (`inward_clamp`)"
                complexity = q.complexity()
                demand(bool(torch.isfinite(complexity)), f"{name}.complexity() is {complexity.item()} {where}")
                gradients = _gradients(complexity, {n: p for n, p in q.named_parameters() if p.requires_grad})
                finite = all(bool(torch.isfinite(g).all()) for _, g in gradients)
                demand(finite, f"the gradient of {name}.complexity() is not finite {where}")
                for answer, got in (("rsample()", q.rsample(16)), ("mean()", q.mean()), ("score()", q.score())):
                    demand(bool(torch.isfinite(got).all()), f"{name}.{answer} is not finite {where}")


def _moved(make: Make, parameter: str, value: float, units: slice = slice(None)) -> Posterior:
    q = make()
    with torch.no_grad():
        q.get_parameter(parameter)[units] = value
    return q


def _check_alone(name: str, make: Make) -> Posterior:
    """What the complexity does with units that nothing needs; returns the posterior after it."""
    q = make()
    loud, score = _loudness(q), q.score()
    _descend(q)
    after = _loudness(q)
    quiet = f"{name}: descending complexity() makes no unit smaller or noisier: its sign is turned, it rewards need"
    demand(bool((after > 1.05 * loud).all()), quiet)
    for parameter in [n for n, p in make().named_parameters() if p.requires_grad]:
        for value in (FAR, -FAR):
            near, far = (_moved(make, parameter, v).complexity().detach() for v in (value / 2, value))
            endless = f"{name}.complexity() falls without bound as {parameter} goes to {value:g}: it rewards noise"
            demand(float(near - far) < BOUND * UNITS, endless)
    first, last = float(score[0]), float(q.score()[0])
    told = f"a unit that nothing needs begins with a score of {first:.3g} and ends with {last:.3g}"
    turned = "higher must mean keep: the score is upside down, or takes noise for need"
    demand(bool((q.score() < score).all()), f"{name}.score(): {told}; {turned}")
    return q


def _loudness(q: Posterior) -> Tensor:
    """Standard deviation of the draws over their mean, [K]; infinite where all are zero."""
    torch.manual_seed(4)
    with torch.no_grad():
        z = q.rsample(DRAWS)
    mean = z.mean(0).abs()
    return torch.where(mean > 1e-6, z.std(0) / mean.clamp_min(1e-6), torch.inf)


def _check_need(name: str, make: Make, left_alone: Posterior) -> None:
    q = make()
    _descend(q, _needed)
    score, probability = q.score(), q.keep_probability(UNITS // 2)
    reached, needed = float(score[USELESS].max()), float(score[NEEDED].min())
    told = f"units that nothing needs reach {reached:.3g}, needed ones {needed:.3g}"
    demand(bool(score[USELESS].max() < score[NEEDED].min()), f"{name}.score(): {told}; higher must mean keep")
    misled = f"{name}.keep_probability() disagrees with score(): useless units reach "
    misled += f"{float(probability[USELESS].max()):.2f}, needed ones {float(probability[NEEDED].min()):.2f}; "
    misled += "comparable_draws() must draw what units are compared by"
    demand(bool(probability[USELESS].max() < probability[NEEDED].min()), misled)
    if not (isinstance(q, DecidingPosterior) and isinstance(left_alone, DecidingPosterior)):
        return
    kept = q.kept()
    demand(bool(kept.any()), f"{name}.kept() keeps nothing, not even units that the loss needs")
    demand(bool(kept[NEEDED].all()), f"{name}.kept() lets go of units that the loss needs")
    if not bool(kept.all()):
        worst, best = float(score[kept].min()), float(score[~kept].max())
        told = f"it keeps a unit of score {worst:.3g} and lets go of one of {best:.3g}"
        demand(worst >= best, f"{name}.kept() disagrees with score(): {told}")
    unwanted = make()
    _descend(unwanted, _harmful)
    assert isinstance(unwanted, DecidingPosterior)
    lets_go = not bool(left_alone.kept().all() and unwanted.kept().all())
    demand(lets_go, f"{name}.kept() keeps everything, units that nothing needs and units that do harm")


def _needed(z: Tensor) -> Tensor:
    """A loss [n, K] that falls as the multipliers of needed units grow."""
    return torch.tensor(NEED) * nn.functional.softplus(4 * (0.5 - z))


def _harmful(z: Tensor) -> Tensor:
    """A loss [n, K] that falls as multipliers come to nothing, by as much at every size."""
    return NEED[-1] * (z.abs() + 1e-3).log()


def _descend(q: Posterior, loss_of: Callable[[Tensor], Tensor] | None = None) -> None:
    """Learn the posterior: the complexity alone, or with a loss of the draws."""
    torch.manual_seed(5)
    optimizer = torch.optim.Adam([p for p in q.parameters() if p.requires_grad], lr=0.1)
    for _ in range(STEPS):
        loss = q.complexity()
        if loss_of is not None:
            loss = loss + loss_of(q.rsample(8)).mean(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
