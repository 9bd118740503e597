"""A program from plain data to a module that trains. Nothing is run, imported or evaluated on the way.

Everything the file says is checked before it is used: sizes, nesting, names, operations, what a call is given, that a
node only uses what comes before it. The module computes through code that torch makes of its graph, so that no text of
the file may reach that code unchecked: names of nodes are torch's own, names of inputs and tensors are names of
Python or plain words, words among the arguments hold nothing that could end them.
"""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from prunus.files.decoding import Malformed
from prunus.formats.program.operators import GETITEM, NUMBERS, resolve
from prunus.formats.program.regions import DEPTH, REGIONS, arguments_of, checked_settings
from prunus.formats.program.signature import Kind, item_of, number_of, result_of
from prunus.formats.program.structure import from_plain_structure, is_name
from prunus.formats.program.values import from_plain
from prunus.runtime.precision import dtype_name
from prunus.surgery.rewritten import RewrittenModel, Sizes

MOST_NODES = 20_000
PART = re.compile(r"[A-Za-z0-9_ /:+@#=-]{1,200}")
"""A part of a tensor's name: letters, digits and signs that end no text."""
SHADOWED = {"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", "slice", "getattr", "math"}
"""Names that the code torch makes of a graph has use for."""
TAKEN = {*dir(fx.GraphModule(nn.Module(), fx.Graph()))}
"""Names of a captured module that no tensor may have."""


def to_module(document: Any, stored: Mapping[str, Mapping[str, Tensor]]) -> RewrittenModel:
    """The module of a document as `write.to_document` makes it.

    Args:
        document: plain data.
        stored: the tensors of the artifact's files, "weights" and "program", by the names they are stored under.

    Raises:
        Malformed: the document is no program, or one that may not be.
    """
    parts = _fields(document, {"tensors", "inputs", "nodes", "outputs"}, "program")
    root = nn.Module()
    _register(root, parts["tensors"], stored)
    graph = fx.Graph()
    build = _Build(root, graph, {*parts["tensors"]})
    names, in_spec = build.inputs(parts["inputs"])
    build.nodes(parts["nodes"])
    leaves, out_spec = pytree.tree_flatten(
        from_plain_structure(parts["outputs"], lambda d: _Leaf(from_plain(d, build.node)))
    )
    graph.output(tuple(leaf.value for leaf in leaves))
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, in_spec, out_spec)))
    module = RewrittenModel(root, graph)
    module.takes = _sizes(parts["inputs"]["sizes"], in_spec.num_leaves)
    return module


class _Leaf:
    """Stands for an input or an output while their nesting is made."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Build:
    """A graph that grows node by node.

    Attributes:
        root: module with the tensors and the graphs of regions.
        graph: what is built.
        tensors: names that nodes may read.
        found: the nodes by number.
        kinds: what each of them gives.
        left: how many more nodes there may be, in all graphs together.
        depth: how many regions it lies in.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, tensors: set[str], left: list[int] | None = None, depth: int = 0
    ) -> None:
        self.root, self.graph, self.tensors, self.depth = root, graph, tensors, depth
        self.found: list[fx.Node] = []
        self.kinds: dict[fx.Node, Kind] = {}
        self.left = [MOST_NODES] if left is None else left

    def node(self, number: int) -> fx.Node:
        """The node of a number; only what is built already has one."""
        if not 0 <= number < len(self.found):
            raise Malformed(f"node {len(self.found)} uses node {number}, which doesn't come before it")
        return self.found[number]

    def add(self, node: fx.Node, kind: Kind) -> None:
        """Take a node in under the next number."""
        self.left[0] -= 1
        if self.left[0] < 0:
            raise Malformed(f"more than {MOST_NODES} nodes")
        self.found.append(node)
        self.kinds[node] = kind

    def inputs(self, said: Any) -> tuple[list[str], pytree.TreeSpec]:
        """Make the placeholders; names of the arguments and how they nest."""
        parts = _fields(said, {"arguments", "keywords", "sizes"}, "inputs")
        names: list[str] = []
        made: dict[str, list[Any]] = {}
        for place in ("arguments", "keywords"):
            made[place] = []
            for pair in _list(parts[place], place):
                if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str:
                    raise Malformed(f"an input that is no name with its nesting: {str(pair)[:60]}")
                if not is_name(pair[0]) or pair[0] in SHADOWED or pair[0] in names:
                    raise Malformed(f"an input of the name {pair[0][:60]!r}")
                names.append(pair[0])
                made[place].append(from_plain_structure(pair[1], _Leaf))
        keywords = names[len(made["arguments"]) :]
        whole = (tuple(made["arguments"]), dict(zip(keywords, made["keywords"], strict=True)))
        leaves, spec = pytree.tree_flatten(whole)
        for number, leaf in enumerate(leaves):
            if leaf.value not in ({"input": number}, None):
                raise Malformed(f"input {number} is said as {str(leaf.value)[:60]}")
            self.add(self.graph.placeholder(f"input_{number}"), "tensor")
        return names, spec

    def nodes(self, said: Any) -> None:
        """Make the other nodes, in order."""
        if len(_list(said, "nodes")) > self.left[0]:
            raise Malformed(f"more than {MOST_NODES} nodes")
        for entry in said:
            if type(entry) is dict and {*entry} == {"tensor"}:
                if type(entry["tensor"]) is not str or entry["tensor"] not in self.tensors:
                    raise Malformed(f"a node reads {str(entry['tensor'])[:60]!r}, which is no tensor of the program")
                self.add(self.graph.create_node("get_attr", entry["tensor"]), "tensor")
            elif type(entry) is dict and "region" in entry:
                self._region(_fields(entry, {"region", "settings", "graphs", "with"}, "region"))
            else:
                self._call(_fields(entry, {"call", "with"}, "node", optional={"named"}))

    def _call(self, entry: dict[str, Any]) -> None:
        name, said = entry["call"], _list(entry["with"], "arguments")
        if type(name) is not str:
            raise Malformed(f"a call of {str(name)[:60]}")
        args = [from_plain(d, self.node) for d in said]
        kwargs = self._named(entry.get("named", {}))
        target: Any
        if name == GETITEM:
            target, kind = operator.getitem, item_of(args, kwargs, self.kinds)
        elif name in NUMBERS:
            target, kind = NUMBERS[name], number_of(name, args, kwargs, self.kinds)
        else:
            target = resolve(name)
            if target is None:
                raise Malformed(f"the operation {name[:80]!r}, which no program may hold")
            kind = result_of(name, target, args, kwargs, self.kinds)
        self.add(self.graph.call_function(target, tuple(args), kwargs), kind)

    def _named(self, said: Any) -> dict[str, Any]:
        if type(said) is not dict or not all(is_name(k) for k in said):
            raise Malformed(f"arguments by the names {str(said)[:60]}")
        return {k: from_plain(d, self.node) for k, d in said.items()}

    def _region(self, entry: dict[str, Any]) -> None:
        name, passed = entry["region"], [from_plain(d, self.node) for d in _list(entry["with"], "arguments")]
        if type(name) is not str or name not in REGIONS or self.depth == DEPTH:
            raise Malformed("regions nested too deep" if self.depth == DEPTH else f"a region {str(name)[:60]}")
        settings = [from_plain(d, self.node) for d in _list(entry["settings"], "settings")]
        graphs = _list(entry["graphs"], "graphs")
        checked_settings(name, settings, len(graphs), self.kinds)
        passed_kinds = [self.kinds[p] if isinstance(p, fx.Node) else "number" for p in passed]
        holders, results = [], []
        for said in graphs:
            inner, outputs = self._inside(_fields(said, {"inputs", "nodes", "outputs"}, "region"), passed_kinds)
            held = f"region_{sum(1 for _ in self.root.children())}"
            while hasattr(self.root, held):
                held += "_"
            self.root.add_module(held, inner)
            holders.append(self.graph.create_node("get_attr", held))
            results.append(outputs)
        if any(r != results[0] for r in results):
            raise Malformed("two branches that give different things")
        self.add(self.graph.call_function(REGIONS[name], arguments_of(name, settings, holders, passed)), results[0])

    def _inside(self, parts: dict[str, Any], passed: list[Kind]) -> tuple[fx.GraphModule, tuple[Kind, ...]]:
        """The graph of a region, and the kinds of what it gives."""
        if parts["inputs"] != len(passed) or type(parts["inputs"]) is not int:
            raise Malformed(f"a region of {str(parts['inputs'])[:20]} inputs that gets {len(passed)}")
        inner = _Build(nn.Module(), fx.Graph(), set(), self.left, self.depth + 1)
        for number, kind in enumerate(passed):
            inner.add(inner.graph.placeholder(f"input_{number}"), kind)
        inner.nodes(parts["nodes"])
        outputs = tuple(from_plain(d, inner.node) for d in _list(parts["outputs"], "outputs"))
        inner.graph.output(outputs)
        kinds = tuple(inner.kinds[o] if isinstance(o, fx.Node) else "number" for o in outputs)
        return fx.GraphModule(inner.root, inner.graph), kinds


def _sizes(said: Any, count: int) -> Sizes | None:
    """Sizes that the inputs have, None where they are free."""
    if said is None:
        return None
    for sizes in _list(said, "sizes"):
        if sizes is not None and not all(
            s is None or (type(s) is int and 0 <= s < 2**63) for s in _list(sizes, "sizes")
        ):
            raise Malformed(f"an input of the sizes {str(sizes)[:60]}")
    if len(said) != count:
        raise Malformed(f"sizes of {len(said)} inputs, and there are {count}")
    return tuple(None if sizes is None else tuple(sizes) for sizes in said)


def _register(root: nn.Module, said: Any, stored: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give the module its tensors under their names; entries of one stored tensor are one tensor."""
    if type(said) is not dict:
        raise Malformed("tensors that are no table")
    made: dict[tuple[str, str, bool], Tensor] = {}
    for name, entry in said.items():
        wanted = {"kind", "stored", "name", "dtype", "shape"}
        parts = _fields(entry, wanted, f"tensor {name[:60]!r}", optional={"learns"})
        kind, file, stored_as = parts["kind"], parts["stored"], parts["name"]
        words = all(type(said) is str for said in (kind, file, stored_as))
        if not words or kind not in ("parameter", "buffer", "constant") or file not in stored:
            raise Malformed(f"the tensor {name[:60]!r} is said as {str(entry)[:80]}")
        if stored_as not in stored[file]:
            raise Malformed(f"the tensor {name[:60]!r} is stored nowhere")
        value, learns = stored[file][stored_as], parts.get("learns", False)
        if [parts["dtype"], parts["shape"]] != [dtype_name(value.dtype), list(value.shape)]:
            said_as = f"{parts['dtype']} {parts['shape']}"[:80]
            raise Malformed(f"the tensor {name[:60]!r} is {dtype_name(value.dtype)} {list(value.shape)}, not {said_as}")
        if type(learns) is not bool or (learns and not (value.is_floating_point() or value.is_complex())):
            raise Malformed(f"the tensor {name[:60]!r} of {value.dtype} can't learn")
        key = (file, stored_as, kind == "parameter")
        if key not in made:
            made[key] = nn.Parameter(value, learns) if kind == "parameter" else value
        _place(root, name, made[key], kind == "buffer")


def _place(root: nn.Module, name: str, tensor: Tensor, persistent: bool) -> None:
    *path, last = name.split(".")
    owner: nn.Module = root
    for part in (*path, last):
        if not PART.fullmatch(part) or keyword.iskeyword(part) or part.startswith("__"):
            raise Malformed(f"a tensor of the name {name[:60]!r}")
    for part in path:
        if part not in owner._modules:
            if hasattr(owner, part) or (owner is root and part in TAKEN):
                raise Malformed(f"a tensor of the name {name[:60]!r}")
            owner.add_module(part, nn.Module())
        owner = owner._modules[part]  # type: ignore[assignment]
    if hasattr(owner, last) or (owner is root and last in TAKEN):
        raise Malformed(f"a tensor of the name {name[:60]!r}")
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(last, tensor)
    else:
        owner.register_buffer(last, tensor, persistent=persistent)


def _fields(said: Any, wanted: set[str], what: str, optional: set[str] | None = None) -> dict[str, Any]:
    if type(said) is not dict or not wanted <= {*said} <= wanted | (optional or set()):
        raise Malformed(f"a {what} without {sorted(wanted)}, or with something else: {str(said)[:60]}")
    return said


def _list(said: Any, what: str) -> list[Any]:
    if type(said) is not list:
        raise Malformed(f"{what} that are no list: {str(said)[:60]}")
    return said
