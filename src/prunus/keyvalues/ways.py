"""How the groups of one layer are shared out, and its weights: merged, or in the old shape with as many keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.keyvalues.attentions import Attention
from prunus.keyvalues.pairs import Pairs, as_complex, as_real
from prunus.keyvalues.sets import Set, best_sets
from prunus.keyvalues.squares import Merged, Squares, merged

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """One layer's groups of before, shared out.

    Attributes:
        attention: the layer.
        sets: groups that become one, in their new order.
        found: what each set has in their place.
    """

    attention: Attention
    sets: tuple[Set, ...]
    found: tuple[Merged, ...]

    @property
    def error(self) -> float:
        """Share of keys and values that the merged ones can't make, each relative to what there was: 0 to 2."""
        return sum(f.error for f in self.found) / len(self.found)

    def as_before(self, tensors: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
        """New keys and values in the shape of before, for queries and readers of before: fp64, by name."""
        place = self._order().argsort()

        def keys(tensor: Tensor) -> Tensor:
            turns = torch.cat([f.queries for f in self.found]).conj()[..., None]
            heads = self._keys(tensor, pairs).repeat_interleave(len(self.sets[0]), 0) * turns
            return as_real(heads[place], pairs).reshape(tensor.shape)

        def values(tensor: Tensor) -> Tensor:
            heads = self._values(tensor).repeat_interleave(len(self.sets[0]), 0)
            return (torch.cat([f.reads for f in self.found]) @ heads)[place].reshape(tensor.shape)

        return dict(self._changed(tensors, {"k_proj": keys, "v_proj": values}))

    def as_merged(self, tensors: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
        """The weights of the layer with fewer groups, from those of before: fp64, by name."""
        heads = (self.attention.groups, self.attention.shared, self.attention.width)
        order, turns = self._order(), torch.cat([f.queries for f in self.found])[:, None, :, None]

        def queries(tensor: Tensor) -> Tensor:
            parts = as_complex(tensor.reshape(*heads, -1)[order], pairs)
            return as_real(parts * turns, pairs).reshape(tensor.shape)

        def keys(tensor: Tensor) -> Tensor:
            return as_real(self._keys(tensor, pairs), pairs).reshape(-1, *tensor.shape[1:])

        def values(tensor: Tensor) -> Tensor:
            return self._values(tensor).reshape(-1, *tensor.shape[1:])

        def read(tensor: Tensor) -> Tensor:
            if tensor.dim() == 1:
                return tensor
            parts, reads = tensor.double().reshape(-1, *heads)[:, order], torch.cat([f.reads for f in self.found])
            return torch.einsum("ogsw,gwv->ogsv", parts, reads).reshape(tensor.shape)

        changes = {"q_proj": queries, "k_proj": keys, "v_proj": values, "o_proj": read}
        return dict(self._changed(tensors, changes))

    def _order(self) -> Tensor:
        return torch.tensor([g for chosen in self.sets for g in chosen], device=self.found[0].keys.device)

    def _keys(self, tensor: Tensor, pairs: Pairs) -> Tensor:
        parts = as_complex(tensor.reshape(self.attention.groups, self.attention.width, -1), pairs)
        new = [(parts[list(s)] * f.keys[..., None]).sum(0) for s, f in zip(self.sets, self.found, strict=True)]
        return torch.stack(new)

    def _values(self, tensor: Tensor) -> Tensor:
        parts = tensor.double().reshape(self.attention.groups, self.attention.width, -1)
        return torch.stack([(f.values @ parts[list(s)]).sum(0) for s, f in zip(self.sets, self.found, strict=True)])

    def _changed(self, tensors: Mapping[str, Tensor], changes: Mapping[str, Change]) -> Iterator[tuple[str, Tensor]]:
        for projection, change in changes.items():
            for part in ("weight", "bias"):
                name = f"{self.attention.name}.{projection}.{part}"
                if name in tensors:
                    yield name, change(tensors[name].detach())


def shared_out(attention: Attention, known: Squares, model: Any, groups: int) -> Way:
    """The sets of groups that lose least together, and what each has in their place.

    Args:
        attention: the layer.
        known: its second moments.
        model: which it is part of.
        groups: how many sets.
    """
    reader = attention.projections(model)[3].weight

    def one(chosen: Set) -> Merged:
        return merged(attention, known, reader, chosen)

    sets = best_sets(attention.groups, attention.groups // groups, lambda chosen: one(chosen).error)
    return Way(attention, tuple(sets), tuple(map(one, sets)))
