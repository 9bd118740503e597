"""What a run writes down for its report, beside summary and plan: `record.json`, plain data, checked when read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor

from prunus.errors import ArtifactError
from prunus.files.decoding import Malformed, decode, parse_json
from prunus.files.jsontext import strict_json
from prunus.graph.flow import Kind, data_flow
from prunus.graph.grouping import Graph
from prunus.learning.findings import Findings, LearnedMasks, Scores
from prunus.plan.plan import Plan
from prunus.recovery.state import Epoch
from prunus.reports.offers import Offer

FORMAT = 1
LARGEST = 256 << 20
DIGITS = 5
"""Significant digits of scores and probabilities."""
MASK_METRICS = ("confidence", "diversity", "flips", "entropy", "keep_probability")

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class StepRecord:
    """A row of the drawn network.

    Attributes:
        name: see `Step`.
        kind: see `Step`.
        after: see `Step`.
        source: see `Step`.
        before: width in the dense network, 0 where there are no units.
        left: width in the smaller one.
        groups: the groups that it writes.
        locked: why nothing of it can go, or "".
    """

    name: str
    kind: Kind
    after: tuple[int, ...]
    source: str = ""
    before: int = 0
    left: int = 0
    groups: tuple[str, ...] = ()
    locked: str = ""


@dataclass(frozen=True)
class ScoreRecord:
    """What a method found out about the units of a group.

    Attributes:
        score: of every unit, higher = keep.
        mean: of the multipliers under the posterior; none of criteria.
        low: lower end of their 95 % intervals.
        high: upper end.
        measured: loss that every unit saves, where it was measured.
    """

    score: Numbers
    mean: Numbers = ()
    low: Numbers = ()
    high: Numbers = ()
    measured: Numbers = ()


@dataclass(frozen=True)
class Record:
    """What the report shows beyond summary and plan.

    Attributes:
        steps: the network in data flow.
        scores: by group.
        offers: what other budgets would have kept, from the largest network to the smallest; the run's own is marked.
        learning: loss by epoch of the learning.
        recovery: epochs of the fine-tuning.
        masks: by epoch of the learning of masks: metric -> layer -> value; None where there is none (all stays).
        made: where the run comes from: versions, commit, digests.
    """

    steps: tuple[StepRecord, ...] = ()
    scores: Mapping[str, ScoreRecord] = field(default_factory=dict)
    offers: tuple[Offer, ...] = ()
    learning: tuple[float | None, ...] = ()
    recovery: tuple[Mapping[str, float | int | None], ...] = ()
    masks: tuple[Mapping[str, Mapping[str, float | None]], ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The record as JSON text."""
        return strict_json({"format": FORMAT, **asdict(self)}, "record")


def record_of(
    graph: Graph,
    plan: Plan,
    findings: Findings,
    *,
    offers: Sequence[Offer] = (),
    recovery: Iterable[Epoch] = (),
    made: Mapping[str, str] | None = None,
) -> Record:
    """The record of a run.

    Args:
        graph: analysis of the dense network.
        plan: what was kept.
        findings: what the method found out.
        offers: what other budgets would have kept.
        recovery: epochs of the fine-tuning.
        made: where the run comes from, by name.
    """
    record = Record(_steps(graph, plan), {}, tuple(offers), (), tuple(vars(e) for e in recovery), (), dict(made or {}))
    if isinstance(findings, Scores):
        return replace(record, scores=_scores(findings), learning=_numbers(findings.history))
    if isinstance(findings, LearnedMasks):
        masks = tuple({m: _rounded(getattr(e, m)) for m in MASK_METRICS} for e in findings.history)
        return replace(record, masks=masks, learning=_numbers(e.loss for e in findings.history[1:]))
    return record


def read_record(path: Path) -> Record | None:
    """The record of a run; None if it has none.

    Raises:
        ArtifactError: it is damaged, or of another format.
    """
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST:
            raise Malformed(f"it has more than {LARGEST:,} bytes")
        said = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or said.pop("format", None) != FORMAT:
            raise Malformed(f"it has no format number {FORMAT}")
        record: Record = decode(Record, said, "record")
        for number, step in enumerate(record.steps):
            if any(not 0 <= earlier < number for earlier in step.after):
                raise Malformed(f"step {number} comes after what is no earlier step")
    except (OSError, ValueError) as error:
        raise ArtifactError(str(path), f"damaged: {error}", "run again, or remove it for a report without") from error
    return record


def _steps(graph: Graph, plan: Plan) -> tuple[StepRecord, ...]:
    writers: dict[str, list[tuple[str, int]]] = {}
    for group in graph.channel_groups:
        for slot in group.writers:
            writers.setdefault(slot.tensor, []).append((group.name, slot.dim))
    locked = {g.name: g.locked or ("" if g.exact else "a normalisation takes statistics across the units")
              for g in graph.channel_groups}  # fmt: skip
    unlisted = {u.name: u.reason for u in graph.unlisted}
    found = []
    for step in data_flow(graph):
        told = StepRecord(step.name, step.kind, step.after, step.source)
        if step.tensors:
            written = [(t, *w) for t in step.tensors for w in writers.get(t, ())]
            groups = tuple(dict.fromkeys(name for _, name, _ in written))
            why = [locked[name] for name in groups]
            tensor, dim = (written[0][0], max(written[0][2], 0)) if written else (step.tensors[0], 0)
            before = graph.shapes[tensor][dim] if tensor in graph.shapes else 0
            edit = plan.tensors.get(tensor)
            left = before if edit is None or dim not in edit.keep else len(edit.keep[dim])
            left = 0 if tensor in plan.removal.tensors else left
            reason = unlisted.get(step.name, "") if not groups else "; ".join(dict.fromkeys(why)) if all(why) else ""
            told = StepRecord(step.name, step.kind, step.after, step.source, before, left, groups, reason)
        found.append(told)
    return tuple(found)


def _scores(findings: Scores) -> dict[str, ScoreRecord]:
    found = {}
    for name, values in findings.values.items():
        posterior, measured = findings.posteriors.get(name), findings.measured.get(name)
        mean: Numbers = ()
        low, high = mean, mean
        if posterior is not None:
            ends = posterior.interval()
            mean, low, high = (_numbers(v.detach().tolist()) for v in (posterior.mean(), *ends))
        found[name] = ScoreRecord(_of(values), mean, low, high, () if measured is None else _of(measured))
    return found


def _of(tensor: Tensor) -> Numbers:
    return _numbers(tensor.detach().double().tolist())


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}


def _numbers(values: Iterable[float]) -> Numbers:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)
