"""Baselines behind the same door as the probabilistic methods, so that every comparison is fair.

Every criterion gives one score per unit of a group, higher = keep, and has a field `normalize` that says how the scores
of different groups become comparable for one global budget. The defaults follow from what a score is:

- L1, L2 and FPGM are magnitudes. The function of a network with batch norm does not change when a layer's weights are
  scaled, so a magnitude orders units within a layer and says nothing between layers: divided by the group's mean.
- Batch-norm scales multiply normalised activations, so they would be comparable if what reads them were; groups with
  more batch norms (concatenations, residual streams) also add more of them: divided by the group's mean. Network
  slimming compares them as they are, after training with an L1 penalty: `normalize="none"` for that.
- Taylor and Fisher estimate the change of one and the same loss: compared as they are.
- Random scores have the same distribution in all groups: compared as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, DataError
from prunus.graph.groups import ChannelGroup, Slot
from prunus.methods.base import GradientCriterion, WeightCriterion
from prunus.runtime.fields import check_value
from prunus.runtime.seeds import seed_of

Normalize = Literal["none", "mean", "max", "l2", "sum"]


def normalized(score: Tensor, how: Normalize) -> Tensor:
    """Divide the scores of a group by one of their statistics, or by nothing.

    Args:
        score: non-negative scores [K].
        how: `mean`, `max`, `l2` (Euclidean norm), `sum`, or `none`.

    Returns:
        fp32 [K]; all zeros stay zeros.

    Raises:
        ConfigError: an unknown way.
    """
    check_value("normalize", Normalize, how)
    if how == "none":
        return score.float()
    by = {"mean": score.mean(), "max": score.max(), "l2": score.square().sum().sqrt(), "sum": score.sum()}[how]
    return (score / by.clamp_min(1e-20)).float()


def held(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its full name, as an fp64 copy on the CPU.

    Raises:
        DataError: it holds NaN or infinity, which would spread to the scores of the whole group.
    """
    path, _, attribute = name.rpartition(".")
    # A convolution may hold its weight in a buffer; fp64, because squares of fp16 weights under- and overflow.
    stored: Tensor = getattr(model.get_submodule(path), attribute).detach()
    if not stored.is_floating_point():
        advice = "use a method that sees the data (dirichlet, rbp, taylor, fisher), or put it into ignored_layers"
        raise ConfigError(
            f"tensor {name!r}", "its units are selected inputs and have no weights to judge them by", advice
        )
    tensor = stored.double().cpu()
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f"tensor {name!r}", "it holds NaN or infinity", "load weights of a training that converged")
    return tensor


def per_unit(values: Tensor, slot: Slot, units: int) -> Tensor:
    """Sum a per-element quantity over the elements that each unit owns.

    Args:
        values: one value per element, of the shape of the slot's tensor.
        slot: says which unit owns each element (-1 = none, not counted).
        units: number of units K.

    Returns:
        fp64 [K].
    """
    owner = torch.from_numpy(slot.plane).expand(values.shape).reshape(-1)
    mine = owner >= 0
    return torch.zeros(units, dtype=torch.float64, device="cpu").index_add_(
        0, owner[mine], values.detach().double().cpu().reshape(-1)[mine]
    )


def summed(values: Sequence[Tensor], slots: Sequence[Slot], units: int) -> Tensor:
    """Sum of `per_unit` over several tensors: fp64 [K]."""
    total = torch.zeros(units, dtype=torch.float64, device="cpu")
    for value, slot in zip(values, slots, strict=True):
        total += per_unit(value, slot, units)
    return total


def writer_filters(model: nn.Module, group: ChannelGroup) -> list[Tensor]:
    """For every writer of the group its filters as fp64 rows [K, elements]; a unit written twice fills one row."""
    filters = []
    for slot in group.writers:
        weight = held(model, slot.tensor)
        if slot.dim < 0:  # a grouped transposed convolution
            owner = torch.from_numpy(slot.plane).expand(weight.shape)
            filters.append(torch.stack([weight[owner == u] for u in range(group.units)]))
            continue
        rows = weight.movedim(slot.dim, 0).reshape(weight.shape[slot.dim], -1)
        units = torch.from_numpy(slot.units_along_dim)
        columns = [rows[units == u].reshape(-1) for u in range(group.units)]
        width = max(len(c) for c in columns)
        filters.append(torch.stack([torch.cat([c, c.new_zeros(width - len(c))]) for c in columns]))
    return filters


@dataclass(frozen=True)
class _Comparable:
    """The field that all criteria share; the module's text says how to choose it."""

    normalize: Normalize = "none"


@dataclass(frozen=True)
class Random(_Comparable, WeightCriterion, name="random"):
    """Uniform random scores: the floor under every other method.

    Attributes:
        normalize: how scores become comparable between groups.
    """

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """U(0, 1) per unit, fp32 [K], from the seed and the group's name (so that groups differ)."""
        generator = torch.Generator().manual_seed(seed_of(seed, group.name))
        return normalized(
            torch.rand(group.units, generator=generator, dtype=torch.float32, device="cpu"), self.normalize
        )


@dataclass(frozen=True)
class L1(_Comparable, WeightCriterion, name="l1"):
    """Sum of absolute weights over all filters that write the unit.

    Attributes:
        normalize: how scores become comparable between groups.

    Reference:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017. Changed: all writers of coupled layers count,
        not the first alone, and one budget is shared by all layers instead of a ratio for each.
    """

    normalize: Normalize = "mean"

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """L1 norm per unit, fp32 [K]. Raises DataError for NaN or infinite weights."""
        values = [held(model, s.tensor).abs() for s in group.writers]
        return normalized(summed(values, group.writers, group.units), self.normalize)


@dataclass(frozen=True)
class L2(_Comparable, WeightCriterion, name="l2"):
    """Euclidean norm of all filters that write the unit, taken as one vector.

    Attributes:
        normalize: how scores become comparable between groups.

    Reference:
        He et al., "Soft Filter Pruning", IJCAI 2018 (the norm only). Changed: as for `L1`.
    """

    normalize: Normalize = "mean"

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """L2 norm per unit, fp32 [K]. Raises DataError for NaN or infinite weights."""
        values = [held(model, s.tensor).square() for s in group.writers]
        return normalized(summed(values, group.writers, group.units).sqrt(), self.normalize)


@dataclass(frozen=True)
class BatchNormScale(_Comparable, WeightCriterion, name="bn_scale"):
    """Absolute batch-norm scale of the unit.

    Attributes:
        normalize: how scores become comparable between groups.

    Reference:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017. Changed: without
        its sparse training, hence divided by the group's mean; all batch norms that hold a unit count.
    """

    normalize: Normalize = "mean"

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """Sum of |gamma| per unit, fp32 [K].

        Raises:
            ConfigError: no batch norm with a scale holds the units.
            DataError: NaN or infinite scales.
        """
        norms = [s for s in group.slots if _is_scale(model, s.tensor)]
        if not norms:
            raise ConfigError(
                f"group {group.name!r}",
                "no batch norm holds its units",
                "use another criterion, such as 'l1' or 'taylor'",
            )
        return normalized(summed([held(model, s.tensor).abs() for s in norms], norms, group.units), self.normalize)


def _is_scale(model: nn.Module, tensor: str) -> bool:
    path, _, attribute = tensor.rpartition(".")
    return attribute == "weight" and isinstance(model.get_submodule(path), nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class FPGM(_Comparable, WeightCriterion, name="fpgm"):
    """Sum of distances to the other filters of the layer: what is near the geometric median can be replaced by others.

    Costs K^2 distances per writer, all in memory.

    Attributes:
        normalize: how scores become comparable between groups.

    Reference:
        He et al., "Filter Pruning via Geometric Median", CVPR 2019. Changed: as for `L1`.
    """

    normalize: Normalize = "mean"

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """Sum of Euclidean distances per unit over all writers, fp32 [K]. Raises DataError as `L1`."""
        total = torch.zeros(group.units, dtype=torch.float64, device="cpu")
        for filters in writer_filters(model, group):
            # Through the matrix product, the distance of duplicates is rounding noise instead of zero.
            total += torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
        return normalized(total, self.normalize)


@dataclass(frozen=True)
class Taylor(_Comparable, GradientCriterion, name="taylor"):
    """First-order Taylor: the loss of an example changes by about -g_n when a unit goes, g_n = activation x gradient.

    Attributes:
        per_example: mean_n |g_n| if true, |mean_n g_n| if not. In a trained network the mean of g_n is near zero
            because positive and negative examples cancel; their absolute values don't. Without labels it is zero, and
            its estimate nothing but noise.
        normalize: how scores become comparable between groups.

    Reference:
        Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, which
        averages absolute values over examples. Changed: sums over positions instead of averaging (the sum is the
        change of the loss); not divided by the layer's L2 norm (`normalize="l2"` does).
    """

    per_example: bool = True

    def contribution(self, gradient: Tensor) -> Tensor:
        """Sum over examples of |g_n| or g_n: [B, K] to [K]."""
        return gradient.abs().sum(0) if self.per_example else gradient.sum(0)

    def finish(self, total: Tensor, num_examples: int) -> Tensor:
        """Mean over examples, without its sign: fp32 [K]."""
        return normalized(total.abs() / num_examples, self.normalize)


@dataclass(frozen=True)
class Fisher(_Comparable, GradientCriterion, name="fisher"):
    """Half the mean squared gate gradient: the second-order loss change, the Hessian replaced by the empirical Fisher.

    Attributes:
        normalize: how scores become comparable between groups.

    Reference:
        Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018. Changed: accumulated in
        the frozen network in eval mode, not while fine-tuning; no term for the computational cost.
    """

    def contribution(self, gradient: Tensor) -> Tensor:
        """Half the sum over examples of g_n squared: [B, K] to [K]."""
        return 0.5 * gradient.square().sum(0)

    def finish(self, total: Tensor, num_examples: int) -> Tensor:
        """Mean over examples: fp32 [K]."""
        return normalized(total / num_examples, self.normalize)
