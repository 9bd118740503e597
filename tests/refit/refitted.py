"""A model repaired, with what must hold whatever the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.proof.apply import apply_and_verify_
from prunus.refit import RepairConfig, Repaired, repair
from prunus.runtime.copies import copied


def refitted(model: nn.Module, kept: dict[str, Any], *batches: Tensor) -> Repaired:
    plan = prunus.Plan.from_kept(prunus.trace(model, batches[0]), kept)
    config = RepairConfig(held_out=3)
    done = repair(model, plan, [(b, torch.zeros(len(b))) for b in batches], config=config, progress=False)
    assert all(r.after <= r.before for r in done.refits)
    assert apply_and_verify_(copied(done.model), plan, batches[0])[1].passed
    return done


def reasons(done: Repaired) -> dict[str, str]:
    return {r.layer: r.reason for r in done.refits}
