"""A 1B Llama pruned and repaired layer by layer from shards: peak memory against one layer, seconds per layer (J6).

    python benchmarks/large_repair.py [--tokens 512] [--layers 16] [--target "macs<=70%"]

The weights are random, one generator a tensor, in bf16, written layer by layer before the measurement by a process of
its own. All numbers are N(0, 0.02), but what writes into the residual stream writes into the same 32 directions: of
activations without any structure nothing can be won back, and repair would end before its largest solution. So what is
won back says nothing of trained models: measured are the peak memory of the process that prunes (bar J6: three layers
as they are stored, and 2 GiB), and time.
Neurons alone go: transformers loads no Llama whose width is no multiple of its heads (24 of 32 at this target). Bytes
are the kernel's peak resident set: all of Python, torch and transformers count.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import prunus
from large_model import SHAPES, TINY
from options import Parser, needs, smoking
from prunus.files.shards import Shards, ShardWriter, in_portions
from prunus.models.huggingface import from_configuration
from prunus.runtime.seeds import seed_of
from record import write

GIB = 2**30
STD, DIRECTIONS = 0.02, 32
WRITERS = ("o_proj.weight", "down_proj.weight")


def written(folder: Path, config: Any) -> None:
    """A folder of random weights, a layer at a time."""
    config.save_pretrained(folder)
    skeleton, _ = from_configuration(str(folder))
    tensors = dict(skeleton.named_parameters())
    names = {n: t.numel() * t.itemsize for n, t in tensors.items()}
    portions = in_portions(list(names), names, sum(v for n, v in names.items() if ".layers.0." in n))
    writer = ShardWriter(folder, len(portions))
    for number, portion in enumerate(portions, 1):
        writer.write(number, {n: random(n, tensors[n].shape) for n in portion})
    writer.finish()


def random(name: str, shape: torch.Size) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed_of(0, name))
    if len(shape) == 1:  # scales of norms
        return torch.ones(shape, dtype=torch.bfloat16)
    if name.endswith("embed_tokens.weight"):
        return within(shape[0], shape[1], generator)
    if name.endswith(WRITERS):
        return within(shape[1], shape[0], generator).t().contiguous()
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, STD, generator=generator)


def within(rows: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Random vectors [rows, width] that lie in the same few directions, a few thousand at a time."""
    basis = torch.randn(DIRECTIONS, width, generator=torch.Generator().manual_seed(0)) * (STD / DIRECTIONS**0.5)
    parts = [torch.randn(len(part), DIRECTIONS, generator=generator) @ basis for part in torch.arange(rows).split(4096)]
    return torch.cat([part.bfloat16() for part in parts])


def main() -> None:
    parser = Parser(__doc__, tokens=64, layers=2)
    parser.add_argument("--tokens", type=int, default=512, help="of calibration, in texts of --length")
    parser.add_argument("--length", type=int, default=64, help="of a text, in tokens")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--target", default="macs<=70%")
    args = parser.parse_args()
    needs("transformers")
    torch.set_num_threads(1)
    import transformers

    kind, settings = SHAPES["llama-1b"]
    settings = {**settings, **(TINY if smoking() else {}), "num_hidden_layers": args.layers}
    config = getattr(transformers, kind)(**settings, dtype="bfloat16")
    length = min(args.length, args.tokens)
    tokens = torch.randint(
        config.vocab_size, (args.tokens // length, length), generator=torch.Generator().manual_seed(0)
    )
    with tempfile.TemporaryDirectory() as scratch:
        dense, out = Path(scratch, "dense"), Path(scratch, "smaller")
        making = multiprocessing.get_context("spawn").Process(target=written, args=(dense, config))
        making.start()
        making.join()
        shards = Shards(dense)
        layer = sum(shards.bytes_of(n) for n in shards.files if ".layers.0." in n)
        start = time.perf_counter()
        done = prunus.prune_streamed(dense, out, target=args.target, data=[(tokens,)], ignored_layers=["*.self_attn"])
        seconds = time.perf_counter() - start
        stored = Shards(out)
        params = [sum(torch.Size(s).numel() for s in part.shapes.values()) for part in (shards, stored)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(done.explain())
    found = {
        "layers": args.layers, "tokens": tokens.numel(), "length": length, "target": args.target,
        "params": params[0], "params_kept": params[1], "layer_bytes": layer, "bar_bytes": 3 * layer + 2 * GIB,
        "peak_bytes": peak, "seconds": seconds, "seconds_per_layer": seconds / args.layers,
        "max_error": done.max_error, "apart": [r.apart for r in done.layers],
        "refits": [[r.layer, r.before, r.after, r.reason] for layer_done in done.layers for r in layer_done.refits],
    }  # fmt: skip
    print(f"params {params[0]:,} -> {params[1]:,}; one layer {layer / GIB:.3f} GiB; {tokens.numel():,} tokens")
    print(f"peak {peak / GIB:.2f} GiB, bar {found['bar_bytes'] / GIB:.2f} GiB")
    print(f"{seconds:.0f} s, {seconds / args.layers:.0f} s a layer")
    print("written to", write("large_repair", found))


if __name__ == "__main__":
    main()
