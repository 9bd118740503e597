"""The command line: analyze, compress, evaluate, export, demo."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.text import Text
from torch import nn

from prunus.data.datasets import DataSource
from prunus.data.evaluation import evaluate
from prunus.data.registry import DATA_SOURCES
from prunus.data.sources import load_data
from prunus.errors import ConfigError, MissingDependencyError, PruneError, first_line
from prunus.export.artifact import is_artifact, load
from prunus.export.extras import add_onnx, add_pretrained
from prunus.export.onnx import export_onnx, export_program, onnx_runtime
from prunus.export.run import check_run_folder
from prunus.files.weightfile import read_state_dict
from prunus.graph.trace import trace
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.methods.registry import METHODS, resolve
from prunus.methods.settings import configure
from prunus.models.loaded import MODEL_SOURCES
from prunus.models.sources import load_model
from prunus.pipeline.compress import Compression, compress
from prunus.pipeline.demo import LeNet5, train_dense
from prunus.pipeline.sparsify import Sparsified, sparsify
from prunus.plan.allocation import Allocation
from prunus.proof.inputs import proof_inputs
from prunus.recovery.config import FinetuneConfig
from prunus.report.tables import before_and_after, masks_table, prunability

app = typer.Typer(
    name="prunus",
    help="Make trained PyTorch networks physically smaller by learning what to keep.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

ModelSpec = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"{MODEL_SOURCES.forms()} or an artifact",
    ),
]
DataSpec = Annotated[
    str,
    typer.Option("--data", metavar="DATA", help=DATA_SOURCES.forms()),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="state_dict of the model (.pt, .pth, .safetensors)")]
Shape = Annotated[str | None, typer.Option("--shape", help="shape of one example batch, such as 1,3,224,224")]
Seed = Annotated[int, typer.Option("--seed", help="seeds everything random")]

WHERE_UNITS_GO = ("lr", "optimizer", "distillation", "scope", "round_to", "head_dims", "inexact", "follow_branches",
                  "own_class", "compiled", "resume")  # fmt: skip
"""Options that say how units are removed and the network recovers; masks inside weights have none of it."""


@app.command()
def analyze(
    model: ModelSpec,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="takes the example inputs from this data")
    ] = None,
    shape: Shape = None,
) -> None:
    """Say what may be removed from a model, what is locked, and why."""
    network, inputs = _model(model, None)
    graph = trace(network, _example_inputs(inputs, data, shape, model))
    console.print(prunability(graph))


@app.command(name="compress")
def compress_command(
    context: typer.Context,
    model: ModelSpec,
    data: DataSpec,
    budget: Annotated[str | None, typer.Option("--budget", help='such as "macs<=50%, params<=20%"')] = None,
    ratio: Annotated[float | None, typer.Option("--pruning-ratio", help="fraction of all units that goes")] = None,
    method: Annotated[str, typer.Option("--method", help=", ".join((*METHODS, "dpp")))] = "dirichlet",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="of the method: kappa=10; a wrong name lists them all"),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", help='of method dpp: "weight 10%", "kernel 8/64", "2:4", "tile 4 2/8", ...'),
    ] = None,
    bits: Annotated[int | None, typer.Option("--bits", help="of the weights with method dpp: 8, 4, 2 or 1")] = None,
    activation_bits: Annotated[
        int | None, typer.Option("--activation-bits", help="of what the layers are given, with method dpp: 8")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="folder to write")] = Path("runs/compress"),
    weights: Weights = None,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", help="layer names or globs whose outputs stay")
    ] = None,
    head_dims: Annotated[bool, typer.Option("--head-dims", help="also dimensions inside attention heads")] = False,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="also units across which a normalisation takes statistics")
    ] = False,
    follow_branches: Annotated[
        bool, typer.Option("--follow-branches", help="where code branches on data, go the way of the examples")
    ] = False,
    own_class: Annotated[
        bool, typer.Option("--own-class", help="only what the model's own code survives; no rewritten graph")
    ] = False,
    round_to: Annotated[
        int | None,
        typer.Option("--round-to", help="widths are multiples of this (default 8, or finer where 8 can't meet it)"),
    ] = None,
    scope: Annotated[
        str,
        typer.Option(
            "--scope",
            help="global: all units compete by their scores; measured: by the loss that cutting their groups was "
            "measured to cost; auto: the better of the two; uniform: the same fraction of every group",
        ),
    ] = "auto",
    epochs: Annotated[int, typer.Option("--epochs", help="of recovery (0: none); of drawing with method dpp")] = 10,
    lr: Annotated[float, typer.Option("--lr", help="of recovery")] = 0.02,
    optimizer: Annotated[str, typer.Option("--optimizer", help="of recovery: sgd, or adamw for transformers")] = "sgd",
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="of learning and recovery (default: 64, 128; dpp: 128)"),
    ] = None,
    distillation: Annotated[
        float, typer.Option("--distillation", help="of recovery: weight of the dense model's answers, 0 to 1")
    ] = 0.5,
    compiled: Annotated[bool, typer.Option("--compiled", help="also time torch.compile")] = False,
    onnx: Annotated[
        bool | None, typer.Option("--onnx/--no-onnx", help="also write an ONNX file (default: if onnx is installed)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the stages in --out (method rbp)")] = False,
    seed: Seed = 0,
) -> None:
    """Compress a trained model to a budget, recover its accuracy, prove, measure and save it."""
    if method == "dpp":
        _refuse_given(context, WHERE_UNITS_GO)
        if pattern is None or budget is not None or ratio is not None:
            raise ConfigError(
                "--method dpp", "it keeps k of n inside weights", "give --pattern, and no budget or ratio"
            )
        masks = configure(
            DynamicProbabilisticPruning,
            settings or (),
            pattern=pattern,
            epochs=epochs,
            bits=bits,
            activation_bits=activation_bits,
        )
        onnx = _onnx_wanted(onnx)
        network, _ = _model(model, weights)
        source = load_data(data, seed=seed, model=model)
        found = sparsify(
            network, source, method=masks, ignored_layers=ignore or (), batch_size=batch_size or 128, out=out,
            seed=seed,
            say=_say,
        )  # fmt: skip
        _finish_masks(found, source, onnx)
        return
    if any(given is not None for given in (pattern, bits, activation_bits)):
        raise ConfigError("--pattern, --bits, --activation-bits", f"method {method!r} has none", "use --method dpp")
    chosen = resolve(method, settings or ())
    onnx = _onnx_wanted(onnx)
    network, _ = _model(model, weights)
    source = load_data(data, seed=seed, model=model)
    done = compress(
        network,
        source,
        method=chosen,
        budget=budget,
        pruning_ratio=ratio,
        ignored_layers=tuple(ignore or ()),
        head_dims=head_dims,
        inexact=inexact,
        follow_branches=follow_branches,
        own_class=own_class,
        allocation=_allocation(context, scope, round_to),
        recovery=FinetuneConfig(
            epochs=epochs,
            lr=lr,
            optimizer=optimizer,  # type: ignore[arg-type]
            batch_size=batch_size or 128,
            distillation=distillation,
            seed=seed,
        )
        if epochs
        else None,
        batch_size=batch_size or 64,
        modes=("eager", *(("compiled",) if compiled else ()), *(("onnx",) if onnx else ())),
        out=out,
        seed=seed,
        resume=resume,
        say=_say,
    )
    _finish(done, source, onnx)
    if model.startswith("hf:") and done.saved is not None:
        add_pretrained(
            done.saved, done.model, done.result.plan, source.example_inputs, Path(model.removeprefix("hf:")), _say
        )


@app.command(name="evaluate")
def evaluate_command(model: ModelSpec, data: DataSpec, weights: Weights = None, seed: Seed = 0) -> None:
    """Accuracy and loss of a model or an artifact on the test split."""
    network, _ = _model(model, weights)
    source = load_data(data, seed=seed, model=model)
    found = evaluate(network, source.test, loss_fn=source.loss_fn)
    console.print(f"accuracy {found.accuracy:.2f} %, loss {found.loss:.4f}, {found.num_examples} test examples")


@app.command()
def export(
    model: ModelSpec,
    path: Annotated[Path, typer.Argument(help="file to write: .onnx or .pt2")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="takes the example inputs from this data")
    ] = None,
    shape: Shape = None,
    weights: Weights = None,
) -> None:
    """Write a model or an artifact as ONNX or as an exported program, with a free batch size."""
    network, inputs = _model(model, weights)
    example = _example_inputs(inputs, data, shape, model)
    if path.suffix == ".onnx":
        error = export_onnx(network, example, path)
        _say(f"{path}: agrees with PyTorch, largest relative difference {error:.1e}")
    elif path.suffix == ".pt2":
        _say(f"{export_program(network, example, path)}: written")
    else:
        raise ConfigError(str(path), "unknown kind of file", "name it .onnx or .pt2")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="folder to write")] = Path("runs/demo"),
    data: DataSpec = "digits",
    epochs: Annotated[int, typer.Option("--epochs", help="of training the dense network")] = 15,
    budget: Annotated[str, typer.Option("--budget")] = "macs<=50%, params<=20%",
    seed: Seed = 0,
) -> None:
    """Train LeNet-5 on real digits, compress it with Dirichlet pruning, show and save the result."""
    check_run_folder(out)
    source = load_data(data, seed=seed)
    console.print(f"training LeNet-5 on {len(source.train)} digits ...")
    torch.manual_seed(seed)
    network = LeNet5()
    train_dense(network, source, epochs=epochs, seed=seed)
    done = compress(
        network,
        source,
        method="dirichlet",
        budget=budget,
        recovery=FinetuneConfig(epochs=10, lr=0.02, seed=seed),
        batch_size=64,
        modes=("eager", "compiled", "onnx"),
        out=out,
        seed=seed,
        say=_say,
    )
    _finish(done, source, True)


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _refuse_given(context: typer.Context, names: Sequence[str]) -> None:
    """Raise ConfigError where one of these options of `compress` was typed: with method dpp it would do nothing."""
    sources = {n: context.get_parameter_source(n) for n in names}
    given = [f"--{n.replace('_', '-')}" for n, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        fix = (
            "leave it out; the step of the weights is --set lr=..., the epochs after drawing are --set tune_epochs=..."
        )
        raise ConfigError(", ".join(given), "method dpp, which keeps k of n inside weights, has no use for it", fix)


def _allocation(context: typer.Context, scope: str, round_to: int | None) -> Allocation | None:
    """The allocation if one of its options was typed, which a request without a budget would refuse."""
    sources = [context.get_parameter_source(name) for name in ("scope", "round_to")]
    if not any(source and source.name == "COMMANDLINE" for source in sources):
        return None
    return Allocation(scope=scope, round_to=round_to)  # type: ignore[arg-type]


def _onnx_wanted(asked: bool | None) -> bool:
    """What was asked for, refused before any work if it cannot be had; without a word what is installed decides."""
    if asked is False:
        return False
    try:
        onnx_runtime()
    except MissingDependencyError as missing:
        if asked:
            raise
        _say(f"no ONNX file: {missing.what}; {missing.fix}")
        return False
    return True


def _finish(done: Compression, source: DataSource, onnx: bool) -> None:
    if onnx and done.saved is not None:
        add_onnx(done.saved, done.model, source.example_inputs, _say)
    proof = done.result.verification
    how = "by its captured graph, rewritten" if proof.rewritten else "in its own class"
    console.print(f"proof: pruned = {proof.reference} to {proof.max_error:.1e} (of each channel), {how}")
    for note in proof.notes:
        _say(f"note: {note}")
    console.print(before_and_after(done.summary))
    for warning in done.comparison.warnings:
        console.print(Text.assemble(("warning", "yellow"), f": {warning}"))
    _say(f"written to {done.directory}")


def _finish_masks(done: Sparsified, source: DataSource, onnx: bool) -> None:
    if onnx and done.masked.inputs:
        console.print("no model.onnx: without the grids of its inputs it would be another network")
    elif onnx and done.saved is not None:
        add_onnx(done.saved, done.model, source.example_inputs, _say)
        if any(layout.pattern.granularity != "filter" for layout in done.masked.layouts.values()):
            console.print("its masked weights are dense, with their zeros: ONNX has no condensed layers")
    console.print(masks_table(done.summary))
    accuracy, loss = done.summary["accuracy"], done.summary["loss"]
    told = {when: f"{accuracy[when]:.2f} % (loss {loss[when]:.4f})" for when in ("dense_test", "test")}
    console.print(f"test: {told['dense_test']} dense, {told['test']} with k of n")
    _say(f"written to {done.directory}")


def _model(spec: str, weights: Path | None) -> tuple[nn.Module, Any]:
    if is_artifact(spec):
        return load(spec), None
    loaded = load_model(spec)
    if weights is not None:
        _load_weights(loaded.model, weights)
    return loaded.model.eval(), loaded.example_inputs


def _load_weights(model: nn.Module, path: Path) -> None:
    state = read_state_dict(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        fix = "give a state_dict of this model"
        raise ConfigError(f"--weights {path}", f"they don't fit: {first_line(error)}", fix) from error


def _example_inputs(inputs: Any, data: str | None, shape: str | None, model: str) -> Any:
    if shape is not None:
        try:
            return torch.randn([int(s) for s in shape.split(",")])
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"--shape {shape!r}", "not a list of sizes", "write for example 1,3,224,224") from error
    if data is not None:
        return load_data(data, model=model).example_inputs
    if inputs is not None:
        return inputs
    if is_artifact(model):
        from prunus.plan.plan import Plan

        return proof_inputs(Plan.load(Path(model) / "plan.json"), None, nn.Identity())[0]
    raise ConfigError(
        "example inputs", "none are known", "give --shape 1,3,224,224 or --data, or return (model, inputs)"
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point: typed errors end with status 2 and one paragraph on standard error."""
    run: Callable[..., Any] = app
    try:
        run(args=arguments)
    except PruneError as error:
        Console(stderr=True).print(Text.assemble((type(error).__name__, "red"), f": {error}"))
        sys.exit(2)
