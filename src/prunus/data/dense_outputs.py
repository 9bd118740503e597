"""The dense network's own outputs in place of labels: how far a smaller network's are from them, and what is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.data.batches import structure
from prunus.data.losses import main_output
from prunus.errors import ConfigError, DataError
from prunus.runtime.arguments import tensors_in
from prunus.runtime.fields import check_fields
from prunus.runtime.precision import widened
from prunus.runtime.processes import distributed, summed
from prunus.runtime.ranges import Positive

Kind = Literal["auto", "logits", "probabilities", "values"]
Reduction = Literal["mean", "sum"]
Target = tuple[tuple[Tensor, ...], Tensor | None]
"""What is aimed at: log probabilities [..., C] or all outputs, and which positions count (None: all)."""

SURE = 1e-3
"""How far from one the sum of a row of probabilities may be."""


@dataclass(frozen=True)
class DenseOutputs:
    """The loss without labels: the distance of a network's outputs from those of the dense one.

    Given as `loss_fn`, what is learned, compared and recovered by are the dense network's outputs, whatever targets the
    batches hold: nobody looks at them. Of classes it is the Kullback-Leibler divergence KL(dense || smaller), the mean
    over examples, or positions (an `attention_mask` among the inputs says which count); of all other outputs the
    squared distance in units of the dense outputs' variance, a mean over the elements of a tensor and over the tensors.
    Where a method wants gradients at the dense network, at which both are zero, they are drawn so that their mean
    square is the true Fisher, that of its predictive distribution: random signs times the root of the probability of
    classes, and of values the Gaussian whose negative log likelihood the squared distance is.

    Attributes:
        kind: what the outputs are: `logits` of classes, in the last dimension ([B, C], [B, T, C]) or, of four and
            more, in the second; `probabilities` of them; or `values` of anything else. `auto` looks at the model's
            answer to the first batch: logits are what is called so in an answer in parts, and a single tensor of two
            or three dimensions, unless there is one class, or the model's `config.problem_type` is another.
        spread: variance of each tensor of values; found from the first batches if it isn't given.
        temperature: T, by which logits of classes are divided; the divergence is multiplied by T^2, so that gradients
            keep their size (distillation, arXiv 1503.02531). Above 1 rare classes teach too.

    Raises:
        ConfigError: an unknown kind.

    Example:
        >>> from prunus.data import DenseOutputs
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> batches, x = [(torch.randn(32, 8), "whatever this is")], torch.randn(2, 8)
        >>> method = prunus.DirichletPruning(min_steps=10)
        >>> result = prunus.prune(net, x, method=method, target=0.5, data=batches, loss_fn=DenseOutputs())
        >>> result.plan.notes[-1]
        "learned without labels: by the divergence from the dense network's class probabilities"
    """

    kind: Kind = "auto"
    spread: tuple[float, ...] = field(default=(), repr=False)
    temperature: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, outputs: Any, target: Target, reduction: Reduction = "mean") -> Tensor:
        """The distance from `target`, the mean over labels or their sum; differentiable in the outputs.

        Raises:
            DataError: outputs of another shape than the dense network's, or none.
        """
        goals, counted = target
        if self.kind == "values":
            return _reduced_values(self._distances(values_in(outputs), goals), reduction)
        found = self.log_probabilities(outputs)
        _check_alike([found], goals)
        return _reduced(self.temperature**2 * divergence(found, goals[0]), counted, reduction)

    def drawn(self, outputs: Any, counted: Tensor | None, reduction: Reduction = "mean") -> Tensor:
        """A loss whose gradient at the dense network has mean zero and the true Fisher for its mean square.

        Args:
            outputs: of the dense network, with gradient.
            counted: which positions count; None: all.
            reduction: over labels.
        """
        if self.kind == "values":
            found = values_in(outputs)
            goals = tuple(
                t.detach() + _noise(t, s * len(found)) for t, s in zip(found, self._spreads(found), strict=True)
            )
            return _reduced_values(self._distances(found, goals), reduction)
        logs = self.log_probabilities(outputs)
        share = logs.detach().exp()
        # Cross terms vanish, so that the mean square is that of drawn labels; but no rare label decides alone.
        signs = torch.randint_like(share, 2) * 2 - 1
        scores = (share.sqrt() * signs * logs).masked_fill(share == 0, 0.0)
        return _reduced(-scores.sum(-1), counted, reduction)

    def target(self, inputs: Any, outputs: Any) -> Target:
        """What is aimed at, from the dense network's answer to the inputs of a batch."""
        found = values_in(outputs) if self.kind == "values" else (self.log_probabilities(outputs),)
        return tuple(t.detach() for t in found), counted_in(inputs)

    def log_probabilities(self, outputs: Any) -> Tensor:
        """Of the classes at the temperature, [..., C]; see `class_rows`."""
        if self.kind == "auto":
            fix = "give it as loss_fn to prune, fit or compress, or say its kind"
            raise ConfigError("DenseOutputs", "it has not seen yet what the dense network's outputs are", fix)
        rows = class_rows(outputs)
        if self.kind == "probabilities":
            rows = rows.clamp_min(torch.finfo(rows.dtype).tiny).log()
            if self.temperature == 1:
                return rows
        return (rows / self.temperature).log_softmax(-1)

    def decided(self, model: nn.Module, answers: Iterable[Any]) -> DenseOutputs:
        """The same with its kind and spread found out.

        Args:
            model: the dense network, whose configuration may say what its outputs are.
            answers: its outputs for some batches; of all processes' together is the spread.

        Raises:
            DataError: outputs without floating-point tensors.
        """
        kind, seen = self.kind, iter(answers)
        first = next(seen)
        if kind == "auto":
            kind = kind_of(model, first)
        if kind != "values" or self.spread:
            return replace(self, kind=kind)
        totals = torch.stack([_moments(values_in(answer)) for answer in (first, *seen)]).sum(0)
        if distributed():
            totals = summed(totals.to(values_in(first)[0].device)).cpu()
        # What is constant is measured against its size; zeros as they are.
        found = [
            next(v for v in (around, size, 1.0) if v > 0) for around, size in (totals[:, :2] / totals[:, 2:]).tolist()
        ]
        return replace(self, kind=kind, spread=tuple(found))

    def describe(self) -> str:
        """What is learned by, in words."""
        if self.kind == "values":
            return "by the squared distance from the dense network's outputs, in units of their variance"
        warm = f" at temperature {self.temperature:g}" if self.temperature != 1 else ""
        return f"by the divergence from the dense network's class probabilities{warm}"

    def _spreads(self, found: tuple[Tensor, ...]) -> tuple[float, ...]:
        if len(self.spread) != len(found):
            what = f"{len(found)} tensors where the dense network's first answer had {len(self.spread)}"
            raise DataError("outputs", what, "give a loss_fn of your own")
        return self.spread

    def _distances(self, found: tuple[Tensor, ...], goals: tuple[Tensor, ...]) -> Tensor:
        """Per example [B], or one number where the tensors do not begin with examples."""
        _check_alike(found, goals)
        by_tensor = [
            _by_example((a - b).square() / s) for a, b, s in zip(found, goals, self._spreads(found), strict=True)
        ]
        alike = len({t.shape for t in by_tensor}) == 1
        return torch.stack(by_tensor if alike else [t.mean() for t in by_tensor]).mean(0)


def class_rows(outputs: Any) -> Tensor:
    """The main output with its classes last, fp32 or wider: [B, C], [B, T, C], and [B, C, ...] of four or more.

    Raises:
        DataError: it has no classes.
    """
    found = widened(main_output(outputs))
    rows = found.movedim(1, -1) if found.dim() > 3 else found
    if rows.dim() < 2 or rows.shape[-1] < 2 or not rows.is_floating_point():
        what = f"they are {structure(found)}, which are no logits of classes"
        raise DataError("outputs", what, "use prune or fit with loss_fn=DenseOutputs('values'), or labels")
    return rows  # type: ignore[no-any-return]


def divergence(logs: Tensor, goal: Tensor) -> Tensor:
    """KL(goal || logs) of every row of log probabilities, [..., C] to [...]; classes of probability 0 count nothing."""
    share = goal.exp()
    return (share * (goal - logs)).masked_fill(share == 0, 0.0).sum(-1)


def values_in(outputs: Any) -> tuple[Tensor, ...]:
    """Every floating-point tensor in an answer, fp32 or wider. Raises DataError if there is none."""
    found = tensors_in(dict(outputs) if isinstance(outputs, Mapping) else outputs)
    floating = tuple(widened(t) for t in found if t.is_floating_point() and t.numel())
    if not floating:
        raise DataError("outputs", f"no floating-point tensor in {structure(outputs)}", "give a loss_fn of your own")
    return floating


def counted_in(inputs: Any) -> Tensor | None:
    """Which positions of the inputs are no padding [B, T], where they say so."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def kind_of(model: nn.Module, outputs: Any) -> Kind:
    """What the outputs of a network are; see `DenseOutputs.kind`."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    single = outputs if isinstance(outputs, Tensor) and outputs.dim() in (2, 3) else None
    found = named if isinstance(named, Tensor) else single
    if found is None or found.dim() < 2 or problem not in (None, "single_label_classification"):
        return "values"
    if not found.is_floating_point() or found.shape[1 if found.dim() > 3 else -1] < 2:
        return "values"
    return "probabilities" if are_probabilities(class_rows(found)) else "logits"


def are_probabilities(rows: Tensor) -> bool:
    """Whether every row sums to one and holds nothing negative."""
    return bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() < SURE).all())


def counted_rows(rows: Tensor, counted: Tensor | None, *, classes: bool = False) -> Tensor:
    """What there is of every label that counts: [...] to [N], or with `classes` last [..., C] to [N, C]."""
    labels = rows.shape[:-1] if classes else rows.shape
    if counted is None or counted.shape != labels:
        return rows.flatten(0, len(labels) - 1) if labels else rows
    return rows[counted.to(rows.device).bool()]


def _check_alike(found: Iterable[Tensor], goals: Iterable[Tensor]) -> None:
    shapes, wanted = ([list(t.shape) for t in tensors] for tensors in (found, goals))
    if shapes != wanted:
        what = f"their shapes {shapes} are not those of the dense network, {wanted}, so that they can't be compared"
        raise DataError("outputs", what, "give a loss_fn of your own, on what is there whatever the answer")


def _moments(tensors: tuple[Tensor, ...]) -> Tensor:
    """Of each tensor the summed squares around the mean over examples and around zero, and how many: fp64 [T, 3]."""
    rows = []
    for tensor in tensors:
        t = tensor.detach().double().cpu()
        middle = t.mean(0) if t.dim() and len(t) > 1 else t.mean()
        rows.append([float((t - middle).square().sum()), float(t.square().sum()), float(t.numel())])
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _noise(values: Tensor, spread: float) -> Tensor:
    """Of the Gaussian with the mean squared distance over the elements of an example, by spread, for -log density."""
    elements = values.numel() // max(values.shape[0], 1) if values.dim() else 1
    return torch.randn_like(values) * math.sqrt(spread * elements / 2)


def _by_example(squares: Tensor) -> Tensor:
    return squares.flatten(1).mean(1) if squares.dim() > 1 else squares


def _reduced_values(distances: Tensor, reduction: Reduction) -> Tensor:
    return distances.mean() if reduction == "mean" else distances.sum()


def _reduced(rows: Tensor, counted: Tensor | None, reduction: Reduction) -> Tensor:
    rows = counted_rows(rows, counted)
    return rows.mean() if reduction == "mean" else rows.sum()
