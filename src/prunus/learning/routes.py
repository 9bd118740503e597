"""Scores of experts and the load on each, from the tokens that come to them while data pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.data.batches import forward
from prunus.errors import DataError
from prunus.gates.frozen import frozen
from prunus.gates.routed import NONE, Routed
from prunus.gates.routes import routes_seen
from prunus.graph.groups import ChannelGroup
from prunus.learning.findings import Scores
from prunus.learning.problem import Learning
from prunus.methods.base import RoutingCriterion
from prunus.plan.plan import Plan
from prunus.runtime.precision import full_precision, to_device
from prunus.runtime.processes import distributed, model_device, summed
from prunus.runtime.progress import progress_bar

FEW = 16
"""So many experts' tokens are listed one by one."""


@dataclass(frozen=True)
class Load:
    """Tokens that came to each expert of a layer that stayed, before and after the others went.

    Attributes:
        layer: name of the group of experts.
        kept: the experts that stayed, by their number before.
        before: tokens of each expert of the dense network, int64 [units].
        after: tokens of each of those that stayed, int64 [kept].
    """

    layer: str
    kept: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def explain(self) -> str:
        """One line: how many tokens lost a chosen expert, and how even the load is."""
        gone = sum(n for i, n in enumerate(self.before) if i not in self.kept) / max(sum(self.before), 1)
        busiest = [max(load) / max(sum(load), 1) for load in (self.before, self.after)]
        idle = [sum(n == 0 for n in load) for load in (self.before, self.after)]
        each = f"; before {list(self.before)}, after {list(self.after)}" if len(self.before) <= FEW else ""
        return (
            f"{self.layer}: {gone:.0%} of the choices were of experts that went; the busiest takes {busiest[0]:.0%} -> "
            f"{busiest[1]:.0%}, without a token {idle[0]} -> {idle[1]}{each}"
        )


def route_scores(
    method: RoutingCriterion, model: nn.Module, groups: Sequence[ChannelGroup], learning: Learning
) -> Scores:
    """Score experts by one pass over the data; the model is unchanged."""
    totals = {g.name: torch.zeros(2, g.units, dtype=torch.float64, device="cpu") for g in groups}
    tokens = dict.fromkeys(totals, 0)

    def see(call: Routed) -> None:
        tokens[call.layer] += len(call.chosen)
        for choice in range(call.chosen.shape[1]):
            there = call.chosen[:, choice] != NONE
            norms = call.made(choice)[there].float().norm(dim=-1)
            added = method.contribution(call.weights[there, choice].float(), norms).double().cpu()
            index = call.chosen[there, choice].cpu()
            totals[call.layer][0].index_add_(0, index, added)
            totals[call.layer][1].index_add_(0, index, torch.ones_like(added))

    around = {g.name: g.routing.module for g in groups if g.routing is not None}
    _pass_(model, around, learning.loader, see, learning.progress, method.name)
    if distributed():
        device = model_device(model)
        totals = {n: summed(t.to(device)).cpu() for n, t in totals.items()}
        tokens = {n: int(summed(torch.tensor(float(t), dtype=torch.float64, device=device))) for n, t in tokens.items()}
    return Scores({n: method.finish(t[0], t[1], tokens[n]) for n, t in totals.items()}, method=method.name)


def loads_of(
    model: nn.Module, smaller: nn.Module, plan: Plan, inputs: Sequence[Any]
) -> tuple[tuple[Load, ...], tuple[str, ...]]:
    """The load on the experts of every layer that lost some, and of which layers nothing shows it, and why.

    Args:
        model: the dense network.
        smaller: the smaller one.
        plan: what went.
        inputs: batches of inputs.
    """
    kept = {g.name: g for g in plan.groups if g.experts_of is not None and len(g.kept) < g.units}
    if not kept or not inputs:
        return (), ()
    try:
        around = {n: str(g.experts_of) for n, g in kept.items()}
        before = tokens_per_expert(model, around, {n: g.units for n, g in kept.items()}, inputs)
        after = tokens_per_expert(smaller, around, {n: len(g.kept) for n, g in kept.items()}, inputs)
    except DataError as refusal:
        return (), (f"tokens of the experts are not told: {refusal.where}: {refusal.what}",)
    return tuple(Load(n, g.kept, before[n], after[n]) for n, g in kept.items()), ()


def tokens_per_expert(
    model: nn.Module, layers: Mapping[str, str], sizes: Mapping[str, int], inputs: Sequence[Any]
) -> dict[str, tuple[int, ...]]:
    """Tokens that come to each expert.

    Args:
        model: the dense or the smaller network; unchanged.
        layers: as for `routes_seen`.
        sizes: layer -> number of its experts.
        inputs: batches of inputs.

    Raises:
        DataError: experts that are called with something else than the numbers of the chosen and their weights.
    """
    counts = {n: torch.zeros(size, dtype=torch.int64, device="cpu") for n, size in sizes.items()}

    def see(call: Routed) -> None:
        chosen = call.chosen[call.chosen != NONE].cpu()
        counts[call.layer] += torch.bincount(chosen, minlength=sizes[call.layer])

    _pass_(model, layers, [(i, None) for i in inputs], see, False, "")
    return {n: tuple(c.tolist()) for n, c in counts.items()}


def _pass_(
    model: nn.Module,
    layers: Mapping[str, str],
    batches: Any,
    see: Callable[[Routed], None],
    progress: bool,
    name: str,
) -> None:
    device = model_device(model)
    with (
        frozen(model),
        torch.no_grad(),
        full_precision(),
        routes_seen(model, layers, see),
        progress_bar(name, len(batches), progress) as bar,
    ):
        for inputs, _ in batches:
            forward(model, to_device(inputs, device))
            bar.advance()
