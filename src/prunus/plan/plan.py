"""The plan: which units stay, in which tensors, at what cost. Self-contained data; touches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from prunus.errors import PlanError
from prunus.files.atomic import StrPath, write_text
from prunus.files.decoding import Malformed
from prunus.graph.grouping import Graph
from prunus.graph.groups import ExampleInput, Norm
from prunus.graph.shallower import without_blocks
from prunus.graph.units.removal import Removal
from prunus.plan import file as planfile
from prunus.plan.cost import Cost, CostModel
from prunus.plan.edits import MaskedInput, TensorEdit, checked_blocks, edits_of, gone_whole, masked_inputs
from prunus.plan.keeping import UNDECIDED, undecided_in_words
from prunus.plan.kept import check_routes, checked_units
from prunus.plan.resources import described
from prunus.runtime.shown import Shown

FOLLOWED = "branches on data go the way of the example inputs; other ways were not analysed and may not run"


@dataclass(frozen=True)
class GroupPlan:
    """Decision for one group.

    Attributes:
        name: the group.
        units: its size before.
        kept: indices that stay, ascending.
        keep_probability: of each unit, if the method has one; `plan.keeping` says of what.
        macs_saved: MACs per example saved if only this group were pruned.
        heads_of: the layer that makes the heads, if the units are heads.
        inside_heads: the units are dimensions inside heads.
        block: it is a block, whose one unit stays or goes.
        experts_of: the module whose experts the units are, if they are.
    """

    name: str
    units: int
    kept: tuple[int, ...]
    keep_probability: tuple[float, ...] | None = None
    macs_saved: int = 0
    heads_of: str | None = None
    inside_heads: bool = False
    block: bool = False
    experts_of: str | None = None

    @property
    def undecided(self) -> tuple[int, ...]:
        """Units whose keep probability lies between 5 % and 95 %."""
        low, high = UNDECIDED
        return tuple(i for i, p in enumerate(self.keep_probability or ()) if low < p < high)


@dataclass(frozen=True)
class WeightPattern:
    """A pattern inside one weight: in each of `rows` choices `k` of `n` stay; which ones is learned with the weights.

    Attributes:
        module: the layer.
        pattern: the pattern as text.
        rows: number of choices R.
        n: elements of each.
        k: how many of them stay.
        weights: weights of the layer.
        bits: of the values that stay, if they lie on a grid.
        mask: which ones stay, see `weightmasks`; empty before the learning.
    """

    module: str
    pattern: str
    rows: int
    n: int
    k: int
    weights: int
    bits: int | None = None
    mask: str = field(default="", repr=False)

    def explain(self) -> str:
        """One line for the reader of a plan."""
        stays = self.weights * self.k // self.n
        values = f", values of {self.bits} bits" if self.bits else ""
        return (
            f"{self.module}: {self.pattern}, {self.k:,} of {self.n:,} in each of {self.rows:,} rows, "
            f"{stays:,} of {self.weights:,} weights stay{values}"
        )


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """What goes and what stays.

    Attributes:
        groups: decision per group.
        tensors: edit per parameter and buffer.
        masked: inputs to mask for the proof.
        before: dense cost.
        after: predicted cost.
        model: class name of the model it was made for.
        inputs: every tensor of the example inputs: shape, dtype, place among the arguments, range of whole numbers.
        method: what scored the units.
        asked: the budget, in words.
        exact: False if a normalisation takes statistics across units that go.
        notes: remarks for its reader.
        followed: branches on data went the way of the example inputs, on which alone it can be proven.
        patterns: patterns inside weights; they set zeros and remove nothing.
        norms: weight norms that lose inputs: their lengths change so that what stays of the weight is as it was.
        removal: what goes with blocks.

    Example:
        >>> graph = prunus.trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8))
        >>> plan = prunus.Plan.from_kept(graph, {"0": [0, 2, 5, 7]})
        >>> plan.kept, plan.before.macs, plan.after.macs
        ({'0': (0, 2, 5, 7)}, 192, 48)
    """

    groups: tuple[GroupPlan, ...]
    tensors: Mapping[str, TensorEdit]
    masked: tuple[MaskedInput, ...]
    before: Cost
    after: Cost
    model: str = ""
    inputs: tuple[ExampleInput, ...] = ()
    method: str = ""
    asked: str = ""
    exact: bool = True
    notes: tuple[str, ...] = field(default=())
    followed: bool = False
    patterns: tuple[WeightPattern, ...] = ()
    norms: tuple[Norm, ...] = ()
    removal: Removal = field(default=Removal())

    @classmethod
    def from_kept(
        cls,
        graph: Graph,
        kept: Mapping[str, Sequence[int] | Tensor],
        *,
        keep_probability: Mapping[str, Tensor] | None = None,
        method: str = "by hand",
        asked: str = "",
        notes: Sequence[str] = (),
    ) -> Plan:
        """Plan from kept indices per group; groups that are not named stay whole.

        Args:
            graph: the analysed model.
            kept: group name -> indices that stay (any order); of a block none, `()`.
            keep_probability: group name -> probability of each unit to be among the kept.
            method: what scored the units, for the record.
            asked: the budget, for the record.
            notes: remarks for the reader of the plan.

        Raises:
            PlanError: an unknown or locked group; indices out of range or doubled; unequal rows; nothing kept.
        """
        blocks = [name for name, indices in kept.items() if graph.blocks.find(name) and not len(indices)]
        left = without_blocks(graph, checked_blocks(graph, blocks))
        decided = {name: checked_units(left, name, i) for name, i in kept.items() if not graph.blocks.find(name)}
        decided = {n: k for n, k in decided.items() if len(k) < graph.group(n).units}
        dense = CostModel(graph).dense()
        costs = CostModel(left)
        groups = [
            GroupPlan(b, 1, (), None, dense.macs - CostModel(without_blocks(graph, [b])).dense().macs, block=True)
            for b in blocks
        ]
        probabilities = keep_probability or {}
        for group in graph.channel_groups:
            if group.name not in kept:
                continue
            units = decided.get(group.name, np.arange(group.units))
            probability = probabilities.get(group.name)
            alone = costs.at(costs.counts({group.name: len(units)}))
            shares = None if probability is None else tuple(round(float(p), 4) for p in probability)
            groups.append(GroupPlan(
                group.name, group.units, tuple(units.tolist()), shares, costs.dense().macs - alone.macs,
                group.heads_of, group.inside_heads,
                experts_of=None if group.routing is None else group.routing.module,
            ))  # fmt: skip
        check_routes(left, {n: len(k) for n, k in decided.items()})
        tensors = edits_of(left, decided)
        return cls(
            groups=tuple(groups),
            tensors=tensors,
            masked=masked_inputs(left, decided),
            before=dense,
            after=costs.of(decided),
            model=graph.model,
            inputs=graph.inputs,
            method=method,
            asked=asked,
            exact=all(graph.group(n).exact for n in decided),
            notes=tuple(dict.fromkeys((*notes, *((FOLLOWED,) if graph.followed else ())))),
            followed=graph.followed,
            removal=_with_tensors(graph.blocks.removal(blocks), gone_whole(left, decided)),
            norms=tuple(n for n in left.norms if n.tensor in tensors and not tensors[n.tensor].only(n.dim)),
        )

    @property
    def blocks(self) -> tuple[str, ...]:
        """Blocks that go."""
        return tuple(g.name for g in self.groups if g.block and not g.kept)

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Group name -> kept indices."""
        return {g.name: g.kept for g in self.groups}

    def line(self) -> str:
        """Model, method and the share of MACs that stays."""
        units = sum(len(g.kept) for g in self.groups), sum(g.units for g in self.groups)
        kept = f"{units[0]} of {units[1]} units" if self.groups else f"masks in {len(self.patterns)} weights"
        return f"{self.model}, {self.method}, {kept}, {self.before.macs:,} -> {self.after.macs:,} MACs"

    def explain(self) -> str:
        """A table to read before anything is touched: per group size, kept, undecided units, MACs saved."""
        head = f"{'group':<36} {'units':>6} {'kept':>6} {'undecided':>9} {'MACs saved':>12}"
        lines = [head, "-" * len(head)] if self.groups else []
        for group in self.groups:
            undecided = "-" if group.keep_probability is None else str(len(group.undecided))
            sizes = f"{group.units:>6} {len(group.kept):>6}"
            if group.block:
                sizes = f"{'block':>6} {'stays' if group.kept else 'goes':>6}"
            lines.append(f"{group.name:<36} {sizes} {undecided:>9} {group.macs_saved:>12,}")
        lines += [*(["-" * len(head)] if self.groups else []), *undecided_in_words(self.groups)]
        for name in sorted(self.before.keys() & self.after.keys()):
            before, after = self.before[name], self.after[name]
            told = f"{described(name, before):>14} -> {described(name, after):>14}"
            lines.append(f"{name:<8} {told}  ({100 * after / (before or 1):.1f} %)")
        lines += [f"pattern  {pattern.explain()}" for pattern in self.patterns]
        lines.append(f"method: {self.method}; asked: {self.asked or 'counts by hand'}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def diff(self, other: Plan) -> str:
        """Groups whose kept units differ between two plans, and layers with another pattern, one line each."""
        lines = []
        for name in sorted({*self.kept, *other.kept}):
            a, b = set(self.kept.get(name, ())), set(other.kept.get(name, ()))
            if a != b:
                lines.append(
                    f"{name}: {len(a)} -> {len(b)} kept; only first {sorted(a - b)}; only second {sorted(b - a)}"
                )
        mine, yours = ({p.module: p for p in plan.patterns} for plan in (self, other))
        for name in sorted({*mine, *yours}):
            if mine.get(name) != yours.get(name):
                told = [plan[name].explain() if name in plan else f"{name}: dense" for plan in (mine, yours)]
                lines.append(" -> ".join(told))
        return "\n".join(lines) or "the plans keep the same units"

    def to_json(self) -> str:
        """The plan as JSON text (`from_json` reads it back)."""
        return planfile.to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back.

        Raises:
            PlanError: the text is not a plan, of another format, or says what can't be (positions outside their tensor,
                groups that keep nothing, unknown dtypes).
        """
        try:
            plan: Plan = planfile.from_json(cls, text)
        except Malformed as error:
            raise PlanError(
                "plan", f"not a readable plan: {error}", "write it with Plan.to_json or Plan.save"
            ) from error
        return plan

    def save(self, path: StrPath) -> None:
        """Write the plan; an existing file is replaced only once the new one is whole.

        Raises:
            ArtifactError: it can't be written there; an existing file is as it was.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: StrPath) -> Plan:
        """Read a plan from a file. Raises PlanError if it is missing or damaged."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, TypeError) as error:
            raise PlanError(
                str(path), f"cannot be read: {error}", "give the path of a plan written by Plan.save"
            ) from error
        return cls.from_json(text)

    def with_notes(self, *notes: str) -> Plan:
        """The same plan with further remarks."""
        return replace(self, notes=(*self.notes, *notes))


def _with_tensors(removal: Removal, tensors: tuple[str, ...]) -> Removal:
    return replace(removal, tensors=tuple(sorted({*removal.tensors, *tensors}))) if tensors else removal
