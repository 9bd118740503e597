"""The model that a command is given, and example inputs for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.data.datasets import DataSource
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.fitting import check_fits
from prunus.data.registry import Reading
from prunus.data.sources import load_data
from prunus.errors import ConfigError
from prunus.files.weightfile import load_state_dict_, read_state_dict
from prunus.formats.artifact import is_artifact, load
from prunus.formats.run import ARTIFACT
from prunus.methods.settings import configure
from prunus.models.sources import load_model
from prunus.pipeline.settings import silent
from prunus.plan.plan import Plan
from prunus.proof.inputs import proof_inputs
from prunus.runtime.progress import Say


def place_of(spec: str) -> str:
    """The folder of an artifact where the folder of its run is named; any other spec as it is."""
    held = Path(spec) / ARTIFACT
    return str(held) if not is_artifact(spec) and is_artifact(held) else spec


def loaded(spec: str, weights: Path | None) -> tuple[nn.Module, Any]:
    """A model in eval mode, and the example inputs that came with it, or None.

    Raises:
        PruneError: the spec names nothing, the artifact is damaged, or the weights don't fit.
    """
    if is_artifact(spec):
        if weights is not None:
            raise ConfigError(f"--weights {weights}", "an artifact holds its weights", "leave it out")
        return load(spec), None
    made = load_model(spec)
    if weights is not None:
        load_weights(made.model, weights)
    return made.model.eval(), made.example_inputs


def data_for(
    spec: str,
    network: nn.Module,
    model: str,
    reads: Sequence[str] = (),
    seed: int = 0,
    *,
    labelled: bool = True,
    say: Say = silent,
) -> DataSource:
    """The data that a command names, as this model takes them; what was found is said.

    Raises:
        PruneError: the spec names nothing, a wrong setting, or data that can't be read or don't fit the model.
    """
    reading = configure(Reading, reads)
    source = load_data(spec, seed=seed, model=model, network=network, labelled=labelled, reading=reading)
    source = source if labelled else replace(source, loss_fn=DenseOutputs())
    check_fits(network, source)
    if source.told:
        say(source.told)
    return source


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict, also that of a data-parallel or compiled wrapper. Raises ConfigError if it does not fit."""
    load_state_dict_(model, read_state_dict(path), f"--weights {path}")


def examples(
    inputs: Any, data: str | None, shape: str | None, spec: str, network: nn.Module, reads: Sequence[str] = ()
) -> Any:
    """Example inputs: of a shape, of data, those that came with the model, or those of an artifact's plan.

    Raises:
        ConfigError: none are known, or the shape is none.
    """
    if shape is not None and data is not None:
        raise ConfigError(f"--shape {shape}", "--data says the shape too", "give one of them")
    if shape is not None:
        try:
            return torch.randn([int(s) for s in shape.split(",")])
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"--shape {shape!r}", "not a list of sizes", "write for example 1,3,224,224") from error
    if reads and data is None:
        raise ConfigError(f"--load {reads[0]}", "it says how data are read, and there are none", "give --data too")
    if data is not None:
        reading = configure(Reading, reads)
        return load_data(data, model=spec, network=network, labelled=False, reading=reading).example_inputs
    if inputs is not None:
        return inputs
    if is_artifact(spec):
        return proof_inputs(Plan.load(Path(spec) / "plan.json"), None, nn.Identity())[0]
    fix = "give --shape 1,3,224,224 or --data, or return (model, inputs)"
    raise ConfigError("example inputs", "none are known", fix)
