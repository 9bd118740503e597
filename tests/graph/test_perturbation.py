"""The coupling that is predicted is the one that is seen: move one output channel of a writer, watch every reader.

All other layers that contract units are frozen at what they computed before, so that a change travels only through
activations, normalisations, sums, concatenations, movement and depthwise convolutions: what the labels claim to follow.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.runtime.calling import call
from prunus.runtime.modes import eval_mode
from zoo import ZOO
from zoo_operations import CHANNELWISE

SUBJECTS = [
    "plain_cnn", "mlp", "flatten_to_linear", "residual_option_a", "residual_option_b", "preact_wide_resnet",
    "dense_concat", "mobilenet_v2", "resnext", "grouped_after_grouped", "depthwise_multiplier", "squeeze_excite_conv",
    "squeeze_excite_linear", "instance_norm", "conv_transpose_unet", "channel_shuffle", "split_by_size", "glu",
    "pixel_shuffle", "pixel_unshuffle", "concat_with_input", "two_inputs", "keyword_inputs", "conv1d", "conv3d",
    "shared_norm", "norm_after_flatten", "layer_scale", "siamese", "temporal_shift",
    "space_to_depth", "flipped_channels", "concat_with_its_negative", "linear_on_channels_last",
    "weight_norm", "weight_norm_by_hook", "weight_norm_vocoder", "torch_prune_masks",
    "cast_weights", "standardised_weights",
]  # fmt: skip


ANIMALS = {**ZOO, **CHANNELWISE}
SUBJECTS += [name for name in CHANNELWISE if name not in ("fourier_over_tokens",)]


def contracting(model: nn.Module, graph: Graph) -> list[str]:
    """Modules that contract units (depthwise convolutions pass them through)."""
    modules = {c.module: model.get_submodule(c.module) for c in graph.contractions}
    return [n for n, m in modules.items() if not (1 < getattr(m, "groups", 1) == getattr(m, "in_channels", 0))]


def writers(graph: Graph, names: list[str]) -> list[tuple[ChannelGroup, str, Any]]:
    """(group, module, unit of each output channel) for every layer that writes a prunable group."""
    slots = [(g, s.tensor.rpartition(".")[0], s.units_along_dim) for g in graph.groups() for s in g.writers]
    return [(group, module, units) for group, module, units in slots if module in names]


class Frozen:
    """Runs a model with its contracting layers held at their first outputs, except one that is moved."""

    def __init__(self, model: nn.Module, names: list[str], inputs: Any) -> None:
        self.model, self.names, self.inputs = model, names, inputs
        self.outputs: dict[str, list[Tensor]] = defaultdict(list)
        self.clean = self._run(None, {})

    def _run(self, moved: str | None, change: dict[int, Tensor]) -> dict[str, list[Tensor]]:
        seen: dict[str, list[Tensor]] = defaultdict(list)
        recording = not self.outputs

        def hook(name: str) -> Any:
            def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
                turn = len(seen[name])
                seen[name].append(args[0].clone())
                if recording:
                    self.outputs[name].append(output.clone())
                    return output
                frozen = self.outputs[name][turn].clone()
                return change[0] + frozen if name == moved else frozen

            return after

        handles = [self.model.get_submodule(n).register_forward_hook(hook(n)) for n in self.names]
        try:
            with eval_mode(self.model), torch.no_grad():
                call(self.model, self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def changed(self, writer: str, channel: int) -> dict[str, Tensor]:
        """For every contracting layer, the absolute change of its inputs when one output channel of `writer` moves."""
        shape = self.outputs[writer][0].shape
        dim = len(shape) - 1 if isinstance(self.model.get_submodule(writer), nn.Linear) else 1
        total: dict[str, Tensor] = {}
        for size in (4.0, -4.0):
            delta = torch.zeros(shape)
            delta.select(dim, channel).copy_(size * (1 + torch.rand(delta.select(dim, channel).shape)))
            for name, seen in self._run(writer, {0: delta}).items():
                difference = sum(((a - b).abs() for a, b in zip(seen, self.clean[name], strict=True)), torch.zeros(()))
                total[name] = total.get(name, torch.zeros(())) + difference
        return total


@pytest.mark.parametrize("name", SUBJECTS)
def test_moves_what_is_coupled_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = ANIMALS[name].make(), ANIMALS[name].inputs(2)
    for module in model.modules():  # else an unlucky channel is below zero wherever it is moved
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
            nn.init.ones_(module.bias)
    graph = prunus.trace(model, inputs)
    names = contracting(model, graph)
    frozen, written = Frozen(model, names, inputs), writers(graph, names)
    assert written
    reached: set[tuple[str, str, int]] = set()
    for group, writer, units in written:
        for channel in np.flatnonzero(units >= 0).tolist():
            unit = int(units[channel])
            total = frozen.changed(writer, channel)
            for module, change in total.items():
                if change.dim() == 0:
                    continue
                for other in graph.groups(locked=True):
                    for reader in (r for r in other.readers if r.module == module):
                        dims = [d for d in range(change.dim()) if d != reader.input_dim % change.dim()]
                        hit = np.flatnonzero((change.sum(dims) > 1e-6).numpy())
                        moved = {int(u) for u in reader.units[hit] if u >= 0}
                        assert moved <= ({unit} if other is group else set()), (writer, channel, module, other.name)
                        reached |= {(group.name, module, u) for u in moved}
    for group in graph.groups():
        for reader in group.readers:
            expected = {(group.name, reader.module, int(u)) for u in reader.units if u >= 0}
            assert expected <= reached, (group.name, reader.module, expected - reached)
