"""Attention layers with grouped queries in a transformers model, and the model made anew with fewer groups of keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, first_line

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""What transformers calls queries, keys, values and what reads the heads, in the classes that group their queries."""
KEY = "num_key_value_heads"


@dataclass(frozen=True)
class Attention:
    """One layer of attention.

    Attributes:
        name: of the module.
        heads: of queries.
        groups: of keys and values.
        width: of a head.
    """

    name: str
    heads: int
    groups: int
    width: int

    @property
    def shared(self) -> int:
        """How many heads read the same keys."""
        return self.heads // self.groups

    def projections(self, model: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        """Queries, keys, values, and what reads the heads."""
        q, k, v, o = (cast(nn.Linear, model.get_submodule(f"{self.name}.{p}".lstrip("."))) for p in PROJECTIONS)
        return q, k, v, o


def attentions(model: Any) -> list[Attention]:
    """The attention layers of a transformers model, all of as many heads.

    Raises:
        ConfigError: no transformers model, no such layers, layers with something else that belongs to heads or their
            dimensions, or layers that differ.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None or not hasattr(model, "save_pretrained"):
        what = "it is no transformers model: no number says how many heads read the same keys"
        raise ConfigError(name, what, "load it with from_pretrained")
    text = config.get_text_config()
    heads, groups = getattr(text, "num_attention_heads", None), getattr(text, KEY, None)
    places = [
        n for n, m in model.named_modules() if all(isinstance(getattr(m, p, None), nn.Linear) for p in PROJECTIONS)
    ]
    if not places or not isinstance(heads, int) or not isinstance(groups, int):
        what = f"it has no layers with {', '.join(PROJECTIONS)}, or its configuration no {KEY}"
        raise ConfigError(name, what, "key-value heads are merged in classes like Llama, Mistral, Qwen2 and Gemma")
    found = []
    for place in places:
        layer = model.get_submodule(place)
        more = [n for n, _ in layer.named_parameters() if n.split(".")[0] not in PROJECTIONS]
        if more:
            what = f"{more[0]!r} stands between projections and heads, and merged keys would not pass it alike"
            raise ConfigError(f"{name}, {place}", what, "prune its heads instead: prunus.prune")
        rows = [getattr(layer, p).out_features for p in PROJECTIONS[:3]]
        width = rows[1] // groups
        if rows != [heads * width, groups * width, groups * width] or layer.o_proj.in_features != rows[0]:
            what = f"its projections make {rows}, its configuration says {heads} heads and {groups} groups of keys"
            raise ConfigError(f"{name}, {place}", what, "merge before anything else is changed in the model")
        found.append(Attention(place, heads, groups, width))
    return found


def check_number(found: list[Attention], groups: int) -> None:
    """Refuse a number of groups that the layers can't have.

    Raises:
        ConfigError: it is not a smaller divisor of what there is.
    """
    now = found[0].groups
    if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups < now or now % groups:
        fits = [n for n in range(1, now) if now % n == 0]
        fix = f"give one of {', '.join(map(str, fits))}" if fits else "there is one group already"
        raise ConfigError("groups", f"{groups!r} groups can't be made of {now}, all of as many", fix)


def remade(model: Any, groups: int, tensors: Mapping[str, Tensor]) -> Any:
    """A copy of the model with so many groups of keys, as its own class makes it from the configuration.

    Args:
        model: not touched.
        groups: of keys and values, in every layer.
        tensors: what is new, by name: projections in their new shape, other parameters in their own.

    Raises:
        ConfigError: the class makes something else of that configuration.
    """
    name, smaller = type(model).__name__, copy.deepcopy(model)
    said = smaller.config.get_text_config()
    width = said.hidden_size // said.num_attention_heads
    if getattr(said, "head_dim", None) is None and hasattr(said, "head_dim"):
        said.head_dim = width
    setattr(said, KEY, groups)
    try:
        with torch.device("meta"):
            made = type(model)(smaller.config)
            before = type(model)(model.config)
    except Exception as error:
        what = f"its class can't be made with {groups} groups of keys: {first_line(error)}"
        raise ConfigError(name, what, "use another number of groups") from error
    new = {n: tensors.get(n, t) for n, t in model.state_dict().items()}
    odd = [n for n, t in made.state_dict().items() if n not in new or new[n].shape != t.shape]
    if odd:
        what = f"with {groups} groups of keys its class makes {odd[0]!r} of another shape than merging does"
        raise ConfigError(name, what, "report the class")
    for place, module in smaller.named_modules():
        for projection in PROJECTIONS:
            full = f"{place}.{projection}".lstrip(".")
            if f"{full}.weight" in tensors:
                setattr(module, projection, _linear(getattr(module, projection), full, tensors))
    with torch.no_grad():
        for full, parameter in smaller.named_parameters():
            if full in tensors:
                parameter.copy_(tensors[full])
    modules, old = dict(made.named_modules()), dict(before.named_modules())
    for place, module in smaller.named_modules():
        vars(module).update(_other_numbers(old[place], modules[place]))
    return smaller


def _linear(old: nn.Linear, name: str, tensors: Mapping[str, Tensor]) -> nn.Linear:
    """A linear layer with the new weight, and the new bias if there is one."""
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias", old.bias)
    new = copy.copy(old)  # its class and hooks; parameters of its own
    new._parameters = dict(old._parameters)
    new.weight = nn.Parameter(weight.to(old.weight), old.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().to(old.weight), old.weight.requires_grad)
    new.out_features, new.in_features = weight.shape
    return new


def _other_numbers(before: nn.Module, after: nn.Module) -> dict[str, int]:
    """Attributes of a module that are other whole numbers with fewer groups."""
    old = vars(before)
    return {k: v for k, v in vars(after).items() if type(v) is int and type(old.get(k)) is int and old[k] != v}
