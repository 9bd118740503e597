"""`prunus compress`: from a trained model and its data to a folder with a smaller one."""

from __future__ import annotations

from pathlib import Path

from prunus.cli.finish import finish
from prunus.cli.inputs import data_for, loaded, place_of
from prunus.cli.options import (
    Allocate,
    Allow,
    DataSpec,
    Export,
    Ignore,
    Labels,
    MethodSpec,
    ModelSpec,
    Out,
    Reads,
    Recover,
    Repair,
    Run,
    Seed,
    Settings,
    Target,
    Weights,
    allocation_of,
    exports_of,
    label_free,
    names_in,
    recovery_of,
    repair_of,
    run_of,
    target_of,
)
from prunus.cli.terminal import say
from prunus.methods.base import MaskMethod
from prunus.methods.registry import resolve
from prunus.pipeline.compress import compress


def compress_command(
    model: ModelSpec,
    data: DataSpec,
    load: Reads = None,
    target: Target = None,
    method: MethodSpec = "dirichlet",
    settings: Settings = None,
    repair: Repair = None,
    recover: Recover = None,
    allocate: Allocate = None,
    allow: Allow = None,
    ignore: Ignore = None,
    weights: Weights = None,
    out: Out = Path("runs/compress"),
    labels: Labels = "given",
    export: Export = "auto",
    run: Run = None,
    seed: Seed = 0,
) -> None:
    """Compress a trained model, recover its accuracy, prove, measure and save it."""
    chosen = resolve(method, settings or ())
    recovery = recovery_of(recover, seed, default=not isinstance(chosen, MaskMethod))
    allocation, exports, free = allocation_of(allocate), exports_of(export), label_free(labels)
    wanted, how, place = target_of(target), run_of(run, exports, say), place_of(model)
    network, _ = loaded(place, weights)
    source = data_for(data, network, place, load, seed, labelled=not free)
    done = compress(
        network,
        source,
        method=chosen,
        target=wanted,
        ignored_layers=tuple(ignore or ()),
        allow=names_in(allow),  # type: ignore[arg-type]
        allocation=allocation,
        repair=repair_of(repair),
        recovery=recovery,
        out=out,
        seed=seed,
        run=how,
    )
    finish(done, source, exports, origin=place, data_spec=data)
