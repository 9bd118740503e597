"""From united labels to channel groups: components of labels with the same places in the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves_with_path

from prunus.graph.engine import Engine, Result, source_line
from prunus.graph.families import (
    Constraints,
    alike,
    as_groups,
    families_of,
    first_writers,
    roots_of,
    signatures,
    tensor_planes,
)
from prunus.graph.groups import ChannelGroup, Contraction, ExampleInput, IntArray, Norm, Reader, Selection
from prunus.graph.notes import Call
from prunus.graph.readings import Reading, gated_at_input, readings
from prunus.graph.rows import equal_rows, filled_rows, tie_groups, tie_unlike_slices, unshared_rows
from prunus.graph.summed import Sites, sites_of
from prunus.graph.units.blocks import find_blocks
from prunus.graph.units.experts import find_experts
from prunus.graph.units.expertwork import with_experts_work
from prunus.graph.units.removal import Blocks
from prunus.graph.unlisted import Unlisted, unlisted_layers
from prunus.graph.writers import judged_by, with_computed
from prunus.runtime.precision import dtype_name
from prunus.runtime.shown import Shown


@dataclass(frozen=True, eq=False, repr=False)
class Graph(Shown):
    """The analysed model.

    Attributes:
        program: the captured program (its graph is what a rewritten model is made from).
        channel_groups: every group, prunable or locked, in data-flow order.
        contractions: every convolution and linear call, for MACs.
        shapes: shape of every parameter and buffer of the model, tied ones under their first name only.
        aliases: every name of a tied tensor, mapped to its first name.
        trainable: names of the parameters (as opposed to buffers).
        model: class name of the model.
        inputs: every tensor of the example inputs.
        labels: root label -> (number of its group, index of its unit).
        roots: root of every label.
        values: labels of every node's result.
        adopted: labels of positions that lie in a whole row, and the labels of those rows.
        followed: branches on data went the way of the example inputs.
        computed: shapes of the weights that are computed from stored tensors, under names of their own.
        norms: weights that are directions and lengths (weight norm).
        unlisted: layers that no group tells of, and why.
        selections: operations that select units by an index that is known before anything runs.
        blocks: what lies on one side of a residual sum.
        gauges: by the name of a resource that is measured and not counted: how much of it what remains of the network
            will take (see `plan.gauge`); none of a network of which nothing was measured.
    """

    program: ExportedProgram
    channel_groups: tuple[ChannelGroup, ...]
    contractions: tuple[Contraction, ...]
    shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, str]
    trainable: frozenset[str]
    model: str
    inputs: tuple[ExampleInput, ...]
    labels: dict[int, tuple[int, int]] = field(repr=False)
    roots: IntArray = field(repr=False)
    values: dict[fx.Node, Result] = field(repr=False)
    adopted: tuple[tuple[IntArray, IntArray], ...] = field(default=(), repr=False)
    followed: bool = False
    computed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    norms: tuple[Norm, ...] = ()
    unlisted: tuple[Unlisted, ...] = ()
    selections: dict[fx.Node, Selection] = field(default_factory=dict, repr=False)
    blocks: Blocks = field(default_factory=Blocks, repr=False)
    gauges: Mapping[str, Callable[[Any], float]] = field(default_factory=dict, repr=False)

    def groups(self, *, locked: bool = False, inexact: bool = False) -> tuple[ChannelGroup, ...]:
        """The prunable groups in data-flow order; with `locked`, all; with `inexact`, inexact ones too; no experts."""
        groups = [g for g in self.channel_groups if g.routing is None]
        return tuple(g for g in groups if locked or g.prunable or (inexact and g.locked is None))

    @property
    def experts(self) -> tuple[ChannelGroup, ...]:
        """The groups whose units are experts, locked ones too, in data-flow order."""
        return tuple(g for g in self.channel_groups if g.routing is not None)

    def group(self, name: str) -> ChannelGroup:
        """The group of that name. Raises KeyError if there is none."""
        for group in self.channel_groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def line(self) -> str:
        """Model, and how many units can go."""
        free, groups = self._free(), self.groups(locked=True)
        units, total = sum(g.units for g in free), sum(g.units for g in groups)
        return f"{self.model}, {units} of {total} units in {len(free)} of {len(groups)} groups can go"

    def _free(self) -> list[ChannelGroup]:
        return [g for g in self.groups() if not g.inside_heads]

    def explain(self) -> str:
        """The prunability report: what can be pruned, what is locked, why, at which source line."""
        lines = []
        for group in self.groups(locked=True):
            rows = f", equal counts in {group.multiple} rows" if group.rows is not None else ""
            if group.prunable:
                readers = ", ".join(_said(r) for r in group.readers)
                kind = "if asked " if group.inside_heads else "prunable "
                lines.append(f"{kind} {group.name}: {group.units} units{rows}, read by {readers}  [{group.source}]")
            elif group.locked is None:
                why = "a normalisation takes statistics across the units: removal is not masking"
                lines.append(f"inexact   {group.name}: {group.units} units{rows}; {why}  [{group.source}]")
            else:
                reason = group.locked
                lines.append(f"locked    {group.name}: {group.units} units{rows}; {reason}  [{group.source}]")
        lines += [_routed(group) for group in self.experts]
        lines += map(str, self.unlisted)
        for block in self.blocks.units:
            lines.append(f"{'locked   ' if block.locked else 'if asked '} {block}  [{block.source}]")
        lines.append(self.line().partition(", ")[2])
        return "\n".join(lines)


def _routed(group: ChannelGroup) -> str:
    """The line of a layer's experts."""
    assert group.routing is not None
    rows = f" in {group.multiple} groups" if group.rows is not None else ""
    what = f"{group.units} experts{rows}, {group.routing.choices} for a token"
    why = f"; {group.locked}" if group.locked else f", chosen by {group.readers[0].module}"
    return f"{'locked   ' if group.locked else 'if asked '} {group.name}: {what}{why}  [{group.source}]"


def _said(reader: Reader) -> str:
    return f"a norm behind {reader.module}" if reader.length else reader.module or reader.weight


def build_graph(engine: Engine, program: ExportedProgram, model: nn.Module, aliases: dict[str, str]) -> Graph:
    """Turn the finished label run into groups."""
    if engine.summed:
        first = engine.labels.roots()
        tie_unlike_slices(engine, signatures(tensor_planes(engine, first), len(first))[0], first)
    uneven: list[IntArray] | None = None
    while uneven is None or uneven:
        tie_groups(engine, uneven or ())
        uneven, roots = [], engine.labels.roots()
        tensors = tensor_planes(engine, roots)
        writer = first_writers(engine, roots)
        sites = sites_of(engine, model, roots)
        found = _constraints(engine, roots, model, sites, uneven)
        members = alike(tensors, writer, found)
        found = replace(found, rows=filled_rows(members, found.rows, engine, roots, found.reasons, uneven))
    readers = [*readings(engine, roots, model, sites.found), *map(Reading.behind, sites.found)]
    made = [(name, plane) for name, plane in tensors if name in engine.stored.computed]
    tensors = [(name, plane) for name, plane in tensors if name not in engine.stored.computed]
    whole = frozenset(roots_of(engine.rows.batched, roots).tolist())
    judged = judged_by(engine, model)
    families = families_of(members, writer, engine.calls, tensors, readers)
    groups = as_groups(families, found, engine.calls, whole, judged)
    labels = {int(r): (n, i) for n, family in enumerate(members) for i, r in enumerate(family.tolist())}
    groups = with_computed(groups, labels, made, judged)
    named = [*model.named_parameters(), *model.named_buffers()]
    stored = _stored(program, aliases)
    groups = (*groups, *find_experts(program.graph, stored, engine.stored.products, model, [g.name for g in groups]))
    shapes = {name: tuple(tensor.shape) for name, tensor in named if name == aliases.get(name, name)}
    return Graph(
        program=program,
        channel_groups=groups,
        contractions=with_experts_work(
            [_contraction(c, roots) for c in engine.calls if c.positions],
            groups,
            engine.calls,
            program.graph.nodes,
            shapes,
            engine.batch,
        ),
        shapes=shapes,
        aliases=aliases,
        trainable=frozenset(name for name, _ in model.named_parameters()),
        model=type(model).__name__,
        inputs=_inputs(program),
        labels=labels,
        roots=roots,
        values=engine.values,
        adopted=tuple(engine.rows.adopted),
        computed={name: engine.parameters[name].shape for name in engine.stored.computed},
        norms=tuple(dict.fromkeys(engine.norms)),
        selections=engine.selections,
        unlisted=unlisted_layers(engine, program, model, groups, roots, found.reasons),
        blocks=_blocks(program, model, stored, aliases, [g.name for g in groups]),
    )


def _stored(program: ExportedProgram, aliases: dict[str, str]) -> dict[fx.Node, str]:
    """Placeholder of a parameter or buffer -> its first name."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    return {
        node: aliases.get(specs[node.name].target, specs[node.name].target)  # type: ignore[arg-type]
        for node in program.graph.nodes
        if node.op == "placeholder" and specs[node.name].kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }


def _blocks(
    program: ExportedProgram,
    model: nn.Module,
    stored: dict[fx.Node, str],
    aliases: dict[str, str],
    taken: Sequence[str],
) -> Blocks:
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    units, flow = find_blocks(program.graph, stored, modules, set(taken))
    tensors = frozenset(aliases.values())
    return Blocks(units, flow, tensors) if units else Blocks()


def _contraction(call: Call, roots: IntArray) -> Contraction:
    over = tuple(roots[plane.reshape(-1).numpy()] for plane in call.over)
    return Contraction(call.weight, call.positions, call.module, source_line(call.node), over)


def _inputs(program: ExportedProgram) -> tuple[ExampleInput, ...]:
    """Every tensor of the example inputs; whole numbers with their range, so that others like them can be made."""
    args, kwargs = program.example_inputs or ((), {})
    leaves = [*tree_leaves_with_path(tuple(args)), *tree_leaves_with_path(dict(kwargs or {}))]
    return tuple(_input(keys, value) for keys, value in leaves if isinstance(value, Tensor))


def _input(keys: Any, value: Tensor) -> ExampleInput:
    path = tuple(next(k for k in (getattr(key, "idx", None), getattr(key, "key", None), getattr(key, "name", None))
                      if k is not None) for key in keys)  # fmt: skip
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    known = whole and value.numel() > 0 and value.device.type != "meta"
    low, high = (int(value.min()), int(value.max())) if known else (None, None)
    return ExampleInput(tuple(value.shape), dtype_name(value.dtype), path, low, high)


def _constraints(
    engine: Engine, roots: IntArray, model: nn.Module, sites: Sites, uneven: list[IntArray]
) -> Constraints:
    """What the label run found out about each root. Grids of grouped layers that are not even go to `uneven`."""
    reasons: dict[int, str] = {}
    for lock in engine.locks:
        for root in np.unique(roots[lock.labels.numpy()]).tolist():
            reasons.setdefault(root, f"{lock.reason} ({lock.source})" if lock.source else lock.reason)
    for root, why in sites.reasons.items():
        reasons.setdefault(root, why)
    inexact = {r for lock in engine.inexact for r in np.unique(roots[lock.labels.numpy()]).tolist()}
    for call in engine.calls:
        if call.inputs is not None and not call.depthwise and not gated_at_input(call, model) and _hidden(call, model):
            for root in np.unique(roots[call.inputs.numpy()]).tolist():
                reasons.setdefault(root, f"read by a functional call, not by a layer ({source_line(call.node)})")
    for root in unshared_rows(engine, roots):
        reasons.setdefault(root, "its positions are those of a layer that knows nothing of whole rows")
    rows = equal_rows(engine, roots, reasons, uneven)
    return Constraints(reasons, inexact | sites.unmasked, rows)


def _hidden(call: Call, model: nn.Module) -> bool:
    """True if the product is one that Python code does not make: inside one of torch's own layers."""
    layer = type(model.get_submodule(call.module))
    return call.product is None or layer.__module__.startswith("torch.nn.modules.")
