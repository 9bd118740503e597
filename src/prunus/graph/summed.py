"""Units that a product of activations sums over (dimensions of queries and keys), or whose length a norm takes: where a
gate can stand for them.

No layer reads them there, so the gate stands behind a layer that writes one side of the product. Between that layer and
the product, a unit that is zero must stay zero and must not be mixed with others: that is walked back node by node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunus.graph.engine import Engine, module_path, operation, source_line
from prunus.graph.groups import IntArray
from prunus.graph.labels import varying_dims
from prunus.graph.registry import RULES
from prunus.graph.zeros import Back, Mixed, Places, channel_of, comes_between


@dataclass(frozen=True)
class Site:
    """A layer's output where a gate may stand for units: which positions of it belong to one side of a product.

    Attributes:
        module: the layer.
        dim: dimension of its output along which the positions lie, from the end.
        weight: name of its weight.
        axis: dimension of the weight that the positions are, too.
        roots: root label of each position, -1 where it does not reach the product.
        length: what takes the units is a norm or a sum over them, not a product with another tensor.
    """

    module: str
    dim: int
    weight: str
    axis: int
    roots: IntArray
    length: bool = False


@dataclass(frozen=True)
class Sites:
    """Where gates can stand for what is summed over, and for what they can't.

    Attributes:
        found: layers' outputs to gate.
        reasons: per root in products behind no such layer, why it stays.
        unmasked: roots in norms and sums behind no such layer.
    """

    found: list[Site]
    reasons: dict[int, str]
    unmasked: set[int]


def sites_of(engine: Engine, model: nn.Module, roots: IntArray) -> Sites:
    """Where gates can stand for all that is summed over."""
    found: dict[tuple[str, int, bool], Site] = {}
    reasons: dict[int, str] = {}
    unmasked: set[int] = set()
    for summed in engine.summed:
        places, problems = None, []
        wanted = np.unique(roots[summed.labels.numpy()])
        for operand in summed.operands:
            try:
                places = _sites(engine, model, roots, operand, wanted)
                break
            except Mixed as stop:
                problems.append(str(stop))
        if summed.length:
            unmasked.update(
                np.setdiff1d(wanted, np.concatenate([wanted[:0], *(s.roots for s in places or ())])).tolist()
            )
        elif places is None:
            why = f"summed over by {operation(summed.node)}, and no gate can stand before it: {problems[0]}"
            for root in wanted.tolist():
                reasons.setdefault(root, f"{why} ({source_line(summed.node)})")
        for site in places or ():
            key = (site.module, site.dim, summed.length)
            line = np.where(site.roots >= 0, site.roots, found[key].roots) if key in found else site.roots
            found[key] = replace(site, roots=line, length=summed.length)
    for module, dim, length in [k for k in found if k[2]]:
        product = found.get((module, dim, False))
        if product is not None:  # one gate is enough
            site = found[module, dim, length]
            found[module, dim, length] = replace(site, roots=np.where(product.roots >= 0, -1, site.roots))
    return Sites([s for s in found.values() if (s.roots >= 0).any()], reasons, unmasked)


def gated_before(engine: Engine, model: nn.Module, roots: IntArray, sites: list[Site], source: Any) -> set[int]:
    """Roots whose gates before a norm or a sum reach this node too: all that it holds of them comes from there."""
    gated = {(site.module): site.roots for site in sites if site.length}
    if not gated:
        return set()
    try:
        places = _come_from(source, model, {})
    except Mixed:
        return set()
    reached: set[int] = set()
    others: set[int] = set()
    for layer, ids in places:
        planes = engine.value(layer).varying(channel_of(layer))
        line = roots[planes[0].reshape(-1).numpy()] if len(planes) == 1 else np.zeros(0, np.int64)
        here = gated.get(module_path(layer), np.full(0, -1))
        present = np.unique(ids.numpy())
        for position in present[(present >= 0) & (present < len(line))].tolist():
            stands = position < len(here) and here[position] == line[position]
            (reached if stands else others).add(int(line[position]))
    return reached - others


def _sites(engine: Engine, model: nn.Module, roots: IntArray, operand: fx.Node, wanted: IntArray) -> list[Site]:
    """The layers behind one side of a product that hold what it sums over. Raises Mixed where there is none to gate."""
    positions: dict[fx.Node, list[Tensor]] = {}
    for layer, ids in _come_from(operand, model, {}):
        few = ids[tuple(slice(1) if stride == 0 else slice(None) for stride in ids.stride())]
        positions.setdefault(layer, []).append(torch.unique(few))
    found = []
    for layer, reached in positions.items():
        value = engine.value(layer)
        dim = channel_of(layer)
        planes = value.varying(dim)
        if len(planes) != 1 or varying_dims(planes[0]) != (dim,):
            raise Mixed(f"the positions of {module_path(layer)} are no plain channels")
        line = roots[planes[0].reshape(-1).numpy()]
        inside = np.zeros(len(line), bool)
        inside[[p for p in torch.cat(reached).tolist() if p >= 0]] = True
        inside &= np.isin(line, wanted)
        module = module_path(layer)
        axis = next((1 - c.axis for c in engine.calls if c.node is layer), 0)
        found.append(Site(module, dim - value.ndim, f"{module}.weight", axis, np.where(inside, line, -1)))
    if not any((site.roots >= 0).any() for site in found):
        raise Mixed("no layer writes the units")
    return found


def _come_from(node: Any, model: nn.Module, known: dict[fx.Node, Places]) -> Places:
    """Which positions of which layers' outputs each element of a node comes from.

    Raises:
        Mixed: an element may be other than zero although all of those are.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        raise Mixed(f"{getattr(node, 'name', node)} is no layer's output")
    if node not in known:
        found = RULES.get(operation(node))
        if found is None or found.zeros is None:
            raise comes_between(node)
        known[node] = found.zeros(node, Back(model, lambda source: _come_from(source, model, known)))
    return known[node]
