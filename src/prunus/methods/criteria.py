"""Baselines behind the same door as the probabilistic methods, so that every comparison is fair.

Magnitudes (L1, L2, FPGM) and batch-norm scales have a meaning only within a layer: by default they are divided by the
group's mean before they are compared between groups. Taylor and Fisher scores estimate a change of the same loss and
are compared as they are.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.groups import ChannelGroup, Slot
from prunus.methods.base import GradientCriterion, Method, WeightCriterion

Normalize = Literal["none", "mean", "max", "l2", "sum"]
NORMALIZE = ("none", "mean", "max", "l2", "sum")


def normalized(score: Tensor, how: Normalize) -> Tensor:
    """Divide the scores of a group [K] by their mean, maximum, L2 norm or sum, or by nothing.

    Raises:
        ConfigError: an unknown way.
    """
    if how not in NORMALIZE:
        raise ConfigError("normalize", f"{how!r} is not known", f"use one of {', '.join(NORMALIZE)}")
    if how == "none":
        return score
    by = {"mean": score.mean(), "max": score.max(), "l2": score.square().sum().sqrt(), "sum": score.sum()}[how]
    return score / by.clamp_min(1e-20)


def per_unit(values: Tensor, slot: Slot, units: int) -> Tensor:
    """Sum a per-element quantity of a tensor over the elements of each unit: fp64 [K]."""
    owner = torch.from_numpy(slot.plane).expand(values.shape).reshape(-1)
    mine = owner >= 0
    return torch.zeros(units, dtype=torch.float64).index_add_(
        0, owner[mine], values.detach().double().cpu().reshape(-1)[mine]
    )


def writer_filters(model: nn.Module, group: ChannelGroup) -> list[Tensor]:
    """For every writer of the group, its filters as fp64 rows [K, elements] (a unit written twice fills one row)."""
    filters = []
    for slot in group.writers:
        weight = model.get_parameter(slot.tensor).detach().double().cpu()
        rows = weight.movedim(slot.dim, 0).reshape(weight.shape[slot.dim], -1)
        units = torch.from_numpy(slot.units_along_dim)
        columns = [rows[units == u].reshape(-1) for u in range(group.units)]
        width = max(len(c) for c in columns)
        filters.append(torch.stack([torch.cat([c, c.new_zeros(width - len(c))]) for c in columns]))
    return filters


@dataclass(frozen=True)
class Random(WeightCriterion):
    """Uniform random scores: the floor under every other method."""

    name: ClassVar[str] = "random"

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """U(0, 1) per unit, from the seed and the group's name."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + zlib.crc32(group.name.encode())) % 2**63)
        return torch.rand(group.units, generator=generator)


@dataclass(frozen=True)
class L1(WeightCriterion):
    """Sum of absolute weights over all filters that write the unit (Li et al. 2017)."""

    name: ClassVar[str] = "l1"
    normalize: Normalize = "mean"

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """L1 norm per unit."""
        total = sum(per_unit(model.get_parameter(s.tensor).abs(), s, group.units) for s in group.writers)
        return normalized(torch.as_tensor(total).float(), self.normalize)


@dataclass(frozen=True)
class L2(WeightCriterion):
    """Euclidean norm of all filters that write the unit."""

    name: ClassVar[str] = "l2"
    normalize: Normalize = "mean"

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """L2 norm per unit."""
        total = sum(per_unit(model.get_parameter(s.tensor).square(), s, group.units) for s in group.writers)
        return normalized(torch.as_tensor(total).sqrt().float(), self.normalize)


@dataclass(frozen=True)
class BatchNormScale(WeightCriterion):
    """Absolute batch-norm scale of the unit (network slimming, Liu et al. 2017, without its sparse training)."""

    name: ClassVar[str] = "bn_scale"
    normalize: Normalize = "mean"

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """Sum of |gamma| per unit. Raises ConfigError for a group without batch norm."""
        norms = [
            s
            for s in group.slots
            if s.tensor.endswith(".weight")
            and isinstance(model.get_submodule(s.tensor.rpartition(".")[0]), nn.modules.batchnorm._BatchNorm)
        ]
        if not norms:
            raise ConfigError(
                f"group {group.name!r}",
                "no batch norm holds its units",
                "use another criterion, such as 'l1' or 'taylor'",
            )
        total = sum(per_unit(model.get_parameter(s.tensor).abs(), s, group.units) for s in norms)
        return normalized(torch.as_tensor(total).float(), self.normalize)


@dataclass(frozen=True)
class FPGM(WeightCriterion):
    """Sum of distances to the other filters of the layer: what is near the geometric median goes (He et al. 2019)."""

    name: ClassVar[str] = "fpgm"
    normalize: Normalize = "mean"

    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """Sum of Euclidean distances per unit, over all writers."""
        total = torch.zeros(group.units, dtype=torch.float64)
        for filters in writer_filters(model, group):
            total += torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
        return normalized(total.float(), self.normalize)


@dataclass(frozen=True)
class Taylor(GradientCriterion):
    """First-order Taylor: the loss change when a unit goes is about -(activation x gradient) (Molchanov et al. 2017).

    `per_example` takes the mean of absolute per-example changes instead of the absolute mean change, whose positive
    and negative examples cancel in a trained network.
    """

    name: ClassVar[str] = "taylor"
    per_example: bool = True
    normalize: Normalize = "none"

    def contribution(self, gradient: Tensor) -> Tensor:
        """Sum over examples of |g| or g."""
        return gradient.abs().sum(0) if self.per_example else gradient.sum(0)

    def finish(self, total: Tensor, num_examples: int) -> Tensor:
        """|mean| or mean absolute gradient."""
        return normalized(total.abs() / num_examples, self.normalize)


@dataclass(frozen=True)
class Fisher(GradientCriterion):
    """Half the mean squared gate gradient: second-order loss change with the empirical Fisher (Theis et al. 2018)."""

    name: ClassVar[str] = "fisher"
    normalize: Normalize = "none"

    def contribution(self, gradient: Tensor) -> Tensor:
        """Half the sum over examples of g squared."""
        return 0.5 * gradient.square().sum(0)

    def finish(self, total: Tensor, num_examples: int) -> Tensor:
        """Mean over examples."""
        return normalized(total / num_examples, self.normalize)


CRITERIA: dict[str, type[Method]] = {c.name: c for c in (Random, L1, L2, BatchNormScale, FPGM, Taylor, Fisher)}
