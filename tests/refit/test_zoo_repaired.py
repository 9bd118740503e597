"""Networks of the zoo lose a third of everything that can go, are repaired, and the cut is proven."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import prunus
from prunus.errors import PruneError
from prunus.graph.grouping import Graph
from prunus.proof.apply import apply_and_verify_
from prunus.refit import RepairConfig, repair
from prunus.runtime.copies import copied
from zoo import ZOO

SOME = ("two_inputs", "gru", "attention_module", "maxout", "low_rank_added")
"""Always; the whole zoo takes two minutes, and is run with PRUNUS_EXPLORE=1."""
NAMES = [n for n, animal in ZOO.items() if not animal.refused] if os.environ.get("PRUNUS_EXPLORE") else SOME


def two_thirds(graph: Graph) -> dict[str, list[int]]:
    """Of every row of every group, inexact ones and dimensions inside heads too."""
    kept, rng = {}, np.random.default_rng(1)
    for group in graph.groups(inexact=True):
        rows = np.zeros(group.units, int) if group.rows is None else group.rows
        parts = [np.flatnonzero(rows == row) for row in np.unique(rows)]
        kept[group.name] = sorted(int(u) for p in parts for u in rng.permutation(p)[: -(-2 * len(p) // 3)])
    return kept


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_the_zoo_is_repaired(name: str) -> None:
    model, inputs = ZOO[name].make(), ZOO[name].inputs
    graph = prunus.trace(model, inputs(2))
    plan = prunus.Plan.from_kept(graph, two_thirds(graph))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    data = [(inputs(size), torch.zeros(size)) for size in (2, 7, 1, 6)]
    done = repair(model, plan, data, config=RepairConfig(held_out=4), progress=False)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(r.after <= r.before for r in done.refits)
    assert all(t.isfinite().all() for t in done.model.state_dict().values() if t.is_floating_point())
    try:
        assert apply_and_verify_(copied(done.model), plan, inputs(2))[1].passed
    except PruneError:
        with pytest.raises(PruneError):  # not of repair's making
            apply_and_verify_(copied(model), plan, inputs(2))
