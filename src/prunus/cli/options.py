"""Arguments and options of the commands, and how their text becomes what the library takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.data.registry import DATA_SOURCES
from prunus.errors import ConfigError
from prunus.formats.exports import Choice, chosen
from prunus.formats.registry import EXPORTERS
from prunus.methods.registry import method_names
from prunus.methods.settings import configure, values_of
from prunus.models.loaded import MODEL_SOURCES
from prunus.pipeline.settings import RunSettings
from prunus.plan.allocation import Allocation
from prunus.plan.request import ALLOW
from prunus.recovery.config import FinetuneConfig
from prunus.refit.config import RepairConfig

COUNTS = re.compile(r"[^<>=]+=[^<>=]+(,[^<>=]+=[^<>=]+)*")

ModelSpec = Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL_SOURCES.forms()}, or an artifact's folder")]
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
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder to write")]
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
    str,
    typer.Option(
        "--method", metavar="METHOD", help=f"{', '.join(method_names())}, FILE.py:Class, package.module:Class"
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
    str,
    typer.Option(
        "--labels", metavar="given|none", help="none: no label is looked at; the dense network's outputs are learned "
        "from, distilled and agreed with",
    ),
]  # fmt: skip
Export = Annotated[
    str,
    typer.Option(
        "--export", metavar="NAMES", help=f"what is written besides the artifact: {', '.join(EXPORTERS)}; "
        "no-NAME leaves one out; auto: all that suit the model and are installed; none",
    ),
]  # fmt: skip
Run = Annotated[
    list[str] | None,
    typer.Option(
        "--run", metavar="NAME=VALUE", help="how it is run: batch_size=64, modes=eager,compiled,onnx (what is timed), "
        "resume=true (or --resume: from the stages in --out)",
    ),
]  # fmt: skip


def target_of(text: str | None) -> Any:
    """A target from text: a number, NAME=... by layer or group, or text that `prune` reads itself."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    if not COUNTS.fullmatch(text):
        return text
    parts = [part.split("=") for part in text.split(",")]
    named = {name.strip(): value.strip() for name, value in parts}
    if len(named) < len(parts):
        raise ConfigError(f"--target {text}", "a group or layer is named twice", "name it once")
    if all(value.isdecimal() for value in named.values()):
        return {name: int(value) for name, value in named.items()}
    return named


def recovery_of(settings: Sequence[str] | None, seed: int, *, default: bool) -> FinetuneConfig | None:
    """The recovery from its settings; None where there is to be none. Without settings `default` says if there is one.

    Raises:
        ConfigError: an unknown setting.
    """
    if not settings:
        return FinetuneConfig(seed=seed) if default else None
    if "none" in settings:
        values_of(FinetuneConfig, [s for s in settings if s != "none"])
        return None
    given = {} if any(s.partition("=")[0].strip() == "seed" for s in settings) else {"seed": seed}
    return FinetuneConfig(**given, **values_of(FinetuneConfig, settings))  # type: ignore[arg-type]


def repair_of(settings: Sequence[str] | None) -> bool | RepairConfig:
    """The repair from its settings. Raises ConfigError for an unknown setting."""
    if not settings:
        return True
    found = values_of(RepairConfig, [s for s in settings if s != "none"])
    return False if "none" in settings else RepairConfig(**found)  # type: ignore[arg-type]


def allocation_of(settings: Sequence[str] | None) -> Allocation | None:
    """The allocation, if anything was said about it. Raises ConfigError for an unknown setting."""
    return configure(Allocation, settings) if settings else None


def label_free(labels: str) -> bool:
    """Whether no label is to be looked at. Raises ConfigError for another word than the option has."""
    if labels not in ("given", "none"):
        raise ConfigError(f"--labels {labels}", "it is neither given nor none", "leave it out, or write --labels none")
    return labels == "none"


def names_in(text: str | None) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def exports_of(text: str) -> Choice:
    """Which exporters are wanted; refused before any work. See `chosen`."""
    return chosen(names_in(text))


def run_of(settings: Sequence[str] | None, exports: Choice, say: Callable[[str], None]) -> RunSettings:
    """How a run is carried out; without a word the ways to run that are timed are eager and, if it is written, ONNX.

    Raises:
        ConfigError: an unknown setting.
    """
    found = values_of(RunSettings, settings or (), ("say",))
    onnx = EXPORTERS["onnx"]
    wanted = onnx in exports.asked or (exports.auto and "onnx" not in exports.without and onnx.works())
    return RunSettings(**{"modes": ("eager", "onnx") if wanted else ("eager",), **found}, say=say)
