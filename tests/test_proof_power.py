"""A small version of `benchmarks/proof_power.py`: wrong cuts of a few networks are found in every format."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

import prunus
from prunus.plan.plan import Plan
from wrongcuts import KINDS, Wrong, attempt, half_of_all, is_wrong
from zoo import ZOO


@pytest.mark.parametrize("name", ["conv_bias_no_norm", "residual_option_b", "heads_fused", "mlp"])
def test_wrong_cuts_are_found_in_every_format(name: str) -> None:
    model, inputs = ZOO[name].make(), ZOO[name].inputs(2)
    graph = prunus.trace(model, inputs)
    plan = Plan.from_kept(graph, half_of_all(graph))
    made = [kind(graph, plan, np.random.default_rng(3)) for kind in KINDS]
    wrongs = [w for w in made if w is not None and is_wrong(model, graph, plan, w, inputs)]
    assert len(wrongs) >= 3
    assert not is_wrong(model, graph, plan, Wrong("right", plan), inputs)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = copy.deepcopy(model).to(dtype)
        given = torch.utils._pytree.tree_map_only(Tensor, lambda t, d=dtype: t.to(d), inputs)
        proof = attempt(cast, Wrong("right", plan), given)
        assert proof is not None
        assert proof.passed
        assert [w.kind for w in wrongs if attempt(cast, w, given) is not None] == []
