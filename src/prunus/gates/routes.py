"""How a layer of experts is called: which it gives each token, with which weight, and what one choice alone makes.

Experts that are called with their input, the numbers of the chosen and the weights of these are called once more for
each choice, with that weight at one: so what a single expert makes is seen, whatever is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import DataError

TOKENS = "use a method that needs no tokens per expert, such as dirichlet"


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
        DataError: experts in a list; or, in the forward pass, experts that are called otherwise.
    """
    with ExitStack() as hooks:
        for layer in layers:
            if isinstance(model.get_submodule(layer), nn.ModuleList):
                what = "its experts are modules of a list, and nothing shows with which weight each counts"
                raise DataError(f"layer {layer!r}", what, TOKENS)
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
            raise DataError(f"layer {layer!r}", what, TOKENS)

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
