"""Products with stored tensors that are no module's (`h @ self.w`): functions of what goes in and of what comes out.

No hook can stand there. Within a forward pass torch shows every function that is called; those that multiply an
activation with something made of stored tensors alone are counted, for each of these tensors, as the analysis did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.graph.registry import RULES
from prunus.graph.stored import CASTS

Places = Mapping[tuple[str, int], Callable[[Tensor], Tensor]]
"""(stored tensor, the how many-th product with something made of it) -> what to do to the activation, or the result."""

NAMES = {
    "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "matmul": ("input", "other"), "mm": ("input", "mat2"),
    "bmm": ("input", "mat2"),
}  # fmt: skip
"""Names of the two operands, where they aren't `input` and `weight`."""


@contextmanager
def around_products(model: nn.Module, before: Places, after: Places) -> Iterator[None]:
    """Within the context every forward pass of the model does something before and after these products.

    Args:
        model: the network; gets two hooks if there are places, and loses them on leaving.
        before: by stored tensor (its first name) and number of the product: what becomes of the activation.
        after: the same of what the product makes.
    """
    if not before and not after:
        yield
        return
    running: list[_Watch] = []

    def enter(*_: Any) -> None:
        running.append(_Watch(model, before, after))
        running[-1].__enter__()

    def leave(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    try:
        with model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True):
            yield
    finally:
        while running:  # what interrupted the pass was no Exception
            leave()


class _Watch(TorchFunctionMode):
    """Knows, within one forward pass, which tensors are stored or computed from stored ones alone, and from which."""

    def __init__(self, model: nn.Module, before: Places, after: Places) -> None:
        super().__init__()
        self.before, self.after = before, after
        wanted = {name for name, _ in (*before, *after)}
        self.counts = dict.fromkeys(wanted, -1)
        self.made: dict[int, tuple[Tensor, frozenset[str]]] = {}
        for module in model.modules():
            for held in vars(module).values():
                if isinstance(held, Tensor):
                    self.made[id(held)] = (held, frozenset())
        for named in (model.named_parameters(), model.named_buffers()):
            for name, tensor in named:
                self.made[id(tensor)] = (tensor, frozenset({name} & wanted))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = list(args), dict(kwargs or {})
        name = getattr(func, "__name__", "")
        name = {"__matmul__": "matmul", "__rmatmul__": "matmul"}.get(name, name)
        found = RULES.get(name)  # Python calls products the same as the captured graph
        behind: list[Callable[[Tensor], Tensor]] = []
        if found is not None and found.sides is not None:
            args, kwargs, behind = self._changed(name, found.sides, args, kwargs)
        result = func(*args, **kwargs)
        self._note(name, args, kwargs, result)
        for change in behind:
            result = change(result)
        return result

    def _changed(
        self, name: str, sides: tuple[int, int], args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any], list[Callable[[Tensor], Tensor]]]:
        """The arguments, the activation's side changed if this is one of the places; what is done to the result."""
        first: list[Any] = args
        keys: list[Any] = list(sides)
        if name == "einsum":
            first = list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
            if len(first) != 2:
                return args, kwargs, []
        else:
            words = NAMES.get(name, ("input", "weight"))
            keys = [k if k < len(args) else word for k, word in zip(keys, words, strict=True)]
        known = [self.made.get(id(kwargs.get(k) if isinstance(k, str) else first[k])) for k in keys]
        if sum(k is None for k in known) != 1:
            return args, kwargs, []
        names = next(k[1] for k in known if k is not None)
        key = keys[known.index(None)]
        behind = []
        for stored in sorted(names):
            self.counts[stored] += 1
            place = (stored, self.counts[stored])
            behind += [self.after[place]] if place in self.after else []
            change = self.before.get(place)
            if change is not None and isinstance(key, str):
                kwargs[key] = change(kwargs[key])
            elif change is not None:
                first[key] = change(first[key])
        return ([args[0], *first] if name == "einsum" else args), kwargs, behind

    def _note(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Any) -> None:
        operands = _tensors(args[:1] if name in CASTS else (args, kwargs))
        known = [self.made.get(id(t)) for t in operands]
        names = frozenset(n for k in known if k is not None for n in k[1])
        if all(k is not None for k in known):
            self.made.update({id(t): (t, names) for t in _tensors(result)})
            return
        for changed in (*_tensors(result), *(_tensors(args[:1]) if name == "__setitem__" else ())):
            self.made.pop(id(changed), None)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
