"""One random network: proven equal to the zeroed one in fp64 on three batch sizes, or refused with nothing changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from more_blocks import MORE_ON_IMAGES, MORE_ON_TOKENS
from random_nets import ON_IMAGES, ON_TOKENS, SIDE, TOKENS, RandomNet, Step
from torch import Tensor, nn

import prunus
from prunus.errors import PruneError
from prunus.graph.grouping import Graph
from prunus.proof.apply import apply_and_verify_
from prunus.runtime.calling import outputs
from prunus.surgery.rewrite import fixed_batch
from prunus.surgery.rewritten import RewrittenModel
from zeroed import zeroed_
from zoo import untidy

Kind = Literal["token", "image"]
Outcome = Literal["proven", "rewritten", "locked", "refused"]
KINDS: tuple[Kind, ...] = ("token", "image")
BATCHES, TOLERANCE = (1, 2, 3), 1e-7


def program_of(kind: Kind, seed: int, most: int = 14) -> list[Step]:
    """The program of a seed: 2 to `most` steps of all kinds."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    names = sorted({**ON_TOKENS, **MORE_ON_TOKENS} if kind == "token" else {**ON_IMAGES, **MORE_ON_IMAGES})
    return [
        Step(str(rng.choice(names)), *(int(n) for n in rng.integers(0, 12, 4))) for _ in range(rng.integers(2, most))
    ]


def network(kind: Kind, program: list[Step]) -> nn.Module:
    """The same network every time, in fp64 (its steps are closures, which copies would share)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "token":
            made = RandomNet(program, -1, {**ON_TOKENS, **MORE_ON_TOKENS}, nn.Linear(6, 8))
        else:
            made = RandomNet(program, 1, {**ON_IMAGES, **MORE_ON_IMAGES}, nn.Conv2d(3, 8, 3, padding=1))
        return untidy(made.double()).eval()


def batch(kind: Kind, size: int) -> Tensor:
    """The inputs of a batch size, always the same."""
    shape = (TOKENS, 6) if kind == "token" else (3, SIDE, SIDE)
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def some_of_each_row(graph: Graph, rng: np.random.Generator) -> dict[str, list[int]]:
    """Between one and all units of each group, the same number of every row."""
    kept = {}
    for group in graph.groups():
        rows = np.zeros(group.units, int) if group.rows is None else group.rows
        stays = rng.integers(1, int((rows == 0).sum()) + 1)
        chosen = [rng.permutation(np.flatnonzero(rows == row))[:stays] for row in np.unique(rows)]
        kept[group.name] = sorted(int(u) for part in chosen for u in part)
    return kept


@contextmanager
def at_random(
    kind: Kind, program: list[Step], seed: int
) -> Iterator[tuple[nn.Module, dict[str, Tensor], Graph, dict[str, list[int]]]]:
    """A network, its weights, its analysis and what stays; without warnings within the context."""
    model = network(kind, program)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = prunus.trace(model, batch(kind, 2))
        yield model, before, graph, some_of_each_row(graph, np.random.default_rng(seed))


def examine(kind: Kind, program: list[Step], seed: int) -> Outcome:
    """Prune one network at random. Raises AssertionError for anything wrong, and whatever else breaks."""
    with at_random(kind, program, seed) as (_, before, graph, kept):
        if not kept:
            return "locked"
        subject = network(kind, program)
        try:
            smaller, proof = apply_and_verify_(subject, prunus.Plan.from_kept(graph, kept), batch(kind, 2))
        except PruneError:
            after = subject.state_dict()
            assert list(after) == list(before), "a refused model has other tensors"
            assert all(torch.equal(before[n], after[n]) for n in before), "a refused model has changed"
            return "refused"
    assert proof.passed, "unproven, and not refused"
    reference = zeroed_(network(kind, program), graph, kept)
    only = fixed_batch(smaller.graph) if isinstance(smaller, RewrittenModel) else None
    for size in BATCHES if only is None else (only,):  # torch makes a constant of the batch size in a few operations
        wanted, found = (outputs(m, batch(kind, size))[0] for m in (reference, smaller))
        assert wanted.shape == found.shape
        gap = float((wanted - found).abs().max() / wanted.abs().max().clamp_min(1e-6))
        assert gap <= TOLERANCE, f"differs from the zeroed network by {gap:.1e} on a batch of {size}"
    return "rewritten" if proof.rewritten else "proven"
