"""The rows of a transformers model that belong to its vocabulary, and the model without some of them.

Which tensors have such rows, the class says itself: it is made twice on the device `meta`, from the configuration of
before and from the one with fewer tokens, and what has other shapes, or another number in an attribute, follows the
vocabulary. No table of names is needed, and stock `from_pretrained` makes the same shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, first_line
from prunus.vocabulary.identifiers import check_vocabularies, renumber_

FIX = "trim the model before anything is changed in it, or report its class"


def check_model(model: Any) -> int:
    """The number of rows of a model's vocabulary.

    Raises:
        ConfigError: no transformers model, none with an embedding of tokens, one with two vocabularies, or one whose
            class can't be made from its configuration.
    """
    name = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "save_pretrained"):
        what = "it is no transformers model: where its vocabulary is read is not known"
        raise ConfigError(name, what, "load it with from_pretrained")
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ConfigError(name, "it has no embedding of tokens", "only models that read tokens have a vocabulary")
    rows = len(weight)
    said = getattr(model.config.get_text_config(), "vocab_size", None)
    if said != rows:
        what = f"its configuration says vocab_size={said}, its embedding has {rows} rows"
        raise ConfigError(name, what, "trim the model as from_pretrained loads it")
    check_vocabularies(model, rows)
    _made(model, {i: i for i in range(rows)}, rows)
    return rows


def following(model: Any, numbers: Mapping[int, int], rows: int) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """What follows the vocabulary.

    Args:
        model: as it is before.
        numbers: id before -> id afterwards.
        rows: number of rows before.

    Returns:
        Name of a parameter or buffer -> the dimension that holds the rows; name of a module -> attributes afterwards.

    Raises:
        ConfigError: the class can't be made from its configuration, or has a tensor that follows in another way.
    """
    name = type(model).__name__
    before, after = _made(model, {i: i for i in range(rows)}, rows), _made(model, numbers, rows)
    shapes = [{n: tuple(t.shape) for n, t in _tensors(m).items()} for m in (before, after)]
    if shapes[0].keys() != shapes[1].keys():
        odd = sorted(shapes[0].keys() ^ shapes[1].keys())[0]
        raise ConfigError(name, f"{odd!r} is there with one size of the vocabulary alone", FIX)
    there = {n: tuple(t.shape) for n, t in _tensors(model).items()}
    found: dict[str, int] = {}
    for key, old in shapes[0].items():
        new = shapes[1][key]
        if new == old:
            continue
        odd_dims = [d for d, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        if len(odd_dims) != 1 or (old[odd_dims[0]], new[odd_dims[0]]) != (rows, len(numbers)):
            what = f"{key!r} has the shape {old} with {rows} tokens and {new} with {len(numbers)}"
            raise ConfigError(name, f"{what}: its rows are no tokens", FIX)
        if there.get(key) != old:
            raise ConfigError(name, f"its {key!r} is not what its class makes: {there.get(key)} instead of {old}", FIX)
        found[key] = odd_dims[0]
    modules = dict(after.named_modules())
    attributes = {n: _other_numbers(m, modules[n]) for n, m in before.named_modules() if n in modules}
    return found, {n: a for n, a in attributes.items() if a}


def without_rows(model: Any, numbers: Mapping[int, int], rows: int) -> Any:
    """A copy of the model with the rows that stay, in their order; tied tensors stay tied.

    Raises:
        ConfigError: see `following`.
    """
    tensors, attributes = following(model, numbers, rows)
    smaller = copy.deepcopy(model)
    kept = torch.tensor(sorted(numbers), dtype=torch.int64, device="cpu")
    cut: dict[int, Tensor] = {}
    for name, dim in tensors.items():
        place, _, last = name.rpartition(".")
        module = smaller.get_submodule(place)
        old = getattr(module, last)
        if id(old) not in cut:
            with torch.no_grad():
                new = old.detach().index_select(dim, kept.to(old.device))
            cut[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        setattr(module, last, cut[id(old)])
    for name, numbers_of in attributes.items():
        vars(smaller.get_submodule(name)).update(numbers_of)
    renumber_(smaller, numbers, rows)
    return smaller


def _made(model: Any, numbers: Mapping[int, int], rows: int) -> nn.Module:
    """The class made anew, without weights, from its configuration with the ids renumbered."""
    said = _Configured(copy.deepcopy(model.config))
    renumber_(said, numbers, rows)
    try:
        with torch.device("meta"):
            made: nn.Module = type(model)(said.config)
    except Exception as error:
        what = f"its class can't be made from its configuration: {first_line(error)}"
        raise ConfigError(type(model).__name__, what, FIX) from error
    return made


class _Configured:
    """A configuration in the place of a model that has it."""

    def __init__(self, config: Any) -> None:
        self.config = config


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return dict(chain(parameters, model.named_buffers(remove_duplicate=False)))


def _other_numbers(before: nn.Module, after: nn.Module) -> dict[str, int]:
    """Attributes of a module that are other whole numbers with the smaller vocabulary."""
    old = vars(before)
    return {k: v for k, v in vars(after).items() if type(v) is int and type(old.get(k)) is int and old[k] != v}
