"""`prune_sharded()`: units of a model whose weights FSDP2 dealt out to several processes, never gathered whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from prunus.data.batches import as_batches, forward
from prunus.data.dense_outputs import DenseOutputs
from prunus.errors import ConfigError, PruneError, SurgeryError, first_line
from prunus.gates.frozen import frozen
from prunus.gates.gate import attach
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.graph.trace import trace
from prunus.layers.submodules import Ignored
from prunus.learning.findings import Scores
from prunus.methods.base import GradientCriterion, Method, PosteriorMethod
from prunus.methods.registry import resolve
from prunus.pipeline.planning import make_plan, prunable_groups, score
from prunus.plan.allocation import Allocation
from prunus.plan.plan import Plan
from prunus.plan.request import Target, check, requested
from prunus.proof.comparison import difference, named_tensors
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision, to_device
from prunus.runtime.processes import model_device
from prunus.runtime.shown import Shown
from prunus.surgery.configuration import keep_configuration_true_
from prunus.surgery.cut import cut_
from prunus.surgery.shards import fill_, reshard_


@dataclass(frozen=True, repr=False)
class Sharded(Shown):
    """What `prune_sharded` made.

    Attributes:
        model: the smaller model, sharded.
        plan: what stays; the same on all processes.
        scores: of every unit, with posteriors where the method learned any.
        graph: the analysis of the dense model.
        max_error: largest difference of a channel from the masked dense model, relative to that channel.
    """

    model: nn.Module
    plan: Plan
    scores: Scores
    graph: Graph = field(repr=False)
    max_error: float

    def line(self) -> str:
        """What the plan keeps, and how exactly that was proven."""
        return f"{self.plan.line()}, proven to {self.max_error:.1e}"

    def explain(self) -> str:
        """The plan, and what was proven."""
        proof = f"proof: sharded and pruned = sharded and masked to {self.max_error:.1e}, on the example inputs"
        return f"{self.plan.explain()}\n{proof}"


@entry()
def prune_sharded(
    model: nn.Module,
    skeleton: nn.Module,
    example_inputs: Any,
    *,
    shard: Callable[[nn.Module], object],
    method: Method | str = "fisher",
    target: Target,
    data: Iterable[Any],
    loss_fn: Callable[..., Tensor],
    ignored_layers: Sequence[Ignored] = (),
    allocation: Allocation | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Sharded:
    """Remove units of a model that `torch.distributed.fsdp.fully_shard` has dealt out; every process calls it.

    Gates are whole on every process and learn as in one; weights stand still and are gathered layer by layer as FSDP
    does. Afterwards one tensor at a time is gathered, cut and dealt out again, into a new model: no process ever holds
    the whole network. Without repair, labels from the dense network, blocks, or heads' dimensions.

    Args:
        model: the trained network, sharded; in the end as it was.
        skeleton: the same network on the device `meta`, not sharded; not touched. It is what is analysed.
        example_inputs: as for `prune`, the same on all processes.
        shard: how a network is sharded: calls `fully_shard` on its parts and on the whole, as for `model`.
        method: of gradients or with a posterior, see `prune`.
        target: as for `prune`: a budget that is counted, a fraction or counts; no promise or measured budget.
        data: this process's share of the batches.
        loss_fn: `loss_fn(outputs, targets)` -> mean loss.
        ignored_layers: as for `prune`.
        allocation: as for `prune`; the scope `auto` is `global`.
        seed: of everything random.
        progress: show a progress bar where there is a terminal.

    Raises:
        ConfigError: a model that is not sharded, another skeleton, or a method or target of another kind.
        SurgeryError: the smaller model does not do what the masked one does.

    Example:
        >>> from prunus.pipeline.sharded import prune_sharded
        >>> net, skeleton = nn.Linear(2, 2), nn.Linear(2, 2, device="meta")
        >>> prune_sharded(net, skeleton, None, shard=print, target=0.5, data=[], loss_fn=F.mse_loss)
        Traceback (most recent call last):
        prunus.errors.ConfigError: model
          what: its weights are not sharded
          fix:  call fully_shard on it first, or use prunus.prune
    """
    if not isinstance(model, FSDPModule):
        raise ConfigError("model", "its weights are not sharded", "call fully_shard on it first, or use prunus.prune")
    _check_skeleton(model, skeleton)
    chosen, seed = resolve(method), as_seed(seed)
    if not isinstance(chosen, GradientCriterion | PosteriorMethod) or chosen.in_stages:
        what = "it reads whole weights, or trains them along"
        raise ConfigError(f"method {chosen.name!r}", what, "use 'fisher', 'taylor' or 'dirichlet'")
    if isinstance(loss_fn, DenseOutputs):
        what = "the dense network can't be copied to answer beside the gated one"
        raise ConfigError("loss_fn", what, "give loss_fn(outputs, targets)")
    request = requested(target, allocation, method=chosen.name, takes=chosen.targets, optional=False)
    if request.promise is not None:
        raise ConfigError(f"target {target!r}", "promises need the whole network", "give a budget, such as 'macs<=50%'")
    if request.allocation.scope == "auto":
        request = replace(request, allocation=replace(request.allocation, scope="global"))
    graph = trace(skeleton, to_device(example_inputs, torch.device("meta")))
    groups = prunable_groups(graph, skeleton, ignored_layers)
    check(request, graph, groups)
    with _resharded(model):
        scores = score(
            model, groups, chosen, as_batches(data, model, example_inputs), loss_fn,
            seed=seed, progress=progress, measured=request.allocation.scope == "measured",
        )  # fmt: skip
        plan = make_plan(
            graph, groups, scores, budget=request.budget, pruning_ratio=request.ratio, kept_counts=request.counts,
            allocation=request.allocation, seed=seed,
        )  # fmt: skip
        smaller = _cut(model, skeleton, plan, shard)
        error = _proven(model, smaller, plan, groups, example_inputs)
    return Sharded(smaller, plan, scores, graph, error)


def _check_skeleton(model: nn.Module, skeleton: Any) -> None:
    """Refuse a skeleton of another network, or one that holds numbers."""
    fix = "make the network once more under torch.device('meta'), and don't shard it"
    if not isinstance(skeleton, nn.Module) or any(p.device.type != "meta" for p in skeleton.parameters()):
        raise ConfigError("skeleton", "it is no module on the device 'meta'", fix)
    mine, its = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (model, skeleton))
    odd = sorted(dict(mine.items() ^ its.items()))
    if odd:
        raise ConfigError("skeleton", f"{odd[0]} is not what it is in the model", fix)


@contextmanager
def _resharded(model: Any) -> Iterator[None]:
    """Within the context the outermost module gives gathered weights up after each forward pass, as all others do.

    FSDP leaves them there for the backward pass. Whatever puts the module's attributes back in between would mix
    gathered weights and shards.
    """
    with model.register_forward_hook(lambda module, *_: module.reshard()):
        try:
            yield
        finally:
            reshard_(model)


def _cut(model: nn.Module, skeleton: nn.Module, plan: Plan, shard: Callable[[nn.Module], object]) -> nn.Module:
    """The smaller model, sharded and filled."""
    if plan.norms:
        what = f"{plan.norms[0].tensor!r} is a product of a direction and a length"
        raise SurgeryError(type(skeleton).__name__, what, "make its parametrizations permanent before sharding")
    smaller = copy.deepcopy(skeleton)
    cut_(smaller, plan)
    keep_configuration_true_(smaller, plan)
    shard(smaller)
    smaller.to_empty(device=model_device(model))
    fill_(smaller, model, plan)
    return smaller.train(model.training)


@torch.no_grad()
def _proven(
    model: nn.Module, smaller: nn.Module, plan: Plan, groups: Sequence[ChannelGroup], example_inputs: Any
) -> float:
    """Largest difference between the smaller model and the masked one."""
    inputs = to_device(example_inputs, model_device(model))
    stays = {g.name: torch.zeros(g.units) for g in groups}
    for name, kept in plan.kept.items():
        stays[name][list(kept)] = 1.0
    with full_precision():
        with attach(model, groups) as gates, frozen(model):
            gates.fix(stays)
            wanted = named_tensors(forward(model, inputs))
        try:
            with eval_mode(smaller):
                got = named_tensors(forward(smaller, inputs))
                reshard_(smaller)
        except PruneError:
            raise
        except Exception as failure:
            raise _refusal(plan, f"the smaller model does not run: {first_line(failure)}") from failure
    error, tolerance = difference([list(wanted.values())], [list(got.values())])
    if not error <= tolerance:
        raise _refusal(plan, f"the smaller model is {error:.1e} from the masked one, more than {tolerance:.0e}")
    return error


def _refusal(plan: Plan, problem: str) -> SurgeryError:
    removed = ", ".join(g.name for g in plan.groups if len(g.kept) < g.units)
    return SurgeryError(
        f"groups {removed}", problem, "put the layers concerned into ignored_layers, or use prunus.prune"
    )
