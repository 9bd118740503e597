"""Post-training rivals written anew from their papers' formulas, for units that linear layers and convolutions read.

*OPD*, optimal posterior damage (Dhahri et al. 2024, arXiv 2402.15978): a unit is worth the sum of w^2 P over the
weights that read it, with P the diagonal of a Laplace posterior's precision in its Kronecker form: E[x^2] over the
input's positions, times the sum over positions of g^2, the squared gradient at the output. Nothing is made up for.

*OBS*, the same precision without the cut to its diagonal on the side of the inputs (Hassibi and Stork's surgeon, unit
by unit): a unit is worth the sum over outputs of g^2 |W_j|^2 / (G^-1)_jj, with G the second moments of what the reader
sees: what is lost if the other weights make up for it as well as they can. The cheapest goes, weights and G^-1 follow,
and so on; what stays is refitted by the map B below.

*VBP*, variance-based pruning (Berisha, Mehnert and Condurache 2025, arXiv 2507.12988): a unit is worth the variance of
its activation, alone or times the squared norm of the weights that read it; of what goes the mean is folded into the
reader's bias (a reader that has none gets one).

*GRAIL*'s form of repair (Tang et al. 2026, arXiv 2602.23795): units are chosen by L1 norm of their own weights, or by
that of the weights that read them times the norm of the activation (Wanda's); readers take on W B, with
B = G[:, kept] (G[kept, kept] + ridge)^-1 a map between channels, the same for all taps, and no constant.

Each ranks globally and uniformly, by each of its scores; the network that loses less on the validation split counts.
Analysis, allocation and surgery are the package's, nothing else. Activations are the dense network's; at the borders of
a padded convolution means are folded as if there were no padding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import prunus
from limits import Limit
from prunus.data.datasets import DataSource
from prunus.data.evaluation import evaluate
from prunus.errors import BudgetError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup, Reader
from prunus.pipeline.planning import prunable_groups
from prunus.plan.allocation import Allocation

RIDGE = 1e-3
"""Of the inverse of second moments, relative to their mean diagonal."""
SCOPES = ("global", "uniform")


@dataclass
class Seen:
    """What a reader sees of a group's units, sums over positions and examples.

    Attributes:
        examples: their number.
        count: positions of all of them.
        total: of the units, fp64 [K].
        gram: products of the units, fp64 [K, K].
        slopes: squared gradients of an example's loss at the reader's outputs, fp64 [outputs].
    """

    examples: int
    count: float
    total: Tensor
    gram: Tensor
    slopes: Tensor

    @property
    def mean(self) -> Tensor:
        """Of each unit, [K]."""
        return self.total / self.count

    @property
    def moment(self) -> Tensor:
        """Mean products, [K, K]."""
        return self.gram / self.count

    @property
    def variance(self) -> Tensor:
        """Of each unit, [K]."""
        return (self.moment.diagonal() - self.mean.square()).clamp_min(0)


@dataclass(frozen=True)
class Site:
    """A reader of a group with its weights as [outputs, units, positions * taps], fp64, and what it sees."""

    reader: Reader
    weights: Tensor
    seen: Seen


Score = Callable[[nn.Module, ChannelGroup, Sequence[Site]], Tensor]
"""What each unit of a group is worth, [K]."""
Fold = Callable[[nn.Module, Site, Tensor], None]
"""Lets a reader take over what goes, in the shape of before; the third is which units stay, bool [K]."""


def posterior_damage(model: nn.Module, group: ChannelGroup, sites: Sequence[Site]) -> Tensor:
    """OPD's score."""
    squares = [(s, (s.weights.square().sum(2) * (s.seen.slopes / s.seen.examples)[:, None]).sum(0)) for s in sites]
    return torch.stack([s.seen.moment.diagonal() * square for s, square in squares]).sum(0)


def left_to_the_rest(model: nn.Module, group: ChannelGroup, sites: Sequence[Site]) -> Tensor:
    """OBS's score: what the loss rises by as units go one after the other, at least as much with each as before."""
    weights = [(s.weights * (s.seen.slopes / s.seen.examples).sqrt()[:, None, None]).transpose(1, 2) for s in sites]
    flat = [w.flatten(0, 1).clone() for w in weights]
    inverses = [torch.linalg.inv(ridged(s.seen.moment)) for s in sites]
    gone, worth, last = torch.zeros(group.units, dtype=torch.bool), torch.zeros(group.units, dtype=torch.float64), 0.0
    for _ in range(group.units):
        costs = torch.stack([w.square().sum(0) / h.diagonal() for w, h in zip(flat, inverses, strict=True)]).sum(0)
        unit = int(costs.masked_fill(gone, float("inf")).argmin())
        last = max(float(costs[unit]), last * (1 + 1e-5))  # no ties: the order stays in fp32
        worth[unit], gone[unit] = last, True
        for w, h in zip(flat, inverses, strict=True):
            row = h[unit] / h[unit, unit]
            w -= w[:, unit : unit + 1] * row
            h -= h[:, unit : unit + 1] * row
            h[unit, unit] = 1.0  # not asked again
    return worth


def variance(model: nn.Module, group: ChannelGroup, sites: Sequence[Site]) -> Tensor:
    """Of the activations."""
    return torch.stack([s.seen.variance for s in sites]).sum(0)


def variance_read(model: nn.Module, group: ChannelGroup, sites: Sequence[Site]) -> Tensor:
    """Of the activations, times the squared norm of the weights that read them."""
    return torch.stack([s.seen.variance * s.weights.square().sum((0, 2)) for s in sites]).sum(0)


def own_weights(model: nn.Module, group: ChannelGroup, sites: Sequence[Site]) -> Tensor:
    """Mean absolute weight of the layers that write a unit."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for slot in group.writers:
        weight = model.get_parameter(slot.tensor).detach().double()
        if weight.dim() > 1 and slot.dim == 0:
            owners = torch.as_tensor(slot.units_along_dim)
            total.index_add_(0, owners[owners >= 0], weight.abs().flatten(1).mean(1)[owners >= 0])
    return total


def weights_times_inputs(model: nn.Module, group: ChannelGroup, sites: Sequence[Site]) -> Tensor:
    """Wanda's: absolute weights that read a unit times the root mean square of its activation."""
    return torch.stack([s.seen.moment.diagonal().sqrt() * s.weights.abs().mean((0, 2)) for s in sites]).sum(0)


def nothing_(model: nn.Module, site: Site, stays: Tensor) -> None:
    """Leave the reader as it is."""


@torch.no_grad()
def mean_into_bias_(model: nn.Module, site: Site, stays: Tensor) -> None:
    """Add what the removed units give on average."""
    bias = model.get_submodule(site.reader.module).bias
    assert isinstance(bias, Tensor)
    bias += (site.weights[:, ~stays].sum(2) @ site.seen.mean[~stays]).to(bias)


@torch.no_grad()
def map_into_weights_(model: nn.Module, site: Site, stays: Tensor) -> None:
    """W B in place of W, with B the ridge regression of all units on those that stay."""
    gram = site.seen.moment
    onto = torch.linalg.solve(ridged(gram[stays][:, stays]), gram[stays])  # B^T, [kept, all]
    _write_(model, site.reader, stays, torch.einsum("jk,okp->ojp", onto, site.weights))


BASELINES: dict[str, tuple[tuple[Score, ...], Fold]] = {
    "OPD": ((posterior_damage,), nothing_),
    "OBS": ((left_to_the_rest,), map_into_weights_),
    "VBP": ((variance, variance_read), mean_into_bias_),
    "GRAIL": ((own_weights, weights_times_inputs), map_into_weights_),
}


def ridged(gram: Tensor) -> Tensor:
    """With a share of the mean of its diagonal on the diagonal."""
    return gram + RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)


def cut_by_baseline(
    label: str, dense: nn.Module, data: DataSource, batches: Iterable[object], limit: Limit, ignored: Sequence[str]
) -> nn.Module:
    """The smaller network within the limit that loses least on the validation split.

    Args:
        label: of `BASELINES`.
        dense: not touched.
        data: example inputs, loss and validation split.
        batches: what is looked at; OPD and OBS look at the labels.
        limit: of the cost; a latency is met by halving the share of the MACs.
        ignored: layers whose outputs stay.
    """
    model = with_biases(dense) if label == "VBP" else copy.deepcopy(dense).eval()
    graph = prunus.trace(model, data.example_inputs)
    groups = [g for g in prunable_groups(graph, model, ignored) if readable(model, g)]
    sites = sites_of(model, groups, data, batches)
    scores, fold = BASELINES[label]
    made = []
    for score in scores:
        worth = {g.name: score(model, g, sites[g.name]).float() for g in groups}
        for scope in SCOPES:

            def cut(gone: float, worth: dict[str, Tensor] = worth, scope: str = scope) -> nn.Module:
                budget = prunus.Budget.parse(f"macs<={100 * (1 - gone):.6f}%")
                return pruned(model, data, graph, groups, sites, worth, budget, scope, fold)

            found = cut(1 - limit.share) if limit.resource == "macs" else limit.largest(cut)
            made += [] if found is None else [found]
    if not made:
        raise BudgetError(f"budget {limit.text!r}", f"{label} finds no share of the MACs that meets it", "raise it")
    losses = [evaluate(network, data.validation, loss_fn=data.loss_fn).loss for network in made]
    return made[losses.index(min(losses))]


def pruned(
    model: nn.Module,
    data: DataSource,
    graph: Graph,
    groups: Sequence[ChannelGroup],
    sites: Mapping[str, Sequence[Site]],
    scores: Mapping[str, Tensor],
    budget: prunus.Budget,
    scope: str,
    fold: Fold,
) -> nn.Module:
    """The network of one ranking, folded."""
    allocation = Allocation("uniform", round_to=1) if scope == "uniform" else Allocation("global", 0.0, round_to=1)
    counts = prunus.allocate(graph, groups, scores, budget=budget, allocation=allocation)
    kept = prunus.select(groups, scores, counts)
    folded = copy.deepcopy(model)
    for group in groups:
        stays = torch.zeros(group.units, dtype=torch.bool)
        stays[torch.as_tensor(kept[group.name])] = True
        for site in sites[group.name] if not bool(stays.all()) else ():
            fold(folded, site, stays)
    return prunus.apply_(folded, prunus.Plan.from_kept(graph, kept), data.example_inputs)


def with_biases(dense: nn.Module) -> nn.Module:
    """A copy whose linear layers and convolutions have biases, of zero where there were none."""
    model = copy.deepcopy(dense).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is None:
            outputs = module.weight.shape[0]
            module.bias = nn.Parameter(torch.zeros(outputs, dtype=module.weight.dtype))
    return model


def readable(model: nn.Module, group: ChannelGroup) -> bool:
    """Whether every reader is a linear layer or an ordinary convolution, at whose input the units are."""
    modules = [model.get_submodule(r.module) for r in group.readers]
    plain = all(isinstance(m, nn.Linear | nn.Conv2d) and getattr(m, "groups", 1) == 1 for m in modules)
    return plain and not any(r.output or r.product >= 0 or r.routing for r in group.readers)


def sites_of(
    model: nn.Module, groups: Sequence[ChannelGroup], data: DataSource, batches: Iterable[object]
) -> dict[str, list[Site]]:
    """The readers of every group with what they see, from one pass forward and backward over the batches."""
    found: dict[str, list[Site]] = {}
    hooks = []
    for group in groups:
        for reader in group.readers:
            weights = _read(model, reader, group.units)
            shapes = ((group.units,), (group.units, group.units), (len(weights),))
            seen = Seen(0, 0.0, *(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
            found.setdefault(group.name, []).append(Site(reader, weights, seen))
            module = model.get_submodule(reader.module)
            hooks.append(module.register_forward_hook(_noting(seen, reader, group.units)))
    for inputs, targets in batches:  # type: ignore[misc]
        (data.loss_fn(model(inputs), targets) * len(inputs)).backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return found


def _noting(seen: Seen, reader: Reader, units: int) -> Callable[..., None]:
    places = places_of(reader, units)

    def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs = args[0].detach().movedim(reader.input_dim, -1).flatten(0, -2)
        x = inputs[:, places.T.flatten()].reshape(-1, units).double()
        seen.examples, seen.count = seen.examples + len(output), seen.count + len(x)
        seen.total += x.sum(0)
        seen.gram += x.T @ x
        dim = 1 if isinstance(module, nn.Conv2d) else -1

        def note(slope: Tensor) -> None:
            seen.slopes += slope.movedim(dim, 0).flatten(1).double().square().sum(1)

        output.register_hook(note)

    return see


def places_of(reader: Reader, units: int) -> Tensor:
    """Places of each unit along the dimension that is read, int64 [units, places]."""
    owners = torch.as_tensor(reader.units)
    return torch.stack([(owners == unit).nonzero()[:, 0] for unit in range(units)])


def _read(model: nn.Module, reader: Reader, units: int) -> Tensor:
    """[outputs, units, places * taps], fp64."""
    weight = model.get_parameter(reader.weight).detach().double().movedim(reader.axis, 1)
    return weight[:, places_of(reader, units).flatten()].reshape(len(weight), units, -1)


def _write_(model: nn.Module, reader: Reader, stays: Tensor, new: Tensor) -> None:
    """Weights of the units that stay, [outputs, kept, places * taps]."""
    weight = model.get_parameter(reader.weight).movedim(reader.axis, 1)
    places = places_of(reader, len(stays))[stays].flatten()
    weight[:, places] = new.reshape(len(weight), len(places), *weight.shape[2:]).to(weight)
