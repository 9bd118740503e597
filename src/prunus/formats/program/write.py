"""A captured model as plain data: the nodes of its graph in order, and the tensors that are not among its weights.

    {"tensors": {"0.weight": {"kind": "parameter", "learns": true, "stored": "weights", "name": "0.weight",
                              "dtype": "float32", "shape": [4, 6]}, ...},
     "inputs": {"arguments": [["x", {"input": 0}]], "keywords": [], "sizes": [[null, 6]]},
     "nodes": [{"tensor": "0.weight"}, {"call": "aten.linear.default", "with": [{"node": 0}, {"node": 1}]}, ...],
     "outputs": {"node": 2}}

Numbers of nodes count the inputs first. A node is a tensor of the model, a call of an operation that `operators` allows
(`with` its arguments, `named` ones apart), or a region: a graph of its own under a setting, see `regions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from prunus.errors import ExportError
from prunus.formats.program.operators import GETITEM, NUMBERS, refusal
from prunus.formats.program.regions import REGIONS, graphs_of
from prunus.formats.program.structure import to_plain_structure
from prunus.formats.program.values import Inexpressible, to_plain
from prunus.runtime.precision import dtype_name
from prunus.surgery.rewritten import RewrittenModel

NAMES: dict[Any, str] = {f: n for n, f in NUMBERS.items()}
NEVER_WRITTEN = {
    torch.ops.aten.empty.memory_format: torch.ops.aten.zeros.default,
    torch.ops.aten.empty_like.default: torch.ops.aten.zeros_like.default,
    torch.ops.aten.new_empty.default: torch.ops.aten.new_zeros.default,
}
"""Memory that nobody has written holds anything; zeros are among it."""


def to_document(module: RewrittenModel, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A captured module as plain data, and its tensors that are stored nowhere else.

    Args:
        module: the captured model.
        weights: the tensors that the artifact stores as weights, under all their names; tied ones it stores under
            the first.

    Raises:
        ExportError: an operation, argument or output that plain data can't say, or that no artifact may hold.
    """
    try:
        return _document(module, weights)
    except Inexpressible as reason:
        raise ExportError(
            "program", f"plain data can't say it: {reason}", "load the artifact with the factory of the dense model"
        ) from reason


def _document(module: RewrittenModel, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    info = getattr(module.graph._codegen, "pytree_info", None)
    if info is None:
        raise Inexpressible("a graph without a record of its inputs")
    tensors: dict[str, Any] = {}
    constants: dict[str, Tensor] = {}
    persistent = {*module.state_dict()}
    first: dict[int, str] = {}
    for name, value in weights.items():
        first.setdefault(id(value), name)

    def tensor(name: str) -> Any:
        value = _attribute(module, name)
        if not isinstance(value, Tensor):
            raise Inexpressible(f"{name!r}, which is a {type(value).__name__}")
        if not _is_plain(value):
            raise Inexpressible(f"{name!r}, which is no plain tensor")
        parameter = isinstance(value, nn.Parameter)
        kind = "parameter" if parameter else "buffer" if name in persistent else "constant"
        known = weights.get(name)
        if known is not None and _same(known, value):
            place = {"stored": "weights", "name": first[id(known)]}
        else:
            here = next((n for n, t in constants.items() if t is value), name)
            constants[here] = value
            place = {"stored": "program", "name": here}
        entry = {"kind": kind, **place, "dtype": dtype_name(value.dtype), "shape": list(value.shape)}
        tensors[name] = entry | ({"learns": value.requires_grad} if parameter else {})
        return {"tensor": name}

    inputs, nodes, outputs = _graph(module, tensor)
    arguments, keywords = _inputs(info, inputs)
    outside = pytree.tree_unflatten([_Leaf(o) for o in outputs], info.out_spec)
    document = {
        "tensors": tensors,
        "inputs": {
            "arguments": arguments,
            "keywords": keywords,
            "sizes": None if module.takes is None else [None if t is None else list(t) for t in module.takes],
        },
        "nodes": nodes,
        "outputs": to_plain_structure(outside, _leaf),
    }
    return document, {n: t.detach() for n, t in constants.items()}


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and type(tensor) in (Tensor, nn.Parameter)


def _same(a: Tensor, b: Tensor) -> bool:
    """True if both are one tensor, or have the same bits."""
    if a is b:
        return True
    bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


class _Leaf:
    """Stands for an input or an output while their nesting is read."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _leaf(value: Any) -> Any:
    return value.value if isinstance(value, _Leaf) else to_plain(value, {})


def _inputs(info: Any, count: int) -> tuple[list[Any], list[Any]]:
    spec = info.in_spec
    if spec.num_leaves != count:
        raise Inexpressible(f"{spec.num_leaves} inputs, of which its graph has {count}")
    args, kwargs = pytree.tree_unflatten([_Leaf({"input": i}) for i in range(count)], spec)
    names = list(info.orig_args)
    arguments = [[name, to_plain_structure(value, _leaf)] for name, value in zip(names, args, strict=False)]
    return arguments, [[name, to_plain_structure(value, _leaf)] for name, value in kwargs.items()]


def _graph(module: fx.GraphModule, tensor: Any) -> tuple[int, list[Any], list[Any]]:
    """Number of inputs, nodes and outputs of a graph."""
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    number_of = {n: i for i, n in enumerate(placeholders)}
    nodes: list[Any] = []
    outputs: list[Any] = []
    for node in module.graph.nodes:
        if node.op == "output":
            found = node.args[0]
            outputs = [to_plain(v, number_of) for v in (found if isinstance(found, tuple | list) else [found])]
        elif node.op == "get_attr" and isinstance(_attribute(module, node.target), fx.GraphModule):
            continue  # said where it is called
        elif node.op == "get_attr" and not node.users and not _is_plain(_attribute(module, node.target)):
            continue  # a sparse buffer for the class's other methods, say
        elif node.op != "placeholder":
            nodes.append(tensor(node.target) if node.op == "get_attr" else _call(module, node, number_of))
            number_of[node] = len(placeholders) + len(nodes) - 1
    return len(placeholders), nodes, outputs


def _call(module: fx.GraphModule, node: fx.Node, number_of: Mapping[fx.Node, int]) -> dict[str, Any]:
    if node.op != "call_function":
        raise Inexpressible(f"a {node.op} of {node.target!r}")
    region = next((n for n, operation in REGIONS.items() if operation is node.target), None)
    if region is not None:
        return _region_call(module, node, region, number_of)
    target: Any = NEVER_WRITTEN.get(node.target, node.target)  # type: ignore[call-overload]
    named = dict(node.kwargs)
    if target is torch.ops.aten.zeros.default and named.pop("memory_format", None) not in (
        None, torch.contiguous_format,
    ):  # fmt: skip
        raise Inexpressible("aten.empty in another memory format")
    if isinstance(target, OpOverload):
        reason = refusal(target)
        if reason is not None:
            raise Inexpressible(f"{target} ({reason})")
        name = str(target)
    else:
        name = GETITEM if getattr(target, "__name__", "") == "getitem" else NAMES.get(target, "")
    if not name:
        raise Inexpressible(f"{target} (it is none of torch's own operations on tensors and sizes)")

    said = {"call": name, "with": [to_plain(a, number_of) for a in node.args]}
    return said | ({"named": {k: to_plain(v, number_of) for k, v in named.items()}} if named else {})


def _region_call(module: fx.GraphModule, node: fx.Node, name: str, number_of: Mapping[fx.Node, int]) -> dict[str, Any]:
    settings, holders, passed = graphs_of(name, node)
    if node.kwargs:
        raise Inexpressible(f"a region {name} with named arguments")
    return {
        "region": name,
        "settings": [to_plain(s, number_of) for s in settings],
        "graphs": [_region(_attribute(module, h.target)) for h in holders],
        "with": [to_plain(p, number_of) for p in passed],
    }


def _region(module: fx.GraphModule) -> dict[str, Any]:
    def tensor(name: str) -> Any:
        raise Inexpressible(f"a region that reads {name!r} by itself")

    inputs, nodes, outputs = _graph(module, tensor)
    return {"inputs": inputs, "nodes": nodes, "outputs": outputs}


def _attribute(module: nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value
