"""What channels see: activation maps of the best and the worst of a layer on a few inputs, and the first filters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from prunus.errors import ArtifactError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup, Reader
from prunus.runtime.arguments import first_tensor
from prunus.runtime.calling import call
from prunus.runtime.modes import eval_mode
from prunus.runtime.processes import model_device

INPUTS, LAYERS, ENDS = 3, 6, 4
"""Inputs shown; layers shown, evenly spread over the network; channels from each end of a layer's order."""
SIDE, LENGTH, FILTERS = 32, 128, 64
"""Largest side of a map, length of a strip over positions, and number of filters."""
PICTURES = (1, 3)
"""Channels that a picture can have."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Maps:
    """Activation maps of a layer.

    Attributes:
        units: the channels shown, by falling score: first the best, then the worst.
        pictures: uint8 [units, inputs, H, W] on one scale for all; H = 1 where there are positions in place of pixels.
    """

    units: tuple[int, ...]
    pictures: Bytes


@dataclass(frozen=True)
class Features:
    """Pictures of a network at work.

    Attributes:
        inputs: uint8 [N, 1 or 3, H, W]; None where inputs are no pictures.
        maps: by group, as the layer that reads it is given them.
        layer: the first layer, if it looks at pictures.
        filters: its weight, uint8 [channels, 1 or 3, H, W], 128 is zero.
    """

    inputs: Bytes | None = None
    maps: Mapping[str, Maps] = field(default_factory=dict)
    layer: str = ""
    filters: Bytes | None = None

    def __bool__(self) -> bool:
        return self.inputs is not None or bool(self.maps) or self.filters is not None

    def to_bytes(self) -> bytes:
        """The file, in the safetensors format; `read_features` reads it back."""
        tensors = {f"maps:{name}": m.pictures for name, m in self.maps.items()}
        about = {f"units:{name}": ",".join(map(str, m.units)) for name, m in self.maps.items()}
        tensors |= {} if self.inputs is None else {"inputs": self.inputs}
        tensors |= {} if self.filters is None else {f"filters:{self.layer}": self.filters}
        return save({name: np.ascontiguousarray(t) for name, t in tensors.items()}, metadata=about)


def features_of(model: nn.Module, graph: Graph, scores: Mapping[str, Tensor], inputs: Any) -> Features:
    """Look at the dense network with a few inputs; it is unchanged.

    Args:
        model: the dense network.
        graph: its analysis.
        scores: of the units, by group, higher = keep; groups without any are not shown.
        inputs: a batch as the model takes it, see `INPUTS`.
    """
    chosen = _chosen([(g, r) for g in graph.channel_groups if g.name in scores for r in g.readers if _seen(r)])
    found: dict[str, Maps] = {}
    with ExitStack() as hooks, eval_mode(model), torch.no_grad():
        for group, reader in chosen:

            def look(
                module: nn.Module, args: Any, kwargs: Any, group: ChannelGroup = group, reader: Reader = reader
            ) -> None:
                tensor = first_tensor(module, args, kwargs)
                if tensor is not None and group.name not in found:
                    shown = _maps(tensor, reader, scores[group.name])
                    found.update({} if shown is None else {group.name: shown})

            hook = model.get_submodule(reader.module).register_forward_pre_hook(look, with_kwargs=True)
            hooks.callback(hook.remove)
        call(model, _moved(inputs, model_device(model)))
    layer, filters = _filters(model, graph)
    return Features(_pictures(inputs), found, layer, filters)


def read_features(path: Path) -> Features | None:
    """Features from their file; None if there is none. Raises ArtifactError if it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            tensors = {name: _checked(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        maps = {}
        for name, pictures in tensors.items():
            kind, _, group = name.partition(":")
            if kind == "maps":
                units = tuple(int(u) for u in about[f"units:{group}"].split(","))
                if len(units) != len(pictures):
                    raise ValueError(f"{group!r} has other channels than pictures")
                maps[group] = Maps(units, pictures)
        seen = [t for n, t in tensors.items() if not n.startswith("maps:")]
        if any(t.shape[1] not in PICTURES for t in seen):
            raise ValueError("pictures of another number of colours than 1 or 3")
        layer = next((n.partition(":")[2] for n in tensors if n.startswith("filters:")), "")
        return Features(tensors.get("inputs"), maps, layer, tensors.get(f"filters:{layer}"))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(str(path), f"damaged: {error}", "run again, or remove it for a report without") from error


def _checked(tensor: Any) -> Bytes:
    if tensor.dtype != np.uint8 or tensor.ndim != 4 or 0 in tensor.shape or tensor.size > 1 << 24:
        raise ValueError("a tensor that is no pictures")
    return tensor  # type: ignore[no-any-return]


def _seen(reader: Reader) -> bool:
    return not reader.output and reader.product < 0 and bool(reader.module)


def _chosen(pairs: Sequence[tuple[ChannelGroup, Reader]]) -> list[tuple[ChannelGroup, Reader]]:
    """The first reader of each group, of `LAYERS` groups at most, the first and the last among them."""
    first = list({group.name: (group, reader) for group, reader in reversed(pairs)}.values())[::-1]
    if len(first) <= LAYERS:
        return first
    return [first[round(i * (len(first) - 1) / (LAYERS - 1))] for i in range(LAYERS)]


def _maps(tensor: Tensor, reader: Reader, scores: Tensor) -> Maps | None:
    """What the reader is given of the best and the worst units; None where it lies in an unknown way."""
    order = torch.argsort(scores.detach().double().cpu(), descending=True, stable=True).tolist()
    units = order if len(order) <= 2 * ENDS else [*order[:ENDS], *order[-ENDS:]]
    dim = reader.input_dim % tensor.dim()
    places = [np.flatnonzero(reader.units == u) for u in units]
    if tensor.shape[dim] != len(reader.units) or len({len(p) for p in places}) > 1 or len(places[0]) == 0:
        return None
    index = torch.from_numpy(np.stack(places)).to(tensor.device)
    lines = tensor[:INPUTS].float().movedim(dim, 0)[index]  # [units, places, inputs, ...]
    if lines.dim() == 5:
        maps = lines[:, 0]
    elif lines.dim() == 4:  # positions in place of pixels
        maps = lines[:, 0, :, None, :LENGTH]
    elif lines.dim() == 3 and math.isqrt(lines.shape[1]) ** 2 == lines.shape[1]:  # flattened maps
        side = math.isqrt(lines.shape[1])
        maps = lines.movedim(1, 2).reshape(len(units), -1, side, side)
    else:
        return None
    if max(maps.shape[-2:]) > SIDE and lines.dim() == 5:
        maps = F.adaptive_avg_pool2d(maps, (min(SIDE, maps.shape[-2]), min(SIDE, maps.shape[-1])))
    if maps.shape[-1] * maps.shape[-2] < 2 or not bool(torch.isfinite(maps).all()):
        return None
    return Maps(tuple(units), _scaled(maps))


def _scaled(maps: Tensor) -> Bytes:
    """One scale for all channels, so that what is hardly ever active looks so; the brightest two hundredths are cut."""
    values = maps.double().cpu().numpy()
    low, high = float(values.min()), float(np.quantile(values, 0.98))
    high = high if high > low else float(values.max())
    return np.asarray(np.clip((values - low) / ((high - low) or 1.0), 0, 1) * 255, np.uint8)


def _pictures(inputs: Any) -> Bytes | None:
    tensor = inputs
    if not isinstance(tensor, Tensor) or tensor.dim() != 4 or tensor.shape[1] not in PICTURES:
        return None
    shown = tensor[:INPUTS].float()
    if max(shown.shape[-2:]) > 3 * SIDE:
        shown = F.adaptive_avg_pool2d(shown, (min(3 * SIDE, shown.shape[-2]), min(3 * SIDE, shown.shape[-1])))
    flat = shown.flatten(1)
    low, high = (v[:, None, None, None] for v in (flat.amin(1), flat.amax(1)))
    return np.asarray((255 * (shown - low) / (high - low).clamp_min(1e-12)).cpu().numpy(), np.uint8)


def _filters(model: nn.Module, graph: Graph) -> tuple[str, Bytes | None]:
    for contraction in graph.contractions[:1]:
        layer = model.get_submodule(contraction.module)
        if isinstance(layer, nn.Conv2d) and layer.weight.shape[1] in PICTURES and max(layer.kernel_size) > 1:
            weight = layer.weight.detach().float().cpu()[:FILTERS]
            scaled = 127 * weight / weight.abs().amax().clamp_min(1e-12) + 128
            return contraction.module, np.asarray(scaled.numpy(), np.uint8)
    return "", None


def _moved(inputs: Any, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), inputs)
