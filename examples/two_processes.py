"""Two processes by accelerate: each learns from its share, all have the same weights. `python two_processes.py`

The same function runs on several machines by `accelerate launch`, or `torchrun`, without a change.
"""

import torch
import torch.nn.functional as F
from accelerate import PartialState, debug_launcher
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import prunus


def work() -> None:
    state = PartialState(cpu=True)
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))
    x = torch.randn(128, 12)
    data = TensorDataset(x, x[:, :3].argmax(1))
    share = DistributedSampler(data, state.num_processes, state.process_index)
    loader = DataLoader(data, batch_size=8, sampler=share)

    result = prunus.prune(
        dense, x[:2], method="taylor", target="macs<=50%", data=loader, loss_fn=F.cross_entropy, progress=False
    )
    settings = prunus.FinetuneConfig(epochs=3, batch_size=16, lr=0.05)
    prunus.finetune(result.model, (loader, loader), settings, progress=False)
    found = prunus.evaluate(result.model, loader)
    weights = sum(p.double().sum().item() for p in result.model.parameters())
    for index in range(state.num_processes):  # one after the other, or their lines would mix
        if index == state.process_index:
            print(f"process {state.process_index}: {found}; sum of the weights {weights:.6f}", flush=True)
        state.wait_for_everyone()


if __name__ == "__main__":
    debug_launcher(work, num_processes=2)  # two on this machine, without a GPU
