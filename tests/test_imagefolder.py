"""Pictures in folders: found, split, decoded in workers, prepared as the model wants them, refused by name."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from prunus.cli.app import main
from prunus.data.datasets import DataSource, first_of
from prunus.data.fitting import check_fits
from prunus.data.pictures import Pictures
from prunus.data.preparation import Preparation
from prunus.data.prepared import of_processor, of_timm, written
from prunus.data.reading import ReadBatches
from prunus.data.registry import Reading
from prunus.data.sources import load_data
from prunus.errors import ConfigError, DataError
from prunus.files.fingerprint import data_digest

SIZE = 8


def paint(path: Path, seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Any:
    """A random picture, brighter for a larger seed's class, as a file and as an array [H, W, 3]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def gallery(root: Path, count: int = 10, names: tuple[str, ...] = ("ant", "bee")) -> dict[str, Any]:
    return {
        f"{name}/{i:02d}.png": paint(root / name / f"{i:02d}.png", 100 * c + i)
        for c, name in enumerate(names)
        for i in range(count)
    }


def everything(data: DataSource, part: str) -> list[tuple[float, ...]]:
    read = ReadBatches(getattr(data, part), 3, workers=0)
    return [tuple(x.flatten().tolist()) for batch, _ in read for x in batch]


def test_pictures_are_what_the_files_hold(tmp_path: Path) -> None:
    painted = gallery(tmp_path)
    reading = Reading(mean=(0.5, 0.4, 0.3), std=(0.2,), test=0.2, workers=0)
    data = load_data(f"imagefolder:{tmp_path}", validation=0.25, reading=reading)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    assert data.classes == ("ant", "bee")
    assert data.num_classes == 2
    assert data.validation.labels.tolist() == data.test.labels.tolist() == [0, 0, 1, 1]
    mean, std = np.array([0.5, 0.4, 0.3]), 0.2
    for i in range(4):
        x, y = data.test[i]
        own = painted[str(data.test.path(i).relative_to(tmp_path))]
        torch.testing.assert_close(x, torch.tensor(((own / 255 - mean) / std).transpose(2, 0, 1)).float())
        assert data.classes[int(y)] == data.test.path(i).parent.name
    assert data.example_inputs.shape == (2, 3, SIZE, SIZE)
    said = data.told.removeprefix(str(tmp_path))
    assert "20" not in said
    assert "12 + 4 + 4" in said


def test_parts_are_disjoint_and_the_test_is_always_the_same(tmp_path: Path) -> None:
    gallery(tmp_path)
    one, other = (load_data(f"imagefolder:{tmp_path}", seed=s, reading=Reading(augment="none")) for s in (0, 1))
    parts = [set(everything(one, p)) for p in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20
    assert everything(one, "test") == everything(other, "test")
    assert everything(one, "validation") != everything(other, "validation")


def test_folders_of_parts(tmp_path: Path) -> None:
    for name, count in (("train", 6), ("val", 3), ("test", 2)):
        gallery(tmp_path / "three" / name, count)
    for name, count in (("train", 6), ("val", 3)):
        gallery(tmp_path / "two" / name, count)
    data = load_data(f"imagefolder:{tmp_path / 'three'}")
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 6, 4)
    data = load_data(f"imagefolder:{tmp_path / 'two'}", validation=4)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 4, 6)
    assert data.test.path(0) == tmp_path / "two/val/ant/00.png"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    gallery(tmp_path, names=("bus", "test", "train"))
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.classes == ("bus", "test", "train")
    assert len(data.train) + len(data.validation) + len(data.test) == 30


def test_what_is_drawn_depends_on_no_worker_and_no_process(tmp_path: Path) -> None:
    gallery(tmp_path)
    data = load_data(f"imagefolder:{tmp_path}", validation=2, reading=Reading(augment=("crop", "mirror"), test=2))

    def passes(workers: int, rank: int = 0, world: int = 1, epoch: int = 3) -> list[tuple[Tensor, Tensor]]:
        loader = ReadBatches(data.train, 6, shuffle=True, seed=5, rank=rank, world=world, workers=workers)
        loader.set_epoch(epoch)
        before = torch.get_rng_state()
        read = list(loader)
        assert torch.equal(before, torch.get_rng_state())
        return read

    alone = passes(0)
    for one, other in zip(alone, passes(2), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    shares = [passes(0, rank, 2) for rank in range(2)]
    for number, (x, _) in enumerate(alone[:2]):
        assert torch.equal(x[0::2], shares[0][number][0])
        assert torch.equal(x[1::2], shares[1][number][0])
    assert not torch.equal(alone[0][0], passes(0, epoch=4)[0][0])
    loader = data.batches(6, seed=5)
    assert torch.equal(loader.first()[0], next(iter(loader))[0])  # type: ignore[attr-defined]


def test_random_changes_are_parts_of_the_picture(tmp_path: Path) -> None:
    pixels = paint(tmp_path / "a.png", 0, (16, 16))
    image = Image.fromarray(pixels)
    wide = np.pad(pixels, ((2, 2), (2, 2), (0, 0))).transpose(2, 0, 1)
    made = Preparation((16, 16))
    torch.manual_seed(0)
    mirrored = 0
    for _ in range(12):
        found = made.prepared(image, ("crop", "mirror")).numpy()
        crops = [wide[:, t : t + 16, s : s + 16] for t in range(5) for s in range(5)]
        plain, flipped = (any(np.array_equal(f, c) for c in crops) for f in (found, found[:, :, ::-1]))
        assert plain or flipped
        mirrored += flipped and not plain
    assert 0 < mirrored < 12
    zoomed = [made.prepared(image, ("zoom",)) for _ in range(3)]
    assert all(z.shape == (3, 16, 16) for z in zoomed)
    assert not torch.equal(zoomed[0], zoomed[1])
    flat = Image.new("RGB", (40, 20), (10, 20, 30))  # a part of one colour is that colour
    assert made.prepared(flat, ("zoom",)).flatten(1).unique(dim=1).tolist() == [[10], [20], [30]]


def test_resized_by_the_shorter_side_and_cropped_in_the_middle() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3)).astype(np.uint8)
    found = Preparation((8, 8), 10, interpolation="bicubic").prepared(Image.fromarray(pixels))
    resized = np.asarray(Image.fromarray(pixels).resize((15, 10), Image.Resampling.BICUBIC))
    assert np.array_equal(found.numpy(), resized[1:9, 4:12].transpose(2, 0, 1))
    grey = Preparation((20, 31), channels=1).prepared(Image.fromarray(pixels))
    assert np.array_equal(grey[0].numpy(), np.asarray(Image.fromarray(pixels).convert("L")))


def test_timms_own_configuration_is_taken() -> None:
    trained = {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * 3}
    made = of_timm({**trained, "std": (0.25,) * 3})
    assert made == Preparation((224, 224), 248, (0.5,) * 3, (0.25,) * 3, "bicubic", 3)


@pytest.mark.parametrize("kind", ["ViTImageProcessor", "CLIPImageProcessor", "ConvNextImageProcessor"])
def test_pictures_are_prepared_as_the_processor_does_it(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {
        "ViTImageProcessor": {"size": {"height": 24, "width": 24}},
        "CLIPImageProcessor": {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}},
        "ConvNextImageProcessor": {"size": {"shortest_edge": 24}, "crop_pct": 0.8},
    }
    processor = getattr(transformers, kind)(**sizes[kind])
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    made = of_processor(str(tmp_path))
    assert made is not None
    pixels = paint(tmp_path / "a.png", 0, (40, 53))
    wanted = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(made.normalised(made.prepared(Image.fromarray(pixels))), wanted, atol=0.02, rtol=0)


def test_wrong_folders_are_refused_by_name(tmp_path: Path) -> None:
    def refused(root: Path, what: str, **settings: Any) -> None:
        with pytest.raises((DataError, ConfigError), match=what):
            load_data(f"imagefolder:{root}", reading=Reading(**settings))

    refused(tmp_path / "nothing", "there is no folder")
    (tmp_path / "flat").mkdir()
    paint(tmp_path / "flat/a.png", 0)
    refused(tmp_path / "flat", "no folder for any class")
    gallery(tmp_path / "hole")
    (tmp_path / "hole/cow").mkdir()
    (tmp_path / "hole/cow/notes.txt").write_text("no picture")
    refused(tmp_path / "hole", r"hole/cow holds no picture")
    gallery(tmp_path / "more/train")
    gallery(tmp_path / "more/test", names=("ant", "cow"))
    refused(tmp_path / "more", "the training folder has not: cow")
    gallery(tmp_path / "headless/val")
    refused(tmp_path / "headless", "no train/")
    gallery(tmp_path / "sizes")
    paint(tmp_path / "sizes/ant/99.png", 0, (9, 8))
    refused(tmp_path / "sizes", "several sizes")
    refused(tmp_path / "sizes", "do not fit 3 channels", mean=(0.1, 0.2), size=8)
    refused(tmp_path / "sizes", "test=100", test=100, size=8)
    refused(tmp_path / "sizes", "crop", crop=0.5)
    with pytest.raises(ConfigError, match="size means nothing"):
        load_data("digits", reading=Reading(size=8))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_or_left_out(tmp_path: Path, workers: int) -> None:
    gallery(tmp_path)
    whole = (tmp_path / "ant/03.png").read_bytes()
    (tmp_path / "ant/03.png").write_bytes(whole[: len(whole) // 2])
    ahead = Pictures(tmp_path, np.array([b"ant/03.png", b"ant/00.png"]), None, Preparation((SIZE, SIZE)), skips=True)
    with pytest.warns(RuntimeWarning, match="left out"):  # others take the place of the very first
        assert first_of(ahead, 1).shape == (1, 3, SIZE, SIZE)

    def read(broken: Any) -> int:
        reading = Reading(broken=broken, workers=workers, test=1, augment="none")
        data = load_data(f"imagefolder:{tmp_path}", validation=1, reading=reading)
        parts = (ReadBatches(p, 4, workers=workers) for p in (data.train, data.validation, data.test))
        return sum(len(y) for part in parts for _, y in part)

    with pytest.raises(DataError, match=r"ant/03\.png"):
        read("refuse")
    with pytest.warns(RuntimeWarning, match=r"left out: .*ant/03\.png"):
        assert read("skip") == 19


def test_networks_that_the_pictures_do_not_fit_are_refused(tmp_path: Path) -> None:
    gallery(tmp_path)
    data = load_data(f"imagefolder:{tmp_path}")
    with pytest.raises(DataError, match=r"fails on examples of shape \[2, 3, 8, 8\]"):
        check_fits(nn.Conv2d(1, 2, 3), data)
    with pytest.raises(DataError, match="labels from 0 to 1, and the network has 1 outputs"):
        check_fits(network(outputs=1), data)
    with pytest.warns(RuntimeWarning, match="2 folders of classes, and the network has 3"):
        check_fits(network(outputs=3), data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_fits(network(outputs=2), data)


def network(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, outputs))


MODEL = "from test_imagefolder import network\n"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_compress_and_evaluate_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery(tmp_path / "pics", 20)
    (tmp_path / "mine.py").write_text(MODEL)
    out, where = tmp_path / "run", f"imagefolder:{tmp_path / 'pics'}"
    arguments = ["--data", where, "--load", "mean=0.3", "--load", "std=0.2", "--load", "workers=0", "--target", "0.5"]
    arguments += ["--method", "taylor", "--recover", "epochs=1", "--recover", "batch_size=16", "--run", "modes=eager"]
    arguments += ["--export", "none", "--out", str(out)]
    assert run("compress", f"{tmp_path / 'mine.py'}:network", *arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the dense network is no better than chance (50.0 %)" in shown
    assert "32 + 4 + 4 pictures to train, validate, test of 2 classes (ant, bee)" in shown
    summary = json.loads((out / "summary.json").read_text())
    assert summary["classes"] == ["ant", "bee"]
    assert set(summary["accuracy"]) == {"dense", "one_shot", "batch_norm", "recovered", "dense_test", "test"}
    assert summary["repair"]
    # Mean and deviation come from the artifact.
    assert run("evaluate", str(out), "--data", where) == 0
    told = re.search(r"accuracy ([\d.]+) %, loss ([\d.]+), 4 test", capsys.readouterr().out)
    assert told is not None
    assert float(told[2]) == pytest.approx(summary["loss"]["test"], abs=1e-4)


def test_compress_pictures_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(30):
        paint(tmp_path / "pics" / ("deep/er" if i % 2 else "") / f"{i}.png", i)
    (tmp_path / "mine.py").write_text(MODEL)
    out = tmp_path / "run"
    arguments = ["--data", f"imagefolder:{tmp_path / 'pics'}", "--labels", "none", "--load", "workers=0"]
    arguments += ["--method", "taylor", "--target", "0.5", "--recover", "epochs=1", "--run", "modes=eager"]
    arguments += ["--export", "none", "--out", str(out)]
    assert run("compress", f"{tmp_path / 'mine.py'}:network", *arguments) == 0
    assert "no labels" in capsys.readouterr().out
    assert run("analyze", f"{tmp_path / 'mine.py'}:network", "--data", f"imagefolder:{tmp_path / 'pics'}") == 0
    assert "prunable" in capsys.readouterr().out
    paint(tmp_path / "pics/wide.png", 0, (SIZE, SIZE + 1))
    words = ["analyze", f"{tmp_path / 'mine.py'}:network", "--data", f"imagefolder:{tmp_path / 'pics'}"]
    assert run(*words) == 2
    assert "--load size" in " ".join(capsys.readouterr().err.split())
    assert run(*words, "--load", "size=6") == 0
    capsys.readouterr()
    assert run(*words[:2], "--load", "size=6") == 2
    assert "give --data too" in " ".join(capsys.readouterr().err.split())
    assert set(json.loads((out / "summary.json").read_text())["agreement"]) >= {"recovered", "test"}


def test_a_network_says_itself_how_its_pictures_are_prepared(tmp_path: Path) -> None:
    gallery(tmp_path)
    own = {"input_size": (3, 6, 6), "crop_pct": 1.0, "mean": (0.1,), "std": (0.5,), "interpolation": "bilinear"}
    net: Any = SimpleNamespace(pretrained_cfg=own)
    data = load_data(f"imagefolder:{tmp_path}", network=net)
    assert data.train.preparation == Preparation((6, 6), 6, (0.1,), (0.5,))
    data = load_data(f"imagefolder:{tmp_path}", network=net, reading=Reading(size=4, mean=(0.2,)))
    assert data.train.preparation == Preparation((4, 4), 4, (0.2,), (0.5,))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_not_cut_off_at_eight(tmp_path: Path, suffix: str) -> None:
    pixels = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) * 1000).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        for channels in (1, 3):
            found = Preparation((SIZE, SIZE), channels=channels).prepared(image)
            assert np.array_equal(found.numpy(), np.repeat((pixels >> 8)[None], channels, 0))


def test_numbers_of_no_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="numbers of 32 bits"):
        Pictures(tmp_path, np.array([b"a.tif"]), None, Preparation((SIZE, SIZE)))[0]


def test_a_picture_too_large_to_be_decoded_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery(tmp_path)
    data = load_data(f"imagefolder:{tmp_path}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_data(f"imagefolder:{tmp_path}", reading=Reading(size=4)).train.preparation.size == (4, 4)
    with pytest.raises(DataError, match=r"(?s)\.png.*DecompressionBombError"):
        data.test.raw(0)


def test_a_batch_without_a_readable_picture_is_left_out(tmp_path: Path) -> None:
    for i in range(4):
        paint(tmp_path / f"{i}.png", i)
    (tmp_path / "4.png").write_bytes(b"no picture")
    files = np.array([f"{i}.png".encode() for i in range(5)])
    some = Pictures(tmp_path, files, None, Preparation((SIZE, SIZE)), skips=True)
    with pytest.warns(RuntimeWarning, match=r"left out: .*4\.png"):
        assert [len(batch) for batch in ReadBatches(some, 2, workers=0)] == [2, 2]
    assert data_digest(some) != data_digest(some.subset(torch.arange(4)))  # a checkpoint is of all the same
    # Where several processes learn, each step needs a batch of every one.
    with pytest.raises(DataError, match=r"4\.png"):
        [list(ReadBatches(some, 2, shuffle=True, workers=0, rank=rank, world=2)) for rank in range(2)]


def test_how_the_middle_is_rounded_is_kept_in_the_artifact(tmp_path: Path) -> None:
    gallery(tmp_path / "pics")
    own = Preparation((5, 5), 8, floors=True)
    (tmp_path / "preparation.json").write_bytes(written(own))
    assert load_data(f"imagefolder:{tmp_path / 'pics'}", model=str(tmp_path)).train.preparation == own
