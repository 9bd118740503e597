"""Tables, archives of arrays, data sets of `datasets`, and callables: what they hold comes out, or they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from prunus.data import Reading, evaluate, load_data
from prunus.data.losses import own_loss
from prunus.data.reading import ReadBatches
from prunus.errors import ConfigError, DataError

ROWS = 40


def numbers() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)


def write_table(folder: Path, kind: str, **columns: Any) -> str:
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    path, table = folder / f"t.{kind}", pyarrow.table(columns)
    (pyarrow.csv.write_csv if kind == "csv" else pyarrow.parquet.write_table)(table, path)
    return f"{kind}:{path}"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("pyarrow")
    x = numbers()
    kinds = ["cat" if i % 4 else "ant" for i in range(ROWS)]
    spec = write_table(tmp_path, kind, a=x[:, 0], b=x[:, 1], animal=kinds, price=x[:, 2])
    data = load_data(spec, reading=Reading(target="animal", columns=("b", "a"), mean=(0.5,), std=(2.0,)))
    assert data.classes == ("ant", "cat")
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 4, 4)
    both = {tuple(row.tolist()): int(y) for part in (data.train, data.validation, data.test) for row, y in part}
    wanted = {tuple(((x[i, [1, 0]] - 0.5) / 2).tolist()): int(kinds[i] == "cat") for i in range(ROWS)}
    assert both == wanted
    prices = load_data(spec, reading=Reading(columns=("a", "b")))  # the last column, real numbers
    assert prices.train.labels.shape == (32, 1)
    found = evaluate(nn.Linear(2, 1), prices.test, loss_fn=prices.loss_fn)
    assert found.metric == "loss"
    for reading, what in (
        (Reading(target="prize"), "no column prize"),
        (Reading(columns=("animal",)), "holds string, no numbers"),
        (Reading(target="a", columns=("b",), loss="cross_entropy"), "that are no classes"),
    ):
        with pytest.raises((ConfigError, DataError), match=what):
            load_data(spec, reading=reading)
    (tmp_path / f"bad.{kind}").write_bytes(b"\x00,\x01\n1,2,3\n")
    for name in ("bad", "none"):
        with pytest.raises(DataError, match=r"can't be read|no such file"):
            load_data(f"{kind}:{tmp_path / name}.{kind}")


def test_without_labels_every_column_is_read_but_a_named_one(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    x = numbers()
    rows = sorted(map(tuple, x.tolist()))
    for last in ({}, {"label": ["cat", "ant"] * (ROWS // 2)}):
        spec = write_table(tmp_path, "parquet", a=x[:, 0], b=x[:, 1], c=x[:, 2], **last)
        data = load_data(spec, labelled=False)
        assert sorted(tuple(r.tolist()) for part in (data.train, data.validation, data.test) for r, _ in part) == rows
        assert data.num_classes == 0


def test_rows_with_nothing_in_them_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    spec = write_table(tmp_path, "parquet", a=[1.0, None] * 10, label=[0, 1] * 10)
    with pytest.raises(DataError, match="column 'a' holds nothing in 10 rows"):
        load_data(spec)


def test_archives_of_arrays(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 5, 5)).astype(np.uint8)
    labels = np.arange(ROWS) % 4
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    data = load_data(f"npz:{tmp_path / 'one.npz'}", validation=8, reading=Reading(test=8))
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (24, 8, 8, 4)
    assert data.train.inputs.shape[1:] == (1, 5, 5)
    x, y = data.test[0]
    assert any(np.allclose(x[0].numpy(), images[i] / 255) and y == labels[i] for i in range(ROWS))
    coloured = np.repeat(images[..., None], 3, 3)  # as Keras and MedMNIST write them
    np.savez(tmp_path / "k.npz", x_train=coloured, y_train=labels[:, None], x_test=coloured[:4], y_test=labels[:4])
    data = load_data(f"npz:{tmp_path / 'k.npz'}")
    assert torch.equal(data.test.inputs, torch.from_numpy(coloured[:4].transpose(0, 3, 1, 2).copy()))
    assert (len(data.train), len(data.validation)) == (36, 4)
    np.savez(tmp_path / "r.npz", x=numbers(), y=numbers()[:, 0].astype(np.float64))
    assert load_data(f"npz:{tmp_path / 'r.npz'}").test.labels.shape == (4, 1)
    np.savez(tmp_path / "odd.npz", things=labels)
    np.savez(tmp_path / "short.npz", x=numbers(), y=labels[:3])
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=labels[:1])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "k.npz").read_bytes()[:200])
    for name, what in (
        ("odd", "it holds things"),
        ("short", "40 inputs for 3"),
        ("objects", "can't be read"),
        ("cut", "can't be read"),
        ("none", "no such file"),
    ):
        with pytest.raises(DataError, match=what):
            load_data(f"npz:{tmp_path / name}.npz")


CALLABLES = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def parts(seed, size=2):
    x = torch.randn(12, size, generator=torch.Generator().manual_seed(seed))
    return [TensorDataset(x, torch.arange(12) % 2) for _ in range(3)]

def loaders(seed):
    return tuple(DataLoader(part, 4) for part in parts(seed))

def named():
    return {"train": parts(0)[0], "val": parts(1)[0]}

def single():
    return loaders(0)[0]

def broken():
    return open("/nowhere/pictures")
"""


def test_callables_return_loaders_or_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CALLABLES)
    data = load_data(f"{path}:loaders", seed=3)
    assert isinstance(data.train, DataLoader)
    assert data.name == "loaders"
    data = load_data(f"{path}:parts", reading=Reading(size=5, workers=0))
    assert data.example_inputs.shape == (2, 5)
    assert data.workers == 0
    assert load_data(f"{path}:named").test is None
    for name in ("crop", "validation"):
        with pytest.raises(ConfigError, match=f"has no parameter '{name}'"):
            load_data(f"{path}:parts", reading=Reading(**{name: 0.5}))
    with pytest.raises(ConfigError, match=r"returned DataLoader: .*no held-out part"):
        load_data(f"{path}:single")
    with pytest.raises(ConfigError, match=r"No such file.*mine\.py, line 19") as refused:
        load_data(f"{path}:broken")
    assert refused.value.fix == "mend it there"


def test_data_sets_of_pictures_and_numbers(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3)).astype(np.uint8)
    columns = {"image": [Image.fromarray(p) for p in pixels], "label": [i % 2 for i in range(20)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    whole = datasets.Dataset.from_dict(columns, features)
    whole.save_to_disk(tmp_path / "whole")
    data = load_data(f"hf-dataset:{tmp_path / 'whole'}", reading=Reading(augment="none", mean=(0.5,)))
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 2, 2)
    assert data.classes == ("ant", "bee")
    seen = torch.cat([x for p in (data.train, data.validation, data.test) for x, _ in ReadBatches(p, 4, workers=0)])
    wanted = torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 255 - 0.5).float()
    one, other = (torch.tensor(sorted(pictures.flatten(1).tolist())) for pictures in (seen, wanted))
    torch.testing.assert_close(one, other)
    halves = datasets.DatasetDict({"train": whole, "test": whole.select(range(4))})
    halves.save_to_disk(tmp_path / "halves")
    data = load_data(f"hf-dataset:{tmp_path / 'halves'}", labelled=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 4)
    assert data.example_inputs.shape == (2, 3, 6, 6)
    with pytest.raises(ConfigError, match="none of them is called kind"):
        load_data(f"hf-dataset:{tmp_path / 'whole'}", reading=Reading(target="kind"))
    table = datasets.Dataset.from_dict({"a": numbers()[:, 0].tolist(), "label": [i % 2 for i in range(ROWS)]})
    table.save_to_disk(tmp_path / "table")
    data = load_data(f"hf-dataset:{tmp_path / 'table'}")
    assert data.train.inputs.shape == (32, 1)
    with pytest.raises(DataError, match="can't be loaded"):
        load_data(f"hf-dataset:{tmp_path / 'nothing'}")


def test_data_sets_of_texts(tmp_path: Path) -> None:
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "very"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    home = tmp_path / "model"
    transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(home)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=len(words), num_labels=2, max_position_embeddings=16, **sizes)
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(home)
    texts = ["good", "very bad", "very very good", "bad"] * 5
    rows = {"sentence": texts, "label": [int("good" in t) for t in texts], "idx": list(range(20))}
    part = datasets.Dataset.from_dict(rows)
    hidden = datasets.Dataset.from_dict({**rows, "label": [-1] * 20})  # as GLUE's test parts are
    datasets.DatasetDict({"train": part, "validation": part, "test": hidden}).save_to_disk(tmp_path / "texts")
    data = load_data(f"hf-dataset:{tmp_path / 'texts'}", model=f"hf:{home}", network=model)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 20)
    assert data.loss_fn is own_loss
    assert set(data.example_inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    batch = next(iter(ReadBatches(data.test, 3, workers=0)))
    assert batch["input_ids"].shape == (3, 5)
    assert batch["labels"].tolist() == [1, 0, 1]
    found = evaluate(model, data.test, loss_fn=data.loss_fn, workers=0)
    with torch.no_grad():
        right = sum(int(model(**_one(data.test, i)).logits.argmax()) == rows["label"][i] for i in range(20))
    assert found.accuracy == 5 * right
    with pytest.raises(ConfigError, match="tokenizer"):
        load_data(f"hf-dataset:{tmp_path / 'texts'}")


def _one(part: Any, index: int) -> dict[str, torch.Tensor]:
    return {k: torch.tensor([v]) for k, v in part[index].items() if k != "labels"}


def test_archives_that_say_two_things_are_refused(tmp_path: Path) -> None:
    x, y = numbers(), np.arange(ROWS) % 2
    np.savez(tmp_path / "both.npz", x=x, y=y, x_test=x[:4], y_test=y[:4])
    with pytest.raises(DataError, match="without a part's name"):
        load_data(f"npz:{tmp_path / 'both.npz'}")
    np.savez(tmp_path / "float.npz", x=x, y=y.astype(np.float32))
    data = load_data(f"npz:{tmp_path / 'float.npz'}", reading=Reading(loss="cross_entropy"))
    assert (data.train.labels.dtype, data.num_classes) == (torch.int64, 2)
    np.savez(tmp_path / "real.npz", x=x, y=x[:, 0])
    with pytest.raises(DataError, match="no classes"):
        load_data(f"npz:{tmp_path / 'real.npz'}", reading=Reading(loss="cross_entropy"))


def test_tables_of_several_parts_keep_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = [
        datasets.Dataset.from_dict({"a": [float(begin + i) for i in range(10)], "label": [kind] * 5 + ["bee"] * 5})
        for begin, kind in ((0, "cow"), (100, "ant"))
    ]
    datasets.DatasetDict({"train": parts[0], "test": parts[1]}).save_to_disk(tmp_path / "two")
    data = load_data(f"hf-dataset:{tmp_path / 'two'}", validation=2)
    assert data.test.inputs.flatten().tolist() == list(range(100, 110))
    assert data.classes == ("ant", "bee", "cow")  # one numbering for all parts
    assert data.test.labels.tolist() == [0] * 5 + [1] * 5
    assert sorted(torch.cat([data.train.inputs, data.validation.inputs]).flatten().tolist()) == list(range(10))
    assert len(data.validation) == 2
    other = datasets.Dataset.from_dict({"b": [1.0], "label": ["cow"]})
    datasets.DatasetDict({"train": parts[0], "test": other}).save_to_disk(tmp_path / "odd")
    with pytest.raises(DataError, match="other columns"):
        load_data(f"hf-dataset:{tmp_path / 'odd'}")


def test_texts_for_classes_and_broken_pictures_of_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    whole = [{"bytes": _png(Image, i), "path": None} for i in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    named = datasets.Dataset.from_dict({"image": whole, "label": ["ant", "bee"] * 10}, features)
    named.save_to_disk(tmp_path / "named")
    with pytest.raises(DataError, match=r"holds texts, no classes"):
        load_data(f"hf-dataset:{tmp_path / 'named'}")
    whole[0] = {"bytes": b"no picture", "path": None}
    numbered = datasets.Dataset.from_dict(
        {"image": whole, "label": [0, 1] * 10},
        datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    numbered.save_to_disk(tmp_path / "broken")
    for reading, what in (
        (Reading(length=5), "length means nothing"),
        (Reading(columns=("image", "label")), "no place for column label beside image"),
    ):
        with pytest.raises(ConfigError, match=what):
            load_data(f"hf-dataset:{tmp_path / 'broken'}", reading=reading)
    data = load_data(f"hf-dataset:{tmp_path / 'broken'}", reading=Reading(broken="skip", augment="none"))
    assert data.train.preparation.size == (6, 6)


def _png(image: Any, seed: int) -> bytes:
    import io

    held = io.BytesIO()
    image.fromarray(np.full((6, 6, 3), seed, dtype=np.uint8)).save(held, "png")
    return held.getvalue()
