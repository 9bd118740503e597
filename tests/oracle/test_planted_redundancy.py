"""Oracle 6: units whose importance is known by construction must be ranked so by everything that looks at the data.

A linear network, y = sum of independent inputs. Every input is one hidden unit; some inputs are carried by
two units whose readers share the weight, and some units have readers of zero.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.learning.fit import fit
from prunus.methods.base import Method
from prunus.methods.criteria import Fisher, Taylor
from prunus.methods.dirichlet import DirichletPruning

WHOLE, PAIRS, USELESS = 4, 2, 8
UNITS = WHOLE + 2 * PAIRS + USELESS
METHODS = [DirichletPruning(epochs=12), DirichletPruning(estimator="point", epochs=12), Fisher(), Taylor()]


def planted(order: Tensor) -> nn.Module:
    """fc1 copies inputs, fc2 sums what its planted weights say; `order[i]` is where planted unit i stands."""
    model = nn.Sequential(nn.Linear(WHOLE + PAIRS, UNITS, bias=False), nn.Linear(UNITS, 1, bias=False))
    source = torch.cat(
        [
            torch.arange(WHOLE),
            torch.arange(WHOLE, WHOLE + PAIRS).repeat_interleave(2),
            torch.arange(USELESS) % (WHOLE + PAIRS),
        ]
    )
    read = torch.cat([torch.ones(WHOLE), torch.full((2 * PAIRS,), 0.5), torch.zeros(USELESS)])
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[order, source] = 1.0
        model[1].weight[0, order] = read
    return model


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'estimator', '')}")
def test_useless_units_come_last_and_halves_after_wholes(method: Method, seed: int) -> None:
    torch.manual_seed(seed)
    order = torch.randperm(UNITS)
    model = planted(order).eval()
    x = torch.randn(2048, WHOLE + PAIRS)
    y = x.sum(1, keepdim=True) + 0.3 * torch.randn(2048, 1)
    groups = prunus.trace(model, x[:2]).groups()
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 2048, 64)]
    found = fit(model, groups, method, batches, F.mse_loss, num_data=2048, seed=seed)
    score = next(iter(found.values.values()))[order]
    whole, halves, useless = score[:WHOLE], score[WHOLE : WHOLE + 2 * PAIRS], score[-USELESS:]
    rank = score.argsort(descending=True).argsort()
    assert bool((rank[-USELESS:] >= UNITS // 2).all())
    assert useless.max() < halves.min()
    assert halves.max() < whole.min()
