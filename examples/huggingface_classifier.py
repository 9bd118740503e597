"""A text classifier of transformers, half of its heads and neurons, loaded again by stock `from_pretrained`.

`python examples/huggingface_classifier.py [FOLDER]`. The network is a small one with random weights; yours comes from
`AutoModelForSequenceClassification.from_pretrained(...)`, and the batches from your tokenizer and collator.

Needs: pip install 'prunus[hf]'
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import prunus


def main(out: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    dense = LlamaForSequenceClassification(config).eval()
    ids = torch.randint(1, 50, (32, 12))
    labels = (ids[:, -1] > 25).long()
    batches = [{"input_ids": ids[i : i + 8], "labels": labels[i : i + 8]} for i in range(0, 32, 8)]
    examples = {"input_ids": ids[:2]}

    graph = prunus.trace(dense, examples)
    print(graph)  # heads and neurons that can go
    result = prunus.prune(
        dense,
        examples,
        method="taylor",
        target="macs<=60%",
        allocation=prunus.Allocation(scope="uniform"),  # the same number in every layer: a configuration says one
        data=batches,  # dicts with labels: the model's own loss is asked for
        progress=False,
    )
    print(result)
    folder = prunus.save_pretrained(result.model, result.plan, out / "smaller", examples, overwrite=True)
    again = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        difference = (again(**examples).logits - result.model(**examples).logits).abs().max()
    heads, neurons = again.config.num_attention_heads, again.config.intermediate_size
    print(f"from_pretrained: {heads} heads, {neurons} neurons, logits differ by at most {difference:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/huggingface_classifier"))
