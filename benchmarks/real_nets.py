"""Networks whose trained weights are public: MobileNetV2, CREPE tiny, and a Llama of 260 thousand parameters."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; names as in torchvision's checkpoints."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        parts: list[nn.Module] = [convolution(inputs, hidden, 1)] if expand > 1 else []
        project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.conv = nn.Sequential(
            *parts, convolution(hidden, hidden, 3, stride, hidden), project, nn.BatchNorm2d(outputs)
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Width 1.0, 1,000 classes (Sandler et al., CVPR 2018)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(3, 32, 3, 2)]
        inputs = 32
        for expand, outputs, count, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for index in range(count):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expand))
                inputs = outputs
        layers.append(convolution(inputs, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(images), 1).flatten(1))


class Crepe(nn.Module):
    """CREPE tiny: 1,024 samples at 16 kHz -> logits of 360 pitch bins of 20 cents (Kim et al., ICASSP 2018)."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (1, 128, 16, 16, 16, 32)
        outputs = (128, 16, 16, 16, 32, 64)
        for index, (a, b) in enumerate(zip(inputs, outputs, strict=True), 1):
            size, stride = (512, 4) if index == 1 else (64, 1)
            setattr(self, f"conv{index}", nn.Conv2d(a, b, (size, 1), (stride, 1)))
            setattr(self, f"conv{index}_BN", nn.BatchNorm2d(b, eps=0.001))
        self.classifier = nn.Linear(256, 360)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames[:, None, :, None]
        for index in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{index}_BN")(F.relu(getattr(self, f"conv{index}")(x)))
            x = F.max_pool2d(x, (2, 1), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1))


def stories_llama(path: Path) -> Any:
    """transformers' Llama with the weights of a llama2.c v0 file (little-endian fp32, shared classifier).

    The shared copy is damaged: every matrix was turned over as often as there are layers, each time without its shape.
    Whether that has to be undone is judged by how sure the network is of the first word of a story.
    """
    candidates = (_read_llama(path, damaged) for damaged in (False, True))
    return min(candidates, key=lambda model: float(_first_word(model).entropy()))


def _first_word(model: Any) -> torch.distributions.Categorical:
    with torch.no_grad():
        return torch.distributions.Categorical(logits=model(torch.ones(1, 1, dtype=torch.int64)).logits[0, 0])


def _read_llama(path: Path, damaged: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", raw[:28])
    values, place = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy()), 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        count = int(np.prod(shape))
        place += count
        return values[place - count : place].view(shape)

    def turned(*shape: int) -> Tensor:
        found = take(*shape)
        for _ in range(layers if damaged else 0):
            found = found.mT.reshape(shape)
        return found

    def halves(weight: Tensor, count: int) -> Tensor:
        """Rotary pairs (2i, 2i + 1) of each head become (i, i + half), as transformers rotates them."""
        return weight.view(count, -1, 2, dim).transpose(1, 2).reshape(-1, dim)

    kv = dim * kv_heads // heads
    embed, norm1 = take(vocab, dim), take(layers, dim)
    q, k, v, o = (turned(layers, rows, dim) for rows in (dim, kv, kv, dim))
    norm2, gate = take(layers, dim), turned(layers, hidden, dim)
    down, up, last = turned(layers, dim, hidden), turned(layers, hidden, dim), take(dim)
    state = {"model.embed_tokens.weight": embed, "model.norm.weight": last, "lm_head.weight": embed}
    for i in range(layers):
        own = {
            "self_attn.q_proj": halves(q[i], heads),
            "self_attn.k_proj": halves(k[i], kv_heads),
            "self_attn.v_proj": v[i],
            "self_attn.o_proj": o[i],
            "mlp.gate_proj": gate[i],
            "mlp.down_proj": down[i],
            "mlp.up_proj": up[i],
            "input_layernorm": norm1[i],
            "post_attention_layernorm": norm2[i],
        }
        state |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in own.items()}
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()
