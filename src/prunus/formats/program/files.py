"""The two files of a program, made from a model and read again: its graph as JSON, its own tensors as safetensors.

Tensors that the artifact's weights hold are named, not stored again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from prunus.errors import ArtifactError, ExportError
from prunus.files.decoding import Malformed, parse_json
from prunus.formats.program.read import to_module
from prunus.formats.program.write import to_document
from prunus.graph.capture import capture
from prunus.surgery.rewritten import RewrittenModel, as_module

GRAPH, TENSORS = "program.json", "program.safetensors"
LARGEST_GRAPH = 2**24
MOST_VALUES = 2**20
"""Bytes of the graph's file, and values in it: what a graph of the most nodes needs, and all that is ever read."""
AGAIN = "copy the artifact again, or pass the factory of the dense model"


def program_files(model: nn.Module, example_inputs: Any, *, follow_branches: bool = False) -> dict[str, bytes]:
    """The files of a model's program, with a free batch size: name -> content. What is written was read again.

    Args:
        model: the smaller model; captured in eval mode.
        example_inputs: inputs to capture with.
        follow_branches: as for `trace`.

    Raises:
        TraceError: the model cannot be captured with a free batch size.
        ExportError: its graph holds what no artifact may, or what plain data can't say.
    """
    program = capture(model, example_inputs, dynamic_batch=True, follow_branches=follow_branches)
    weights = model.state_dict(keep_vars=True)
    document, own = to_document(as_module(program), weights)
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    try:
        to_module(_parsed(text), {"weights": weights, "program": own})
        stored = safetensors_bytes({n: t.cpu().contiguous() for n, t in own.items()}, {"format": "pt"}) if own else b""
    except (Malformed, SafetensorError, ValueError, KeyError) as error:
        raise ExportError(
            "program", f"no artifact may hold it: {error}", "load the artifact with the factory of the dense model"
        ) from error
    return {GRAPH: text} | ({TENSORS: stored} if own else {})


def read_program(folder: Path, weights: Path, *, own_tensors: bool) -> RewrittenModel:
    """The module of a folder's program: in eval mode, trainable, on the processor, with the model's parameter names.

    Args:
        folder: where the program's files lie.
        weights: the file of the model's weights.
        own_tensors: the program has tensors of its own, in a file whose checksum is known.

    Raises:
        ArtifactError: a file is missing or damaged, or holds what no program may.
    """
    path = folder / GRAPH
    try:
        if path.stat().st_size > LARGEST_GRAPH:
            raise Malformed(f"more than {LARGEST_GRAPH} bytes")
        document = _parsed(path.read_bytes())
        with torch.inference_mode(False):
            stored = {"weights": _tensors(weights), "program": _tensors(folder / TENSORS) if own_tensors else {}}
            module = to_module(document, stored)
    except OSError as error:
        raise ArtifactError(str(path), f"cannot be read: {error}", AGAIN) from error
    except (Malformed, RecursionError) as error:
        raise ArtifactError(str(path), f"not a program that may be loaded: {error}", AGAIN) from error
    module.eval()
    return module


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """A file's tensors, in memory of their own."""
    try:
        return {name: tensor.clone() for name, tensor in load_file(path, device="cpu").items()}
    except (OSError, SafetensorError) as error:
        raise ArtifactError(str(path), f"cannot be read: {error}", "copy the artifact again") from error


def _parsed(text: bytes) -> Any:
    """The JSON, if it holds no more values than a graph has."""
    if len(text) > LARGEST_GRAPH or sum(text.count(sign) for sign in (b"[", b"{", b",")) > MOST_VALUES:
        raise Malformed("a larger graph than is ever read")
    return parse_json(text)
