"""Repair of experts: those that stay take over what went, by least squares on what the layer of experts made.

What a layer of experts makes is linear in their last weights, a slice [inputs, width] for each: every token adds
routing weight times hidden numbers times the slice of each of its experts. The hidden numbers are read by calling the
class's own code with slices that pick some of them out, so that nothing need be known of what is inside. Which weight
is the last is found the same way: the layer's output is linear in it. Of experts that are modules of a list it is that
of the linear layer whose output is theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import DataError
from prunus.gates.routed import Routed
from prunus.gates.routes import routes_seen
from prunus.gates.routing import seen_instead
from prunus.plan.plan import GroupPlan, Plan
from prunus.proof.masked import masked
from prunus.refit.calibration import Calibration
from prunus.refit.config import RepairConfig
from prunus.refit.sampling import sampled_rows
from prunus.refit.told import Refit
from prunus.runtime.arguments import as_arguments
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision, lower
from prunus.runtime.processes import summed
from prunus.runtime.progress import progress_bar
from prunus.surgery.experts import routed

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Prices of a change that are tried, relative to the mean square of an expert's hidden numbers."""
SWEEPS = 4
"""Rounds over the experts of a layer, each fitted to what the others leave."""
SAME, ROUNDINGS = 1e-3, 4
"""How near an output has to be to one that is linear in a weight: relative to its largest number, or in roundings."""


@dataclass
class _Tokens:
    """What is known of some tokens at a layer of experts.

    Attributes:
        chosen: experts of each, [N, choices].
        hidden: routing weight times hidden numbers of each choice, [N, choices, inputs].
        wanted: what the dense layer makes of them, less what does not go through the last weight, [N, width].
        held: which of them are held out.
    """

    chosen: Tensor
    hidden: Tensor
    wanted: Tensor
    held: Tensor


def refit_experts_(
    model: nn.Module,
    dense: nn.Module,
    plan: Plan,
    data: Calibration,
    config: RepairConfig,
    *,
    seed: int,
    progress: bool,
) -> tuple[Refit, ...]:
    """Refit the last weights of experts that stay, layer after layer, in a network that is not cut yet.

    Args:
        model: a copy of the dense network; its experts change.
        dense: the dense network.
        plan: what goes.
        data: inputs.
        config: how many rows, and which are held out.
        seed: which rows are looked at.
        progress: show a bar where there is a terminal.
    """
    told = []
    groups = routed(plan)
    with (
        torch.no_grad(),
        full_precision(),
        eval_mode(model),
        eval_mode(dense),
        progress_bar("experts", len(groups), progress) as bar,
    ):
        for group in groups:
            told.append(_refitted_(model, dense, plan, group, data, config, seed))
            bar.advance()
    return tuple(told)


def _refitted_(
    model: nn.Module,
    dense: nn.Module,
    plan: Plan,
    group: GroupPlan,
    data: Calibration,
    config: RepairConfig,
    seed: int,
) -> Refit:
    bank = model.get_submodule(group.name)
    last: _Last | None = None
    parts: list[_Tokens] = []
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for batch, share in zip(data.batches, data.shares, strict=False):  # of the last there may be nothing here
        try:
            wanted, calls = _outputs(dense, group, batch), _calls(model, group, batch, plan)
        except DataError as refusal:
            return Refit(group.name, 0.0, 0.0, reason=refusal.what)
        if len(calls) != 1 or len(wanted) != 1:
            return Refit(group.name, 0.0, 0.0, reason="it is called several times, or otherwise than others")
        each, most = len(wanted[0]) // len(share.places), config.most_rows / max(1, data.examples)
        rows, held = sampled_rows(share, each, most, config.held_out, generator)
        last = last or (_last_listed(bank, calls[0]) if isinstance(bank, nn.ModuleList) else _last_of(bank, calls[0]))
        if last is None or (isinstance(bank, nn.ModuleList) and calls[0].last is None):
            return Refit(group.name, 0.0, 0.0, reason="no weight of its is the last: its output is linear in none")
        parts.append(_tokens(last, calls[0], wanted[0], rows, held))
    if last is None:
        return Refit(group.name, 0.0, 0.0, reason="there is no batch")
    tokens = _Tokens(*(torch.cat([vars(p)[name] for p in parts]) for name in ("chosen", "hidden", "wanted", "held")))
    return _solved_(last, group, tokens)


@dataclass(frozen=True)
class _Last:
    """The last weights of experts.

    Attributes:
        slices: those that are there, [experts, inputs, width].
        hidden: of a choice, what they are multiplied with, [N, inputs].
        rest: of a choice, what is added to that, [N, width].
        write: puts an expert's slice, [inputs, width], in the place of the one that is there.
    """

    slices: Tensor
    hidden: Callable[[Routed, int], Tensor]
    rest: Callable[[Routed, int], Tensor]
    write: Callable[[int, Tensor], None]


def _outputs(model: nn.Module, group: GroupPlan, batch: Any) -> list[Tensor]:
    """What the experts of a layer make of a batch, [tokens, width] for each call."""
    layer = model.get_submodule(group.name)
    if isinstance(layer, nn.ModuleList):
        return [_sum(call) for call in _calls(model, group, batch)]
    found: list[Tensor] = []

    def note(_: nn.Module, args: Any, output: Any) -> None:
        found.append(output.reshape(-1, output.shape[-1]))

    args, kwargs = as_arguments(batch, model)
    with layer.register_forward_hook(note):
        model(*args, **kwargs)
    return found


def _calls(model: nn.Module, group: GroupPlan, batch: Any, plan: Plan | None = None) -> list[Routed]:
    """How the experts of a layer are called in a network, or in the masked one."""
    found: list[Routed] = []
    args, kwargs = as_arguments(batch, model)
    mask = nullcontext() if plan is None else masked(model, plan)
    with mask, routes_seen(model, {group.name: str(group.experts_of)}, found.append):
        model(*args, **kwargs)
    return found


def _sum(call: Routed) -> Tensor:
    """What the experts of a list make together, [N, width]."""
    made = (call.made(choice) * call.weights[:, choice, None] for choice in range(call.chosen.shape[1]))
    return torch.stack(list(made)).sum(0)


def _last_listed(experts: nn.ModuleList, call: Routed) -> _Last | None:
    """The last linear layer of each module of a list."""
    if call.last is None:
        return None
    weights = [e.get_parameter(f"{call.last.name}.weight".lstrip(".")) for e in experts]

    def write(expert: int, new: Tensor) -> None:
        weights[expert].copy_(new.T)

    def read(call: Routed, choice: int) -> Tensor:
        assert call.last is not None
        return call.last.read(choice)

    def added(call: Routed, choice: int) -> Tensor:
        assert call.last is not None
        return call.last.added(choice)

    return _Last(torch.stack([w.T for w in weights]), read, added, write)


def _last_of(bank: nn.Module, call: Routed) -> _Last | None:
    """The weight that a choice's output is linear in, and how its slices lie."""
    usual = call.made(0)
    for name, weight in bank.named_parameters(recurse=False):
        if weight.dim() != 3:
            continue
        none, twice = (_seen(bank, name, partial(torch.mul, factor), call) for factor in (0.0, 2.0))
        size = (usual - none).abs().max()
        near = max(SAME, ROUNDINGS * torch.finfo(usual.dtype).eps) * float(size)
        if float((twice - none - 2 * (usual - none)).abs().max()) > near or not float(size) > 0:
            continue
        for turned in (True, False):
            slices = weight.transpose(1, 2) if turned else weight
            if slices.shape[2] != usual.shape[1]:
                continue
            made = torch.einsum("ni,nio->no", _hidden(bank, name, turned, call, 0), slices[call.chosen[:, 0]])
            if float((made - (usual - none)).abs().max()) <= near:
                return _Last(
                    slices.clone(),
                    partial(_hidden, bank, name, turned),
                    partial(_seen, bank, name, torch.zeros_like),
                    lambda expert, new, into=slices: into[expert].copy_(new),  # type: ignore[misc]
                )
    return None


def _seen(bank: nn.Module, name: str, change: Callable[[Tensor], Tensor], call: Routed, choice: int = 0) -> Tensor:
    """What a choice makes with something else in place of a weight, [N, width]."""
    with seen_instead(bank, name, change):
        return call.made(choice)


def _hidden(bank: nn.Module, name: str, turned: bool, call: Routed, choice: int) -> Tensor:
    """The hidden numbers of a choice, [N, inputs]: slices pick out as many at a time as the output is wide."""
    weight: Tensor = getattr(bank, name)
    experts, inputs, width = (weight.transpose(1, 2) if turned else weight).shape
    none = _seen(bank, name, torch.zeros_like, call, choice)
    found = []
    for start in range(0, inputs, width):
        count = min(width, inputs - start)
        picks = weight.new_zeros(experts, inputs, width)
        picks[:, torch.arange(count) + start, torch.arange(count)] = 1
        laid = picks.transpose(1, 2).contiguous() if turned else picks
        found.append((_seen(bank, name, partial(_instead, laid), call, choice) - none)[:, :count])
    return torch.cat(found, 1)


def _instead(new: Tensor, _: Tensor) -> Tensor:
    return new


def _tokens(last: _Last, call: Routed, wanted: Tensor, rows: Tensor, held: Tensor) -> _Tokens:
    rows = rows.to(wanted.device)
    hidden, left = [], wanted[rows]
    for choice in range(call.chosen.shape[1]):
        weight = call.weights[rows, choice, None]
        hidden.append(last.hidden(call, choice)[rows] * weight)
        left = left - last.rest(call, choice)[rows] * weight
    return _Tokens(call.chosen[rows], torch.stack(hidden, 1), left, held.to(wanted.device))


def _solved_(last: _Last, group: GroupPlan, tokens: _Tokens) -> Refit:
    """The best slices by held-out tokens, written into the layer where they are better than those that are there."""
    old = last.slices.double()
    whole = {e: (tokens.chosen == e).nonzero(as_tuple=True) for e in group.kept}
    fitted = {e: (rows[~tokens.held[rows]], choices[~tokens.held[rows]]) for e, (rows, choices) in whole.items()}
    hidden, wanted = tokens.hidden.double(), tokens.wanted.double()
    start = wanted.clone()
    for expert, (rows, choices) in whole.items():
        start.index_add_(0, rows, hidden[rows, choices] @ old[expert], alpha=-1)
    squares = {e: summed(hidden[rows, choices].T @ hidden[rows, choices]) for e, (rows, choices) in fitted.items()}
    here = {e: int(summed(torch.tensor(len(rows), device=tokens.wanted.device))) for e, (rows, _) in fitted.items()}
    samples = int(summed((~tokens.held).sum()))
    judged = tokens.held if bool(summed(tokens.held.sum())) else ~tokens.held
    mean = summed(wanted[judged].sum(0)) / summed(judged.sum()).clamp_min(1)
    spread = float(summed((wanted[judged] - mean).square().sum()).clamp_min(1e-300))

    def tried(ridge: float) -> tuple[Tensor, float]:
        new, left = old.clone(), start.clone()
        for _ in range(SWEEPS):
            for expert, square in squares.items():
                rows, choices = fitted[expert]
                if not here[expert]:
                    continue
                price = ridge * square.diagonal().mean().clamp_min(1e-12)
                sides = summed(hidden[rows, choices].T @ left[rows]) - price * (new[expert] - old[expert])
                step = torch.linalg.solve(square + price * torch.eye(len(square)).to(square), sides)
                new[expert] += step
                rows, choices = whole[expert]
                left.index_add_(0, rows, hidden[rows, choices] @ step, alpha=-1)
        return new, float(summed(left[judged].square().sum())) / spread

    before = float(summed(start[judged].square().sum())) / spread
    best, least, chosen = old, before, 0.0
    for ridge in RIDGES:
        new, error = tried(ridge)
        if lower(error, than=least):
            best, least, chosen = new, error, ridge
    if not chosen:
        return Refit(group.name, before, before, 0.0, samples)
    for expert in group.kept:
        last.write(expert, best[expert])
    return Refit(group.name, before, least, chosen, samples)
