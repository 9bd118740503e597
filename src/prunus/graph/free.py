"""Dimensions along which a tensor is the same everywhere (a statistic expanded to a full shape): as what they meet."""

from __future__ import annotations

from collections import Counter

import numpy as np
from torch import Tensor

from prunus.graph.engine import Engine
from prunus.graph.labels import align


def settle(engine: Engine) -> None:
    """Give every free label what it met: in all values, or by union where something else knows it, too.

    Args:
        engine: the finished label run.
    """
    roots = engine.labels.roots()

    def key(plane: Tensor) -> tuple[int, ...]:
        return tuple(roots[plane.reshape(-1).numpy()].tolist())

    places = [
        (planes, index, key(plane))
        for result in engine.values.values()
        for value in (result if isinstance(result, list) else [result])
        for planes in (value.planes,)
        for index, plane in enumerate(planes)
        if engine.is_free(plane)
    ]
    met: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
    for free, plane in engine.free.met:
        met.setdefault(key(free), []).append((free, plane))
    known = np.ones(len(roots), bool)
    known[list(engine.free.labels)] = False
    times = Counter(root for labels in {*met, *(k for _, _, k in places)} for root in set(labels))
    bound = {*np.unique(roots[known]).tolist(), *(root for root, count in times.items() if count > 1)}
    stands: dict[tuple[int, ...], Tensor] = {}
    for labels, pairs in met.items():
        if bound.intersection(labels) or len({p.dim() for pair in pairs for p in pair}) > 1:
            for free, plane in pairs:
                engine.labels.unite(free, plane)
            continue
        stands[labels] = pairs[0][1]
        for _, plane in pairs[1:]:
            engine.labels.unite(pairs[0][1], plane)
    for planes, index, labels in places:
        found = stands.get(labels)
        if found is None:
            continue
        ndim = planes[index].dim()
        extra = found.dim() - ndim
        if extra <= 0:
            planes[index] = align(found, ndim)
        elif all(size == 1 for size in found.shape[:extra]):  # what broadcasting put in front
            planes[index] = found.reshape(found.shape[extra:])
        else:
            engine.labels.unite(align(planes[index], found.dim()), found)
