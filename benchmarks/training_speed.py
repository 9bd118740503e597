"""Training speed in fp32 and bf16 autocast, with weights as they are and channels-last: what `auto` should choose.

    python benchmarks/training_speed.py

LeNet-5, ResNet-20 and VGG-16 on random images, one thread, interleaved, process CPU time; ratios to fp32 as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nets import CifarVGG16, resnet20
from options import Parser
from prunus.pipeline.demo import LeNet5
from prunus.runtime.precision import bf16_helps
from record import interleaved, ratio, write

JOBS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "lenet5": (LeNet5, (1, 28, 28), 128),
    "resnet20": (resnet20, (3, 32, 32), 64),
    "vgg16": (CifarVGG16, (3, 32, 32), 32),
}
"""Network, shape of an image, images in a batch."""


def step_of(model: nn.Module, images: torch.Tensor, bf16: bool, channels_last: bool) -> Callable[[], float]:
    """CPU seconds of one forward and backward pass."""
    labels = torch.randint(0, 10, (len(images),))
    if channels_last:
        model, images = (m.to(memory_format=torch.channels_last) for m in (model, images))

    def step() -> float:
        start = time.process_time()
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return time.process_time() - start

    return step


def main() -> None:
    parser = Parser(__doc__, most=2)
    parser.add_repeats(9, small=1)
    parser.add_argument("--most", type=int, default=128, help="images in a batch, at most")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"bf16 helps here: {bf16_helps('cpu')}", flush=True)
    found = {}
    for name, (make, shape, batch) in JOBS.items():
        batch = min(batch, args.most)
        images = torch.randn(batch, *shape)
        kinds = {"fp32": (False, False), "fp32, channels-last": (False, True),
                 "bf16": (True, False), "bf16, channels-last": (True, True)}  # fmt: skip
        times = interleaved({k: step_of(make().train(), images, *v) for k, v in kinds.items()}, args.repeats)
        ratios = {k: ratio(times, k, "fp32") for k in kinds if k != "fp32"}
        for kind, (middle, low, high) in ratios.items():
            print(f"{name}, {kind}: {middle:.2f} of the time (quartiles {low:.2f} .. {high:.2f})", flush=True)
        found[name] = {"seconds": times, "ratios": ratios, "batch": batch}
    print("written to", write("training_speed_cpu", found))


if __name__ == "__main__":
    main()
