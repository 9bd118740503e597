"""A small Llama that knows tiny-shakespeare letter by letter: the recipe, the text in three parts, the weights cached.

    PRUNUS_SHARED=DIR python benchmarks/shakespeare.py

Four layers, eight heads on four key heads, 0.8 M parameters; AdamW, one cycle, eight passes. The folder that
`save_pretrained` writes lies in PRUNUS_CACHE.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from prunus.datasets import DataSource
from prunus.progress import progress_bar
from prunus.texts import read_text

CACHE = Path(os.environ.get("PRUNUS_CACHE", Path.home() / ".cache" / "prunus-bench"))
LENGTH, BATCH, EPOCHS, LR = 128, 32, 8, 3e-3


def text_file() -> Path:
    """tiny-shakespeare."""
    return Path(os.environ["PRUNUS_SHARED"], "text", "tiny-shakespeare", "input.txt")


def letters() -> DataSource:
    """Sequences of 128 letters; the last tenth is the test split, a tenth before it validation."""
    alphabet = {letter: i for i, letter in enumerate(sorted(set(text_file().read_text())))}
    return read_text(text_file(), lambda text: [alphabet[c] for c in text], validation=0.1, length=LENGTH)


def nats(model: Any, data: Any) -> float:
    """Mean loss per letter."""
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten(), reduction="sum")
            for x, y in zip(data.inputs.split(64), data.labels.split(64), strict=True)
        ]
    return float(sum(losses)) / data.labels.numel()


def trained(seed: int = 0) -> Path:
    """The folder with the trained model; trains it if it is not there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = CACHE / f"shakespeare-llama-{seed}"
    if path.exists():
        return path
    torch.manual_seed(seed)
    data = letters()
    config = LlamaConfig(
        vocab_size=data.num_classes, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    inputs, labels = data.train.inputs, data.train.labels
    steps = EPOCHS * (len(inputs) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    order = torch.cat([torch.randperm(len(inputs))[: len(inputs) // BATCH * BATCH] for _ in range(EPOCHS)])
    with progress_bar("training the Llama", steps) as bar:
        for chosen in order.split(BATCH):
            loss = F.cross_entropy(model(inputs[chosen]).logits.flatten(0, 1), labels[chosen].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.advance()
    model.eval()
    print(f"validation: {nats(model, data.validation):.3f} nats per letter")
    part = path.with_name(path.name + ".part")
    model.save_pretrained(part)
    part.rename(path)
    return path


if __name__ == "__main__":
    from zoo_models import declare_torchvision_operators

    declare_torchvision_operators()
    print(trained())
