"""The noise of a learning, found within it: against many learnings of one and the same noisy problem."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.learning.spread import SIGNS, Spread, signs_of
from prunus.posteriors.dirichlet import DirichletPosterior

LR, STEPS, MANY = 0.05, 150, 4000


def learned(noise: float, curvature: float, slope: float = 0.0) -> tuple[Tensor, Tensor]:
    """The ends and the displacements of many independent learnings, one a coordinate."""
    torch.manual_seed(0)
    theta = nn.Parameter(torch.zeros(MANY))
    optimizer = torch.optim.Adam([theta], lr=LR)
    spread = Spread(optimizer, [theta])
    for _ in range(STEPS):
        spread.displace_()
        theta.grad = curvature * (theta.detach() - 1) + slope + noise * torch.randn(MANY)
        optimizer.step()
    return theta.detach(), spread.displacement[theta]


def test_displacement_is_distributed_as_the_end() -> None:
    for noise, curvature, slope in ((1.0, 1.0, 0.0), (1.0, 0.05, 0.0), (0.5, 1.0, 0.2), (1.0, 0.0, 0.5)):
        ends, displaced = learned(noise, curvature, slope)
        assert 0.85 < float(displaced.std() / ends.std()) < 1.15, (noise, curvature, slope)
        assert abs(float(displaced.mean())) < 0.1 * float(ends.std())
        assert abs(float(torch.corrcoef(torch.stack([ends, displaced]))[0, 1])) < 0.1


def test_without_noise_there_is_next_to_none() -> None:
    ends, displaced = learned(0.0, 1.0)
    assert float(ends.mean()) > 0.5
    assert float(displaced.abs().max()) < 0.1 * LR


def test_parameters_go_where_adam_takes_them() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(20, 5)
    found = []
    for watched in (True, False):
        theta = nn.Parameter(torch.zeros(5))
        optimizer = torch.optim.Adam([theta], lr=LR)
        spread = Spread(optimizer, [theta]) if watched else None
        for gradient in gradients:
            if spread is not None:
                spread.displace_()
            theta.grad = gradient.clone()
            optimizer.step()
        found.append(theta.detach())
    assert torch.equal(*found)


def test_displacement_stays_within_what_adam_could_walk() -> None:
    theta = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([theta], lr=LR)
    spread = Spread(optimizer, [theta])
    for step in range(100):
        spread.displace_()
        theta.grad = torch.tensor([1e-3 if step < 50 else 1e3 * spread.sign])  # drives the displacement alone
        optimizer.step()
    assert float(spread.displacement[theta].abs()) <= 51 * LR


def test_replicas_lie_on_both_sides_and_leave_the_posterior_alone() -> None:
    q = DirichletPosterior(3)
    optimizer = torch.optim.Adam(q.parameters(), lr=LR)
    spread = Spread(optimizer, list(q.parameters()))
    for gradient in ([1.0, -2.0, 0.5], [0.3, 1.0, -1.0]):
        spread.displace_()
        q.rho.grad = torch.tensor(gradient)
        optimizer.step()
    before, displaced = q.rho.detach().clone(), spread.displacement[q.rho]
    ends = spread.replicas({"0": q})["0"]
    torch.testing.assert_close(ends.log(), torch.stack([before + displaced, before - displaced]))
    assert torch.equal(q.rho, before)
    assert bool(displaced.abs().gt(0).all())


def test_signs_cancel_what_batches_share() -> None:
    signs = torch.cat([signs_of(step) for step in range(10)], dim=1)
    assert signs.shape == (1 + SIGNS, 10)
    assert bool((signs[0] == 1).all())
    assert bool((signs[1:].sum(1) == 0).all())
    assert torch.linalg.matrix_rank(signs) > 3
