"""How far a learning anew would end from this one, found within the one run and at no cost.

A learning from other examples of the same kind and another seed differs from this one by the noise of its gradients,
and by what the loss makes of that noise. Both are learned along: a displacement delta beside the parameters theta. The
step t is taken at theta + s_t delta, s_t = 1 or -1; the parameters go on from theta with the gradient found there, and
delta takes the same step with s_t times that gradient. To first order in delta the gradient is
g(theta) + s_t H delta + noise: for theta the second term cancels within two steps of opposite signs, and for delta the
first one does. What is left for delta, H delta + noise, is the law by which theta itself strays from its path, started
at none. So the end of delta is distributed as the difference between this learning's end and the mean of all of them.

This holds for displacements over which the loss has about one curvature. Where the complexity is no convex function of
the parameters and units fall off an edge, it does not, and the larger displacement would change what is learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.posteriors.base import Posterior

SIGNS = 8
"""Ways of adding up batches with signs, for scores that are sums over examples."""


def signs_of(step: int) -> Tensor:
    """One, and `SIGNS` random signs for the batch of this number, float64 [1 + SIGNS, 1].

    The second of two batches has the opposite of the first one's, so that what all batches have in common cancels: the
    sum of many terms with these signs has the mean zero, and the variance that their plain sum has.
    """
    drawn = torch.randint(2, (SIGNS, 1), generator=torch.Generator().manual_seed(step // 2), device="cpu")
    signs = (2.0 * drawn - 1.0) * (1 - 2 * (step % 2))
    return torch.cat([torch.ones(1, 1, dtype=torch.float64, device="cpu"), signs])


class Spread:
    """The displacement of parameters that Adam learns.

    Args:
        optimizer: Adam; its steps are watched from now on.
        parameters: those of its parameters whose spread is wanted.

    Reference:
        Ours. Mandt, Hoffman & Blei, "Stochastic Gradient Descent as Approximate Bayesian Inference" (JMLR 2017) for the
        law of the iterates; the momentum and the divisor of Kingma & Ba, "Adam" (ICLR 2015) are those of the parameter.
    """

    def __init__(self, optimizer: torch.optim.Adam, parameters: Sequence[nn.Parameter]) -> None:
        self.step, self.sign = 0, int(signs_of(0)[1])
        self.settings = {p: group for group in optimizer.param_groups for p in group["params"]}
        self.displacement = {p: torch.zeros_like(p, requires_grad=False) for p in parameters if p.requires_grad}
        self._momentum = {p: torch.zeros_like(d) for p, d in self.displacement.items()}
        self._path: dict[nn.Parameter, Tensor] = {}
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def displace_(self) -> None:
        """Move the parameters to where the next gradient is to be found; the optimizer's step moves them back."""
        for parameter, displacement in self.displacement.items():
            self._path[parameter] = parameter.detach().clone()
            parameter.add_(displacement, alpha=self.sign)

    def state_dict(self) -> dict[str, Any]:
        """Displacement and momentum, in the order of the parameters, and the number of the step."""
        return {"step": self.step, "moved": list(self.displacement.values()), "momentum": list(self._momentum.values())}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another one of the same parameters stood."""
        self.step, self.sign = int(state["step"]), int(signs_of(int(state["step"]))[1])
        for held, stored in ((self.displacement, state["moved"]), (self._momentum, state["momentum"])):
            for mine, other in zip(held.values(), stored, strict=True):
                mine.copy_(other)

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        for parameter, place in self._path.items():
            parameter.copy_(place)
        self._path = {}

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, displacement in self.displacement.items():
            if parameter.grad is None:
                continue
            settings, state = self.settings[parameter], optimizer.state[parameter]
            first, second = settings["betas"]
            # Not corrected for its start at zero: then every gradient moves delta by its own part and no more.
            momentum = self._momentum[parameter].lerp_(self.sign * parameter.grad, 1 - first)
            divisor = (state["exp_avg_sq"] / (1 - second ** float(state["step"]))).sqrt_().add_(settings["eps"])
            # Adam's own steps are hardly ever longer; without this, units that compete could drive delta away.
            displacement.sub_((momentum / divisor).clamp_(-1, 1), alpha=settings["lr"])
        self.step += 1
        self.sign = int(signs_of(self.step)[1])

    @torch.no_grad()
    def replicas(self, posteriors: Mapping[str, Posterior]) -> dict[str, Tensor]:
        """Scores at both ends of the displacement, fp32 [2, K] on the CPU by group; parameters are as before."""
        ends = []
        for sign in (1, -1):
            self.sign = sign
            self.displace_()
            ends.append({name: q.score().detach().float().cpu().clone() for name, q in posteriors.items()})
            self._before()
        return {name: torch.stack([end[name] for end in ends]) for name in posteriors}
