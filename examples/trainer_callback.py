"""Cut in the middle of a `Trainer`: it goes on with the smaller model. `python trainer_callback.py [FOLDER]`

Needs: pip install 'prunus[hf]'
"""

import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from prunus.trainers.transformers import PruneCallback


def main(out: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=2
    )
    model = BertForSequenceClassification(config)
    examples = [{"input_ids": torch.randint(30, (8,)), "labels": torch.tensor(i % 2)} for i in range(64)]
    arguments = TrainingArguments(
        str(out), per_device_train_batch_size=8, max_steps=16, logging_steps=4, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    before = sum(p.numel() for p in model.parameters())
    callback = PruneCallback(8, method="taylor", target="macs<=70%")
    trainer = Trainer(model, arguments, train_dataset=examples, callbacks=[callback])
    trainer.train()

    print(callback.result)
    print(f"parameters: {before:,} until step 8, {sum(p.numel() for p in model.parameters()):,} from then on")
    print("losses:", [round(entry["loss"], 3) for entry in trainer.state.log_history if "loss" in entry])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/trainer_callback"))
