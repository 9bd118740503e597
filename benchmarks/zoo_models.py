"""The models of the zoo: hand-written traps, timm architectures and transformers classes, all with random weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from torchvision_operators import declare_torchvision_operators
from zoo_transformers import TRANSFORMERS, made

Made = tuple[nn.Module, Any]

TIMM = [
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "seresnet50", "densenet121", "mobilenetv2_100",
    "mobilenetv3_large_100", "efficientnet_b0", "mnasnet_100", "fbnetc_100", "regnety_008", "regnetx_008",
    "vgg16_bn", "inception_v3", "inception_v4", "xception41", "dpn68", "dla34", "res2net50_26w_4s", "resnest50d",
    "ecaresnet50d", "skresnet50", "hrnet_w18_small", "ghostnet_100", "hardcorenas_a", "lcnet_100", "tinynet_e",
    "repvgg_a0", "cspdarknet53", "cspresnet50", "darknet53", "nf_resnet50", "nfnet_f0", "vovnet39a",
    "ese_vovnet19b_dw", "selecsls42b", "rexnet_100", "convnext_atto", "convnextv2_atto", "convmixer_768_32",
    "resmlp_12_224", "mixer_s32_224", "gmixer_24_224", "poolformer_s12", "vit_tiny_patch16_224",
    "deit_tiny_patch16_224", "vit_base_patch16_224", "vit_tiny_r_s16_p8_224", "beit_base_patch16_224", "cait_xxs24_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "twins_pcpvt_small", "pvt_v2_b0", "pit_ti_224",
    "levit_128s", "mobilevit_xxs", "mobilevitv2_050", "edgenext_xx_small", "efficientformer_l1",
    "crossvit_tiny_240", "coat_lite_tiny", "xcit_nano_12_p16_224", "volo_d1_224", "tnt_s_legacy_patch16_224",
    "nest_tiny", "coatnet_pico_rw_224", "maxvit_tiny_tf_224", "gcvit_xxtiny", "focalnet_tiny_srf", "davit_tiny",
    "eva02_tiny_patch14_224", "hiera_tiny_224", "fastvit_t8", "tiny_vit_5m_224", "repvit_m1", "starnet_s1",
    "mambaout_femto", "visformer_tiny", "sequencer2d_s", "eca_botnext26ts_256", "halonet26t", "lambda_resnet26t",
    "gernet_s", "inception_next_atto", "shvit_s1", "swiftformer_xs", "efficientvit_b0", "efficientvit_m0",
    "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "rdnet_tiny", "vitamin_small_224", "caformer_s18",
    "convformer_s18", "mvitv2_tiny",
]  # fmt: skip


def stir_(model: nn.Module) -> None:
    """Noise on every constant parameter: behind a classifier or a scale of zeros every result would look right."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * torch.randn_like(parameter))


def timm_model(name: str) -> Callable[[], Made]:
    """A timm architecture with its own input size, or 128 pixels where any size will do."""

    def make() -> Made:
        declare_torchvision_operators()
        import timm

        model = timm.create_model(name, pretrained=False)
        channels, *size = model.default_cfg.get("input_size", (3, 224, 224))
        own = model.default_cfg.get("fixed_input_size") or name.startswith("halonet")  # its blocks divide 256 pixels
        if not own and not any(isinstance(m, nn.LayerNorm) for m in model.modules()):
            size = [min(s, 128) for s in size]
        return model, torch.randn(1, channels, *size)

    return make


def transformers_model(name: str) -> Callable[[], Made]:
    """A transformers class from a tiny configuration."""

    def make() -> Made:
        declare_torchvision_operators()
        return made(name)

    return make


def traps() -> dict[str, Callable[[], Made]]:
    """The networks of the tests that set a trap each (those that must be refused are not among them)."""
    from zoo import ZOO

    return {f"trap:{n}": _trap(a) for n, a in ZOO.items() if not a.refused and a.units != 0}


def _trap(animal: Any) -> Callable[[], Made]:
    return lambda: (animal.make(), animal.inputs(2))


def models() -> dict[str, Callable[[], Made]]:
    """Every model of the zoo by name: model and example inputs, batch first."""
    found = traps()
    found |= {f"timm:{n}": timm_model(n) for n in TIMM}
    return found | {f"transformers:{n}": transformers_model(n) for n in TRANSFORMERS}
