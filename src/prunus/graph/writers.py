"""What writes a group's units where the weight is computed: the layer's own view of it, or what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from prunus.graph.engine import Engine
from prunus.graph.groups import ChannelGroup, IntArray, Slot
from prunus.graph.stored import writing
from prunus.runtime.modes import eval_mode

Judged = Mapping[str, Set[tuple[str, int]]]
"""Name of a computed weight -> (tensor, dimension) of what its filters are judged by."""


def judged_by(engine: Engine, model: nn.Module) -> Judged:
    """By what computed weights are judged.

    A layer that shows its computed weight as `weight` (weight norm, parametrizations, masks) is judged by that; others
    by the stored tensors that it is made of.
    """
    made = engine.stored.computed
    axes = {c.weight: 1 - c.axis for c in reversed(engine.calls) if not c.depthwise and c.weight in made}
    judged = {}
    with eval_mode(model):  # in training some parametrizations count how often their weight is asked for
        for name, axis in axes.items():
            path, _, attribute = name.rpartition(".")
            held = None if name.endswith("*") else getattr(model.get_submodule(path), attribute, None)
            shown = isinstance(held, Tensor) and tuple(held.shape) == engine.parameters[name].shape
            judged[name] = {(name, axis)} if shown else writing(engine, name, axis)
    return judged


def with_computed(
    groups: Sequence[ChannelGroup],
    labels: Mapping[int, tuple[int, int]],
    made: Sequence[tuple[str, IntArray]],
    judged: Judged,
) -> tuple[ChannelGroup, ...]:
    """The groups with their units' places in computed weights, and what writes them there.

    Args:
        groups: without.
        labels: root label -> (number of its group, index of its unit).
        made: name of each computed weight, and the root labels along one of its dimensions.
        judged: by what each is judged.
    """
    places: list[list[Slot]] = [[] for _ in groups]
    for name, plane in made:
        owners = np.array([labels.get(root, (-1, -1)) for root in plane.reshape(-1).tolist()]).reshape(*plane.shape, 2)
        for number in np.unique(owners[..., 0][owners[..., 0] >= 0]).tolist():
            places[number].append(Slot(name, np.where(owners[..., 0] == number, owners[..., 1], -1)))
    found = []
    for group, computed in zip(groups, places, strict=True):
        mine = {place for name in dict.fromkeys(s.tensor for s in computed) for place in judged.get(name, ())}
        more = tuple(s for s in (*computed, *group.slots) if (s.tensor, s.dim) in mine and s not in group.writers)
        found.append(replace(group, computed=tuple(computed), writers=(*group.writers, *more)))
    return tuple(found)
