"""What goes with blocks: tensors, and what stands in for modules in the model's own class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import fx

from prunus.graph.engine import operation
from prunus.graph.units.blocks import MOVED, SAME, Block, Flow, Sum, is_assertion, unchanged

CHEAP = {
    "pad", "constant_pad_nd", "cat", "stack", "select", "split", "split_with_sizes", "chunk", "unbind", "getitem",
    "index", "index_select", "sym_size", "zeros_like",
}  # fmt: skip
"""Operations that only move or repeat elements."""
NOT_A_TENSOR = -1
"""Of what a module returns: neither a tensor nor a tuple that begins with one."""


@dataclass(frozen=True)
class StandIn:
    """What takes the place of a module.

    Attributes:
        module: its path.
        returns: its input, or zeros like it.
        results: how many results it has: 0 for a tensor alone, else the length of a tuple that begins with one.
    """

    module: str
    returns: Literal["input", "zeros"]
    results: int


@dataclass(frozen=True)
class Removal:
    """What goes with blocks.

    Attributes:
        gates: modules whose outputs are zero in the masked network.
        stand_ins: what takes the place of modules in the model's own class; empty if it can't lose the blocks.
        tensors: parameters and buffers that go.
    """

    gates: tuple[str, ...] = ()
    stand_ins: tuple[StandIn, ...] = ()
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a model.

    Attributes:
        units: every block, locked ones too, in data-flow order.
        flow: the captured graph that they were found in; None where there are none.
        tensors: names of all parameters and buffers.
        results: module -> how many results it has, see `StandIn`; modules that return something else have -1.
    """

    units: tuple[Block, ...] = ()
    flow: Flow | None = None
    tensors: frozenset[str] = frozenset()
    results: Mapping[str, int] = field(default_factory=dict)

    @property
    def free(self) -> tuple[Block, ...]:
        """Those that may go."""
        return tuple(b for b in self.units if b.locked is None)

    def find(self, name: str) -> Block | None:
        """The block of that name, or None."""
        return next((b for b in self.units if b.name == name), None)

    def sums(self, names: Collection[str]) -> list[Sum]:
        """The sums that become their skips without these blocks, each once; without those that go with others."""
        found = {s.node: s for b in self.units if b.name in names for s in b.sums}
        if self.flow is None or not found:
            return []
        gone = self.flow.gone(found.values())
        return [s for s in found.values() if s.node not in gone]

    def gone(self, names: Collection[str]) -> set[fx.Node]:
        """Nodes that nothing reads without these blocks."""
        return self.flow.gone(self.sums(names)) if self.flow is not None and names else set()

    def inner(self, names: Collection[str]) -> set[str]:
        """Blocks that are gone or made of gone ones once these are, themselves among them."""
        gone, sums = self.gone(names), {s.node for s in self.sums(names)}
        return {b.name for b in self.units if all(s.node in gone or s.node in sums for s in b.sums)}

    def removal(self, names: Collection[str]) -> Removal:
        """What goes with these blocks."""
        sums = self.sums(names)
        if self.flow is None or not sums:
            return Removal()
        gone = self.flow.gone(sums)
        dead = {self.flow.stored[n] for n in gone if n in self.flow.stored}
        stand_ins = self._stand_ins(self.flow, sums, gone, dead)
        inside = {t for t in self.tensors for s in stand_ins if t.startswith(f"{s.module}.")}
        gates = tuple(dict.fromkeys(s.gate for s in sums))
        return Removal(gates, stand_ins, tuple(sorted(dead | inside)))

    def _stand_ins(self, flow: Flow, sums: Sequence[Sum], gone: set[fx.Node], dead: set[str]) -> tuple[StandIn, ...]:
        whole = unchanged(flow, sums, gone)
        calls = flow.calls
        left = [s for s in sums if not set(calls.around(s.node)) & set(whole)]
        replaced: dict[str, Literal["input", "zeros"]] = dict.fromkeys(whole, "input")
        replaced |= dict.fromkeys((s.gate for s in left), "zeros")
        for node in sorted(gone, key=flow.place.__getitem__):
            around = calls.around(node)
            if not set(around) & set(replaced):
                path = next((p for p in around if flow.whole(p, gone)), None)
                if path is not None and not any(r.startswith(f"{path}.") for r in replaced):
                    replaced[path] = "input"
                elif node.op == "call_function" and not is_assertion(node) and not _cheap(node):
                    return ()
        if any(not any(t.startswith(f"{p}.") for p in replaced) for t in dead):
            return ()
        found = tuple(StandIn(p, returns, self.results.get(p, NOT_A_TENSOR)) for p, returns in replaced.items())
        return () if any(s.results == NOT_A_TENSOR for s in found) else found


def _cheap(node: fx.Node) -> bool:
    """Whether an operation costs so little that a class may go on computing it for nothing."""
    pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return pointwise or operation(node) in SAME | MOVED | CHEAP
