"""Two threads at once: on one model and on one each, what they find is what one thread finds, and no weight moves.

    python benchmarks/threads.py [--rounds 20]

Exit status 1 if a round raises, changes a bit of a given model, or makes another plan than one thread does.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from options import Parser

METHODS = ("l1", "taylor", "dirichlet", "sbp", "random")


def network(seed: int) -> nn.Module:
    """A small convolutional network with batch norm, a residual addition and a dense head, in eval mode."""
    torch.manual_seed(seed)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.norm(self.a(x)).relu())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Residual(), head)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model.eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    """Four batches of eight random images."""
    stream = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 8, 8, generator=stream), torch.randint(0, 4, (8,), generator=stream)) for _ in range(4)]


def plan_of(model: nn.Module, method: str, data: list[tuple[Tensor, Tensor]]) -> dict[str, tuple[int, ...]]:
    """What `prune` keeps of half of the units."""
    result = prunus.prune(
        model, data[0][0], method=method, target=0.5, data=data, loss_fn=F.cross_entropy, progress=False
    )
    assert result.verification.passed
    return dict(result.plan.kept)


def together(work: list[Callable[[], Any]]) -> list[Any]:
    """Run the functions in threads that start at once; what each returned, or raised."""
    found: list[Any] = [None] * len(work)
    start = threading.Barrier(len(work))

    def run(number: int) -> None:
        start.wait()
        try:
            found[number] = work[number]()
        except BaseException as error:  # a thread's error would only be printed
            found[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main() -> int:
    """Run the rounds and print what went wrong. Returns the exit status."""
    parser = Parser(__doc__, rounds=1)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    data, start = batches(), time.perf_counter()
    alone = {(seed, method): plan_of(network(seed), method, data) for seed in (0, 1) for method in METHODS}
    calls = errors = plans = weights = 0
    for shared in (True, False):
        models = [network(0), network(0 if shared else 1)]
        if shared:
            models[1] = models[0]
        before = [{n: t.clone() for n, t in m.state_dict().items()} for m in models]
        for number in range(rounds):
            methods = [METHODS[(number + thread) % len(METHODS)] for thread in (0, 1)]
            found = together(
                [lambda m=m, method=method: plan_of(m, method, data) for m, method in zip(models, methods, strict=True)]
            )
            for thread, plan in enumerate(found):
                calls += 1
                expected = alone[0 if shared else thread, methods[thread]]
                errors += isinstance(plan, BaseException)
                plans += plan != expected
                state = models[thread].state_dict()
                kept = all(type(t) is Tensor and torch.equal(t, before[thread][n]) for n, t in state.items())
                weights += not (kept and not any(m._forward_pre_hooks for m in models[thread].modules()))
                if isinstance(plan, BaseException):
                    print(f"  {'shared' if shared else 'apart'}, round {number}, {methods[thread]}: {plan!r}"[:300])
        print(f"{'one model' if shared else 'a model each'}: {rounds} rounds of two threads")
    seconds = time.perf_counter() - start
    print(f"{calls} calls: {errors} errors, {plans} other plans, {weights} changed models; {seconds:.0f} s")
    return int(bool(errors or plans or weights))


if __name__ == "__main__":
    sys.exit(main())
