"""A method of one's own, in one file outside the package: variational dropout, one noise per unit.

    prunus compress MODEL --data digits --method examples/variational_dropout.py:VariationalDropout --set beta=3

    prunus.prune(model, x, method=VariationalDropout(beta=3.0), data=loader, loss_fn=loss_fn)
    prunus.testing.check_method(VariationalDropout)

Every multiplier is N(1, alpha); a log-uniform prior wants alpha to grow, and a unit goes where it could: log alpha > 3.
Molchanov, Ashukha and Vetrov, "Variational Dropout Sparsifies Deep Neural Networks", ICML 2017, there per weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.methods import StagedMethod
from prunus.posteriors import DecidingPosterior, inward_clamp


class DropoutPosterior(DecidingPosterior):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units
        self.log_alpha = nn.Parameter(torch.full((units,), -5.0))

    def std(self) -> Tensor:
        return (inward_clamp(self.log_alpha, -10.0, 4.0) / 2).exp()

    def rsample(self, n: int) -> Tensor:
        return 1 + self.std() * torch.randn(n, self.units, device=self.log_alpha.device)

    def mean(self) -> Tensor:
        return torch.ones_like(self.log_alpha)

    def complexity(self) -> Tensor:
        log_alpha = 2 * self.std().log()
        return (0.63576 * torch.sigmoid(-1.8732 - 1.48695 * log_alpha) + torch.log1p((-log_alpha).exp()) / 2).sum()

    def score(self) -> Tensor:
        return 1 / self.std().detach()

    def kept(self) -> Tensor:
        return self.log_alpha.detach() < 3

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        reach = self.std().detach() * torch.special.ndtri(torch.tensor(0.5 + level / 2))
        return 1 - reach, 1 + reach

    def comparable_draws(self, n: int) -> Tensor:
        return (self.rsample(n) / self.std()).cpu()  # in units of its noise, or loud units would look large


@dataclass(frozen=True)
class VariationalDropout(StagedMethod, name="vdrop"):
    simultaneous: bool = True

    def posterior(self, units: int) -> DropoutPosterior:
        return DropoutPosterior(units)
