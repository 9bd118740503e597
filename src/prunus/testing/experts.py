"""Is a method of experts one? What it must say of experts whose worth is known by construction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.files.fingerprint import weights_digest
from prunus.graph.trace import trace
from prunus.learning.fit import fit
from prunus.methods.base import RoutingCriterion
from prunus.pipeline.prune import prune
from prunus.testing.demand import demand, demand_vector

EXPERTS, CHOICES, WIDTH, TOKENS = 6, 2, 8, 512
NEVER = 5
"""The expert that no token comes to."""


class _Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts = EXPERTS
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        made = torch.einsum("nd,ned->ne", x, self.down_proj[chosen[:, 0]]) * weights[:, :1]
        for choice in range(1, chosen.shape[1]):
            made = made + torch.einsum("nd,ned->ne", x, self.down_proj[chosen[:, choice]]) * weights[:, choice, None]
        return made


class PlantedExperts(nn.Module):
    """A router, experts of which one is never chosen, and a sum around both."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k = CHOICES
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.experts = _Experts()
        self.head = nn.Linear(WIDTH, 3)
        with torch.no_grad():
            self.gate.bias[NEVER] = -1e4

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of tokens, [N, 3]."""
        weights, chosen = torch.topk(torch.softmax(self.gate(x), -1), self.top_k, dim=-1)
        made: Tensor = self.head(x + self.experts(x, chosen, weights / weights.sum(-1, keepdim=True)))
        return made


def planted_experts() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The network, and data: the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PlantedExperts().eval()
        x = torch.randn(TOKENS, WIDTH)
    return model, [(part, part[:, :3].argmax(1)) for part in x.split(TOKENS // 4)]


def check_experts(name: str, method: RoutingCriterion) -> None:
    """Check scores of experts: their shape, that nothing but the data decides, what nobody needs, and a plan."""
    model, batches = planted_experts()
    before, x = weights_digest(model), batches[0][0]
    graph = trace(model, x)
    group = graph.experts[0]
    first, again = (
        fit(model, [group], method, batches, F.cross_entropy, num_data=TOKENS, seed=seed).values[group.name]
        for seed in (0, 1)
    )
    demand_vector(first, EXPERTS, f"{name}.finish")
    demand(torch.equal(first, again), f"{name}: its scores depend on the seed, though it draws nothing")
    demand(int(first.argmin()) == NEVER, f"{name}: the expert that no token comes to is not the first to go")
    target = f"experts<={EXPERTS - 2}"
    ways = {"method": method, "target": target, "data": batches, "loss_fn": F.cross_entropy, "progress": False}
    result = prune(model, x, allow=("experts",), **ways)  # type: ignore[arg-type]
    demand(len(result.plan.kept[group.name]) == EXPERTS - 2, f"{name}: the plan does not keep what was asked")
    demand(weights_digest(model) == before, f"{name}: the network was changed")
