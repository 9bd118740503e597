"""Triton kernels of condensed layers: interpreted on the CPU, compiled for GPUs that need not be here, and run on one.

Triton's interpreter has to be asked for before triton is imported, so it gets a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import prunus
from prunus.errors import ConfigError
from prunus.kernels import products as loops
from prunus.sparse import operations as kernels
from prunus.sparse.layers import CondensedLinear

ROOT = Path(__file__).parents[1]
MODULE = "prunus.kernels.triton"
F32, F16, B16, I16, I32, I64 = (
    torch.float32, torch.float16, torch.bfloat16, torch.int16, torch.int32, torch.int64,
)  # fmt: skip
SHAPES = [(1, 33, 7, 5), (3, 40, 9, 1), (2, 65_536, 5, 300), (17, 129, 10, 70), (64, 100, 6, 40), (67, 21, 1, 20)]
"""Examples, inputs, outputs, values per output: odd sizes, one of each, more than a block of each, long columns."""
TYPES = [(F32, F32, I16), (F32, B16, I32), (F16, F32, I64), (B16, F16, I16)]
"""Of x, values and index."""
FENCE = 4096

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def fenced(shape: tuple[int, int], like: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """A tensor of NaN (or the value, for integers) in the middle of a longer one full of the value."""
    room = torch.full((shape[0] * shape[1] + 2 * FENCE,), value, dtype=like.dtype, device=like.device)
    inner = room[FENCE:-FENCE].view(shape)
    return (inner.fill_(float("nan")) if like.is_floating_point() else inner), room


def surrounded(tensor: Tensor) -> Tensor:
    """The same numbers with NaN before and after, or columns that are wrong."""
    inner, _ = fenced((len(tensor), tensor.shape[1]), tensor, float("nan") if tensor.is_floating_point() else 1)
    return inner.copy_(tensor)


def case(shape: tuple[int, int, int, int], types: Any, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, values, index and the product wanted; no output reads column 0 of x, which is infinite."""
    batch, inputs, outputs, kept = shape
    generator = torch.Generator().manual_seed(batch)
    index = 1 + torch.rand(outputs, inputs - 1, generator=generator).topk(kept).indices.sort().values
    x = torch.randn(batch, inputs, generator=generator).to(types[0])
    values = torch.randn(outputs, kept, generator=generator).to(types[1])
    dense = torch.zeros(outputs, inputs, dtype=torch.float64).scatter_(1, index, values.double())
    wanted = x.double() @ dense.t()
    x[:, 0] = float("inf")
    narrow = kernels.narrow(index, inputs) if types[2] == I16 else index.to(types[2])
    return *(surrounded(t.to(device)) for t in (x, values, narrow)), wanted  # type: ignore[return-value]


def compared(device: str) -> dict[str, float]:
    """The largest error of every case, as a part of the largest output; infinity where a number outside is written."""
    from prunus.kernels.triton import triton_product

    plain, found = torch.Tensor.new_empty, {}
    for number, shape in enumerate(SHAPES):
        # All types meet both kernels; not at every shape, for the interpreter takes its time.
        for types in TYPES[number % 2 :: 2] if device == "cpu" else TYPES:
            x, values, index, wanted = case(shape, types, device)
            for few in (0, 1000):
                rooms: list[Tensor] = []

                def made(self: Tensor, *size: Any, rooms: list[Tensor] = rooms, **other: Any) -> Tensor:
                    if len(size) != 2:
                        return plain(self, *size, **other)
                    inner, room = fenced(size, self, 7)
                    rooms.append(room)
                    return inner

                with mock.patch.object(torch.Tensor, "new_empty", made):
                    out = triton_product(x, values, index, few)
                assert out.dtype == x.dtype
                error = float((out.cpu().double() - wanted).abs().max() / wanted.abs().max())
                kept = all(bool((r[:FENCE] == 7).all() & (r[-FENCE:] == 7).all()) for r in rooms)
                found[f"{shape} {types} few={few}"] = error if len(rooms) == 1 and kept else float("inf")
    return found


def layers_agree(device: str) -> dict[str, float]:
    """Errors of a whole layer and its gradients, the Triton kernels below it, called and captured."""
    torch.manual_seed(0)
    index = torch.stack([torch.randperm(50)[:9].sort().values for _ in range(6)]).to(device)
    layer = CondensedLinear(torch.randn(6, 9, device=device), index, 50, torch.randn(6, device=device))
    dense = nn.Linear(50, 6).to(device)
    with torch.no_grad():
        dense.weight.copy_(layer.dense_weight())
        dense.bias.copy_(layer.bias)  # type: ignore[arg-type]
    found = {}
    for batch in (2, 20):
        x = torch.randn(batch, 50, device=device, requires_grad=True)
        out, wanted = layer(x), dense(x)
        pairs = [(out, wanted), (torch.compile(layer, backend="aot_eager", fullgraph=True)(x), wanted)]
        with torch.no_grad():
            pairs.append((layer(x), wanted))
        for_x, for_values = torch.autograd.grad(out.square().sum(), (x, layer.values))
        wanted_x, for_weight = torch.autograd.grad(wanted.square().sum(), (x, dense.weight))
        pairs += [(for_x, wanted_x), (for_values, for_weight.gather(1, index))]
        for number, (one, other) in enumerate(pairs):
            found[f"layer, batch {batch}, {number}"] = float((one - other).abs().max() / other.abs().max())
    assert layer._wide is None, "wide columns are kept for nothing"
    return found


def let_old_interpreters_loop() -> None:
    """Triton's interpreter of 3.5 turns its scalars into an index in a way that numpy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *others: Any) -> None:
        patch(tensor, *others)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def interpreted() -> None:
    """In a process of its own: print the errors in one line, and after it what the benchmark prints."""
    let_old_interpreters_loop()
    import condensed_cost
    from prunus.kernels.triton import triton_product

    found = compared("cpu")
    on_cuda = mock.patch.object(kernels, "_on_cuda", return_value=triton_product)
    with on_cuda, mock.patch.object(loops, "available", return_value=False):
        found |= layers_agree("cpu")
    print(json.dumps(found))
    arguments = "--device interpreter --sizes 8 --densities 0.5 --batches 17 --repeats 2"
    with mock.patch.object(sys, "argv", ["condensed_cost.py", *arguments.split()]):
        condensed_cost.main()


@pytest.fixture(scope="module")
def printed() -> str:
    """What `interpreted` prints."""
    paths = [str(Path(prunus.__file__).parents[1]), str(Path(__file__).parent), str(ROOT / "benchmarks")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([*paths, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", "import test_sparse_triton; test_sparse_triton.interpreted()"],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def allowed(name: str) -> float:
    """Rounding of the output: fp32, or the type of x."""
    return 2**-7 if f"({B16}" in name else 2**-10 if f"({F16}" in name else 2e-6


def assert_small(errors: dict[str, float], cases: int) -> None:
    assert len(errors) == cases
    # Not "error > allowed": NaN is wrong, too.
    assert {n: e for n, e in errors.items() if not e <= allowed(n)} == {}


@needs_triton
def test_kernels_and_layers_agree_with_dense_ones_in_the_interpreter(printed: str) -> None:
    assert_small(json.loads(printed.splitlines()[0]), len(SHAPES) * 2 * 2 + 10)


@needs_triton
def test_the_benchmark_runs_in_the_interpreter(printed: str) -> None:
    for way in (
        "dense fp32",
        "dense bf16",
        "torch CSR",
        "embedding_bag",
        "condensed, as few",
        "condensed, bf16, as many",
    ):
        assert printed.count(f"  {way}") == 1, printed


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_and_layers_agree_with_dense_ones_on_a_gpu() -> None:
    assert_small(compared("cuda"), len(SHAPES) * len(TYPES) * 2)
    assert kernels._triton(torch.zeros(1, device="cuda").device) is not None
    # cuBLAS, that they are compared with, sums in an order of its own.
    assert max(layers_agree("cuda").values()) < 1e-5


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 20e9, reason="no CUDA device with 20 GB free"
)
def test_offsets_beyond_31_bits() -> None:
    from prunus.kernels.triton import triton_product

    x = torch.zeros(2, 2**30 + 8, dtype=B16, device="cuda")
    x[1, -1], x[1, 5] = 3, 1
    index = torch.tensor([[5, 2**30 + 7]], dtype=I32, device="cuda")
    for few in (0, 16):
        assert triton_product(x, torch.ones(1, 2, device="cuda"), index, few).tolist() == [[0], [4]]
    del x
    values = torch.zeros(2**23 + 1, 256, dtype=B16, device="cuda")
    values[-1] = 1
    index = torch.arange(256, dtype=I16, device="cuda").repeat(len(values), 1)
    for batch in (1, 17):
        out = triton_product(torch.ones(batch, 256, device="cuda"), values, index)
        assert out[:, -1].tolist() == [256] * batch
        assert not bool(out[:, :-1].any())


@needs_triton
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="kernels are interpreted in this process")
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus_that_are_not_here(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from prunus.kernels import triton as triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, batch, kept, types in (
        (triton_kernels._few, 1, 1, "fp32 bf16 i16"),
        (triton_kernels._few, 5, 410, "bf16 fp32 i64"),
        (triton_kernels._many, 64, 410, "fp32 fp32 i16"),
        (triton_kernels._many, 200, 10, "fp16 bf16 i32"),
    ):
        x, values, index = ("*" + t for t in types.split())
        sizes = dict.fromkeys(("examples", "inputs", "outputs", "kept"), "i32")
        block = triton_kernels.blocks(batch, 4096, kept, 4, 16)
        # As a call does: sizes of one are constants.
        constants = block | {n: 1 for n, v in (("examples", batch), ("kept", kept)) if v == 1}
        source = dict(zip(kernel.arg_names, (x, values, index, x), strict=False))
        signature = source | sizes | dict.fromkeys(constants, "constexpr")
        made = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
        assert len(made.asm["cubin"]) > 1000


@needs_triton
def test_what_does_not_fit_is_refused() -> None:
    from prunus.kernels.triton import triton_product

    x, values, index = torch.randn(2, 4), torch.randn(3, 2), torch.tensor([[0, 1], [1, 2], [0, 3]])
    bytes_ = index.to(torch.uint8)
    wrong = [(x[0], values, index), (x, values, index[:2]), (x.double(), values, index), (x, values, bytes_)]
    wrong.append((x, values.to("meta"), index))
    for arguments in wrong:
        with pytest.raises(ConfigError, match="condensed product"):
            triton_product(*arguments)
    assert triton_product(x[:0], values, index).shape == (0, 3)
    assert torch.equal(triton_product(x, values[:, :0], index[:, :0]), torch.zeros(2, 3))


def pretended(product: Any) -> ModuleType:
    module = ModuleType(MODULE)
    module.triton_product = product  # type: ignore[attr-defined]
    return module


def test_cuda_tensors_go_to_triton_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(kernels, "_triton", lambda device: asked.append(device) or (lambda *arguments: "triton"))
    monkeypatch.setattr(kernels, "bagged", lambda *arguments: "torch")
    monkeypatch.setattr(loops, "available", lambda: False)
    for device, of_x, of_values, taken in (
        ("cuda", F32, B16, "triton"), ("cuda", F16, F32, "triton"), ("cpu", F32, F32, "torch"),
        ("cuda", torch.float64, F32, "torch"), ("cuda", F32, torch.float64, "torch"),
    ):  # fmt: skip
        with FakeTensorMode():
            x = torch.empty(30, 4, device=device, dtype=of_x)
            values = torch.empty(3, 2, device=device, dtype=of_values)
            index = torch.zeros(3, 2, device=device, dtype=I16)
            assert kernels.product(x, values, index) == taken
            assert kernels.reads_shorts(x, values) == (taken == "triton")
    assert {str(device) for device in asked} == {"cuda:0"}


def test_without_triton_or_where_it_fails_torch_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, device = kernels._triton.__wrapped__, torch.device("cpu")
    monkeypatch.setitem(sys.modules, MODULE, None)  # type: ignore[arg-type]
    assert probe(device) is None

    def fails(*arguments: Tensor) -> Tensor:
        raise RuntimeError("no C compiler")

    monkeypatch.setitem(sys.modules, MODULE, pretended(fails))
    with pytest.warns(RuntimeWarning, match="embedding_bag on cpu.*no C compiler"):
        assert probe(device) is None

    def works(*arguments: Tensor) -> Tensor:
        return arguments[0]

    monkeypatch.setitem(sys.modules, MODULE, pretended(works))
    assert probe(device) is works
