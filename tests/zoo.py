"""Tiny randomly initialised networks, each named by the trap it sets, with what must hold for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo_attention as attention
import zoo_weights as weights
from prunus import SelectInputs
from zoo_nets import (
    Attention,
    Autoencoder,
    BasicBlock,
    Branch,
    C2f,
    ConstantBuffer,
    ConvNeXtBlock,
    ConvSE,
    Decoder,
    DenseLayer,
    FunctionalBlock,
    FunctionalConv,
    Gated,
    HardCodedView,
    Inverted,
    LayerScale,
    LinearSE,
    Net,
    PreActBlock,
    Pyramid,
    Recurrent,
    ResNeXtBlock,
    SameConv,
    ShuffleUnit,
    Tied,
    TwoInputs,
    UNet,
    cbr,
    corners,
    head,
    inplace,
    seq,
    shared_norm,
    shared_twice,
    shifted,
    spatial_attention,
)  # fmt: skip

Inputs = Callable[[int], Any]


@dataclass(frozen=True)
class Animal:
    """A network and the facts about it.

    Attributes:
        factory: makes the network (random weights).
        inputs: batch size -> example inputs, always the same ones.
        prunable: groups that must be prunable (empty: none need be).
        locked: group -> fragment of the reason why it must not be pruned ("" = any).
        units: number of prunable units, where it is obvious.
        rewritten: whether its code holds sizes that only the rewritten graph can change; None = either will do.
        refused: the tracer must refuse it.
    """

    factory: Callable[[], nn.Module]
    inputs: Inputs
    prunable: tuple[str, ...] = ()
    locked: tuple[tuple[str, str], ...] = ()
    units: int | None = None
    rewritten: bool | None = False
    refused: bool = False

    def make(self, seed: int = 0) -> nn.Module:
        """The network in eval mode; batch norms, biases and affine parameters far from their neutral values."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return untidy(self.factory()).eval()


def untidy(model: nn.Module) -> nn.Module:
    """Random biases, scales and running statistics, so that zero before a norm differs from zero after it."""
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if name == "running_var" or (name == "weight" and tensor.dim() == 1):
                    tensor.copy_(0.5 + torch.rand_like(tensor))
                elif name in ("bias", "running_mean"):
                    tensor.copy_(0.5 * torch.randn_like(tensor))
    return model


def noise(*shape: int) -> Inputs:
    return lambda batch: torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))


def image(size: int = 8) -> Inputs:
    return noise(3, size, size)


def integers(high: int, length: int) -> Inputs:
    return lambda batch: torch.randint(0, high, (batch, length), generator=torch.Generator().manual_seed(batch))


def pair(batch: int) -> tuple[Tensor, Tensor]:
    return image()(batch), noise(6)(batch)


def named(batch: int) -> dict[str, Tensor]:
    return dict(zip(("image", "scale"), pair(batch), strict=True))


def residual(option: str) -> nn.Module:
    return seq(cbr(3, 8), BasicBlock(8, 8, 1, option), BasicBlock(8, 16, 2, option), head(16))


def wide_resnet() -> nn.Module:
    blocks = (PreActBlock(8, 16, 1), PreActBlock(16, 16, 1), PreActBlock(16, 24, 2))
    return seq(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.BatchNorm2d(24), nn.ReLU(), head(24))


def conv1d_net() -> nn.Module:
    body = (nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 10, 3, stride=2), nn.ReLU())
    return seq(*body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(10, 3))


def conv3d_net() -> nn.Module:
    body = (nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 6, 1), nn.ReLU())
    return seq(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3))


def moved(function: Callable[[Tensor], Tensor], inputs: int = 8) -> Callable[[], nn.Module]:
    """A stem of 8 channels, any function of its output, and a reader of `inputs` channels."""
    return lambda: Net(
        lambda m, x: m.head(m.mid(function(m.stem(x)))), stem=cbr(3, 8), mid=cbr(inputs, 6), head=head(6)
    )


def mixed_activations() -> nn.Module:
    layers = (cbr(3, 8, act=nn.SiLU()), cbr(8, 10, act=nn.Hardswish()), cbr(10, 8, act=nn.GELU()))
    return seq(*layers, cbr(8, 6, act=nn.LeakyReLU(0.1)), cbr(6, 8, act=nn.Softplus()), head(8))


class LonePiece(nn.Module):
    """A split leaves one channel alone; what reads it knows nothing of where it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.lone = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 5, 1)
        self.rest, self.head = nn.Conv2d(3, 6, 1), nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(self.conv(x), [1, 3], 1)
        both = torch.cat([self.lone(self.norm(first)), self.rest(rest)], 1)
        return self.head(both.mean((2, 3)))


ZOO: dict[str, Animal] = {
    "selected_pixels": Animal(
        lambda: seq(nn.Flatten(), SelectInputs(12), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3)),
        noise(3, 2, 2), prunable=("1", "2"), units=21,
    ),
    "selected_bands": Animal(
        lambda: seq(SelectInputs(6, dim=1), nn.Conv2d(6, 8, 3), nn.ReLU(), head(8)), noise(6, 8, 8),
        prunable=("0", "1"), units=14,
    ),
    "selected_units": Animal(
        lambda: seq(nn.Linear(4, 6), nn.ReLU(), SelectInputs(6), nn.Linear(6, 3)), noise(4),
        prunable=("0",), units=6,
    ),
    "plain_cnn": Animal(
        lambda: seq(cbr(3, 8), nn.MaxPool2d(2), cbr(8, 12), head(12)),
        image(), ("0.0", "2.0"), (("3.2", "output"),), 20,
    ),
    "conv_bias_no_norm": Animal(
        lambda: seq(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Sigmoid(), head(6)),
        image(), ("0", "2"), (), 14
    ),
    "mlp": Animal(
        lambda: seq(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 4)),
        noise(6), ("0", "2"), (("5", "output"),), 28,
    ),
    "mlp_on_sequences": Animal(
        lambda: seq(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)),
        noise(7, 6), ("0", "2"), (), 28,
    ),
    "flatten_to_linear": Animal(
        lambda: seq(cbr(3, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10), nn.ReLU(), nn.Linear(10, 4)),
        image(), ("0.0", "3"), (), 18,
    ),
    "hard_coded_view": Animal(HardCodedView, image(), ("conv.0", "fc1"), (), 18, rewritten=True),
    "residual_option_a": Animal(
        lambda: residual("a"), image(), ("0.0", "1.conv1", "2.conv1", "2.conv2"), (), 40, rewritten=True
    ),
    "residual_option_b": Animal(
        lambda: residual("b"), image(), ("0.0", "1.conv1", "2.conv1", "2.conv2"), (("3.2", "output"),), 48
    ),
    "preact_wide_resnet": Animal(wide_resnet, image(), ("0", "1.conv1", "2.conv1", "3.conv1"), (), 8 + 16 * 3 + 24 * 2),
    "dense_concat": Animal(
        lambda: seq(cbr(3, 8), *(DenseLayer(8 + 4 * i, 4) for i in range(3)), nn.BatchNorm2d(20), nn.ReLU(), head(20)),
        image(), ("0.0", "1.conv", "2.conv", "3.conv"), (), 20,
    ),
    "mobilenet_v2": Animal(
        lambda: seq(cbr(3, 8), Inverted(8, 24, 8), Inverted(8, 16, 12), head(12)),
        image(), ("0.0", "1.expand.0", "2.expand.0", "2.project.0"), (), 60,
    ),
    "resnext": Animal(
        lambda: seq(cbr(3, 8), ResNeXtBlock(8, 16, 4), head(8)), image(), ("0.0", "1.conv1.0", "1.conv2.0"), (), 40
    ),
    "grouped_after_grouped": Animal(
        lambda: seq(cbr(3, 16), cbr(16, 16, groups=2), cbr(16, 24, groups=4), head(24)), image(), ("2.0",), (), None
    ),
    "depthwise_multiplier": Animal(
        lambda: seq(cbr(3, 8), nn.Conv2d(8, 16, 3, groups=8), nn.BatchNorm2d(16), nn.ReLU(), head(16)),
        image(), ("0.0",), (), 8,
    ),
    "squeeze_excite_conv": Animal(
        lambda: seq(cbr(3, 8), ConvSE(8, 4), cbr(8, 10), head(10)), image(), ("0.0", "1.fc1", "2.0"), (), 22
    ),
    "squeeze_excite_linear": Animal(
        lambda: seq(cbr(3, 8), LinearSE(8, 4), cbr(8, 10), head(10)), image(), ("0.0", "1.fc1", "2.0"), (), 22
    ),
    "group_norm": Animal(
        lambda: seq(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), cbr(16, 8), head(8)),
        image(), ("3.0",), (("0", "statistics"),), 8,
    ),
    "group_norm_before_conv": Animal(
        lambda: seq(cbr(3, 8), nn.GroupNorm(2, 8), cbr(8, 12), head(12)),
        image(), ("2.0",), (("0.0", "statistics"),), 12,
    ),
    "one_group_per_channel": Animal(
        lambda: seq(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), cbr(8, 6), head(6)),
        image(), ("3.0",), (("0", "one channel per group"),), 6,
    ),
    "shared_norm": Animal(
        lambda: Net(shared_norm, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3), norm=nn.BatchNorm2d(8), head=head(8)),
        image(), ("a",), (), 8,
    ),
    "norms_without_parameters": Animal(
        lambda: seq(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 6, 3),
                    nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(), head(6)),
        image(), ("0", "3"), (), 14,
    ),
    "norm_after_flatten": Animal(
        lambda: seq(cbr(3, 8), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(32),
                    nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 4)),
        image(), ("0.0", "5"), (), 18,
    ),
    "instance_norm": Animal(
        lambda: seq(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), cbr(8, 6), head(6)),
        image(), ("0", "3.0"), (), 14,
    ),
    "layer_norm_channels": Animal(
        lambda: seq(cbr(3, 8), ConvNeXtBlock(8), head(8)), image(), ("1.fc1",), (("0.0", "statistics"),), 32
    ),
    "conv_transpose_unet": Animal(
        UNet, image(), ("down1.0", "down2.0", "middle.0", "up2", "dec2.0", "dec1.0"), (("out", "output"),), 66
    ),
    "shared_conv": Animal(
        lambda: Net(shared_twice, stem=cbr(3, 8), conv=nn.Conv2d(8, 8, 3, padding=1), head=head(8)),
        image(), ("stem.0",), (), 8,
    ),
    "tied_linear": Animal(Tied, noise(6), ("first",), (), 12),
    "tied_transposed": Animal(Autoencoder, noise(6), ("encoder",), (("encoder#2", "fixed size"),), 12),
    "channel_shuffle": Animal(
        lambda: seq(cbr(3, 8), ShuffleUnit(8), ShuffleUnit(8), cbr(8, 6), head(6)), image(), ("3.0",), (), None
    ),
    "c2f_chunk": Animal(
        lambda: seq(cbr(3, 8), C2f(8, 4, False), head(8)), image(), ("0.0", "1.cv1.0"), (), 28, rewritten=None
    ),
    "split_by_size": Animal(
        lambda: seq(cbr(3, 8), C2f(8, 4, True), head(8)),
        image(), ("0.0", "1.cv1.0", "1.cv2.0"), (), None
    ),
    "glu": Animal(
        lambda: seq(cbr(3, 8), nn.Conv2d(8, 16, 1), nn.GLU(1), nn.Conv2d(8, 6, 1), nn.ReLU(), head(6)),
        image(), ("0.0", "1", "3"), (), 22,
    ),
    "pixel_shuffle": Animal(
        lambda: seq(cbr(3, 8), nn.Conv2d(8, 16, 3, padding=1), nn.PixelShuffle(2), cbr(4, 6), head(6)),
        image(), ("0.0", "1", "3.0"), (), 18,
    ),
    "pixel_unshuffle": Animal(
        lambda: seq(cbr(3, 4), nn.PixelUnshuffle(2), cbr(16, 6), head(6)), image(), ("0.0", "2.0"), (), 10
    ),
    "prelu": Animal(
        lambda: seq(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 6, 3), nn.PReLU(), head(6)),
        image(), ("0", "2"), (), 14
    ),
    "conv1d": Animal(conv1d_net, noise(4, 20), ("0", "4"), (), 18),
    "conv3d": Animal(conv3d_net, noise(2, 4, 4, 4), ("0", "4"), (), 14),
    "functional_conv": Animal(FunctionalConv, image(), ("stem.0", "kernel"), (), 18),
    "kernel_in_a_buffer": Animal(
        lambda: FunctionalConv(False), image(), ("stem.0", "kernel"), (), 18
    ),
    "functional_conv_in_a_block": Animal(FunctionalBlock, image(), ("pre.0", "inner.stem.0"), (), 26),
    "conv_subclass_that_pads": Animal(
        lambda: seq(cbr(3, 8), SameConv(8, 10, 3), nn.ReLU(), head(10)), image(), ("0.0", "1"), (), 18
    ),
    "concat_into_grouped": Animal(
        lambda: Net(lambda m, x: m.head(m.mid(torch.cat([m.a(x), m.b(x)], 1))),
                    a=cbr(3, 8), b=cbr(3, 8), mid=cbr(16, 8, groups=2), head=head(8)),
        image(), ("a.0", "mid.0"), (), 16,
    ),
    "concat_with_input": Animal(
        lambda: Net(lambda m, x: m.head(m.mid(torch.cat([x, m.stem(x)], 1))),
                    stem=cbr(3, 8), mid=cbr(11, 6), head=head(6)),
        image(), ("stem.0", "mid.0"), (), 14,
    ),
    "mean_over_channels": Animal(
        lambda: Net(spatial_attention, stem=cbr(3, 8), conv=nn.Conv2d(2, 1, 3, padding=1), mid=cbr(8, 6), head=head(6)),
        image(), ("mid.0",), (("stem.0", "over the units"),), 6,
    ),
    "softmax_over_channels": Animal(
        lambda: Net(lambda m, x: m.head(m.mid(m.stem(x).softmax(1))), stem=cbr(3, 8), mid=cbr(8, 6), head=head(6)),
        image(), ("mid.0",), (("stem.0", "softmax"),), 6,
    ),
    "layer_scale": Animal(lambda: LayerScale(-1, 1, 1), image(), ("stem.0", "mid.0"), (), 14),
    "layer_scale_hard_coded": Animal(
        lambda: LayerScale(1, 8, 1, 1), image(), ("stem.0", "mid.0"), (), 14, rewritten=True
    ),
    "feature_pyramid": Animal(
        Pyramid, image(), ("low.0", "high.0", "from_high.0", "shared.0"), (("out", "output"),), 32
    ),
    "siamese": Animal(
        lambda: Net(lambda m, x: m.out(torch.cat([m.net(x).mean((2, 3)), m.net(x.flip(3)).amax((2, 3))], 1)),
                    net=seq(cbr(3, 8), cbr(8, 6)), out=nn.Linear(12, 3)),
        image(), ("net.0.0", "net.1.0"), (), 14,
    ),
    "fused_gate_linear": Animal(
        lambda: Net(lambda m, x: m.out(F.silu(m.up(x).chunk(2, -1)[0]) * m.up(x).chunk(2, -1)[1]),
                    up=nn.Linear(6, 24), out=nn.Linear(12, 3)),
        noise(7, 6), ("up",), (), 12,
    ),
    "linear_on_channels_last": Animal(
        lambda: Net(lambda m, x: m.out(m.fc(m.stem(x).permute(0, 2, 3, 1)).relu().mean((1, 2))),
                    stem=cbr(3, 8), fc=nn.Linear(8, 12), out=nn.Linear(12, 3)),
        image(), ("stem.0", "fc"), (), 20,
    ),
    "concat_with_its_negative": Animal(
        moved(lambda x: torch.cat([x, -x], 1), 16), image(), ("stem.0", "mid.0"), (), 14
    ),
    "flipped_channels": Animal(moved(lambda x: x.flip(1)), image(), ("stem.0", "mid.0"), (), 14),
    "temporal_shift": Animal(moved(shifted), image(), ("stem.0", "mid.0"), (), 14, rewritten=True),
    "space_to_depth": Animal(moved(corners, 32), image(), ("stem.0", "mid.0"), (), 14),
    "maxout": Animal(
        moved(lambda x: x.view(-1, 2, 4, 8, 8).amax(1), 4), image(), ("stem.0", "mid.0"), (), 10, True
    ),
    "chosen_channels": Animal(
        moved(lambda x: x[:, [0, 2, 4, 6]], 4), image(), ("stem.0", "mid.0"), (), None, True
    ),
    "rolled_channels": Animal(
        moved(lambda x: x.roll(3, 1)), image(), ("stem.0", "mid.0"), (), 14, True
    ),
    "every_second_channel": Animal(
        moved(lambda x: x[:, ::2], 4), image(), ("mid.0",),
    ),
    "channel_shuffle_module": Animal(
        moved(nn.ChannelShuffle(2)), image(), ("mid.0",),
    ),
    "linear_over_positions": Animal(
        lambda: Net(lambda m, x: m.out(m.width(m.stem(x)).mean((2, 3))),
                    stem=cbr(3, 8), width=nn.Linear(8, 8), out=nn.Linear(8, 3)),
        image(), ("stem.0",), (("width", "no layer reads"),), 8,
    ),
    "decoder_unflatten": Animal(lambda: Decoder(False), noise(6), ("start", "wide", "grow"), (), 30),
    "decoder_hard_coded_view": Animal(lambda: Decoder(True), noise(6), ("start", "wide", "grow"), (), 30, True),
    "add_constant_buffer": Animal(lambda: ConstantBuffer(False), image(), ("stem.0", "mid.0"), (), 18),
    "add_constant_inline": Animal(lambda: ConstantBuffer(True), image(), ("mid.0",), (("stem.0", "fixed size"),), 10),
    "inplace_relu": Animal(
        lambda: Net(inplace, stem=cbr(3, 8, act=nn.ReLU(inplace=True)), mid=cbr(8, 8)[:2], head=head(8)),
        image(), ("stem.0",), (), 8,
    ),
    "dropout": Animal(
        lambda: seq(cbr(3, 8), nn.Dropout2d(0.5), cbr(8, 6), head(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
        image(), ("0.0", "2.0", "3.2"), (), 22,
    ),
    "two_inputs": Animal(TwoInputs, pair, ("image.0", "vector"), (), 16),
    "keyword_inputs": Animal(Gated, named, ("image.0",), (), 8),
    "two_outputs": Animal(
        lambda: Net(lambda m, x: (m.a(m.stem(x)), m.b(m.stem(x))), stem=cbr(3, 8), a=head(8), b=nn.Conv2d(8, 2, 1)),
        image(), ("stem.0",), (("a.2", "output"), ("b", "output")), 8,
    ),
    "dict_output": Animal(
        lambda: Net(lambda m, x: {"features": m.stem(x), "logits": m.head(m.mid(m.stem(x)))},
                    stem=cbr(3, 8), mid=cbr(8, 6), head=head(6)),
        image(), ("mid.0",), (("stem.0", "output"),), 6,
    ),
    "activations": Animal(mixed_activations, image(), ("0.0", "1.0", "2.0", "3.0", "4.0"), (), 40),
    "global_mean": Animal(
        lambda: Net(lambda m, x: m.fc(m.mid(m.stem(x)).mean((2, 3))),
                    stem=cbr(3, 8), mid=cbr(8, 6), fc=nn.Linear(6, 3)),
        image(), ("stem.0", "mid.0"), (), 14,
    ),
    "embedding_mlp": Animal(
        lambda: Net(lambda m, x: m.out(F.relu(m.fc(m.table(x).mean(1)))),
                    table=nn.Embedding(10, 8), fc=nn.Linear(8, 12), out=nn.Linear(12, 3)),
        integers(10, 5), ("fc",), (), None,
    ),
    "data_dependent_branch": Animal(Branch, noise(6), refused=True),
    "attention_module": Animal(lambda: Attention(False), noise(5, 6), ("fc1",), (("embed", ""),), 16),
    "attention_by_hand": Animal(lambda: Attention(True), noise(5, 6), ("fc1",), (("embed", ""),), 16, rewritten=None),
    "heads": Animal(attention.Block, noise(5, 6), ("q", "q.heads", "v", "up"), (), 60, None),
    "heads_hard_coded": Animal(attention.HardCodedHeads, noise(5, 6), ("q", "q.heads", "v", "up"), (), 60, True),
    "heads_fused": Animal(attention.Fused, noise(5, 6), ("qkv", "qkv.heads", "up"), (), 44),
    "heads_fused_chunks": Animal(attention.FusedChunks, noise(5, 6), ("qkv", "qkv.heads", "up"), (), None, None),
    "heads_fused_inside": Animal(attention.FusedByHead, noise(5, 6), ("qkv#2", "qkv.heads", "up"), (), None, None),
    "heads_last": Animal(attention.HeadsLast, noise(5, 6), ("qkv", "qkv.heads", "up"), (), None, True),
    "heads_grouped": Animal(attention.GroupedQueries, noise(5, 6), ("q", "q.heads", "v", "up"), (), None, None),
    "heads_interleaved_rotary": Animal(
        attention.InterleavedRotary, noise(5, 6), ("q", "q.heads", "v", "up"), (), None, None
    ),
    "heads_grouped_by_kernel": Animal(
        attention.GroupedByKernel, noise(5, 6), ("q", "q.heads", "v", "up"), (), None, None
    ),
    "heads_one_key": Animal(attention.OneKeyHead, noise(5, 6), ("q", "q.heads", "up"), (), None, None),
    "heads_one_key_expanded": Animal(attention.OneKeyHeadExpanded, noise(5, 6), ("q", "q.heads", "up"), (), None, True),
    "heads_transposed_weights": Animal(
        attention.TransposedWeights, noise(5, 6), ("qkv", "qkv.heads", "up"), (), None, None
    ),
    "heads_written_out": Animal(
        attention.WrittenOut, noise(5, 6), ("up",), (("q", "matmul comes between"),), None, None
    ),
    "heads_relative_table": Animal(attention.RelativeTable, noise(5, 6), ("q", "q.heads", "v", "up"), (), 60, None),
    "heads_bias_table": Animal(attention.BiasTable, noise(5, 6), ("q", "q.heads", "v", "up"), (), 60, None),
    "heads_empty_bias": Animal(attention.EmptyBias, noise(5, 6), ("q", "q.heads", "v", "up"), (), 60, None),
    "heads_empty_bias_in_code": Animal(
        attention.EmptyBiasInCode, noise(5, 6), ("q", "q.heads", "v", "up"), (), 60, True
    ),
    "heads_written_bias": Animal(attention.WrittenBias, noise(5, 6), ("q", "q.heads", "v", "up"), (), 60, None),
    "units_meet_ones": Animal(
        lambda: Net(lambda m, x: m.out(m.free(m.fixed(x) + torch.ones(12))),
                    fixed=nn.Linear(6, 12), free=nn.Linear(12, 10), out=nn.Linear(10, 3)),
        noise(6), ("free", "fixed"), (), 22, True,
    ),
    "heads_normalised_keys": Animal(
        attention.NormalisedKeys, noise(5, 6), ("q.heads", "v", "up"), (("q", "statistics"),), 44, None
    ),
    "heads_slopes_in_code": Animal(
        attention.SlopesInCode, noise(5, 6), ("q", "v", "up"), (("q.heads", "fixed size"),), None, None
    ),
    "heads_gated": Animal(attention.GatedHeads, noise(5, 6), ("q", "q.heads", "v", "up"), (), None, None),
    "heads_shared_layers": Animal(attention.SharedLayers, noise(5, 6), ("q", "q.heads", "v"), (), None, None),
    "heads_convolutional": Animal(attention.ConvolutionalHeads, image(4), ("qkv", "qkv.heads"), (), None, None),
    "heads_cross": Animal(
        attention.CrossAttention, lambda batch: (noise(5, 6)(batch), noise(7, 5)(batch)),
        ("q", "q.heads", "v", "memory"), (), None, None
    ),
    "heads_averaged_scores": Animal(
        attention.AveragedScores, noise(5, 6), ("q", "v"), (("q.heads", ""),), None, None
    ),
    "lone_piece": Animal(
        LonePiece, noise(3, 4, 4), ("conv#2", "lone", "rest"), (("conv", "alone in a piece"),), 14, True
    ),
    "gram_attention": Animal(
        attention.GramAttention, noise(5, 6), ("stem", "up"), (), 40, None
    ),
    "heads_linear_attention": Animal(attention.LinearAttention, noise(5, 6), ("q.heads", "v", "up"), (), None, None),
    "lstm": Animal(lambda: Recurrent(nn.LSTM), noise(5, 6), ("fc",), (("embed", "lstm"),), 12),
    "gru": Animal(lambda: Recurrent(nn.GRU), noise(5, 6), ("fc",), (("embed", "gru"),), 12),
    "cast_weights": Animal(
        lambda: seq(weights.CastConv(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                    weights.CastLinear(32, 10), nn.ReLU(), weights.CastLinear(10, 3)),
        image(), ("0", "4"), (), 18,
    ),
    "pointwise_as_linear": Animal(
        lambda: seq(nn.Linear(6, 8), nn.ReLU(), weights.PointwiseAsLinear(8, 10, 1), nn.ReLU(), nn.Linear(10, 3)),
        noise(5, 6), ("0", "2"), (), 18,
    ),
    "equalised_learning_rate": Animal(
        lambda: seq(weights.Equalised(6, 8), nn.ReLU(), weights.Equalised(8, 10), nn.ReLU(), weights.Equalised(10, 3)),
        noise(6), ("0", "2"), (), 18,
    ),
    "standardised_weights": Animal(
        lambda: seq(cbr(3, 8), weights.Standardised(8, 10, 3, padding=1), nn.ReLU(), head(10)),
        image(), ("1",), (("0.0", "statistics"),), 10,
    ),
    "low_rank_added": Animal(
        lambda: seq(weights.LowRank(6, 8), nn.ReLU(), weights.LowRank(8, 10), nn.ReLU(), weights.LowRank(10, 3)),
        noise(6), ("0", "2"), (), 18,
    ),
    "fused_from_pieces": Animal(weights.FusedPieces, noise(6), ("stem", "v"), (("q", "reads"),), None),
    "pieces_of_one": Animal(weights.PiecesOfOne, noise(6), ("stem",), (), None),
    "stored_matmul": Animal(weights.StoredMatmul, noise(6), ("stem", "first", "second"), (), 22),
    "splines": Animal(weights.Splines, noise(6), ("stem", "base"), (), 18),
    "einsum_with_a_parameter": Animal(weights.EinsumLayer, noise(5, 6), ("stem", "kernel"), (), 18),
    "einsum_heads": Animal(
        weights.EinsumHeads, noise(5, 6), ("stem", "q", "v"), (("q#2", "einsum comes between"),), 17
    ),
    "parameter_on_the_left": Animal(weights.OnTheLeft, noise(5, 7), ("stem", "left", "right"), (), 24),
    "kernel_for_each_position": Animal(weights.EdgeKernels, noise(5, 6), ("stem", "kernels"), (), 18),
    "transposed_grouped": Animal(lambda: weights.transposed(2, 12), image(4), ("0", "2", "4"), (), 26),
    "transposed_depthwise": Animal(lambda: weights.transposed(8, 8), image(4), ("0", "4"), (), 14),
    "transposed_multiplied": Animal(lambda: weights.transposed(8, 16), image(4), ("0", "4"), (), 14),
    "transposed_grouped_1d": Animal(lambda: weights.transposed(4, 8, 1), noise(3, 6), ("0", "2", "4"), (), 22),
    "transposed_grouped_3d": Animal(lambda: weights.transposed(2, 4, 3), noise(3, 3, 3, 3), ("0", "2", "4"), (), 18),
    "volumes": Animal(weights.three_dimensional, noise(2, 4, 4, 4), ("0", "4", "6"), (), 26),
    "read_twice": Animal(weights.ReadTwice, noise(6), ("stem", "mid"), (), 18),
    "autocast_inside": Animal(weights.Autocast, image(), ("stem.0", "mid.0"), (), 14),
    "autocast_hard_coded": Animal(
        weights.AutocastHardCoded, image(4), ("stem.0", "mid", "last"), (), 42, rewritten=True
    ),
    "torch_prune_masks": Animal(lambda: weights.layers(weights.masked), image(), ("0", "2", "6"), (), 24),
    "parametrized_elementwise": Animal(lambda: weights.layers(weights.doubled), image(), ("0", "2", "6"), (), 24),
    "weight_norm": Animal(lambda: weights.layers(weights.weight_norm), image(), ("0", "2", "6"), (), 24),
    "weight_norm_by_hook": Animal(
        lambda: weights.layers(weights.weight_norm_by_hook), image(), ("0", "2", "6"), (), 24
    ),
    "weight_norm_of_all": Animal(lambda: weights.layers(weights.one_norm), image(), ("0", "2", "6"), (), 24),
    "weight_norm_along_inputs": Animal(lambda: weights.layers(weights.along_inputs), image(), ("0", "2", "6"), (), 24),
    "weight_norm_vocoder": Animal(lambda: weights.vocoder(weights.weight_norm), noise(5, 6), ("0",), (), None),
    "weight_norm_vocoder_by_hook": Animal(
        lambda: weights.vocoder(weights.weight_norm_by_hook), noise(5, 6), ("0",), (), None
    ),
    "weight_norm_grouped": Animal(lambda: weights.grouped(weights.weight_norm), image(), ("0.0", "3.0"), (), 28),
    "masks_grouped": Animal(lambda: weights.grouped(weights.masked), image(), ("0.0", "3.0"), (), 28),
    "spectral_norm": Animal(
        lambda: weights.layers(nn.utils.parametrizations.spectral_norm), image(), (), (("0", "permanent first"),), 0
    ),
    "spectral_norm_by_hook": Animal(
        lambda: weights.layers(nn.utils.spectral_norm), image(), (), (("0", "permanent first"),), 0
    ),
}  # fmt: skip
