"""`prunus demo`: something real in two minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from prunus.cli.finish import told
from prunus.cli.options import DataSpec, Out, Seed, Target
from prunus.cli.terminal import command, say
from prunus.data.datasets import size_of
from prunus.data.sources import load_data
from prunus.errors import ConfigError
from prunus.files.atomic import real_path
from prunus.formats.run import check_run_folder
from prunus.learning.kept import named
from prunus.methods.registry import resolve
from prunus.pipeline.compress import compress
from prunus.pipeline.demo import LeNet5, train_dense
from prunus.pipeline.journal import check_place
from prunus.pipeline.run import exported
from prunus.pipeline.texts import exports_of, run_of, target_of
from prunus.plan.request import requested
from prunus.recovery.config import FinetuneConfig

IMAGE = (1, 28, 28)
"""Of the images that LeNet-5 takes, [C, H, W]."""


def demo(
    out: Out = Path("runs/demo"),
    data: DataSpec = "digits",
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", help="of training the dense network")] = 15,
    target: Target = "macs<=50%, params<=20%",
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="replace another run in --out")] = False,
) -> dict[str, Any]:
    """Train LeNet-5 on real digits, compress it with Dirichlet pruning, show and save the result."""
    check_run_folder(out)
    chosen, wanted = resolve("dirichlet"), target_of(target)
    requested(wanted, None, method=chosen.name, takes=chosen.targets, optional=chosen.decides)
    how = run_of(["modes=eager,compiled,onnx", *(["force=true"] if force else [])], exports_of("onnx"), say)
    check_place(real_path(out), {"method": named(chosen), "target": repr(wanted), "seed": str(seed)}, how)
    source, exports = load_data(data, seed=seed), exports_of("onnx")
    if tuple(source.example_inputs.shape[1:]) != IMAGE:
        fix = "use digits, mnist:DIR or fashion-mnist:DIR"
        raise ConfigError(f"--data {data}", "LeNet-5 takes grey images of 28 x 28", fix)
    say(f"training LeNet-5 on {size_of(source.train)} ...")
    torch.manual_seed(seed)
    network = LeNet5()
    train_dense(network, source, epochs=epochs, seed=seed)
    done = compress(
        network,
        source,
        method=chosen,
        target=wanted,
        recovery=FinetuneConfig(seed=seed),
        out=out,
        seed=seed,
        run=how,
    )
    if done.saved is not None:
        done.saved.add_summary({**done.summary, "command": command.get()})
    failed = exported(done, source, exports, say, origin="prunus.pipeline.demo:lenet5", data_spec=data)
    told(done)
    if failed is not None:
        raise failed
    return {**done.summary, "directory": str(done.directory)}
