"""A small language model: heads and neurons go, and it still generates with its cache. `python language_model.py`

The network is a small one with random weights, trained for some seconds on a sequence that repeats. Yours comes from
`AutoModelForCausalLM.from_pretrained(...)`; a text file becomes batches by `load_data("text:FILE", model="hf:DIR")`.

Needs: pip install 'prunus[hf]'
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import prunus


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    dense = LlamaForCausalLM(config)
    ids = (torch.arange(24)[None] + torch.randint(24, (64, 1))) % 24  # what follows n is n + 1
    optimizer = torch.optim.AdamW(dense.parameters(), lr=0.01)
    for _ in range(40):
        loss = dense(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dense.eval()

    batches = [{"input_ids": part, "labels": part} for part in ids.split(16)]
    result = prunus.prune(
        dense, {"input_ids": ids[:2]}, method="fisher", target="macs<=75%", data=batches, progress=False
    )
    print(result)
    small = result.model
    with torch.no_grad():
        print(
            f"loss: dense {loss.item():.3f}, smaller {small(input_ids=ids, labels=ids).loss.item():.3f} nats per token"
        )
        for name, model in (("dense", dense), ("smaller", small)):
            written = model.generate(ids[:1, :6], attention_mask=torch.ones(1, 6), max_new_tokens=8, do_sample=False)
            print(f"{name} goes on: {written[0].tolist()}")


if __name__ == "__main__":
    main()
