"""Random networks repaired: no layer is worse on held-out data, the cut is proven, and the dense network stays."""

from __future__ import annotations

import pytest
import torch
from examine import BATCHES, Kind, at_random, batch, network, program_of

import prunus
from prunus.errors import PruneError
from prunus.proof.apply import apply_and_verify_
from prunus.refit import RepairConfig, repair

CONFIG = RepairConfig(held_out=3)


def repaired(kind: Kind, seed: int, most: int = 14) -> str:
    """Repair one network. Raises AssertionError for anything wrong, and whatever else breaks."""
    program = program_of(kind, seed, most)
    with at_random(kind, program, seed) as (model, before, graph, kept):
        plan, x = prunus.Plan.from_kept(graph, kept), batch(kind, 2)
        # The steps are closures, which copies share: what is refitted goes into a network of its own.
        data = [(batch(kind, size), torch.zeros(size)) for size in (*BATCHES, 7)]
        try:
            done = repair(model, plan, data, config=CONFIG, progress=False)
        except PruneError:
            return "refused"
        finally:
            assert all(torch.equal(before[n], t) for n, t in model.state_dict().items()), "the dense one has changed"
        subject = network(kind, program)
        subject.load_state_dict(done.model.state_dict())
        assert all(r.after <= r.before for r in done.refits), "a layer is worse"
        try:
            _, proof = apply_and_verify_(subject, plan, x)
        except PruneError:
            with pytest.raises(PruneError):
                apply_and_verify_(network(kind, program), plan, x)
            return "uncut"
    assert proof.passed
    return "repaired" if any(not r.reason for r in done.refits) else "left"


@pytest.mark.parametrize("kind", ["token", "image"])
@pytest.mark.parametrize("seed", range(6))
def test_a_random_network_is_repaired_or_left(kind: Kind, seed: int) -> None:
    assert repaired(kind, seed) in ("repaired", "left", "refused", "uncut")
