"""Networks that write in place, and that have layers in regions of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Written(nn.Module):
    """Parts of tensors are filled, and what was added to is used again under its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)
        self.register_buffer("table", torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        mask = torch.zeros(4, 6)
        mask[1:3, ::2] = self.table[1:3, ::2]
        x = torch.relu(self.stem(x + mask))
        kept = self.a(x)
        part = kept[:, :2]
        kept[:, 2:].add_(self.b(x)[:, 2:])
        part += 1.0
        kept.relu_()
        return self.out(kept + part.mean(1, keepdim=True))


class Regions(nn.Module):
    """Layers under settings of their own, one region within another; names inside are names outside too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(12, 3)
        self.mid = nn.Linear(18, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        with torch.no_grad():
            y, z = torch.relu(self.a(x)), torch.relu(self.b(x))
            with torch.autocast("cpu", enabled=False):
                y = torch.relu(self.mid(torch.cat([y, z], -1)))
            z = y * 2
        return self.out(torch.relu(y + z))
