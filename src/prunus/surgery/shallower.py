"""Blocks out of the user's own module: what takes the place of theirs, and lists of layers that become shorter."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunus.graph.units.removal import Removal
from prunus.layers.standins import ReturnsInput, ReturnsZeros
from prunus.surgery.steps import Steps, set_attribute_, set_child_

STAND_INS = {"input": ReturnsInput, "zeros": ReturnsZeros}
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
"""Names under which configurations hold their number of layers."""
PER_LAYER = "layer_types"
"""Name under which configurations hold the kind of each layer."""
INDEX = "layer_idx"
"""Name under which modules hold the number of their layer, under which a cache keeps their keys and values."""


def stand_in_(model: nn.Module, removal: Removal) -> Steps:
    """Put what takes the place of modules there; what puts the modules back, in order.

    Code around a module may look at numbers and names that it holds (the kind of its attention): they are kept.
    """
    steps: Steps = []
    places = dict(model.named_modules(remove_duplicate=False))
    for entry in removal.stand_ins:
        old = places[entry.module]
        new = STAND_INS[entry.returns](entry.results)
        new.training = old.training
        for name, value in vars(old).items():
            if isinstance(value, int | float | str) and not name.startswith("_") and name not in vars(new):
                setattr(new, name, value)
        owner, _, name = entry.module.rpartition(".")
        steps += set_child_(model.get_submodule(owner), name, new)
    return steps


def shorten_(model: nn.Module, removal: Removal) -> Steps:
    """Take layers that only return their input out of the one list that a configuration counts; number the rest anew.

    So a model of transformers keeps no more caches than layers, and its configuration says how many there are. Where
    a layer lost its attention alone, those behind move up in the cache, which takes its length from the first.

    Returns:
        What undoes it, in order; empty where nothing is to be done.
    """
    steps: Steps = []
    if not hasattr(model, "config") or not removal.stand_ins:
        return steps
    config = model.config
    for path, gone in _shorter(model, removal).items():
        place, _, name = path.rpartition(".")
        owner, layers = model.get_submodule(place), model.get_submodule(path)
        assert isinstance(layers, nn.ModuleList)
        stays = [layer for n, layer in enumerate(layers) if n not in gone]
        for key in _counted(config, layers):
            steps += set_attribute_(config, key, len(stays))
        kinds = getattr(config, PER_LAYER, None)
        if isinstance(kinds, list) and len(kinds) == len(layers):
            steps += set_attribute_(config, PER_LAYER, [k for n, k in enumerate(kinds) if n not in gone])
        steps += set_child_(owner, name, nn.ModuleList(stays).train(layers.training))
        for number, layer in enumerate(stays):
            steps += set_attribute_(layer, INDEX, number) if INDEX in vars(layer) else []
    return steps + _numbered(model)


def names_after(model: nn.Module, removal: Removal) -> dict[str, str]:
    """Name of every parameter of the dense model that stays -> its name once lists of layers are shorter."""
    found = {n: n for n, _ in model.named_parameters() if n not in removal.tensors}
    for path, gone in _shorter(model, removal).items() if hasattr(model, "config") else ():
        for name in found:
            if name.startswith(f"{path}."):
                number, _, rest = name.removeprefix(f"{path}.").partition(".")
                found[name] = f"{path}.{int(number) - sum(g < int(number) for g in gone)}.{rest}"
    return found


def _shorter(model: nn.Module, removal: Removal) -> dict[str, list[int]]:
    """The list of layers that becomes shorter, and which of its layers go; none if there are several of its length."""
    lists = {n: m for n, m in model.named_modules() if type(m) is nn.ModuleList and len(m) > 1}
    lengths = [len(m) for m in lists.values()]
    whole = {s.module for s in removal.stand_ins if s.returns == "input"}
    found = {}
    for path, layers in lists.items():
        gone = [n for n in range(len(layers)) if f"{path}.{n}" in whole]
        if 0 < len(gone) < len(layers) and lengths.count(len(layers)) == 1 and _counted(model.config, layers):
            found[path] = gone
    return found


def _counted(config: Any, layers: nn.ModuleList) -> list[str]:
    """Names under which a configuration holds the number of these layers."""
    return [key for key in COUNTS if getattr(config, key, None) == len(layers)]


def _numbered(model: nn.Module) -> Steps:
    """Number what keeps something in a cache by its rank, if all of it is of one kind."""
    kinds = getattr(model.config, PER_LAYER, None)
    if isinstance(kinds, list) and len(set(kinds)) > 1:
        return []
    holders = [m for m in model.modules() if not _stands_in(m) and type(vars(m).get(INDEX)) is int]
    caches = [m for m in holders if not any(INDEX in vars(c) for c in m.modules() if c is not m)]
    rank = {index: n for n, index in enumerate(sorted({vars(m)[INDEX] for m in caches}))}
    return [step for m in caches if rank[vars(m)[INDEX]] != vars(m)[INDEX]
            for step in set_attribute_(m, INDEX, rank[vars(m)[INDEX]])]  # fmt: skip


def _stands_in(module: nn.Module) -> bool:
    return isinstance(module, ReturnsInput | ReturnsZeros)
