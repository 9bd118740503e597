"""Removal from the user's own module in three passes: compute every new tensor, check every shape, assign.

Nothing is assigned before everything is known to fit, and what was assigned can be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PlanError, SurgeryError, first_line
from prunus.graph.groups import Norm
from prunus.layers.reparametrised import layers_of, recompute_weights_
from prunus.layers.submodules import is_conv1d
from prunus.plan.edits import TensorEdit
from prunus.plan.plan import Plan
from prunus.surgery.experts import set_experts_
from prunus.surgery.piecewidths import set_piece_widths_
from prunus.surgery.shallower import stand_in_


@dataclass(frozen=True)
class Undo:
    """Puts back what `cut_` replaced."""

    steps: tuple[Callable[[], None], ...]

    def __call__(self) -> None:
        """Restore every tensor and attribute, last change first."""
        for step in reversed(self.steps):
            step()


def cut_(model: nn.Module, plan: Plan, *, removing: bool = True) -> Undo:
    """Cut the plan's tensors, set the sizes that known layers hold in attributes, and take blocks out.

    Tied tensors stay tied; frozen parameters stay frozen; devices, dtypes, hooks and training flags stay.

    Args:
        model: the dense network.
        plan: what stays.
        removing: take blocks out; False where they are out already (a rewritten graph).

    Returns:
        A callable that puts everything back.

    Raises:
        PlanError: the plan names a tensor that the model lacks or that has another shape; the model is unchanged.
        SurgeryError: code of the model's that runs while it is cut (a parametrization) fails, or no module of its own
            holds a block that goes; the model is unchanged.
    """
    check_fits(model, plan, removing=removing)
    if removing and plan.removal.gates and not plan.removal.stand_ins:
        what = "a block that goes is written out in the code of the class, not in modules of its own"
        raise SurgeryError(type(model).__name__, what, "take the rewritten graph, or leave the block")
    places = _places(model)
    new = {n: _replacement(_held(places[n][0]), edit) for n, edit in plan.tensors.items()}
    for norm in plan.norms:
        new[norm.scale] = _lengthened(_held(places[norm.tensor][0]), new, norm, _held(places[norm.scale][0]), plan)
    steps: list[Callable[[], None]] = []
    touched: dict[nn.Module, None] = {}
    for name, tensor in new.items():
        for owner, attribute in places[name]:
            steps.append(_assign(owner, attribute, tensor))
            touched[owner] = None
    try:
        for owner in layers_of(model, list(touched)):
            steps += recompute_weights_(owner)
            steps += _set_sizes(owner)
        steps += _set_heads(model, plan)
        steps += set_piece_widths_(model, plan)
        steps += set_experts_(model, plan) if removing else []
        steps += stand_in_(model, plan.removal) if removing else []
    except Exception as failure:
        Undo(tuple(steps))()
        what = f"what computes its weights does not run on the smaller ones: {first_line(failure)}"
        raise SurgeryError(type(model).__name__, what, "make its parametrizations permanent first") from failure
    return Undo(tuple(steps))


def check_plan(plan: Any) -> None:
    """Raise PlanError if it is none."""
    if not isinstance(plan, Plan):
        fix = "give the plan that prune made (result.plan), or Plan.load(path)"
        raise PlanError("plan", f"a {type(plan).__name__} is none", fix)


def check_fits(model: nn.Module, plan: Plan, *, removing: bool = True) -> None:
    """Check that the model has every tensor of the plan in the shape it was planned for, and every masked layer.

    Args:
        model: the dense network.
        plan: what stays.
        removing: check modules that go with blocks too.

    Raises:
        PlanError: it has not.
    """
    places = _places(model)
    for name, edit in plan.tensors.items():
        if name not in places:
            raise PlanError(
                f"tensor {name!r}", "the model has none of that name", "use the model the plan was made for"
            )
        shape = tuple(_held(places[name][0]).shape)
        if shape != tuple(edit.shape):
            raise PlanError(
                f"tensor {name!r}",
                f"its shape is {shape}, the plan was made for {tuple(edit.shape)}",
                "use the model the plan was made for, before any removal",
            )
    for norm in plan.norms:
        lengths = 1 if norm.dim < 0 else plan.tensors[norm.tensor].shape[norm.dim]
        if norm.scale not in places or _held(places[norm.scale][0]).numel() != lengths:
            what = f"the model has none of {lengths} lengths of that name"
            raise PlanError(f"tensor {norm.scale!r}", what, "use the model the plan was made for")
    modules = dict(model.named_modules(remove_duplicate=False))
    elements = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    for entry in plan.masked:
        what = "" if entry.module in modules else "the model has none of that name"
        if entry.size > elements:
            what = f"the plan masks {entry.size:,} inputs, and the whole model has {elements:,} weights"
        if what:
            raise PlanError(f"module {entry.module!r}", what, "use the model the plan was made for")
    needed = [*plan.removal.gates, *(s.module for s in plan.removal.stand_ins)] if removing else []
    for name in needed:
        if name not in modules or not name:
            what = "the model has none of that name"
            raise PlanError(f"module {name!r}", what, "use the model the plan was made for")


def _held(place: tuple[nn.Module, str]) -> Tensor:
    owner, attribute = place
    held: Tensor = getattr(owner, attribute)
    return held


def edited(old: Tensor, edit: TensorEdit) -> Tensor:
    """The kept part of one tensor, as a new contiguous tensor of the same dtype and device."""
    kept = old.detach()
    columns = edit.columns
    for dim, positions in edit.keep.items():
        kept = kept.index_select(dim, torch.tensor(positions, device=old.device))
    if columns is not None:
        index = torch.tensor(columns, device=old.device)
        kept = kept.gather(1, index.reshape(*index.shape, *([1] * (kept.dim() - 2))).expand(-1, -1, *kept.shape[2:]))
    if edit.values is not None:
        kept = torch.tensor(edit.values, dtype=old.dtype, device=old.device)
    return kept.contiguous(memory_format=_memory_format(old))


def _lengthened(old: Tensor, new: dict[str, Tensor], norm: Norm, length: Tensor, plan: Plan) -> Tensor:
    """The lengths of a weight norm with which what stays of the weight is what it was."""
    kept = plan.tensors[norm.tensor].keep.get(norm.dim, range(old.shape[norm.dim]))
    before = old.detach().double()
    if norm.dim >= 0:
        before = before.index_select(norm.dim, torch.tensor(list(kept), device=old.device))
    others = [d for d in range(old.dim()) if d != norm.dim]
    after = new[norm.tensor].detach().double()
    left = torch.linalg.vector_norm(after, dim=others, keepdim=True)
    new[norm.tensor].detach().masked_fill_(left == 0, 1.0)  # nothing of it stays: any direction, of length 0
    ratio = left / torch.linalg.vector_norm(before, dim=others, keepdim=True)
    stays = new.get(norm.scale, length)
    scaled = (stays.detach().double() * ratio.reshape(stays.shape)).to(stays.dtype)
    return nn.Parameter(scaled, length.requires_grad) if isinstance(length, nn.Parameter) else scaled


def _memory_format(tensor: Tensor) -> torch.memory_format:
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def _replacement(old: Tensor, edit: TensorEdit) -> Tensor:
    kept = edited(old, edit)
    return nn.Parameter(kept, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else kept


def _places(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every parameter and buffer by its first name, with all modules and attributes that hold it (tied ones)."""
    first: dict[int, str] = {}
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for attribute, tensor in table.items():
                if tensor is not None:
                    name = first.setdefault(id(tensor), f"{prefix}.{attribute}" if prefix else attribute)
                    places.setdefault(name, []).append((module, attribute))
    return places


def _assign(owner: nn.Module, attribute: str, tensor: Tensor) -> Callable[[], None]:
    table: dict[str, Any] = owner._parameters if attribute in owner._parameters else owner._buffers
    old = table[attribute]
    table[attribute] = tensor

    def undo() -> None:
        table[attribute] = old

    return undo


def _set_sizes(module: nn.Module) -> list[Callable[[], None]]:
    """Bring the size attributes of a known layer in line with its tensors."""
    steps = []
    for attribute, value in _sizes(module).items():
        old = getattr(module, attribute)
        if old != value:
            setattr(module, attribute, value)
            steps.append(_restore(module, attribute, old))
    return steps


HEAD_COUNTS = (
    "num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads", "num_key_value_heads", "num_kv_heads",
    "n_kv_heads", "n_kv_head", "num_q_heads",
)  # fmt: skip
HEAD_WIDTHS = ("all_head_size", "split_size", "inner_dim", "attn_dim", "attention_dim", "q_size", "kv_size")
ONE_HEAD_WIDTHS = (
    "head_dim",
    "head_size",
    "attention_head_size",
    "dim_head",
    "dim_per_head",
    "d_head",
    "d_kv",
    "key_dim",
)
"""Names under which attention modules hold their number of heads, the width of all heads together, and of one."""


def _set_heads(model: nn.Module, plan: Plan) -> list[Callable[[], None]]:
    """Scale what modules that hold heads' layers know of their number and width; the proof tells if that was all."""
    steps: list[Callable[[], None]] = []
    modules = dict(model.named_modules())
    widths: dict[nn.Module, set[Fraction]] = {}
    for group in plan.groups:
        if len(group.kept) == group.units or not (group.heads_of or group.inside_heads):
            continue
        holder = modules.get((group.heads_of or group.name).rpartition(".")[0])
        if holder is None:
            continue  # a parameter of a captured graph's own: no module knows its heads
        share = Fraction(len(group.kept), group.units)
        if group.heads_of is None:
            widths.setdefault(holder, set()).add(share)
            continue
        steps += _scale(holder, (*HEAD_COUNTS, *HEAD_WIDTHS), share, group.units)
        shared = vars(holder).get("num_key_value_groups")
        if shared == group.units and getattr(vars(holder).get("config"), "num_key_value_heads", None) == 1:
            holder.num_key_value_groups = len(group.kept)  # type: ignore[assignment]
            steps.append(_restore(holder, "num_key_value_groups", shared))
    for holder, shares in widths.items():
        if len(shares) == 1:  # code that holds one width for queries, keys and values has no room for two
            share = shares.pop()
            steps += _scale(holder, (*ONE_HEAD_WIDTHS, *HEAD_WIDTHS), share, share.denominator)
    return steps


def _scale(holder: nn.Module, attributes: Sequence[str], share: Fraction, of: int) -> list[Callable[[], None]]:
    """Multiply the multiples of `of` among the numbers that a module holds by the share of units that stays."""
    steps = []
    for attribute in attributes:
        old = vars(holder).get(attribute)
        if isinstance(old, int) and old % of == 0:
            setattr(holder, attribute, int(old * share))
            steps.append(_restore(holder, attribute, old))
    return steps


def rescale_queries_(model: nn.Module, plan: Plan) -> Undo | None:
    """Undo a change of scale: code that divides scores by the root of the present width of a head divides by less now.

    Multiplies what writes one side of each product of queries and keys by the root of the share of dimensions that
    stays. To be called after `cut_`; None if the plan takes no such dimensions.
    """
    steps: list[Callable[[], None]] = []
    places = _places(model)
    for entry in plan.masked:
        if not entry.of or not entry.removed:
            continue
        weight = f"{entry.module}.weight"
        if weight not in plan.tensors:
            continue  # tied, and known by another name: what else it writes must not be scaled
        stays = plan.tensors[weight].keep[entry.axis]
        factor = (1 - len(entry.removed) / len(entry.of)) ** 0.5
        inside = set(entry.of)
        line = torch.tensor([factor if p in inside else 1.0 for p in stays], dtype=torch.float32, device="cpu")
        for name, dim in ((weight, entry.axis), (f"{entry.module}.bias", 0)):
            if name not in places:
                continue
            tensor = _held(places[name][0])
            scaled = tensor.detach() * line.to(tensor).reshape([-1 if d == dim else 1 for d in range(tensor.dim())])
            new = nn.Parameter(scaled, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else scaled
            steps += [_assign(owner, attribute, new) for owner, attribute in places[name]]
    return Undo(tuple(steps)) if steps else None


def _restore(module: nn.Module, attribute: str, old: Any) -> Callable[[], None]:
    return lambda: setattr(module, attribute, old)


def _sizes(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution_sizes(module)
    if isinstance(module, nn.Linear):
        return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        held = module.weight if module.weight is not None else module.running_mean
        return {} if held is None else {"num_features": held.shape[0]}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": module.weight.shape[0]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": tuple(module.weight.shape)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": module.weight.shape[0]}
    if is_conv1d(module):
        shape: torch.Size = module.weight.shape  # type: ignore[assignment, union-attr]
        return {n: s for n, s in zip(("nx", "nf"), shape, strict=True) if hasattr(module, n)}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": module.weight.shape[1]}
    return {}


def _convolution_sizes(module: nn.modules.conv._ConvNd) -> dict[str, Any]:
    rows, columns = module.weight.shape[:2]
    groups = module.groups
    if module.transposed:
        groups = rows if 1 < groups == module.in_channels else groups
        return {"in_channels": rows, "out_channels": columns * groups, "groups": groups}
    if groups > 1 and groups == module.in_channels:
        groups = rows // (module.out_channels // module.in_channels)
    return {"out_channels": rows, "in_channels": columns * groups, "groups": groups}
