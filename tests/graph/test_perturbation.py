"""The coupling that is predicted is the one that is seen, on networks of the zoo; see `testing.check_coupling`."""

from __future__ import annotations

import pytest
import torch

from prunus.testing import check_coupling
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


@pytest.mark.parametrize("name", SUBJECTS)
def test_moves_what_is_coupled_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = ANIMALS[name].make(), ANIMALS[name].inputs(2)
    check_coupling(model, inputs)
