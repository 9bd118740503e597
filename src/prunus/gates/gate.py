"""Gates: one multiplier per unit, applied to the input of every layer that reads the group.

A gate at the readers makes z_j = 0 mean exactly "column j of every reader is unused", whatever normalisation, residual
addition or depthwise convolution lies between. Gates are forward hooks on the user's own module; leaving the context
removes them without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, DataError
from prunus.gates.dealt import Dealt
from prunus.gates.routing import router_sites
from prunus.graph.groups import ChannelGroup
from prunus.graph.stored_products import around_products
from prunus.posteriors.base import Posterior
from prunus.runtime.arguments import change_input, examples_in, tensors_in
from prunus.runtime.entry import one_at_a_time
from prunus.runtime.fields import check_kind

Mode = Literal["sample", "mean", "probe", "fixed", "off"]
Draws = Literal["example", "batch"]
Placement = Literal["reader", "writer"]


class GateSet:
    """The gates of a model while they are attached.

    Modes: `sample` draws from the posteriors, `mean` uses their means, `fixed` uses given values, `probe` uses ones
    whose gradient is kept, `off` leaves the model alone. All readers of a group see the same draw in one forward pass.
    """

    def __init__(self, groups: Sequence[ChannelGroup], posteriors: Mapping[str, Posterior], draws: Draws) -> None:
        self.groups = tuple(groups)
        self.posteriors = nn.ModuleDict(
            {str(i): posteriors[g.name] for i, g in enumerate(groups) if g.name in posteriors}
        )
        self.draws: Draws = draws
        self.dealt: Dealt | None = None
        self.mode: Mode = "sample" if posteriors else "probe"
        self.active: frozenset[str] = frozenset(g.name for g in groups)
        self.values: dict[str, Tensor] = {}
        self.probes: dict[str, Tensor] = {}
        self.positions: dict[str, int] = {}
        self._current: dict[str, Tensor] = {}
        self._batch = 1
        self._device = torch.device("cpu")

    def posterior(self, name: str) -> Posterior:
        """The posterior of a group. Raises ConfigError if there is none."""
        index = next((str(i) for i, g in enumerate(self.groups) if g.name == name), None)
        if index is None or index not in self.posteriors:
            known = ", ".join(g.name for i, g in enumerate(self.groups) if str(i) in self.posteriors) or "none"
            raise ConfigError(
                f"group {name!r}", f"it has no posterior here; those that have: {known}", "attach with its own"
            )
        return self.posteriors[index]  # type: ignore[return-value]

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is learned: the posteriors' parameters, nothing of the model."""
        return list(self.posteriors.parameters())

    def sample(self, names: Sequence[str] | None = None) -> None:
        """Draw from the posteriors at every forward pass; with `names`, only these groups are gated."""
        self._enter("sample", names)

    def mean(self, names: Sequence[str] | None = None) -> None:
        """Use the posterior means; with `names`, only these groups are gated."""
        self._enter("mean", names)

    def fix(self, values: Mapping[str, Tensor]) -> None:
        """Use the given multipliers per group, [K] or [B, K], one row per example; other groups are left alone."""
        self._enter("fixed", list(values))
        self.values = dict(values)

    def probe(self) -> None:
        """Use ones, and keep their gradient: after `backward`, `probes[name].grad` is [B, K], one row per example."""
        self._enter("probe", None)

    def off(self) -> None:
        """Leave the model alone."""
        self._enter("off", None)

    def _enter(self, mode: Mode, names: Sequence[str] | None) -> None:
        self.mode = mode
        self.active = frozenset(g.name for g in self.groups) if names is None else frozenset(names)
        self.begin(self._batch, self._device)

    def penalty(self, num_data: int, factor: Callable[[int], float] = lambda positions: 1.0) -> Tensor:
        """Sum of the active groups' complexities (KL, nats) divided by the number of training examples.

        Args:
            num_data: number of training examples.
            factor: of a group's complexity, from the number of positions of an example at which the last forward pass
                gated each unit (height x width at a convolution, 1 at a linear layer on vectors).
        """
        names = [g.name for g in self.groups if g.name in self.active]
        terms = [factor(self.positions.get(n, 1)) * self.posterior(n).complexity() for n in names]
        return torch.stack(terms).sum() / num_data

    def begin(self, batch: int, device: torch.device) -> None:
        """Forget the draws of the last forward pass (called by a hook before every call of the model)."""
        self._current = {}
        self.probes = {}
        self.positions = {}
        self._batch, self._device = batch, device

    def multiplier(self, group: ChannelGroup) -> Tensor | None:
        """This forward pass's multipliers: fp32 [B, K] or [1, K]; None if the group is left alone."""
        name = group.name
        if self.mode == "off" or name not in self.active:
            return None
        if name not in self._current:
            with torch.autocast(self._device.type, enabled=False):
                self._current[name] = self._make(name, group.units)
        return self._current[name]

    def _make(self, name: str, units: int) -> Tensor:
        if self.mode == "probe":
            learns = torch.is_grad_enabled()
            ones = torch.ones(self._batch, units, device=self._device, dtype=torch.float32, requires_grad=learns)
            self.probes[name] = ones
            return ones
        if self.mode == "fixed":
            return self.values[name].to(self._device, torch.float32).reshape(-1, units)
        if self.mode == "mean":
            return self.posterior(name).mean().reshape(1, -1)
        examples = self._batch if self.draws == "example" else None
        if self.dealt is not None:
            return self.dealt.draw(self.posterior(name).rsample, examples)
        return self.posterior(name).rsample(examples or 1)


@contextmanager
def attach(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    posteriors: Mapping[str, Posterior] | Callable[[int], Posterior] | None = None,
    *,
    draws: Draws = "example",
    placement: Placement = "reader",
) -> Iterator[GateSet]:
    """Bind posteriors to the readers of their groups within the context; other threads wait meanwhile.

    Args:
        model: the network; its modules get forward hooks, nothing else, and lose them on leaving.
        groups: groups to gate.
        posteriors: one per group name, or a function that makes one for a number of units (`method.posterior`), or
            None for gates held at one whose gradient is wanted.
        draws: one draw per example (lower gradient variance) or one per batch.
        placement: `reader` is exact; `writer` multiplies the writers' output, before any normalisation, as the
            released Dirichlet code does (batch norm may cancel it).

    Yields:
        The gates.

    Raises:
        ConfigError: a locked group, or a reader that is not a module of this model.
        DataError: (in the forward pass) an input whose batch dimension is not the model's.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(32, 8)
        >>> groups = prunus.trace(net, x).groups()
        >>> method = prunus.DirichletPruning()
        >>> with prunus.attach(net, groups, method.posterior) as gates:
        ...     loss = net(x).square().mean() + gates.penalty(num_data=32)
        ...     loss.backward()
        >>> [parameter.grad.shape for parameter in gates.parameters()]
        [torch.Size([16])]
    """
    check_kind("model", model, nn.Module, "the traced network")
    for group in groups:
        check_kind("groups", group, ChannelGroup, "groups of prunus.trace(model, example_inputs)")
        if group.locked is not None:
            raise ConfigError(f"group {group.name!r}", f"it is locked: {group.locked}", "gate prunable groups only")
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if callable(posteriors):
        posteriors = {g.name: posteriors(g.units) for g in groups}
    gates = GateSet(groups, posteriors or {}, draws)
    gates.posteriors.to(device)
    gates.begin(1, device)
    with one_at_a_time(), ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(_begin_hook(gates, device), with_kwargs=True))
        sites = _reader_sites(groups) if placement == "reader" else _writer_sites(groups)
        for (module, dim, output), members in sites.items():
            try:
                target = model.get_submodule(module)
            except AttributeError:
                raise ConfigError(f"module {module!r}", "the model has none of that name", "trace this model") from None
            site = _Site(gates, module, dim, members)
            if output:
                hooks.enter_context(target.register_forward_hook(site.after))
            else:
                hooks.enter_context(target.register_forward_pre_hook(site.before, with_kwargs=True))
        products = _product_sites(gates, groups) if placement == "reader" else {}
        logits = router_sites(gates, model, groups, hooks)
        hooks.enter_context(around_products(model, products, logits))
        yield gates


def _product_sites(gates: GateSet, groups: Sequence[ChannelGroup]) -> dict[tuple[str, int], Callable[[Tensor], Tensor]]:
    """Products that are no module's, and the gates that multiply their activation."""
    found: dict[tuple[str, int], dict[int, Members]] = {}
    for group in groups:
        for reader in group.readers:
            if reader.product >= 0 and not reader.routing:
                sites = found.setdefault((reader.stored, reader.product), {})
                sites.setdefault(reader.input_dim, []).append((group, torch.from_numpy(reader.units)))
    return {
        place: _in_turn([_Site(gates, place[0], dim, members).scale for dim, members in sites.items()])
        for place, sites in found.items()
    }


def _in_turn(changes: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """All changes, one after another: a product may be read along several dimensions."""
    return lambda x: reduce(lambda changed, change: change(changed), changes, x)


@contextmanager
def recompute_products() -> Iterator[None]:
    """Within the context autograd keeps gated inputs as their two factors, which are in memory anyway.

    Halves what gates add to the memory of a step; gradients are the same, at the price of one multiplication each, or
    of none where the reader is a frozen convolution: the gradient with respect to its input needs the input's shape,
    not its values.
    """

    def pack(tensor: Tensor) -> Any:
        return getattr(tensor, "made_of", tensor)

    def unpack(packed: Any) -> Tensor:
        if not isinstance(packed, tuple):
            return packed  # type: ignore[no-any-return]
        x, factor, values_needed = packed
        return x * factor if values_needed else torch.empty_like(x)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


Members = list[tuple[ChannelGroup, Tensor]]


Sites = dict[tuple[str, int, bool], Members]
"""Module, dimension, whether it is the module's output -> what is gated there."""


def _reader_sites(groups: Sequence[ChannelGroup]) -> Sites:
    sites: Sites = {}
    for group in groups:
        for reader in (r for r in group.readers if r.product < 0 and not r.routing):
            place = (reader.module, reader.input_dim, reader.output)
            sites.setdefault(place, []).append((group, torch.from_numpy(reader.units)))
    return sites


def _writer_sites(groups: Sequence[ChannelGroup]) -> Sites:
    sites: Sites = {}
    for group in (g for g in groups if g.routing is None):
        for slot in group.writers:
            if slot.dim < 0:
                what = f"{slot.tensor!r} of a grouped transposed convolution writes it, in no one dimension"
                raise ConfigError(f"group {group.name!r}", what, "use placement='reader'")
            dim = 1 - slot.plane.ndim if slot.plane.ndim > 2 else -1
            units = torch.from_numpy(slot.units_along_dim)
            sites.setdefault((slot.tensor.rpartition(".")[0], dim, True), []).append((group, units))
    return sites


def _is_frozen_convolution(module: nn.Module) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return type(module) in kinds and not module.weight.requires_grad and not module._forward_hooks  # type: ignore[union-attr]


def _begin_hook(gates: GateSet, device: torch.device) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((t for t in tensors_in((args, kwargs)) if t.dim()), None)
        gates.begin(examples_in((args, kwargs)), device if first is None else first.device)

    return hook


class _Site:
    """One gated place: the multipliers of the groups that share it, laid along its channel dimension."""

    def __init__(self, gates: GateSet, module: str, dim: int, members: Members) -> None:
        self.gates, self.module, self.dim, self.members = gates, module, dim, members
        group, units = members[0]
        self.places = len(units)
        self.gated = [int((places >= 0).sum()) for _, places in members]
        self.direct = len(members) == 1 and torch.equal(units, torch.arange(group.units, device="cpu"))

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Gate a module's input, however it is given."""
        values_needed = not _is_frozen_convolution(module)
        size = (self.dim, self.places)
        return change_input(module, self.module, args, kwargs, size, lambda x: self.scale(x, values_needed))

    def after(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Gate a module's output."""
        return self.scale(output)

    def scale(self, x: Tensor, values_needed: bool = True) -> Tensor:
        """Multiply `x` by this forward pass's gates; whether a backward pass reads the product's values."""
        gate = self._line(x)
        if gate is None:
            return x
        if gate.shape[0] not in (1, x.shape[0]):
            raise DataError(
                f"gate at {self.module!r}",
                f"its input has batch size {x.shape[0]}, the model's first input {gate.shape[0]}",
                "set draws='batch' (--set draws=batch on the command line), or put the layer into ignored_layers",
            )
        dim = self.dim % x.dim()
        self._count(x.shape[1:].numel() // x.shape[dim] if dim else 1)
        shape = [1] * x.dim()
        if dim:
            shape[0] = gate.shape[0]
        shape[dim] = gate.shape[1]
        factor = gate.to(x.dtype).reshape(shape)
        product = x * factor
        # A reader saves its input for a weight gradient that nobody asks for; `recompute_products` keeps the factors.
        product.made_of = (x.detach(), factor.detach(), values_needed)  # type: ignore[attr-defined]
        return product

    def _count(self, around: int) -> None:
        """Note at how many positions of an example each unit is gated; the most of all its readers."""
        for (group, _), gated in zip(self.members, self.gated, strict=True):
            found = around * gated // group.units
            self.gates.positions[group.name] = max(found, self.gates.positions.get(group.name, 1))

    def _line(self, x: Tensor) -> Tensor | None:
        multipliers = [(self.gates.multiplier(g), units) for g, units in self.members]
        present = [(m, u) for m, u in multipliers if m is not None]
        if not present:
            return None
        if self.direct:
            return present[0][0]
        batch = max(m.shape[0] for m, _ in present)
        line: Tensor | None = None
        while present:
            # One pass for all groups whose places are apart; whole rows over columns multiply what is there.
            columns, index, later, offset = [torch.ones(batch, 1, device=x.device, dtype=torch.float32)], None, [], 1
            for multiplier, units in present:
                if index is not None and bool(((index > 0) & (units >= 0)).any()):
                    later.append((multiplier, units))
                    continue
                columns.append(multiplier.expand(batch, -1))
                before = torch.zeros_like(units) if index is None else index
                index = torch.where(units >= 0, units + offset, before)
                offset += multiplier.shape[1]
            assert index is not None
            found = torch.cat(columns, 1).index_select(1, index.to(x.device))
            line, present = found if line is None else line * found, later
        return line
