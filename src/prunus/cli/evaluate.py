"""`prunus evaluate`: accuracy and loss on the test split."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prunus.cli.options import DataSpec, ModelSpec, Reads, Seed, Weights
from prunus.cli.terminal import say
from prunus.data.evaluation import judged_by
from prunus.errors import ConfigError
from prunus.formats.artifact import is_artifact, load_masks
from prunus.masks.activations import grids_of, quantized_inputs
from prunus.pipeline.inputs import data_for, loaded, place_of


def evaluate_command(
    model: ModelSpec, data: DataSpec, load: Reads = None, weights: Weights = None, seed: Seed = 0
) -> dict[str, Any]:
    """Accuracy and loss of a model or an artifact on the test split."""
    spec = place_of(model)
    network, _ = loaded(spec, weights)
    source = data_for(data, network, spec, load or (), seed, say=say)
    if source.test is None:
        raise ConfigError(f"--data {data}", "these data have no test part", "give one, or judge in Python")
    grids = grids_of(load_masks(spec)) if is_artifact(spec) else {}  # they stand around the model, not in it
    with quantized_inputs(network, grids):
        found = judged_by(source, None)(network, source.test)
    score = "" if found.metric == "loss" else f"{found.metric} {found.shown}, "
    say(f"{score}loss {found.loss:.4f}, {found.num_examples} test examples")
    return asdict(found)
