"""CPU time of re-estimating batch norms against plain forward passes over the same batches, in turns.

    python benchmarks/batchnorm_cost.py [--smoke]

ResNet-50 at 224 pixels; with --smoke ResNet-20 at 32. One thread, with weights as they are and channels-last.
"""

from __future__ import annotations

import torch
from torch import nn

import prunus
from imagenet_nets import resnet50
from nets import resnet20
from options import Parser
from record import interleaved, ratio, timed, write


def plain(model: nn.Module, images: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for x in images:
            model(x)


def main() -> None:
    parser = Parser(__doc__, batch=2)
    parser.add_repeats(9)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        model = (resnet20() if args.smoke else resnet50()).eval().to(memory_format=layout)
        size = 32 if args.smoke else 224
        images = [torch.randn(args.batch, 3, size, size).to(memory_format=layout) for _ in range(2)]
        batches = [(x, torch.zeros(len(x))) for x in images]
        jobs = {
            "plain": timed(lambda model=model, images=images: plain(model, images)),
            "re-estimated": timed(lambda model=model, batches=batches: prunus.reestimate_batch_norm(model, batches)),
        }
        times = interleaved(jobs, args.repeats)
        found = ratio(times, "re-estimated", "plain")
        name = str(layout).rpartition(".")[2]
        print(f"{name}: re-estimated / plain {found[0]:.2f} (quartiles {found[1]:.2f} to {found[2]:.2f})")
        result[name] = {"seconds": times, "ratio": found}
    network = "ResNet-20" if args.smoke else "ResNet-50"
    print("written to", write("batchnorm_cost", {"batch": args.batch, "network": network, "layouts": result}))


if __name__ == "__main__":
    main()
