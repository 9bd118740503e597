"""The masked network where a normalisation takes statistics across units that go: a third opinion on what is left.

Hooks that mask what layers read can't tell: statistics over what is left differ from those over everything with zeros.
Here the captured dense graph runs with all its sizes as they were; after every operation what a plan removes is set to
zero, and means, variances and norms are those of what stays. No size was rewritten, so it judges both the model cut in
its own class and the rewritten graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunus.errors import SurgeryError, first_line
from prunus.gates.routing import less_likely
from prunus.graph.engine import module_path, operation, source_line
from prunus.graph.grouping import Graph
from prunus.graph.registry import RULES
from prunus.graph.resizing import BoolArray
from prunus.graph.trace import REGIONS
from prunus.plan.kept import Kept, presence
from prunus.plan.plan import Plan
from prunus.proof.keptstatistics import STATISTICS
from prunus.proof.masked import kept_outputs, kept_part, outputs_known


class Precisely(fx.Interpreter):
    """Runs a captured graph; in fp64, whatever formats it names, if `precise`."""

    precise = False

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation, in fp64 where the graph names another floating-point format and all is to be in fp64."""
        if self.precise:
            args, kwargs = _lifted((args, kwargs))
            if target is torch.ops.aten._grouped_mm.default and args[0].dtype == torch.float64:
                return _grouped_product(*args, **kwargs)  # torch has no kernel for fp64
        return super().call_function(target, args, kwargs)


class MaskedGraph(Precisely):
    """Runs the dense captured graph with the removed elements of every result at zero.

    Args:
        graph: the model captured with a free batch size.
        plan: what goes.
        model: the dense model, for the kinds of its layers.

    Raises:
        SurgeryError: an operation mixes units in a way that is not known here, so that no reference can be made; or
            torch can't make a module of the graph.
    """

    def __init__(self, graph: Graph, plan: Plan, model: nn.Module) -> None:
        super().__init__(_module(graph))
        self.plan, self.model, self.batch = plan, model, _example_batch(graph)
        self.layers: dict[str, list[Tensor]] = {}
        kept = Kept(graph, plan.kept)
        found = {n: _listed(v) for n, v in graph.values.items()}
        present = {n: [presence(v, kept) for v in values] for n, values in found.items()}
        names = self._names(graph)
        self.masks: dict[str, list[BoolArray | None]] = {names[n]: present[n] for n in found if n in names}
        for removed in graph.blocks.sums(plan.blocks):  # zeros where the branch is
            self.masks[removed.branch.name] = [np.zeros([1] * removed.branch.meta["val"].dim(), bool)]
        signature = graph.program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.places = {target: name for name, target in stored.items()}
        self.routes = self._routes(graph, plan)
        whole = self._rescaled()
        for name in whole & set(self.masks):
            self.masks[name] = [None] * len(self.masks[name])
        for node in graph.values:
            if node.op == "call_function" and operation(node) not in REGIONS and names.get(node) not in whole:
                _understands(node, present)

    def _names(self, graph: Graph) -> dict[fx.Node, str]:
        """Node of the captured program -> name of the node here that computes the same; regions run as a whole."""
        return {n: n.name for n in graph.values if n.graph is graph.program.graph}

    def _rescaled(self) -> set[str]:
        """What is computed of stored directions alone: where a norm divides by their length, the cut keeps that.

        A weight that is left whole is read with zeros, or makes what is set to zero.
        """
        directions = {norm.tensor for norm in self.plan.norms}
        found: set[fx.Node] = set()
        computed: set[fx.Node] = set()
        for node in self.module.graph.nodes:  # type: ignore[union-attr]
            inputs = set(node.all_input_nodes)
            if node.op == "get_attr" or (node.op == "call_function" and inputs and inputs <= computed):
                computed.add(node)
                found |= {node} if str(node.target) in directions or inputs & found else set()
        return {self.places.get(str(n.target), n.name) if n.op == "get_attr" else n.name for n in found}

    def _routes(self, graph: Graph, plan: Plan) -> dict[str, tuple[Tensor, int]]:
        """Node or stored tensor with the logits of experts, or what is added to them -> which stay, along which dim."""
        found = {}
        for group in graph.experts:
            if group.routing is not None and len(plan.kept.get(group.name, range(group.units))) < group.units:
                keep = torch.zeros(group.units, device="cpu")
                keep[list(plan.kept[group.name])] = 1
                for reader in group.readers:
                    place = group.routing.node if reader.product >= 0 else self.places[reader.stored]
                    found[place] = keep, reader.input_dim
        return found

    def outputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's result on these arguments; `layers` then holds what its linear and convolution layers made."""
        self.layers = {}
        flat = torch.fx._pytree.tree_flatten_spec((args, kwargs), self.module._in_spec)  # type: ignore[arg-type]
        found = self.run(*flat, enable_io_processing=False)
        return torch.utils._pytree.tree_unflatten(list(found), self.module._out_spec)  # type: ignore[arg-type]

    def run_node(self, n: fx.Node) -> Any:
        """The node's result, with zeros where a unit goes."""
        if n.op == "get_attr":
            return self.zeroed(self.places.get(str(n.target), ""), super().run_node(n))
        if n.op != "call_function":
            return super().run_node(n)
        special, there = STATISTICS.get(operation(n)), None
        operand = n.args[0] if n.args else None
        if special is not None and isinstance(operand, fx.Node):
            place = self.places.get(str(operand.target), operand.name) if operand.op == "get_attr" else operand.name
            there = self.present(place, 0, self.env[operand])
        if there is None or special is None:
            result = super().run_node(n)
        else:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            result = special(n, there, args, kwargs)
        result = self.zeroed(n.name, result)
        if operation(n) in ("linear", "addmm") or operation(n).startswith("conv"):
            self._note(n, result)
        return result

    def zeroed(self, name: str, result: Any) -> Any:
        """The result of the node of that name with zeros where a unit goes; logits of experts at minus infinity."""
        if name in self.routes:
            keep, dim = self.routes[name]
            return less_likely(result, keep.to(result.device), dim)
        if name not in self.masks:
            return result
        if isinstance(result, list | tuple):
            several = len(self.masks[name]) == len(result)
            return type(result)(self._zero(name, i, r) if several else r for i, r in enumerate(result))
        return self._zero(name, 0, result)

    def _zero(self, name: str, index: int, result: Any) -> Any:
        there = self.present(name, index, result) if isinstance(result, Tensor) else None
        return result if there is None else torch.where(there, result, torch.zeros_like(result))

    def present(self, name: str, index: int, result: Tensor) -> Tensor | None:
        """Which elements stay of one of a node's results, bool and broadcastable to it; None if all do."""
        mask = self.masks[name][index] if name in self.masks else None
        if mask is None:
            return None
        for dim, size in enumerate(result.shape):
            if mask.shape[dim] not in (1, size):
                mask = _for_batch(mask, dim, self.batch, int(size), name)
        return torch.from_numpy(mask).to(result.device)

    def _note(self, node: fx.Node, result: Any) -> None:
        path = module_path(node)
        weight = node.args[2 if operation(node) == "addmm" else 1]
        module = self.model.get_submodule(path)
        named = isinstance(weight, fx.Node) and str(weight.target) == f"{path}.weight"
        if named and type(module).__module__.startswith("torch.nn.modules") and outputs_known(module):
            keep = kept_outputs(self.plan, f"{path}.weight", module)
            self.layers.setdefault(path, []).append(kept_part(result, keep))


def _grouped_product(
    rows: Tensor, weight: Tensor, ends: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Each group of rows, up to its end, times its own matrix: [N, inputs], [G, inputs, outputs] -> [N, outputs]."""
    parts = rows.tensor_split(ends.cpu()[:-1].long())
    made = torch.cat([part @ matrix for part, matrix in zip(parts, weight, strict=True)])
    return made if bias is None else made + bias


def _module(graph: Graph) -> nn.Module:
    try:
        return graph.program.module(check_guards=False)
    except Exception as failure:  # a parameter of the name `code`, which a module of a graph has already
        what = f"torch can't make a module of the captured graph: {first_line(failure)}"
        raise SurgeryError("model", what, "give the part concerned another name") from failure


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _understands(node: fx.Node, present: Mapping[fx.Node, list[BoolArray | None]]) -> None:
    """Refuse an operation that meets elements that go, and may count them."""
    gone = [m for n in node.all_input_nodes for m in present.get(n, []) if m is not None]
    name = operation(node)
    element_wise = name not in RULES  # or its units would have stayed
    if not gone or element_wise or RULES[name].ignores_zeros or name in STATISTICS:
        return
    if sum(_varying(m) for m in present[node][:1]) >= max(_varying(m) for m in gone):
        return  # along other dimensions than the units'
    raise SurgeryError(
        f"operation {name}",
        f"no reference can be made: what it does with units that go is not known ({source_line(node)})",
        "leave the groups concerned out (ignored_layers, or no 'inexact' in allow)",
    )


def _lifted(value: Any) -> Any:
    """The same arguments with fp64 instead of every other floating-point format."""
    return torch.utils._pytree.tree_map(
        lambda v: torch.float64 if isinstance(v, torch.dtype) and v.is_floating_point else v, value
    )


def _varying(mask: BoolArray | None) -> int:
    if mask is None:
        return 0
    return sum(bool((mask != mask.take([0], axis=dim)).any()) for dim in range(mask.ndim))


def _example_batch(graph: Graph) -> int:
    return next((entry.shape[0] for entry in graph.inputs if entry.shape), 1)


def _for_batch(mask: BoolArray, dim: int, batch: int, size: int, name: str) -> BoolArray:
    """The mask for another batch size, along a dimension in which the batch is merged with others."""
    old = mask.shape[dim]
    now = size * batch // old
    if old % batch == 0 and now * old == size * batch:
        for outer in range(1, old // batch + 1):
            if (old // batch) % outer:
                continue
            inner = old // batch // outer
            apart = np.moveaxis(mask, dim, 0).reshape(outer, batch, inner, -1)
            if (apart == apart[:, :1]).all():
                whole = np.repeat(apart[:, :1], now, axis=1).reshape(size, *np.moveaxis(mask, dim, 0).shape[1:])
                return np.ascontiguousarray(np.moveaxis(whole, 0, dim))
    raise SurgeryError(
        f"operation {name}",
        f"no reference can be made: units lie along a dimension of {old} that becomes {size} with another batch",
        "leave the groups concerned out",
    )
