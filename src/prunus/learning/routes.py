"""Which tokens come to which expert, with which weight, and how large is what it makes of them: read while data pass.

Experts that are called with their input, the numbers of the chosen and the weights of these are called once more for
each choice, with that weight at one: so what a single expert makes is seen, whatever is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import forward
from prunus.errors import DataError
from prunus.gates.frozen import frozen
from prunus.graph.groups import ChannelGroup
from prunus.learning.findings import Scores
from prunus.learning.problem import Learning
from prunus.methods.base import RoutingCriterion
from prunus.runtime.precision import full_precision, to_device
from prunus.runtime.processes import distributed, model_device, summed
from prunus.runtime.progress import progress_bar


@dataclass(frozen=True)
class Load:
    """Tokens that came to each expert of a layer that stayed, before and after the others went.

    Attributes:
        layer: name of the group of experts.
        kept: the experts that stayed, by their number before.
        before: tokens of each expert of the dense network, int64 [units].
        after: tokens of each of those that stayed, int64 [kept].
    """

    layer: str
    kept: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def explain(self) -> str:
        """One line: how many tokens lost a chosen expert, and how even the load is."""
        gone = sum(n for i, n in enumerate(self.before) if i not in self.kept) / max(sum(self.before), 1)
        busiest = [max(load) / max(sum(load), 1) for load in (self.before, self.after)]
        idle = [sum(n == 0 for n in load) for load in (self.before, self.after)]
        return (
            f"{self.layer}: {gone:.0%} of the choices were of experts that went; the busiest takes {busiest[0]:.0%} -> "
            f"{busiest[1]:.0%}, without a token {idle[0]} -> {idle[1]}; "
            f"before {list(self.before)}, after {list(self.after)}"
        )


@dataclass(frozen=True)
class Routed:
    """What one call of a layer's experts shows.

    Attributes:
        layer: name of the group of experts.
        chosen: number of the expert, int64 [N, choices].
        weights: with which its output counts, [N, choices].
        made: of a choice, what the experts make of all tokens with weight one, [N, width].
    """

    layer: str
    chosen: Tensor
    weights: Tensor
    made: Callable[[int], Tensor]


@contextmanager
def routes_seen(model: nn.Module, layers: Iterable[str], see: Callable[[Routed], None]) -> Iterator[None]:
    """Within the context every call of these layers' experts is shown.

    Args:
        model: the network.
        layers: names of groups of experts.
        see: what is called with each.

    Raises:
        DataError: (in the forward pass) experts that are called otherwise.
    """
    with ExitStack() as hooks:
        for layer in layers:
            hook = _shown(layer, see)
            hooks.enter_context(model.get_submodule(layer).register_forward_pre_hook(hook, with_kwargs=True))
        yield


def _shown(layer: str, see: Callable[[Routed], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(enumerate(args)) | kwargs
        whole = {k: v for k, v in given.items() if isinstance(v, Tensor)}
        chosen = [k for k, v in whole.items() if not v.is_floating_point()]
        sizes = {whole[k].shape for k in chosen}
        weights = [k for k, v in whole.items() if v.is_floating_point() and v.shape in sizes]
        if len(chosen) != 1 or len(weights) != 1 or whole[chosen[0]].dim() != 2:
            what = "its experts are not called with the numbers of the chosen and their weights, [tokens, choices] each"
            raise DataError(f"layer {layer!r}", what, "use a method that needs no tokens per expert, such as dirichlet")

        def made(choice: int) -> Tensor:
            one = {
                chosen[0]: whole[chosen[0]][:, choice : choice + 1],
                weights[0]: torch.ones_like(whole[weights[0]][:, choice : choice + 1]),
            }
            called = given | one
            positional = [called[i] for i in range(len(args))]
            out = module.forward(*positional, **{k: v for k, v in called.items() if isinstance(k, str)})
            result: Tensor = out.reshape(-1, out.shape[-1])
            return result

        see(Routed(layer, whole[chosen[0]], whole[weights[0]], made))

    return hook


def route_scores(
    method: RoutingCriterion, model: nn.Module, groups: Sequence[ChannelGroup], learning: Learning
) -> Scores:
    """Score experts by one pass over the data; the model is unchanged."""
    totals = {g.name: torch.zeros(2, g.units, dtype=torch.float64, device="cpu") for g in groups}
    tokens = dict.fromkeys(totals, 0)

    def see(call: Routed) -> None:
        tokens[call.layer] += len(call.chosen)
        for choice in range(call.chosen.shape[1]):
            norms = call.made(choice).float().norm(dim=-1)
            added = method.contribution(call.weights[:, choice].float(), norms).double().cpu()
            index = call.chosen[:, choice].cpu()
            totals[call.layer][0].index_add_(0, index, added)
            totals[call.layer][1].index_add_(0, index, torch.ones_like(added))

    _pass_(model, totals, learning.loader, see, learning.progress, method.name)
    if distributed():
        device = model_device(model)
        totals = {n: summed(t.to(device)).cpu() for n, t in totals.items()}
        tokens = {n: int(summed(torch.tensor(float(t), dtype=torch.float64, device=device))) for n, t in tokens.items()}
    return Scores({n: method.finish(t[0], t[1], tokens[n]) for n, t in totals.items()}, method=method.name)


def tokens_per_expert(model: nn.Module, sizes: dict[str, int], batches: Iterable[Any]) -> dict[str, tuple[int, ...]]:
    """Tokens that come to each expert.

    Args:
        model: the dense or the smaller network; unchanged.
        sizes: layer -> number of its experts.
        batches: (inputs, targets).
    """
    counts = {n: torch.zeros(size, dtype=torch.int64, device="cpu") for n, size in sizes.items()}

    def see(call: Routed) -> None:
        counts[call.layer] += torch.bincount(call.chosen.reshape(-1).cpu(), minlength=sizes[call.layer])

    _pass_(model, counts, batches, see, False, "")
    return {n: tuple(c.tolist()) for n, c in counts.items()}


def _pass_(
    model: nn.Module,
    layers: Iterable[str],
    batches: Any,
    see: Callable[[Routed], None],
    progress: bool,
    name: str,
) -> None:
    device = model_device(model)
    with (
        frozen(model),
        torch.no_grad(),
        full_precision(),
        routes_seen(model, layers, see),
        progress_bar(name, len(batches), progress) as bar,
    ):
        for inputs, _ in batches:
            forward(model, to_device(inputs, device))
            bar.advance()
