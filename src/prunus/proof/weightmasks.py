"""Masks inside weights as part of a plan: written into it, laid on the dense network's weights, and proven there."""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, PlanError, SurgeryError
from prunus.graph.grouping import Graph
from prunus.masks.file import LayerMask
from prunus.masks.layers import MaskedWeight, layer_of, make_permanent_, masked_weights
from prunus.masks.patterns import Pattern
from prunus.methods.base import MaskMethod
from prunus.plan.plan import Plan, WeightPattern
from prunus.proof.comparison import TOLERANCE, describe, difference
from prunus.proof.inputs import proof_inputs
from prunus.proof.verification import Verification
from prunus.runtime.arguments import examples_in
from prunus.runtime.calling import outputs
from prunus.runtime.precision import dtype_name
from prunus.surgery.cut import check_plan

Applied = tuple[nn.Module, Verification]


def plan_patterns(graph: Graph, model: nn.Module, patterns: Mapping[str, str], method: MaskMethod) -> Plan:
    """The plan of a mask method before anything is learned: which pattern lies on which weight.

    Args:
        graph: the analysed model.
        model: the network.
        patterns: the pattern as text, by layer.
        method: for its name and bits.

    Raises:
        ConfigError: a pattern does not fit its layer.
    """
    found = []
    for name, text in patterns.items():
        layer = layer_of(model, name)
        layout = Pattern.parse(text).layout(layer, name)
        found.append(WeightPattern(name, text, layout.rows, layout.n, layout.k, layer.weight.numel(), method.bits))
    return replace(Plan.from_kept(graph, {}, method=method.name, asked=in_words(patterns)), patterns=tuple(found))


def in_words(patterns: Mapping[str, str]) -> str:
    """What was asked: the pattern, or each with its layer where there are several."""
    texts = dict.fromkeys(patterns.values())
    return next(iter(texts)) if len(texts) == 1 else ", ".join(f"{n}: {text}" for n, text in patterns.items())


def with_masks(plan: Plan, masks: Mapping[str, Tensor]) -> Plan:
    """The plan with the masks of its patterns, so that it says which elements stay and not only how many.

    Args:
        plan: with patterns.
        masks: bool [R, n] by layer, k True in every row.
    """
    patterns = (replace(p, mask=_packed(masks[p.module])) if p.module in masks else p for p in plan.patterns)
    return replace(plan, patterns=tuple(patterns))


def mask_of(pattern: WeightPattern) -> Tensor:
    """The mask of a pattern, bool [R, n].

    Raises:
        PlanError: the plan holds none, or one that is none of this pattern's.
    """
    where, bits = f"pattern of {pattern.module!r}", -(-pattern.n // 8)
    if not pattern.mask:
        fix = "use the plan of the result, made after the learning, or load its artifact"
        raise PlanError(where, "the plan says how many elements stay, and not which: it holds no mask", fix)
    try:
        packed = np.frombuffer(base64.b64decode(pattern.mask, validate=True), np.uint8)
    except (binascii.Error, ValueError) as error:
        raise PlanError(where, f"its mask can't be read: {error}", "copy the plan again") from error
    if len(packed) == pattern.rows * bits:
        rows = np.unpackbits(packed.reshape(pattern.rows, bits), axis=1, count=pattern.n).astype(bool)
        if bool((rows.sum(1) == pattern.k).all()):
            return torch.from_numpy(rows)
    what = f"its mask doesn't keep {pattern.k} of {pattern.n} in each of {pattern.rows} rows"
    raise PlanError(where, what, "copy the plan again")


def layer_masks(plan: Plan) -> dict[str, LayerMask]:
    """The masks that a plan holds, as an artifact stores them; empty before the learning.

    Raises:
        PlanError: see `mask_of`.
    """
    return {p.module: LayerMask(p.pattern, mask_of(p), p.bits) for p in plan.patterns if p.mask}


def _packed(mask: Tensor) -> str:
    return base64.b64encode(np.packbits(mask.cpu().numpy(), axis=1).tobytes()).decode()


def masks_first(function: Callable[..., Applied]) -> Callable[..., Applied]:
    """Makes a function that applies a plan lay its masks on the weights before, and take them off again if it fails.

    What the function proves about the cut is then proven of the masked network.
    """

    @functools.wraps(function)
    def applied(model: nn.Module, plan: Plan, example_inputs: Any = None, **options: Any) -> Applied:
        check_plan(plan)
        if not plan.patterns:
            return function(model, plan, example_inputs, **options)
        masks = planned_masks(model, plan)
        before = {name: layer_of(model, name).weight.detach().clone() for name in masks}

        def put_back() -> None:
            with torch.no_grad():
                for name, weight in before.items():
                    layer_of(model, name).weight.copy_(weight)

        try:
            error = _mask_(model, masks, plan, example_inputs)
            smaller, proof = function(model, plan, example_inputs, **options)
        except BaseException:
            put_back()
            raise
        if smaller is not model:
            put_back()
        return smaller, replace(proof, max_error=max(error, proof.max_error))

    return applied


def masks_hold(model: nn.Module, plan: Plan, example_inputs: Any) -> tuple[float, int]:
    """Whether a network's weights are those that the masks of its plan leave.

    Returns:
        Largest relative difference of its outputs from those with the masks laid on its weights once more, and how many
        weights outside of the masks aren't zero.
    """
    masks = planned_masks(model, plan)
    inputs = proof_inputs(plan, example_inputs, model)
    plain = [outputs(model, i) for i in inputs]
    with masked_weights(model, masks):
        again = [outputs(model, i) for i in inputs]
    outside = 0
    for name, mask in masks.items():
        weight = layer_of(model, name).weight
        outside += int((weight * ~mask.layout.on_weight(mask.fixed)).count_nonzero())
    return difference(again, plain)[0], outside


def verify_masks(model: nn.Module, plan: Plan, example_inputs: Any) -> Verification:
    """Prove that a network has no other weights than those that the masks of its plan leave.

    Raises:
        SurgeryError: there are weights outside of the masks, or they play a part.
    """
    error, outside = masks_hold(model, plan, example_inputs)
    inputs = proof_inputs(plan, example_inputs, model)
    tensors = [{f"output {i}": t for i, t in enumerate(outputs(model, batch))} for batch in inputs]
    coarse = max((t.dtype for t in tensors[0].values()), key=lambda d: TOLERANCE.get(d, 0.0), default=torch.float32)
    tolerance = TOLERANCE.get(coarse, 0.0)
    if outside or not error <= tolerance:
        what = f"{outside} weights outside of their masks are not zero; with the masks it differs by {error:.1e}"
        fix = "a weight that other layers share can't be masked in one of them; leave that layer out"
        raise SurgeryError(", ".join(p.module for p in plan.patterns), what, fix)
    return Verification(
        max_error=error,
        tolerance=tolerance,
        inputs=len(inputs),
        exact=True,
        precision=dtype_name(coarse),
        batches=tuple(examples_in(batch) for batch in inputs),
        compared=tuple(describe(name, tensor) for name, tensor in tensors[0].items()),
    )


def planned_masks(model: nn.Module, plan: Plan) -> dict[str, MaskedWeight]:
    """The masks of a plan as they lie on a model's layers, fixed.

    Raises:
        PlanError: they don't fit, or the plan holds none yet.
    """
    found = {}
    for pattern in plan.patterns:
        where = f"pattern of {pattern.module!r}"
        try:
            layer = layer_of(model, pattern.module)
            layout = Pattern.parse(pattern.pattern).layout(layer, pattern.module)
        except ConfigError as error:
            raise PlanError(where, error.what, "pass the model that the plan was made for") from error
        expected = (pattern.rows, pattern.n, pattern.k, pattern.weights)
        if expected != (layout.rows, layout.n, layout.k, layer.weight.numel()):
            what = f"it lies on {layer.weight.numel()} weights in {layout.rows} rows of {layout.n}, not as planned"
            raise PlanError(where, what, "pass the model that the plan was made for")
        mask = mask_of(pattern)
        found[pattern.module] = MaskedWeight(layout, mask.float())
        found[pattern.module].freeze_(mask)
    return found


def _mask_(model: nn.Module, masks: Mapping[str, MaskedWeight], plan: Plan, example_inputs: Any) -> float:
    """Write zeros into the weights; the network must then answer as with its masks laid on from outside."""
    inputs = proof_inputs(plan, example_inputs, model)
    with masked_weights(model, masks):
        reference = [outputs(model, i) for i in inputs]
    make_permanent_(model, masks)
    error, tolerance = difference(reference, [outputs(model, i) for i in inputs])
    if not error <= tolerance:
        what = f"with zeros in its weights it differs from the masked network by {error:.1e}; all was put back"
        fix = "a weight that other layers share can't be masked in one of them; leave that layer out"
        raise SurgeryError(", ".join(masks), what, fix)
    return error
