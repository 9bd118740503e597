"""How a layer of experts is called: which it gives each token, with which weight, and what one choice alone makes.

Experts that are called with their input, the numbers of the chosen and the weights of these are called once more for
each choice, with that weight at one: so what a single expert makes is seen, whatever is inside. Experts in a list are
looked at one by one (`gates/listed.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.gates.listed import list_seen
from prunus.gates.routed import Routed, not_shown


@contextmanager
def routes_seen(model: nn.Module, layers: Mapping[str, str], see: Callable[[Routed], None]) -> Iterator[None]:
    """Within the context every call of these layers' experts is shown.

    Args:
        model: the network.
        layers: name of a group of experts -> the module that holds them and their router.
        see: what is called with each.

    Raises:
        DataError: (in the forward pass) experts that are called otherwise, or in a list and not added up.
    """
    with ExitStack() as hooks:
        for layer, around in layers.items():
            experts = model.get_submodule(layer)
            if isinstance(experts, nn.ModuleList):
                hooks.enter_context(list_seen(model, layer, around, see))
            else:
                hooks.enter_context(experts.register_forward_pre_hook(_shown(layer, see), with_kwargs=True))
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
            raise not_shown(layer, what)

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
