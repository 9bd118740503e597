"""A smaller sharded model filled from a dense sharded one, tensor by tensor: no process ever holds a whole network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from prunus.plan.plan import Plan
from prunus.surgery.cut import edited


def reshard_(model: nn.Module) -> None:
    """Let every FSDP module keep its own shards alone, the outermost included."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def fill_(smaller: nn.Module, dense: nn.Module, plan: Plan) -> None:
    """Write what stays of each tensor of the dense model into the smaller one.

    Each tensor is gathered, cut and dealt out again before the next one is; every process takes part.

    Args:
        smaller: cut by the plan and sharded, with storage; what it holds is overwritten.
        dense: the model that the plan was made for; resharded, otherwise not touched.
        plan: what stays.
    """
    reshard_(dense)
    reshard_(smaller)
    for named in ("named_parameters", "named_buffers"):
        held = dict(getattr(dense, named)(remove_duplicate=False))
        first = {id(tensor): name for name, tensor in reversed(held.items())}  # the plan knows tied ones by this name
        for name, target in getattr(smaller, named)(remove_duplicate=False):
            source = held[name]
            edit = plan.tensors.get(first[id(source)])
            whole = source.full_tensor() if isinstance(source, DTensor) else source
            _write_(target, whole if edit is None else edited(whole, edit))
            target.requires_grad_(source.requires_grad)


def _write_(target: Tensor, whole: Tensor) -> None:
    if not isinstance(target, DTensor):
        target.copy_(whole)
        return
    # Every process has the whole tensor, so that nothing has to be sent for its own part.
    mine = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
    target.to_local().copy_(mine.to_local())
