"""Files that an interrupted run goes on from: whole at any time, checked as a whole, and refused by any other run."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ArtifactError, first_line
from prunus.files.atomic import write_bytes
from prunus.files.fingerprint import tree_digest

ANEW = "remove it and start again"


def write_checked(path: Path, form: str, content: Mapping[str, Any]) -> None:
    """Write tensors and plain data under a checksum; the file is whole at any time.

    Raises:
        ArtifactError: it can't be written; an older one stays.
    """
    file = io.BytesIO()
    torch.save({"format": form, "digest": tree_digest(content), **content}, file)
    write_bytes(path, file.getvalue())


def read_checked(path: Path, form: str, parts: Collection[str] = ()) -> dict[str, Any]:
    """What `write_checked` wrote under the same form, with at least these parts.

    Raises:
        ArtifactError: damaged, edited, or no such file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise refusal(path, f"it cannot be read, truncated or damaged: {first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != form or not set(parts) <= set(content):
        raise refusal(path, f"it cannot be read: not a checkpoint of format {form}")
    rest: dict[str, Any] = {k: v for k, v in content.items() if k not in ("format", "digest")}
    if content.get("digest") != tree_digest(rest):
        raise refusal(path, "it cannot be read: damaged or edited (checksum)")
    return rest


def check_same_run(path: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse what was made from something else.

    Args:
        path: the file.
        there: what its run was made from, by kind, as digests or in words.
        here: what this one is made from; kinds that it does not name are not compared.

    Raises:
        ArtifactError: they differ; both are named.
    """
    other = [
        f"another {k}: {there.get(k) or 'none'} there, {v or 'none'} here" for k, v in here.items() if there.get(k) != v
    ]
    if other:
        what = f"it was made with {'; '.join(other)}"
        raise ArtifactError(f"checkpoint {path}", what, f"resume what it was made with, or {ANEW}")


def check_fits(path: Path, model: nn.Module, stored: Mapping[str, Any]) -> None:
    """Refuse weights that are none of this model's.

    Raises:
        ArtifactError: names, shapes or types differ, a parameter is not finite, or a buffer is NaN.
    """
    mine = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    held = {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items() if isinstance(tensor, Tensor)}
    if held != mine or len(stored) != len(mine):
        raise ArtifactError(f"checkpoint {path}", "it is of another architecture", "resume with the same model")
    parameters = dict(model.named_parameters())
    bad = [n for n, t in stored.items() if bool((~torch.isfinite(t) if n in parameters else torch.isnan(t)).any())]
    if bad:
        raise refusal(path, f"its tensor {bad[0]!r} is not finite")


def refusal(path: Path, what: str) -> ArtifactError:
    """An error about a file of which nothing can be used."""
    return ArtifactError(f"checkpoint {path}", what, ANEW)
