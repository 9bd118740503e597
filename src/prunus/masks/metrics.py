"""How sure the masks are, how much rows differ, how much masks still change; in nats where a unit is needed.

The paper (arXiv 2105.12686) announces measures of confidence and of diversity; its definitions were not available, so
these are ours.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from prunus.errors import ConfigError
from prunus.masks.sampling import gumbel, largest


def probabilities(logits: Tensor, noise_scale: float = 1.0) -> Tensor:
    """softmax(logits / c) of every row, fp64 [R, n]: the distribution of the first draw."""
    if not noise_scale > 0:
        raise ConfigError("noise_scale", f"{noise_scale}", "without noise there is no distribution; give one above 0")
    return (logits.detach().double() / noise_scale).softmax(1)


def entropy(p: Tensor) -> Tensor:
    """-sum p log p over the last dimension, fp64."""
    return torch.special.entr(p.double()).sum(-1)


def confidence(p: Tensor, k: int) -> float:
    """1 - (mean row entropy - log k) / (log n - log k): 1 if k elements share the mass evenly, 0 if all n do.

    Above 1 if the mass sits on fewer than k. NaN for k = n, where there is nothing to decide.
    """
    n = p.shape[1]
    if k == n:
        return math.nan
    return 1 - (float(entropy(p).mean()) - math.log(k)) / (math.log(n) - math.log(k))


def diversity(p: Tensor) -> float:
    """Generalised Jensen-Shannon divergence of the rows: H(mean p) - mean H(p), from 0 to log min(R, n).

    0 if all rows choose alike (a structured mask); it is the information that the row gives about the element.
    """
    return float(entropy(p.double().mean(0)) - entropy(p).mean())


def flip_rate(logits: Tensor, k: int, *, noise_scale: float = 1.0, draws: int = 8, seed: int = 0) -> float:
    """Expected share of the kept elements that the next draw replaces, from consecutive pairs of `draws` masks."""
    masks = [drawn(logits, k, noise_scale, (seed, i)) for i in range(draws)]
    shared = [float((a & b).sum()) for a, b in itertools.pairwise(masks)]
    return 1 - sum(shared) / (len(shared) * k * logits.shape[0])


def mean_inclusion(logits: Tensor, k: int, *, noise_scale: float = 1.0, draws: int = 8, seed: int = 0) -> float:
    """Mean probability of the k most probable elements of a row to be drawn, from `draws` masks: k / n to 1.

    It is the share of a draw that the mask which will be fixed has too.
    """
    mode = largest(logits.detach(), k)
    shared = [float((mode & drawn(logits, k, noise_scale, (seed, i))).sum()) for i in range(draws)]
    return sum(shared) / (draws * k * logits.shape[0])


def inclusion_probabilities(
    logits: Tensor, k: int, *, noise_scale: float = 1.0, draws: int = 1000, seed: int = 0
) -> Tensor:
    """Estimated probability of each element to be among the k: fp64 [R, n], every row sums to k.

    The standard error of an entry p is sqrt(p (1 - p) / draws).
    """
    total = torch.zeros(logits.shape, dtype=torch.float64, device="cpu")
    for i in range(draws):
        total += drawn(logits, k, noise_scale, (seed, i)).cpu()
    return total / draws


def drawn(logits: Tensor, k: int, noise_scale: float, seed: tuple[int, ...]) -> Tensor:
    """A mask drawn by Gumbel top-k, bool [R, n], by the seed alone."""
    rows, n = logits.shape
    return largest(logits.detach() + noise_scale * gumbel(rows, n, seed, logits.device), k)
