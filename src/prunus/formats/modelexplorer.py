"""A pruned model for Model Explorer: its program, and what stayed of each layer as data on the program's nodes.

Model Explorer (ai.google.dev/edge/model-explorer) opens `.pt2` programs and colours their nodes by files of node data:
a JSON object with `results` by node and a `gradient` of colours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch

from prunus.errors import ConfigError
from prunus.files.atomic import write_new
from prunus.formats.onnx import saved_program
from prunus.formats.registry import Exportable, Exported, exporter
from prunus.graph.capture import capture
from prunus.plan.edits import TensorEdit
from prunus.plan.plan import Plan

PROGRAM = "model.pt2"
WHERE = "export 'model-explorer'"
COLOURS = ({"stop": 0, "bgColor": "#fde725"}, {"stop": 0.5, "bgColor": "#21918c"}, {"stop": 1, "bgColor": "#440154"})
"""From what hardly stayed to what stayed whole: three of viridis, which all eyes and grey printers tell apart."""


@exporter(
    "model-explorer", file="model-explorer", help="a folder for Model Explorer: the program, and data on its nodes"
)
def write_node_data(subject: Exportable, path: Path) -> Exported:
    """`model.pt2` with `weights-kept.json` and, where a method learned it, `keep-probability.json`.

    Raises:
        ConfigError: what was removed is not known, or nothing was.
        ExportError: torch can't write the program.
    """
    if subject.plan is None:
        what = "what was removed from the model is not known here"
        raise ConfigError(WHERE, what, "export it when it is compressed, or an artifact of it")
    # Model Explorer can't read a free batch size.
    program = capture(subject.model, subject.example_inputs, follow_branches=subject.plan.followed)
    layers = layers_of_nodes(program)
    data = {"weights-kept": kept_weights(subject.plan), "keep-probability": keep_probabilities(subject.plan)}
    found = {what: {n: by[layer] for n, layer in layers.items() if layer in by} for what, by in data.items()}
    if not found["weights-kept"]:
        raise ConfigError(WHERE, "no layer of the program has lost a weight", "export a model that was made smaller")
    path.mkdir()
    write_new(path / PROGRAM, saved_program(program, subject.model))
    for what, values in found.items():
        if values:
            told = {"results": {n: {"value": round(v, 4)} for n, v in values.items()}, "gradient": COLOURS}
            write_new(path / f"{what}.json", json.dumps(told, indent=1).encode())
    files = " and ".join(f"{what}.json" for what, values in found.items() if values)
    return Exported(path, None, f"open {PROGRAM} in Model Explorer, then upload {files} as node data")


def layers_of_nodes(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Node of a program -> the innermost module that it computes in."""
    stacks = {n.name: n.meta.get("nn_module_stack") for n in program.graph.nodes if n.op == "call_function"}
    return {name: list(stack.values())[-1][0] for name, stack in stacks.items() if stack}


def kept_weights(plan: Plan) -> dict[str, float]:
    """Layer -> share of the numbers of its weight that stayed; only layers that lost some."""
    named = {name.rpartition("."): edit for name, edit in plan.tensors.items()}
    return {layer: _share(edit) for (layer, _, last), edit in named.items() if last == "weight" and _share(edit) < 1}


def keep_probabilities(plan: Plan) -> dict[str, float]:
    """Layer that a group is named after -> mean probability of its units to be among the kept."""
    return {group.name: mean(group.keep_probability) for group in plan.groups if group.keep_probability}


def _share(edit: TensorEdit) -> float:
    kept: Mapping[int, tuple[int, ...]] = edit.keep
    whole = math.prod(len(kept.get(dim, range(size))) / size for dim, size in enumerate(edit.shape))
    if edit.columns is None:
        return whole
    return whole * sum(map(len, edit.columns)) / (len(edit.columns) * edit.shape[1])
