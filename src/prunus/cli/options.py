"""Arguments and options of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.data.registry import DATA_SOURCES
from prunus.formats.registry import EXPORTERS
from prunus.methods.registry import method_names
from prunus.models.loaded import MODEL_SOURCES
from prunus.plan.request import ALLOW

ModelSpec = Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL_SOURCES.forms()}, or an artifact's folder")]
AnyModel = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=f"{MODEL_SOURCES.forms()}, or an artifact's folder")
]
AnyData = Annotated[str | None, typer.Option("--data", metavar="DATA", help=DATA_SOURCES.forms())]
DataSpec = Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_SOURCES.forms())]
Examples = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="takes the example inputs from this data; as for compress")
]
Reads = Annotated[
    list[str] | None,
    typer.Option(
        "--load",
        metavar="NAME=VALUE",
        help="how the data are read: size=224, mean=0.5, std=0.5, augment=none, workers=4, broken=skip, ...",
    ),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="state_dict of the model (.pt, .pth, .safetensors)")
]
Shape = Annotated[
    str | None, typer.Option("--shape", metavar="SIZES", help="shape of one example batch, such as 1,3,224,224")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="seeds everything random")]
AnySeed = Annotated[int | None, typer.Option("--seed", metavar="N", help="seeds everything random; by default 0")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder to write")]
AnyOut = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder to write; by default runs/compress")]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="YAML with all that is said here, as every run writes it into its folder; other options replace its parts",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help='how much goes: bounds ("macs<=50%, params<=20%"), a fraction of all units (0.5), units to keep '
        '("conv1=8, fc=100"), how little may be lost ("accuracy>=dense-1%@95%"), or, of methods that look '
        'inside weights, a pattern ("weight 10%", "kernel 8/64", "2:4")',
    ),
]
MethodSpec = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="METHOD",
        help=f"{', '.join(method_names())}, FILE.py:Class, package.module:Class; by default dirichlet",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="a setting of the method; a wrong name lists them all"),
]
Recover = Annotated[
    list[str] | None,
    typer.Option(
        "--recover",
        metavar="NAME=VALUE",
        help="a setting of the recovery, such as epochs=30, lr=0.001, optimizer=adamw; none: no recovery",
    ),
]
Repair = Annotated[
    list[str] | None,
    typer.Option(
        "--repair",
        metavar="NAME=VALUE",
        help="a setting of the repair, such as examples=2048, layers=readers; none: what stays keeps its weights",
    ),
]
Allocate = Annotated[
    list[str] | None,
    typer.Option(
        "--allocate",
        metavar="NAME=VALUE",
        help="how the target is shared out: scope=uniform (the same share of every group), round_to=4 (widths), ...",
    ),
]
Allow = Annotated[
    str | None,
    typer.Option("--allow", metavar="NAMES", help=f"what is not open by default: {', '.join(ALLOW)}"),
]
Ignore = Annotated[
    list[str] | None, typer.Option("--ignore", metavar="GLOB", help="layers whose outputs stay; may be given again")
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels", metavar="given|none", help="none: no label is looked at; the dense network's outputs are learned "
        "from, distilled and agreed with",
    ),
]  # fmt: skip
Export = Annotated[
    str | None,
    typer.Option(
        "--export", metavar="NAMES", help=f"what is written besides the artifact: {', '.join(EXPORTERS)}; "
        "no-NAME leaves one out; auto: all that suit the model and are installed; none",
    ),
]  # fmt: skip
Run = Annotated[
    list[str] | None,
    typer.Option(
        "--run", metavar="NAME=VALUE", help="how it is run: batch_size=64, modes=eager,compiled,onnx (what is timed), "
        "resume=true (or --resume: go on from what --out holds), force=true (or --force: replace another run in --out)",
    ),
]  # fmt: skip
