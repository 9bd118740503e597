"""Which operations a program of an artifact may hold: torch's own that compute tensors and numbers, and nothing else.

An artifact may come from anyone, so that what its program can do is decided here by what an operation is, never by what
the artifact says. An operation of torch is allowed if
- torch's dispatcher has it under `aten`, and its schema takes and returns tensors, numbers, switches, words, dtypes and
  the like alone: no file, storage, stream, process group or script object (a random generator may only be absent);
- it returns something, and writes neither into an `out` argument nor into another tensor's sizes, strides or storage;
- users call it by its name from Python (`torch`, `Tensor`, `nn.functional`, `linalg`, `fft`, `special`), or it is one
  of a few that exported programs need besides;
- it is of none of the families that trust their arguments: strides into a storage, memory that nobody has written,
  sparse, nested, packed and quantised formats, kernels of one library, gradients and halves of single operations.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

PLAIN = frozenset({"Tensor", "int", "bool", "float", "number", "str", "ScalarType", "Layout", "Device", "MemoryFormat"})
"""Types that a schema may name, alone, optional or in a list."""
RETURN_NOTHING = frozenset({
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size",
})  # fmt: skip
NEEDED = RETURN_NOTHING | {
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_euclidean_dist", "_is_all_true", "_is_any_true", "_log_softmax",
    "_shape_as_tensor", "_softmax", "_to_copy", "_unsafe_view", "_weight_norm", "alias", "lift_fresh",
    "lift_fresh_copy", "matrix_H", "numpy_T", "slice", "sym_is_contiguous", "sym_numel", "sym_size",
    "sym_storage_offset", "sym_stride",
}  # fmt: skip
"""What exported programs hold although nobody calls it by this name; each checks what it is given."""
SIZES_IN_PLACE = frozenset({"detach_", "squeeze_", "swapaxes_", "swapdims_", "t_", "transpose_", "unsqueeze_"})
"""In place and of the sizes alone, with every bound checked by torch."""
TRUSTING = frozenset({
    "backward", "bsc", "bsr", "ccol", "coalesce", "coalesced", "coo", "crow", "csc", "csr", "cudnn", "depthwise3d",
    "dequantize", "elemt", "empty", "fbgemm", "forward", "fractional", "from", "fused", "hspmm", "jagged", "jvp", "ldl",
    "miopen", "mkldnn", "native", "nested", "overrideable", "packed", "pin", "q", "quantize", "quantized", "resize",
    "segment", "set", "slow", "smm", "sparse", "sspaddmm", "stats", "storage", "strided", "thnn", "vulkan",
})  # fmt: skip
"""Words of names whose families read or write where their arguments say, and look at them less than the rest."""
TRUSTING_NAMES = frozenset({
    "choose_qparams_optimized", "ctc_loss", "data", "flatten_dense_tensors", "indices", "indices_copy", "int_repr",
    "linalg_lu_solve", "lu_solve", "lu_unpack", "output_nr", "record_stream", "rename", "rename_", "requires_grad_",
    "retain_grad", "set_data", "slice_inverse", "to_dense", "to_padded_tensor", "unflatten_dense_tensors", "values",
    "values_copy",
})  # fmt: skip

NUMBERS: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{f.__name__}": f
        for f in (operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
                  operator.neg, operator.pos, operator.eq, operator.ne, operator.lt, operator.le, operator.gt,
                  operator.ge, operator.and_, operator.or_)
    },
    **{f"math.{f.__name__}": f for f in (math.ceil, math.floor, math.trunc)},
    **{f"torch.{f.__name__}": f for f in (torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_float, torch.sym_int,
                                          torch.sym_ite)},
}  # fmt: skip
"""Arithmetic of sizes, by name: numbers in, a number out."""
GETITEM = "operator.getitem"


def arity(name: str) -> int:
    """How many numbers an operation of `NUMBERS` takes."""
    if name == "torch.sym_ite":
        return 3
    one = name.startswith("math.") or name.partition(".")[2] in ("neg", "pos", "sym_not", "sym_float", "sym_int")
    return 1 if one else 2


def plain_type(real_type: Any) -> str:
    """A schema's type without `Optional` and `List`: `Optional[List[int]]` -> `int`."""
    text = str(real_type)
    while inner := re.fullmatch(r"(?:Optional|List)\[(.*)\]", text):
        text = inner.group(1)
    return text


def refusal(overload: OpOverload) -> str | None:
    """Why a program may not hold this operation, None if it may."""
    schema = overload._schema
    namespace, _, name = schema.name.partition("::")
    if namespace != "aten":
        return "it is none of torch's own"
    if name in TRUSTING_NAMES or (name not in NEEDED and TRUSTING & {*re.split(r"_+", name)}):
        return "it trusts its arguments"
    if name not in NEEDED and not _public(name):
        return "it is internal to torch"
    for value in (*schema.arguments, *schema.returns):
        if plain_type(value.real_type) not in PLAIN | {"Generator"}:
            return f"it takes or returns a {value.real_type}"
    if any(a.is_out for a in schema.arguments):
        return "it writes into an argument of its caller"
    if not schema.returns and name not in RETURN_NOTHING:
        return "it returns nothing"
    if torch.Tag.inplace_view in overload.tags and name not in SIZES_IN_PLACE:
        return "it changes another tensor's sizes or storage"
    return None


@cache
def _public(name: str) -> bool:
    """True if users call it from Python; `relu_` counts where `relu` does."""
    if re.fullmatch(r"__(and|or|xor|lshift|rshift)__", name):
        return True
    if name.startswith("_"):
        return False
    family, _, rest = name.partition("_")
    if family in ("fft", "linalg", "special") and hasattr(getattr(torch, family), name if family == "fft" else rest):
        return True
    if family == "fft" and hasattr(torch.fft, rest):
        return True
    places: tuple[Any, ...] = (torch, Tensor, torch.nn.functional, torch._C._nn)
    return any(name in vars(place) or name in dir(place) for place in places)


@cache
def resolve(name: str) -> OpOverload | None:
    """The operation of a name such as `aten.add.Tensor`; None if torch has none, or if it is not allowed.

    The name is looked up among those that torch's dispatcher knows, so that no other attribute is ever read.
    """
    namespace, _, rest = name.partition(".")
    base, _, overload = rest.partition(".")
    full = f"aten::{base}" if overload == "default" else f"aten::{base}.{overload}"
    if namespace != "aten" or not overload or full not in _registered():
        return None
    packet = getattr(torch.ops.aten, base, None)
    found = getattr(packet, overload, None) if isinstance(packet, OpOverloadPacket) else None
    return found if isinstance(found, OpOverload) and refusal(found) is None else None


@cache
def _registered() -> frozenset[str]:
    return frozenset(n for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::"))
