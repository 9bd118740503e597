"""Damaged and malicious programs of artifacts, made by a script, with right checksums: part of what `hostile.py` loads.

Each case is made of a sound artifact. A case whose payload runs leaves a canary: a file whose path it was given.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import shutil
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from options import Parser
from prunus.errors import ArtifactError

GRAPH, TENSORS, WEIGHTS, MANIFEST = "program.json", "program.safetensors", "weights.safetensors", "manifest.json"
Document = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One hostile artifact.

    Attributes:
        name: says what is wrong with it.
        make: (folder with a sound artifact, path of the canary) -> nothing; makes the folder the case.
    """

    name: str
    make: Callable[[Path, Path], None]


class Sound(nn.Module):
    """Small, with a kernel in a constant, texts among its arguments and sizes that follow the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.norm, self.out = nn.BatchNorm2d(8), nn.Linear(8 * 36, 4)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8).reshape(8, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.norm(self.conv(self.stem(x).relu())), approximate="tanh") * self.scale
        first, second = hidden.split(4, 1)
        with torch.autocast("cpu", enabled=False):
            hidden = torch.cat([first, second], 1).reshape(x.shape[0], -1)
        return self.out(hidden)


def sound_artifact(folder: Path) -> Path:
    """An artifact that loads; cases are made of copies of it."""
    torch.manual_seed(0)
    result = prunus.prune(Sound().eval(), torch.randn(2, 1, 8, 8), method="l1", target=0.25)
    return prunus.save(folder, result.model, result.plan)


def sign(folder: Path, **changes: Any) -> None:
    """Make the manifest's checksums right, as an attacker would."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text()) | changes
    for name in [*manifest["sha256"], GRAPH, TENSORS]:
        file = folder / name
        if file.is_file():
            manifest["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        else:
            manifest["sha256"].pop(name, None)
    path.write_text(json.dumps(manifest))


def cases() -> list[Case]:
    """Every case; loading each without a factory must end in an ArtifactError, and in nothing else."""
    return [*_operations(), *_code_in_names(), *_code_in_texts(), *_references(), *_values(), *_shapes(), *_nesting(),
            *_tensors(), *_regions(), *_outputs(), *_files(), *_old_programs()]  # fmt: skip


def program_cases(whole: Path) -> list[tuple[str, Callable[[Path, Path], None]]]:
    """The cases for `hostile.py`: names, and what turns the folder of any artifact into the case."""
    sound = sound_artifact(whole.with_name("sound program"))

    def made(case: Case, folder: Path, canary: Path) -> None:
        shutil.rmtree(folder)
        shutil.copytree(sound, folder)
        case.make(folder, canary)

    return [(case.name, partial(made, case)) for case in cases()]


def _edited(name: str, edit: Callable[[Document, str], Any]) -> Case:
    """A case by an edit of the graph's document; `edit` gets the canary's path, and may return a new document."""

    def make(folder: Path, canary: Path) -> None:
        document = json.loads((folder / GRAPH).read_text())
        document = edit(document, str(canary)) or document
        (folder / GRAPH).write_text(json.dumps(document))
        sign(folder)

    return Case(name, make)


def _raw(name: str, content: Callable[[bytes, str], bytes], file: str = GRAPH) -> Case:
    def make(folder: Path, canary: Path) -> None:
        path = folder / file
        path.write_bytes(content(path.read_bytes() if path.exists() else b"", str(canary)))
        sign(folder)

    return Case(name, make)


def _calls(document: Document) -> list[dict[str, Any]]:
    return [n for n in document["nodes"] if "call" in n]


def _first(document: Document, operation: str) -> dict[str, Any]:
    return next(n for n in _calls(document) if n["call"] == operation)


def _append(document: Document, node: Any) -> None:
    """A node at the end, whose result is the output."""
    inputs = len(document["inputs"]["arguments"])
    document["nodes"].append(node)
    document["outputs"] = {"node": inputs + len(document["nodes"]) - 1}


def _call(operation: Any, *args: Any, **named: Any) -> Callable[[Document, str], None]:
    """Appends a call; a "CANARY" among its arguments becomes the canary's path."""

    def edit(document: Document, canary: str) -> None:
        said = json.loads(json.dumps([list(args), named]).replace("CANARY", canary))
        _append(document, {"call": operation, "with": said[0], "named": said[1]})

    return edit


X = {"node": 0}


def _operations() -> list[Case]:
    calls: dict[str, tuple[Any, ...]] = {
        "aten.from_file.default": ("CANARY", True, 64),
        "aten.set_.source_Tensor": (X, X),
        "aten.set_.source_Tensor_storage_offset": (X, X, 10**9, [4], [1]),
        "aten.resize_.default": (X, [10**6]),
        "aten.as_strided.default": (X, [10], [1], 10**6),
        "aten.as_strided_.default": (X, [10], [1], 10**6),
        "aten.empty.memory_format": ([1000],),
        "aten.empty_strided.default": ([10], [1]),
        "aten.new_empty.default": (X, [10]),
        "aten._nested_view_from_buffer.default": (X, X, X, X),
        "aten._sparse_coo_tensor_unsafe.default": (X, X, [4]),
        "aten._embedding_bag.default": (X, X, X),
        "aten.sparse_coo_tensor.indices": (X, X),
        "aten.quantize_per_tensor.default": (X, 1.0, 0, {"dtype": "int8"}),
        "aten.fbgemm_pack_gemm_matrix_fp16.default": (X,),
        "aten._weight_int4pack_mm.default": (X, X, 32, X),
        "aten.relu_backward.default": (X, X),
        "aten.embedding_dense_backward.default": (X, X, 10**9, -1, False),
        "aten.add.out": (X, X),
        "aten.record_stream.default": (X, 0),
        "aten.data.default": (X,),
        "aten.__class__.mro": (),
        "aten.add.__class__": (X, X),
        "aten.add._schema": (X, X),
        "aten.add": (X, X),
        "aten..": (X,),
        "aten.add.Tensor\n": (X, X),
        "prunus.condensed.default": (X, X, X),
        "torchvision.nms.default": (X, X, 0.5),
        "higher_order.wrap_with_autocast": (X,),
        "prims.add.default": (X, X),
        "os.system": ("touch CANARY",),
        "builtins.eval": ("open('CANARY','w')",),
        "operator.call": (X,),
        "operator.attrgetter": ("__class__",),
        "operator.methodcaller": ("__reduce__",),
        "operator.pow": (10, 10**9),
        "math.factorial": (10**7,),
        "torch.load": ("CANARY",),
        "torch.hub.load": ("CANARY", "x"),
        "": (X,),
    }
    found = [_edited(f"operation {name!r}", _call(name, *args)) for name, args in calls.items()]
    for odd in (None, 7, ["aten.relu.default"], {"node": 0}):
        found.append(_edited(f"operation {odd!r}", _call(odd, X)))
    return found


def _code_in_names() -> list[Case]:
    def input_named(name: Any) -> Callable[[Document, str], None]:
        def edit(document: Document, canary: str) -> None:
            said = name.replace("CANARY", canary) if isinstance(name, str) else name
            document["inputs"]["arguments"][0][0] = said

        return edit

    def keyword_named(name: str) -> Callable[[Document, str], None]:
        def edit(document: Document, canary: str) -> None:
            document["inputs"]["keywords"] = [
                [name.replace("CANARY", canary), document["inputs"]["arguments"].pop()[1]]
            ]

        return edit

    def tensor_named(name: str) -> Callable[[Document, str], None]:
        def edit(document: Document, canary: str) -> None:
            said, old = name.replace("CANARY", canary), next(iter(document["tensors"]))
            document["tensors"][said] = document["tensors"].pop(old)
            for node in document["nodes"]:
                if node.get("tensor") == old:
                    node["tensor"] = said

        return edit

    def named_argument(name: str) -> Callable[[Document, str], None]:
        def edit(document: Document, canary: str) -> None:
            _append(document, {"call": "aten.relu.default", "with": [], "named": {name.replace("CANARY", canary): X}})

        return edit

    code = "open('CANARY','w')"
    inputs = (
        f"x={code}", f"x):\n    {code}\ndef f(", f"x:{code}", f"x, y=({code})", "self", "lambda", "torch", "device",
        "inf", "__builtins__", "x y", "x\n", "", "1x", "x" * 10_000, "ｘ", None, 3, ["x"],
    )  # fmt: skip
    keywords = (f"a': {code}, 'b", f"a={code}", "a'b", "self", "a\\", "class")
    tensors = (
        f'0"), {code}, ("', f"weight\n{code}", f"weight;{code}", "a\\", "__class__.__init__", "__dict__", "forward",
        "forward.weight", "train", "graph", "code", "_parameters.weight", "_forward_hooks.weight", "recompile", "",
        ".", "a..b", "a.", ".a", "conv.weight.deeper.than", "class.weight", "x" * 10_000, "state_dict",
    )  # fmt: skip
    named = (f"input={code}", f"self)\n{code}#", "self'", "", "out", "__class__")
    return [
        *(_edited(f"input named {str(n)[:30]!r}", input_named(n)) for n in inputs),
        *(_edited(f"keyword named {n[:30]!r}", keyword_named(n)) for n in keywords),
        *(_edited(f"tensor named {n[:30]!r}", tensor_named(n)) for n in tensors),
        *(_edited(f"argument named {n[:30]!r}", named_argument(n)) for n in named),
    ]


def _code_in_texts() -> list[Case]:
    texts = ("tanh'); open('CANARY','w'); ('", "tanh\\", 'tanh"', "tanh\n", "t\0", "t" * 1000, "{open('CANARY')}")

    def said(text: str) -> Callable[[Document, str], None]:
        def edit(document: Document, canary: str) -> None:
            _first(document, "aten.gelu.default")["named"]["approximate"] = text.replace("CANARY", canary)

        return edit

    einsum = _call("aten.einsum.default", "ij'+open('CANARY','w')", [X])
    return [
        *(_edited(f"text {t[:30]!r}", said(t)) for t in texts),
        _edited("equation with code", einsum),
        _edited("message with code", _call("aten._assert_async.msg", X, "'+open('CANARY','w')+'")),
    ]


def _references() -> list[Case]:
    def refer(number: Any) -> Callable[[Document, str], None]:
        def edit(document: Document, canary: str) -> None:
            _first(document, "aten.conv2d.default")["with"][0] = {"node": number}

        return edit

    def itself(document: Document, canary: str) -> None:
        node = _first(document, "aten.conv2d.default")
        own = len(document["inputs"]["arguments"]) + document["nodes"].index(node)
        node["with"][0] = {"node": own}

    def circle(document: Document, canary: str) -> None:
        _append(document, {"call": "aten.relu.default", "with": [X]})
        last = document["outputs"]["node"]
        _first(document, "aten.conv2d.default")["with"][0] = {"node": last}

    return [
        *(_edited(f"node {n!r}", refer(n)) for n in (-1, 10**6, 2**70, 1.0, True, "0", None, [0], {"node": 0})),
        _edited("a node that uses itself", itself),
        _edited("a circle of nodes", circle),
        _edited("an input that says another", lambda d, _: d["inputs"]["arguments"][0].__setitem__(1, {"input": 1})),
        _edited("an input of code", lambda d, c: d["inputs"]["arguments"][0].__setitem__(1, f"open('{c}','w')")),
        _edited("an item out of range", _call("operator.getitem", X, 0)),
        _edited("an item by a text", _call("operator.getitem", X, "__class__")),
        _edited("no nodes, and an output", lambda d, _: d.update(nodes=[])),
    ]


def _values() -> list[Case]:
    wrong: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
        "too few arguments": ("aten.add.Tensor", (X,), {}),
        "too many arguments": ("aten.relu.default", (X, X, X), {}),
        "an argument twice": ("aten.relu.default", (X,), {"self": X}),
        "an argument that there is not": ("aten.relu.default", (X,), {"inplace": True}),
        "a text for a tensor": ("aten.relu.default", ("x",), {}),
        "a list for a tensor": ("aten.relu.default", ([X],), {}),
        "none for a tensor": ("aten.relu.default", (None,), {}),
        "a tensor for sizes": ("aten.zeros.default", (X,), {}),
        "texts for sizes": ("aten.view.default", (X, ["a", "b"]), {}),
        "fractions for sizes": ("aten.view.default", (X, [1.5, 2]), {}),
        "a switch for a dimension": ("aten.select.int", (X, True, 0), {}),
        "a dtype that there is not": ("aten.to.dtype", (X, {"dtype": "__class__"}), {}),
        "a quantised dtype": ("aten.to.dtype", (X, {"dtype": "qint8"}), {}),
        "a sparse layout": ("aten.zeros.default", ([2],), {"layout": {"layout": "sparse_coo"}}),
        "another device": ("aten.zeros.default", ([2],), {"device": {"device": "cuda:0"}}),
        "a device of code": ("aten.zeros.default", ([2],), {"device": {"device": "open('CANARY','w')"}}),
        "an unknown tag": ("aten.relu.default", ({"object": "os.system"},), {}),
        "a pickle in a value": ("aten.relu.default", ({"pickle": "gASVAA=="},), {}),
        "an expression": ("aten.view.default", (X, [{"expr_str": "open('CANARY','w').fileno()*0+7"}]), {}),
        "two tags": ("aten.relu.default", ({"node": 0, "dtype": "float32"},), {}),
        "no tag": ("aten.relu.default", ({},), {}),
        "a float of code": ("aten.mul.Tensor", (X, {"float": "__import__('os')"}), {}),
        "half a complex number": ("aten.mul.Tensor", (X, {"complex": [1.0]}), {}),
        "a complex number of texts": ("aten.mul.Tensor", (X, {"complex": ["0", "1"]}), {}),
        "an integer of 100 digits": ("aten.mul.Tensor", (X, 10**100), {}),
        "an integer of 5000 digits": ("aten.mul.Tensor", (X, 10**4000), {}),
        "arithmetic of a tensor": ("operator.add", (X, 1), {}),
        "arithmetic of texts": ("operator.mul", ("x", 10**9), {}),
        "arithmetic of lists": ("operator.add", ([1], [2]), {}),
        "a random generator": ("aten.rand.generator", ([2],), {"generator": 7}),
    }
    found = [_edited(name, _call(operation, *args, **named)) for name, (operation, args, named) in wrong.items()]
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        found.append(
            _raw(f"the number {word}", lambda b, _, w=word: b.replace(b'"tanh"', w.encode()))  # type: ignore[misc]
        )
    found.append(_raw("a name twice", lambda b, _: b.replace(b'{"tensors":', b'{"nodes":[],"tensors":', 1)))
    return found


def _shapes() -> list[Case]:
    calls = {
        "zeros": ("aten.zeros.default", ([10**6, 10**6],)),
        "ones of negative sizes": ("aten.ones.default", ([-(10**6), -(10**6)],)),
        "full": ("aten.full.default", ([10**12], 1.0)),
        "randn": ("aten.randn.default", ([2**40],)),
        "arange": ("aten.arange.default", (10**15,)),
        "arange with ends": ("aten.arange.start_step", (0.0, 1e18, 1.0)),
        "linspace": ("aten.linspace.default", (0.0, 1.0, 10**13)),
        "eye": ("aten.eye.default", (10**10,)),
        "tril_indices": ("aten.tril_indices.default", (10**8, 10**8)),
        "randperm": ("aten.randperm.default", (10**14,)),
        "a window": ("aten.hann_window.default", (10**13,)),
    }
    return [_edited(f"giant {name}", _call(operation, *args)) for name, (operation, args) in calls.items()]


def _nesting() -> list[Case]:
    def deep(depth: int, tag: str | None = None) -> Any:
        value: Any = X
        for _ in range(depth):
            value = {tag: [value]} if tag else [value]
        return value

    def many(document: Document, canary: str) -> None:
        document["nodes"] += [{"call": "aten.relu.default", "with": [X]}] * 60_000

    return [
        _edited("arguments 100 deep", lambda d, _: _append(d, {"call": "aten.cat.default", "with": [deep(100)]})),
        _edited("outputs 200 deep", lambda d, _: d.update(outputs=deep(200, "tuple"))),
        _edited("inputs 200 deep", lambda d, _: d["inputs"]["arguments"][0].__setitem__(1, deep(200, "list"))),
        _edited("60,000 nodes", many),
        _edited("tensors 700 deep", lambda d, _: d.update(tensors={"conv.weight": deep(700)})),
        _edited("an operation 700 deep", _call(deep(700), X)),
        _raw("JSON 100,000 deep", lambda b, _: b"[" * 100_000 + b"]" * 100_000),
        _raw("a million and a half lists", lambda b, _: b"[" + b"[]," * 1_500_000 + b"[]]"),
        _raw("20 MB of spaces", lambda b, _: b + b" " * 20_000_000),
        _raw("a text of 10 MB", lambda b, _: json.dumps({"tensors": "x" * 10_000_000}).encode()),
    ]


def _tensors() -> list[Case]:
    def entry(**changes: Any) -> Callable[[Document, str], None]:
        def edit(document: Document, canary: str) -> None:
            name = next(n for n, e in document["tensors"].items() if e["kind"] == "parameter")
            document["tensors"][name] |= {
                k: v.replace("CANARY", canary) if isinstance(v, str) else v for k, v in changes.items()
            }

        return edit

    def read_unknown(document: Document, canary: str) -> None:
        document["nodes"].append({"tensor": "nowhere.weight"})

    def counter_learns(document: Document, canary: str) -> None:
        for name, said in document["tensors"].items():
            if "num_batches" in name:
                document["tensors"][name] = {**said, "kind": "parameter", "learns": True}

    return [
        _edited("a tensor stored nowhere", entry(name="nowhere.weight")),
        _edited("a tensor in another file", entry(stored="/etc/passwd")),
        _edited("a tensor outside the folder", entry(stored="../../weights")),
        _edited("a tensor by a number", entry(name=0)),
        _edited("a tensor in a file by a list", entry(stored=[])),
        _edited("a tensor of a kind by a table", entry(kind={})),
        _edited("a tensor of unknown kind", entry(kind="open('CANARY','w')")),
        _edited("a tensor that learns by text", entry(learns="yes")),
        _edited("a tensor with more said", entry(hook="os.system")),
        _edited("tensors in a list", lambda d, _: d.update(tensors=[*d["tensors"]])),
        _edited("a tensor that is no table", lambda d, _: d["tensors"].update({"conv.bias": 3})),
        _edited("an integer that learns", counter_learns),
        _edited("a node of an unknown tensor", read_unknown),
        _edited("a node of a list", lambda d, _: d["nodes"].append(["aten.relu.default"])),
        _edited("a node of two kinds", lambda d, _: d["nodes"].append({"tensor": "conv.weight", "call": "x"})),
        _edited("a node with code beside", lambda d, _: _calls(d)[0].update(code="x")),
        _edited("sizes of other inputs", lambda d, _: d["inputs"].update(sizes=[[2], [3]])),
        _edited("sizes of texts", lambda d, _: d["inputs"].update(sizes=[["a"]])),
    ]


def _region(**changes: Any) -> Callable[[Document, str], None]:
    said = {
        "region": "set_grad", "settings": [False],
        "graphs": [{"inputs": 1, "nodes": [{"call": "aten.relu.default", "with": [X]}], "outputs": [{"node": 1}]}],
        "with": [X],
    }  # fmt: skip

    def edit(document: Document, canary: str) -> None:
        _append(document, copy.deepcopy({**said, **changes}))

    return edit


def _regions() -> list[Case]:
    def inner(**changes: Any) -> dict[str, Any]:
        return {"inputs": 1, "nodes": [], "outputs": [X], **changes}

    deep = inner()
    for _ in range(40):
        nodes = [{"region": "set_grad", "settings": [True], "graphs": [deep], "with": [X]}]
        deep = inner(nodes=nodes, outputs=[{"node": 1}])
    return [
        _edited("an unknown region", _region(region="map")),
        _edited("a region of a list", _region(region=["cond"])),
        _edited("a region with settings of code", _region(settings=["open('x')"])),
        _edited("a region without settings", _region(settings=[])),
        _edited("a region without graphs", _region(graphs=[])),
        _edited("a region with two graphs", _region(graphs=[inner(), inner()])),
        _edited("a region 40 deep", _region(graphs=[deep])),
        _edited("a region that reads a tensor", _region(graphs=[inner(nodes=[{"tensor": "conv.weight"}])])),
        _edited("a region of more inputs", _region(graphs=[inner(inputs=10**9)])),
        _edited("a region that uses what is outside", _region(graphs=[inner(outputs=[{"node": 5}])])),
        _edited("autocast of a device of code",
                _region(region="autocast", settings=["os", {"dtype": "bfloat16"}, True, None])),
        _edited("branches that differ", _region(region="cond", settings=[X], graphs=[inner(), inner(outputs=[])])),
        _edited("a region with forbidden calls",
                _region(graphs=[inner(nodes=[{"call": "aten.from_file.default", "with": ["x"]}])])),
    ]  # fmt: skip


def _outputs() -> list[Case]:
    odd = {
        "a node that there is not": {"node": 10**6},
        "a class": {"class": "os.system"},
        "names that are none": {"named": [["__class__", X]]},
        "names of code": {"named": [["x=open('c','w')", X]]},
        "a name twice": {"named": [["a", X], ["a", X]]},
        "keys of lists": {"dict": [[[1], X]]},
        "keys of quotes": {"dict": [["'", X]]},
        "pairs of three": {"dict": [["a", X, X]]},
        "a tuple of a text": {"tuple": "abc"},
        "code": "open('c','w')\n",
    }
    return [_edited(f"outputs: {name}", lambda d, _, o=o: d.update(outputs=o)) for name, o in odd.items()]  # type: ignore[misc]


class _Payload:
    """Leaves the canary when it is unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.canary, "w")


def _pickled(canary: str) -> bytes:
    return pickle.dumps(_Payload(canary))


def _header(said: Any, data: bytes = b"") -> bytes:
    text = json.dumps(said).encode()
    return struct.pack("<Q", len(text)) + text + data


def _files() -> list[Case]:
    giant = {"scale": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
    small = {"scale": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}

    def unsigned(folder: Path, canary: Path) -> None:
        path = folder / MANIFEST
        manifest = json.loads(path.read_text())
        del manifest["sha256"][TENSORS]
        path.write_text(json.dumps(manifest))

    return [
        _raw("an empty graph", lambda b, _: b""),
        _raw("half a graph", lambda b, _: b[: len(b) // 2]),
        _raw("a graph that is no text", lambda b, _: b"\xff\xfe" + b),
        _raw("a graph in a list", lambda b, _: b"[" + b + b"]"),
        _raw("a graph of null", lambda b, _: b"null"),
        _raw("a graph that is a number", lambda b, _: b"3"),
        _raw("an empty object", lambda b, _: b"{}"),
        _raw("a pickle for a graph", lambda b, c: _pickled(c)),
        _raw("a pickle for tensors", lambda b, c: _pickled(c), TENSORS),
        _raw("no tensors", lambda b, _: b"", TENSORS),
        _raw("half the tensors", lambda b, _: b[: len(b) // 2], TENSORS),
        _raw("tensors with a giant header", lambda b, _: struct.pack("<Q", 2**60) + b, TENSORS),
        _raw("tensors larger than their file", lambda b, _: _header(giant), TENSORS),
        _raw("tensors of other sizes than their bytes", lambda b, _: _header(small, b"\0" * 4), TENSORS),
        Case("tensors without a checksum", unsigned),
        _raw("other tensors", lambda b, _: _header({}), TENSORS),
        _raw("weights of no tensors", lambda b, _: _header({}), WEIGHTS),
        _raw("a pickle for weights", lambda b, c: _pickled(c), WEIGHTS),
    ]


def _old_programs() -> list[Case]:
    """What a program could do in the first format, where it was one of torch's archives."""

    def old(content: Callable[[str], bytes]) -> Callable[[Path, Path], None]:
        def make(folder: Path, canary: Path) -> None:
            (folder / GRAPH).unlink()
            (folder / TENSORS).unlink(missing_ok=True)
            (folder / "program.pt2").write_bytes(content(str(canary)))
            manifest = json.loads((folder / MANIFEST).read_text())
            sign(folder, format=1, sha256={**manifest["sha256"], "program.pt2": ""})

        return make

    def archive(edit: Callable[[str, bytes, str], bytes]) -> Callable[[str], bytes]:
        def content(canary: str) -> bytes:
            whole = io.BytesIO()
            torch.export.save(torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(2, 2),)), whole)
            changed = io.BytesIO()
            with zipfile.ZipFile(whole) as before, zipfile.ZipFile(changed, "w") as after:
                for name in before.namelist():
                    after.writestr(name, edit(name, before.read(name), canary))
            return changed.getvalue()

        return content

    def pickled_weights(name: str, data: bytes, canary: str) -> bytes:
        if "weights" in name and name.endswith(".json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
                b'"use_pickle":false', b'"use_pickle":true'
            )
        return _pickled(canary) if "weight_0" in name else data

    def pickled_inputs(name: str, data: bytes, canary: str) -> bytes:
        return _pickled(canary) if "sample_inputs" in name else data

    def opaque(name: str, data: bytes, canary: str) -> bytes:
        return _pickled(canary) if "constants" in name else data

    def expression(name: str, data: bytes, canary: str) -> bytes:
        code = f"open('{canary}','w').fileno()*0+2"
        return data.replace(b'{"as_int": 2}', json.dumps({"as_expr": {"expr_str": code}}).encode())

    return [
        Case("an old program: pickled weights", old(archive(pickled_weights))),
        Case("an old program: pickled inputs", old(archive(pickled_inputs))),
        Case("an old program: an opaque constant", old(archive(opaque))),
        Case("an old program: an expression", old(archive(expression))),
        Case("an old program: a bare pickle", old(_pickled)),
    ]


def attempt(case: Case, sound: Path, place: Path) -> tuple[str | None, float]:
    """What is wrong with how a case ends (None if nothing is), and seconds that loading it took."""
    canary, folder = place / "canary", place / "artifact"
    shutil.copytree(sound, folder)
    try:
        case.make(folder, canary)
        start = time.perf_counter()
        try:
            prunus.load(folder)
            problem: str | None = "it was loaded"
        except ArtifactError:
            problem = None
        except BaseException as error:
            problem = f"it ended in {type(error).__name__}: {error}"
        seconds = time.perf_counter() - start
        return "its code ran" if canary.exists() else problem, seconds
    finally:
        shutil.rmtree(folder)
        canary.unlink(missing_ok=True)


def main() -> None:
    """Load every case; exit with 1 if one does not end as it must."""
    args = Parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        sound = sound_artifact(place / "sound")
        prunus.load(sound)
        found = {case.name: attempt(case, sound, place) for case in cases()[:: 10 if args.smoke else 1]}
    wrong = {name: problem for name, (problem, _) in found.items() if problem is not None}
    for name, problem in wrong.items():
        print(f"{name}: {problem}")
    slowest = max(found, key=lambda n: found[n][1])
    print(f"{len(found)} cases, {len(wrong)} wrong; the slowest took {found[slowest][1]:.2f} s ({slowest})")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
