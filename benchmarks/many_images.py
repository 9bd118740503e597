"""F2: 20,000 pictures on the disk and at most 1 GiB of memory: does `prunus compress` run to its end?

Pictures of 64 x 64 pixels are painted into a temporary folder (a disc whose colour and place tell the class, on noise);
a small network learns from some of them; then `prunus compress --data imagefolder:DIR` runs as a command of its own:
learning, repair, re-estimation, recovery, evaluation, export. Memory is what all its processes hold together (PSS, so
that pages they share count once), read four times a second, and besides the most that one of them ever held; above the
limit the command is killed. `ulimit -v` would count addresses that torch reserves and never uses. With `--cgroup`, a
folder of the memory controller made for this, the kernel itself holds the command to the limit, page cache included.

    python benchmarks/many_images.py [--images 20000] [--limit 1024] [--workers 2] [--cgroup DIR] [--smoke]
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from options import Parser, needs
from record import write

SIDE, CLASSES, LEARNED = 64, 10, 4000


def build() -> nn.Module:
    """The network that is made smaller."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inner, outer in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, CLASSES))


def painted(number: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
    """One picture [64, 64, 3] and its class."""
    draw, label = np.random.default_rng(number), number % CLASSES
    pixels = draw.integers(0, 160, (SIDE, SIDE, 3)).astype(np.int64)
    row, column = draw.normal((16 + 32 * (label % 2), 16 + 32 * (label // 2 % 2)), 4)
    y, x = np.mgrid[:SIDE, :SIDE]
    colour = 90 * np.eye(3)[label // 4] if label < 8 else np.full(3, 60.0)
    pixels = pixels + ((y - row) ** 2 + (x - column) ** 2 < 100)[..., None] * colour
    return pixels.clip(0, 255).astype(np.uint8), label


def paint(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """All pictures as files; the first of them also in memory."""
    from PIL import Image

    kept, labels = [], []
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(count):
        pixels, label = painted(number)
        Image.fromarray(pixels).save(folder / f"class{label}" / f"{number:05d}.png", compress_level=1)
        if number < LEARNED:
            kept.append(torch.from_numpy(pixels).permute(2, 0, 1))
            labels.append(label)
    return torch.stack(kept), torch.tensor(labels)


def learn(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Plain training: the network has to know something that can be lost."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[batch] / 255), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def held(session: int) -> int:
    """Bytes that the processes of a session hold together, shared pages counted once."""
    total = 0
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and os.getsid(int(place.name)) == session:
                found = (place / "smaps_rollup").read_text()
                total += 1024 * int(next(line for line in found.splitlines() if line.startswith("Pss:")).split()[1])
        except (OSError, StopIteration):  # it has ended meanwhile
            continue
    return total


def confined(cgroup: Path, limit: int) -> Path:
    """Set the limit of a memory cgroup (version 1 or 2); the file that takes processes into it."""
    names = [n for n in ("memory.max", "memory.limit_in_bytes") if (cgroup / n).exists()]
    (cgroup / names[0]).write_text(str(limit))
    return cgroup / "cgroup.procs"


def watched(command: list[str], limit: int, cgroup: Path | None) -> tuple[int, int]:
    """Run a command that is killed when it holds more than `limit` bytes: its exit status, and the most it held."""
    if cgroup is not None:
        command = ["sh", "-c", f'echo $$ > {confined(cgroup, limit)} && exec "$@"', "sh", *command]
    with subprocess.Popen(command, start_new_session=True) as process:
        most = 0
        while process.poll() is None:
            most = max(most, held(process.pid))
            if most > limit:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.25)
        return process.returncode, most


def main() -> None:
    parser = Parser(__doc__, images=200, epochs=1, workers=0)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--limit", type=int, default=1024, help="MiB")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2, help="of the dense network's training, on 4,000 pictures")
    parser.add_argument("--cgroup", type=Path, metavar="DIR", help="of the memory controller, empty")
    args = parser.parse_args()
    needs("PIL")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        images, labels = paint(root / "pictures", args.images)
        model = build().train()
        learn(model, images, labels, args.epochs)
        torch.save(model.state_dict(), root / "dense.pt")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "prunus", "compress", f"{__file__}:build", "--weights", f"{root / 'dense.pt'}"]
        command += ["--data", f"imagefolder:{root / 'pictures'}", "--load", f"workers={args.workers}", "--load"]
        command += ["augment=crop", "--target", "macs<=50%", "--recover", "epochs=1", "--out", f"{root / 'run'}"]
        status, most = watched(command, args.limit << 20, args.cgroup)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = json.loads((root / "run/summary.json").read_text()) if status == 0 else {}
    row = {
        "images": args.images,
        "bytes_decoded": args.images * SIDE * SIDE * 3 * 4,
        "limit_mib": args.limit,
        "limit_by": "kernel" if args.cgroup else "sampling",
        "peak_pss_mib": round(most / 2**20),
        "largest_process_mib": after.ru_maxrss // 1024,
        "workers": args.workers,
        "status": status,
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "accuracy": summary.get("accuracy"),
    }
    print(json.dumps(row, indent=1))
    print(f"peak {row['peak_pss_mib']} MiB of {args.limit} for {args.images:,} pictures; exit status {status}")
    write("many_images", {"rows": [row]})
    raise SystemExit(status)


if __name__ == "__main__":
    main()
