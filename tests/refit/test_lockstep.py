"""Two networks side by side, operation by operation: the same as two whole passes, whatever is written in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from side_nets import Regions, Written
from torch import Tensor, nn

import prunus
from prunus.graph.grouping import Graph
from prunus.proof.comparison import named_tensors
from prunus.proof.masked import masked
from prunus.refit import repair
from prunus.refit.calls import layer_call
from prunus.refit.lockstep import Lockstep
from prunus.refit.order import ordered
from prunus.refit.paths import path_behind
from prunus.runtime.arguments import as_arguments
from prunus.runtime.copies import copied
from prunus.surgery.rewrite import captured_freely
from zoo import ZOO
from zoo_nets import Net, cbr, head

NETS = {name: (animal.make, animal.inputs) for name, animal in ZOO.items()}
NETS["written"] = (
    lambda: Written(), lambda size: torch.randn(size, 4, 6, generator=torch.Generator().manual_seed(size))
)  # fmt: skip
NETS["regions"] = (lambda: Regions(), lambda size: torch.randn(size, 6, generator=torch.Generator().manual_seed(size)))
NETS["in place"] = (
    lambda: Net(lambda m, x: m.head(torch.relu_(m.b(m.a(x)).add_(m.a(x))) + m.a(x)),
                a=cbr(3, 8, act=nn.ReLU(inplace=True)), b=cbr(8, 8)[:2], head=head(8)).eval(),
    ZOO["plain_cnn"].inputs,
)  # fmt: skip


def two_thirds(graph: Graph) -> dict[str, list[int]]:
    kept = {}
    for group in graph.groups():
        rows = torch.zeros(group.units) if group.rows is None else torch.tensor(group.rows)
        parts = [(rows == row).nonzero()[:, 0] for row in rows.unique()]
        kept[group.name] = sorted(int(u) for part in parts for u in part[: -(-2 * len(part) // 3)])
    return kept


def side_by_side(name: str) -> tuple[nn.Module, prunus.Plan, Lockstep, list[Any]]:
    make, inputs = NETS[name]
    torch.manual_seed(0)
    model = make()
    plan = prunus.Plan.from_kept(graph := prunus.trace(model, inputs(2)), two_thirds(graph))
    return model, plan, Lockstep(captured_freely(model, plan, inputs(2)), plan, model), [inputs(2), inputs(3)]


def steps(run: Lockstep, batches: list[Any]) -> Iterator[Any]:
    nodes = list(run.module.graph.nodes)
    layers = [n for n in nodes if n.op == "call_function" and layer_call(n) is not None]
    order, _ = ordered(nodes, {n: path_behind(n) for n in layers})
    with torch.no_grad(), run.in_format():
        yield from run.run(order, batches)


def check(model: nn.Module, plan: prunus.Plan | None, batch: Any, found: Any) -> None:
    args, kwargs = as_arguments(torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, batch), model)
    with torch.no_grad(), nothing() if plan is None else masked(model, plan):
        wanted = named_tensors(model(*args, **kwargs))
    for name, value in named_tensors(found).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)


@contextmanager
def nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    "name",
    ["written", "regions", "in place", "inplace_relu", "heads_written_bias", "two_outputs", "keyword_inputs",
     "weight_norm_grouped", "embedding_mlp"],
)  # fmt: skip
def test_one_walk_equals_two_passes(name: str) -> None:
    model, plan, run, batches = side_by_side(name)
    copies = torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, batches)
    stored = {n: t.clone() for n, t in model.state_dict().items()}
    for _ in steps(run, batches):
        pass
    for number, batch in enumerate(batches):
        for found, which in zip(run.outputs(number), (None, plan), strict=True):
            check(model, which, batch, found)
    left, right = (torch.utils._pytree.tree_leaves(b) for b in (batches, copies))
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True)), "the batches were written to"
    assert all(torch.equal(t, stored[n]) for n, t in model.state_dict().items())
    assert all(len(side) < 8 for both in run.values for side in both), "values that nobody needs are kept"


def test_replaced_weights_count_from_then_on() -> None:
    model, plan, run, batches = side_by_side("plain_cnn")
    changed = copied(model)
    new = {}
    for node in steps(run, batches):
        call = layer_call(node)
        if call is not None and run.differs(call.source):
            new[str(call.weight.target)] = weight = torch.randn_like(run.stored[0][call.weight])
            run.replace(call.weight, weight)
    assert len(new) > 1
    for name, weight in new.items():
        changed.get_parameter(name).data.copy_(weight)
    for number, batch in enumerate(batches):
        dense, smaller = run.outputs(number)
        check(model, None, batch, dense)
        check(changed, plan, batch, smaller)


def test_what_is_the_same_in_both_is_kept_once() -> None:
    _, _, run, batches = side_by_side("plain_cnn")
    seen = []
    for node in steps(run, batches):
        dense, smaller = run.values[0]
        seen += [dense[n] is smaller[n] for n in node.all_input_nodes if n in smaller and not run.differs(n)]
    assert seen
    assert all(seen)


def test_layers_in_regions_are_refitted() -> None:
    torch.manual_seed(0)
    model, x = Regions(), torch.randn(40, 6)
    plan = prunus.Plan.from_kept(graph := prunus.trace(model, x), two_thirds(graph))
    done = repair(model, plan, [(x,)], progress=False)
    assert [r.layer for r in done.refits] == ["a", "b", "mid", "out"]
    prunus.apply_(done.model, plan, x)
