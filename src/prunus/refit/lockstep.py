"""The dense and the masked network side by side over a captured graph: operation by operation, all batches at each.

Only values that somebody still needs are kept. Where both networks hold the same value it is kept once.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.errors import PruneError, SurgeryError, first_line
from prunus.graph.engine import operation
from prunus.graph.grouping import Graph
from prunus.plan.plan import Plan
from prunus.proof.observation import double, in_double
from prunus.proof.reference import MaskedGraph, Precisely
from prunus.refit.inlining import inlined_
from prunus.refit.inplace import shared_memory, shares, writes
from prunus.refit.supports import supports
from prunus.runtime.arguments import as_arguments, examples_in

HALF = (torch.float16, torch.bfloat16)


class _Masked(MaskedGraph):
    in_place: frozenset[str] = frozenset()
    views: frozenset[str] = frozenset()

    def _names(self, graph: Graph) -> dict[fx.Node, str]:
        """As everywhere, with every operation of a region under another setting by itself."""
        assert isinstance(self.module, fx.GraphModule)
        found = inlined_(self.module, graph.program.graph_module)
        return super()._names(graph) | {n: here.name for n, here in found.items() if here.op != "get_attr"}

    def _note(self, node: fx.Node, result: Any) -> None:
        """Nothing: nobody asks for layers here."""

    def _zero(self, name: str, index: int, result: Any) -> Any:
        """As everywhere, but where others look at the same memory it is written there; views show it already."""
        if name not in self.in_place:
            return super()._zero(name, index, result)
        there = self.present(name, index, result) if isinstance(result, Tensor) and name not in self.views else None
        return result if there is None else result.masked_fill_(~there, 0)


class Lockstep:
    """Both networks, and what they hold of every batch at the moment; in fp64 where a weight is in a half format.

    Args:
        graph: the model captured with a free batch size.
        plan: what goes.
        model: the dense model.
        given: new numbers of stored tensors that the masked network has from the start.
        others: by batch, what the masked network reads instead of what the dense one does; by default the same.
        stored_as: format that new weights are rounded to, where it is another than the model's at the moment.

    Attributes:
        module: what both run.
        stored: parameters, buffers and constants of the dense network, and of the masked one.
        values: by batch, what both hold of all else.
        examples: in each batch.
        replaced: parameter or buffer -> its new numbers, and which of its elements stay (None: all).
        supports: parameter -> which of its elements a mask inside it leaves.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        model: nn.Module,
        given: Mapping[str, Tensor] | None = None,
        *,
        others: Sequence[Any] = (),
        stored_as: torch.dtype | None = None,
    ) -> None:
        self.given, self.others, self.stored_as = dict(given or {}), others, stored_as
        self.masked = _Masked(graph, plan, model)
        self.module: fx.GraphModule = self.masked.module  # type: ignore[assignment]
        self.dense = Precisely(self.module)
        self.supports = supports(model, plan)
        self.shared = shared_memory(list(self.module.graph.nodes))
        self.masked.in_place = frozenset(n.name for n in self.shared.root)
        self.masked.views = frozenset(n.name for n in self.shared.root if shares(n) and not writes(n))
        self.half = any(t.dtype in HALF for t in (*self.module.parameters(), *self.module.buffers()))
        self.stored: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})
        self.values: list[tuple[dict[fx.Node, Any], dict[fx.Node, Any]]] = []
        self.examples: list[int] = []
        self.replaced: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.same: dict[fx.Node, bool] = {}
        self.formats: dict[str, torch.dtype] = {}
        self.end: fx.Node | None = None

    @contextmanager
    def in_format(self) -> Iterator[Lockstep]:
        """Within the context everything is computed in fp32 or, where a weight is in a half format, in fp64."""
        self.masked.precise = self.dense.precise = self.half
        self.formats = {n: t.dtype for n, t in (*self.module.named_parameters(), *self.module.named_buffers())}
        with in_double(self.module) if self.half else nullcontext():
            yield self

    def run(self, order: Sequence[fx.Node], batches: Sequence[Any]) -> Iterator[fx.Node]:
        """Run node after node; each is yielded after the dense network has run it and before the masked one does.

        Raises:
            SurgeryError: the graph ends without an output.
        """
        self.values, self.examples = [({}, {}) for _ in batches], [examples_in(b, none=0) for b in batches]
        self._start(order, batches)
        last: dict[fx.Node, list[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(order):
            last[node] = [n for n in (*node.all_input_nodes, node) if n not in seen]
            seen.update(last[node])
        for node in order:
            if node.op in ("placeholder", "get_attr"):
                continue
            if node.op == "output":
                self.end = node
                return
            self.same[node] = self._alike(node)
            for number in range(len(batches)):
                self.values[number][0][node] = self._run(self.dense, node, number, 0)
            yield node
            if writes(node) and not self.same[node]:  # and so does all that lies there
                self.same.update(dict.fromkeys(self.shared.families.get(self.shared.root.get(node, node), ()), False))
            for number, (_, masked) in enumerate(self.values):
                masked[node] = self._second(node, number)
            for gone in last[node]:
                for both in self.values:
                    for side in both:
                        side.pop(gone, None)
        raise SurgeryError("repair", "the captured graph has no output", "report the model: this should not happen")

    def differs(self, node: fx.Node) -> bool:
        """Whether the two networks hold different values there."""
        return not self.same[node]

    def held(self, number: int) -> tuple[ChainMap[fx.Node, Any], ChainMap[fx.Node, Any]]:
        """What the dense and the masked network hold of a batch at the moment, stored tensors included."""
        dense, masked = (ChainMap(v, s) for v, s in zip(self.values[number], self.stored, strict=True))
        return dense, masked

    def outputs(self, number: int) -> tuple[Any, Any]:
        """What both networks make of a batch, once all has run."""
        assert self.end is not None
        found = []
        for table in self.held(number):
            made: Any = fx.node.map_arg(self.end.args[0], table.__getitem__)
            found.append(torch.utils._pytree.tree_unflatten(list(made), self.module._out_spec))  # type: ignore[arg-type]
        return found[0], found[1]

    def replace(self, node: fx.Node, tensor: Tensor) -> None:
        """Give the masked network another stored tensor from now on, rounded to the format in which it is stored."""
        old = self.stored[0][node]
        name = str(node.target)
        form = self.stored_as if self.stored_as and name in self.formats else self.formats.get(name, old.dtype)
        self.stored[1][node] = tensor.to(form).to(old.dtype)
        there, support = self.masked.present(self.masked.places[name], 0, old), self.support(node)
        stays = there if support is None else support if there is None else there & support
        self.replaced[name] = self.stored[1][node], stays
        self.same[node] = False

    def owned(self, node: fx.Node) -> bool:
        """Whether a stored tensor is a parameter or a buffer of the model; constants of its code are neither."""
        return str(node.target) in self.masked.places

    def support(self, node: fx.Node) -> Tensor | None:
        """Which elements of a stored tensor a mask inside it leaves; None if no mask lies there."""
        return self.supports.get(str(node.target))

    def present(self, node: fx.Node, value: Tensor) -> Tensor | None:
        """Which elements of a value stay, broadcastable; None if all do."""
        return self.masked.present(node.name, 0, value)

    def _start(self, order: Sequence[fx.Node], batches: Sequence[Any]) -> None:
        for node in order:
            if node.op == "get_attr":
                self.stored[0][node] = self._run(self.dense, node, -1, 0)
                self.stored[1][node] = self._run(self.masked, node, -1, 1)
                support = self.support(node)
                if support is not None:
                    self.stored[1][node] = self.stored[1][node] * support
                self.same[node] = self.stored[1][node] is self.stored[0][node]
                if node in self.shared.root:
                    for stored in self.stored:
                        stored[node] = _copied(stored[node])
                if str(node.target) in self.given:
                    self.replace(node, self.given[str(node.target)])
        places = [n for n in order if n.op == "placeholder"]
        self.same.update(dict.fromkeys(places, True))
        for batch, other, (dense, masked) in zip(batches, self.others or batches, self.values, strict=True):
            for node, value, another in zip(places, self._flat(batch), self._flat(other), strict=True):
                same = value is another
                dense[node] = masked[node] = self._formed(value)
                if not same:
                    masked[node] = self._formed(another)
                if node in self.shared.root:
                    dense[node], masked[node] = _copied(dense[node]), _copied(masked[node])
                self.same[node] &= same

    def _flat(self, batch: Any) -> list[Any]:
        """What a batch holds, in the order of the placeholders."""
        given = as_arguments(batch, self.masked.model)
        return list(torch.fx._pytree.tree_flatten_spec(given, self.module._in_spec))  # type: ignore[arg-type]

    def _formed(self, value: Any) -> Any:
        return double(value) if self.half else value

    def _alike(self, node: fx.Node) -> bool:
        masked = node.name in self.masked.routes or any(m is not None for m in self.masked.masks.get(node.name, []))
        return all(self.same[n] for n in node.all_input_nodes) and not masked

    def _second(self, node: fx.Node, number: int) -> Any:
        made = self.values[number][0][node]
        if node in self.shared.root:
            if shares(node):
                return self._run(self.masked, node, number, 1)
            made = _copied(made)
        if self.same[node]:
            return made
        if all(self.same[n] for n in node.all_input_nodes):
            return self.masked.zeroed(node.name, made)
        return self._run(self.masked, node, number, 1)

    def _run(self, runner: fx.Interpreter, node: fx.Node, number: int, side: int) -> Any:
        held = [self.values[number][side]] if number >= 0 else []
        runner.env = ChainMap(*held, self.stored[side])  # type: ignore[assignment]
        if writes(node) and node not in self.shared.root:
            runner.env = ChainMap({n: _copied(runner.env[n]) for n in node.all_input_nodes}, runner.env)  # type: ignore[assignment]
        try:
            return runner.run_node(node)
        except PruneError:
            raise
        except Exception as failure:
            what = f"it does not run on these batches: {first_line(failure)}"
            raise SurgeryError(
                f"operation {operation(node)}", what, "give batches as the example inputs are"
            ) from failure


def _copied(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, value)
