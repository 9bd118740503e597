"""In which order blocks go: by what the loss pays for each MAC that they save, measured with those before them gone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import nn

from prunus.graph.grouping import Graph
from prunus.graph.shallower import without_blocks
from prunus.learning.findings import Depth
from prunus.learning.measured import Batch, plan_loss
from prunus.plan.cost import Cost, CostModel
from prunus.plan.plan import Plan
from prunus.runtime.precision import lower
from prunus.runtime.progress import progress_bar
from prunus.runtime.training import LossFunction

RESOURCE = "macs"


@dataclass(frozen=True)
class _Tried:
    """A block that could go next, and what was last known of it."""

    name: str
    price: float
    depth: Depth
    after: int


def depths(
    model: nn.Module,
    graph: Graph,
    blocks: Collection[str],
    batches: Sequence[Batch],
    loss_fn: LossFunction,
    enough: Callable[[Cost], bool],
    *,
    known: Sequence[Depth] = (),
    progress: bool = False,
) -> tuple[Depth, ...]:
    """The network with ever fewer blocks, until what is left is small enough or no block is.

    At every step the block goes whose removal costs the least loss for each MAC that it saves. A block is measured anew
    when it comes first by what was known of it: what was dear with more blocks there is taken to be dear still. Without
    a difference beyond the rounding of fp32 a block costs nothing; of equal ones the first goes, on every processor.

    Args:
        model: the trained network; unchanged.
        graph: its analysis.
        blocks: names of those that may go.
        batches: learning data, see `first_batches`; forward only, in fp32.
        loss_fn: mean loss of a batch.
        enough: of the cost of what is left, whether it need not be smaller.
        known: the first of these networks, found before.
        progress: show a bar where there is a terminal.

    Returns:
        From the whole network on.

    Raises:
        DataError: NaN or infinity in the inputs or the loss.
    """

    def measured(names: tuple[str, ...]) -> Depth:
        plan = Plan.from_kept(graph, dict.fromkeys(names, ()))
        return Depth(names, plan_loss(model, plan, batches, loss_fn))

    places = {name: place for place, name in enumerate(blocks)}

    def cheapest(block: _Tried) -> tuple[float, int]:
        return block.price, places[block.name]

    found = list(known) or [measured(())]
    tried: list[_Tried] = []
    with progress_bar("blocks", len(blocks), progress) as bar:
        while not enough(_cost(graph, found[-1].blocks)):
            now, gone = found[-1], graph.blocks.inner(found[-1].blocks)
            stale = {t.name: t for t in tried if t.name not in gone}
            tried = [*stale.values()] + [
                _priced(graph, now, name, measured, len(found))
                for name in blocks
                if name not in gone and name not in stale
            ]
            if not tried:
                break
            best = min(tried, key=cheapest)
            while best.after != len(found):
                tried.remove(best)
                tried.append(_priced(graph, now, best.name, measured, len(found)))
                best = min(tried, key=cheapest)
            found.append(best.depth)
            bar.advance()
    return tuple(found)


def _priced(graph: Graph, now: Depth, name: str, measured: Callable[[tuple[str, ...]], Depth], after: int) -> _Tried:
    inner = graph.blocks.inner([name])
    then = measured((*(b for b in now.blocks if b not in inner), name))
    saved = _cost(graph, now.blocks)[RESOURCE] - _cost(graph, then.blocks)[RESOURCE]
    alike = not (lower(then.loss, than=now.loss) or lower(now.loss, than=then.loss))
    return _Tried(name, 0.0 if alike else (then.loss - now.loss) / max(saved, 1), then, after)


def _cost(graph: Graph, blocks: Collection[str]) -> Cost:
    return CostModel(without_blocks(graph, blocks)).dense()
