"""Files that interrupted runs go on from: read back as they were written, refused when damaged or of another run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.errors import ArtifactError
from prunus.files.resumable import check_fits, check_same_run, read_checked, write_checked


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    write_checked(path, "form-1", {"weights": {"a": torch.arange(3)}, "number": 7})
    found = read_checked(path, "form-1", ("weights", "number"))
    assert set(found) == {"weights", "number"}
    assert torch.equal(found["weights"]["a"], torch.arange(3))


def test_what_is_damaged_or_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    write_checked(path, "form-1", {"number": 7})
    for form, parts in (("form-2", ()), ("form-1", ("weights",))):
        with pytest.raises(ArtifactError, match="not a checkpoint of format"):
            read_checked(path, form, parts)
    torch.save({**torch.load(path, weights_only=True), "number": 8}, path)
    with pytest.raises(ArtifactError, match="edited"):
        read_checked(path, "form-1")
    for path_or_content in (b"nothing", None):
        path.unlink() if path_or_content is None else path.write_bytes(path_or_content)
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_checked(path, "form-1")


def test_another_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    check_same_run(path, {"model": "a", "teacher": "", "more": "x"}, {"model": "a", "teacher": ""})
    with pytest.raises(
        ArtifactError, match="another model: a there, b here; another teacher: none there, c here"
    ) as told:
        check_same_run(path, {"model": "a", "teacher": "", "data": "d"}, {"model": "b", "teacher": "c", "data": "d"})
    assert "resume what it was made with" in told.value.fix
    assert str(path) in told.value.where


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    stored = model.state_dict()
    check_fits(tmp_path, model, stored)
    infinite = stored["1.running_var"].clone().fill_(float("inf"))
    check_fits(tmp_path, model, {**stored, "1.running_var": infinite})
    first, *rest = stored
    for other in (
        {n: stored[n] for n in rest},
        {**stored, "more": torch.zeros(1)},
        {**stored, first: stored[first].half()},
        {**stored, first: stored[first][:1]},
        {**stored, first: None},
    ):
        with pytest.raises(ArtifactError, match="another architecture"):
            check_fits(tmp_path, model, other)
    for name in ("0.weight", "1.running_mean"):
        with pytest.raises(ArtifactError, match=f"{name}.* is not finite"):
            check_fits(tmp_path, model, {**stored, name: stored[name] * float("nan")})
