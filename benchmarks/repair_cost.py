"""What repair costs: seconds in epochs of inference on the same images, peak memory, and one large linear layer (I8).

    python benchmarks/repair_cost.py [--model resnet56] [--examples 1000] [--repeats 3]

Weights are random: the cost does not depend on them. Inference is one pass of the dense network in batches of 128, in
the same run; both are CPU seconds of one thread, medians of repeats. The linear layer has 11,008 inputs of which half
go, and 4,096 outputs, as the last one of a language model's feed-forward part.
"""

from __future__ import annotations

import resource
import statistics
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from nets import CifarResNet
from options import Parser
from prunus.plan.allocation import Allocation
from prunus.plan.plan import Plan
from record import interleaved, timed, write

DEPTHS = {"resnet20": 20, "resnet56": 56}


class FeedForward(nn.Module):
    """Two linear layers: `width` to `inner`, ReLU, and back."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Rows to rows."""
        return self.down(self.up(x).relu())


def peak_mib() -> float:
    """The most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def halved(model: nn.Module, x: Tensor) -> Plan:
    """Half of the MACs, the same share of every group."""
    graph = prunus.trace(model, x)
    groups = graph.groups()
    scores = {g.name: torch.rand(g.units) for g in groups}
    counts = prunus.allocate(
        graph, groups, scores, budget=prunus.Budget.parse("macs<=50%"), allocation=Allocation("uniform")
    )
    return Plan.from_kept(graph, prunus.select(groups, scores, counts))


def main() -> None:
    parser = Parser(__doc__, model="resnet20", examples=64, width=64, inner=172)
    parser.add_argument("--model", choices=DEPTHS, default="resnet56")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_repeats(3, small=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"model": args.model, "examples": args.examples}

    model, images = CifarResNet(DEPTHS[args.model]).eval(), torch.randn(args.examples, 3, 32, 32)
    plan, batches = halved(model, images[:2]), [(b,) for b in images.split(128)]
    config = prunus.RepairConfig(examples=args.examples)

    def inference() -> None:
        with torch.no_grad():
            for (batch,) in batches:
                model(batch)

    def repairing() -> None:
        prunus.repair(model, plan, batches, config=config, progress=False)

    before = peak_mib()
    times = interleaved({"inference": timed(inference), "repair": timed(repairing)}, args.repeats)
    ratios = [b / a for a, b in zip(times["inference"], times["repair"], strict=True)]
    found |= {
        "inference_seconds": statistics.median(times["inference"]),
        "repair_seconds": statistics.median(times["repair"]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "peak_mib": peak_mib(),
        "peak_mib_before": before,
    }
    print(f"{args.model}, {args.examples} images: repair = {found['ratio']:.1f} epochs of inference ({ratios})")
    print(f"peak memory {found['peak_mib']:.0f} MiB, {before:.0f} before")

    layer, x = FeedForward(args.width, args.inner).eval(), torch.randn(args.inner, args.width)
    plan = halved(layer, x[:2])
    seconds = timed(lambda: prunus.repair(layer, plan, [(x,)], config=prunus.RepairConfig(examples=len(x))))()
    found |= {"linear": [args.inner, args.width], "linear_rows": len(x), "linear_seconds": seconds}
    print(f"linear {args.inner} -> {args.width} from {len(x):,} rows: {seconds:.1f} s; peak {peak_mib():.0f} MiB")
    write("repair_cost", found)


if __name__ == "__main__":
    main()
