"""Batch norm's statistics taken over without a change of what the network computes, and recoveries that start there."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data.datasets import ArrayDataset, DataSource
from prunus.errors import DataError
from prunus.recovery import FinetuneConfig, compensate_batch_norm, finetune
from prunus.surgery.rewritten import as_module


def strangers(seed: int = 0) -> nn.Sequential:
    """A network whose running statistics are far from those of its data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
        for norm in (net[1], net[4]):
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.1, 3.0)
    return net.eval()


X = torch.randn(256, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def graph_of(net: nn.Module) -> nn.Module:
    return as_module(torch.export.export(net, (X[:8],), dynamic_shapes=({0: torch.export.Dim.AUTO},))).eval()


@pytest.mark.parametrize("kind", ["plain", "captured", "double"])
def test_the_network_computes_what_it_did_in_either_mode(kind: str) -> None:
    net: nn.Module = strangers()
    x = X.double() if kind == "double" else X
    net = net.double() if kind == "double" else net
    old, norms = net(x).detach(), [net[1], net[4]]  # type: ignore[index]
    net = graph_of(net) if kind == "captured" else net
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    assert compensate_batch_norm(net, [(part,) for part in x.split(100)])
    assert not all(torch.equal(b, buffers[n]) for n, b in net.named_buffers() if "running" in n)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if kind == "double" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(net(x), old, **tolerance)
    if kind != "captured":
        # All data as one batch: its statistics are the running ones, but for the unbiased variance.
        torch.testing.assert_close(net.train()(x), old, rtol=1e-2, atol=1e-2)
        seen = norms[0](net[0](x)).detach()  # type: ignore[index, operator]
        torch.testing.assert_close(seen.mean((0, 2, 3)), norms[0].bias.detach(), rtol=1e-4, atol=1e-4)


def test_new_statistics_are_those_of_what_each_layer_sees_in_eval_mode() -> None:
    net = strangers()
    seen = net[3](net[:3](X)).detach().double()
    assert compensate_batch_norm(net, [(X[:50],), (X[50:],)])
    norm = net[4]
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean.double(), seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var.double(), seen.var((0, 2, 3)), rtol=1e-4, atol=1e-4)


def frozen(net: nn.Sequential) -> None:
    net[1].weight.requires_grad_(False)


def without_scale(net: nn.Sequential) -> None:
    old, net[1] = net[1], nn.BatchNorm2d(6, affine=False).eval()
    net[1].running_mean.copy_(old.running_mean)


def tied(net: nn.Sequential) -> None:
    net[1].bias = net[0].bias


@pytest.mark.parametrize("spoil", [frozen, without_scale, tied])
def test_what_cannot_take_it_up_stays_as_it_was(spoil: object) -> None:
    net = strangers()
    assert callable(spoil)
    spoil(net)
    before = copy.deepcopy(net.state_dict())
    assert not compensate_batch_norm(net, [(X,)])
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert not compensate_batch_norm(nn.Linear(3, 2), [(torch.randn(4, 3),)])


def test_broken_data_leave_the_old_statistics() -> None:
    net = strangers()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(DataError, match="batch norm"):
        compensate_batch_norm(net, [(X * torch.inf,)])
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())


def source(count: int = 128) -> DataSource:
    parts = [ArrayDataset(X[i : i + count // 2], torch.arange(count // 2) % 3) for i in (0, count // 2, count)]
    return DataSource("noise", *parts, num_classes=3)


SMALL = FinetuneConfig(epochs=1, batch_size=16, lr=1e-7, distillation=1.0, precision="fp32", channels_last=False)


def test_a_compensated_recovery_starts_from_the_network_it_was_given() -> None:
    """With hardly any step, the teacher's loss in training is that between the two networks, and not a stranger's."""
    losses = {}
    dense, data = strangers(), source()
    for way in ("train", "compensated"):
        student = copy.deepcopy(dense)
        done = finetune(student, data, replace(SMALL, batch_norm=way), teacher=copy.deepcopy(dense), progress=False)  # type: ignore[arg-type]
        losses[way] = done.history[1].train_loss
    assert losses["compensated"] < 0.2 * losses["train"]


def test_where_norms_cannot_compensate_their_statistics_are_held() -> None:
    student = strangers()
    without_scale(student)
    before = {n: b.clone() for n, b in student.named_buffers() if "running" in n}
    finetune(student, source(), replace(SMALL, batch_norm="compensated", distillation=0.0), progress=False)
    assert all(torch.equal(b, before[n]) for n, b in student.named_buffers() if n in before)


@pytest.mark.parametrize(("epochs", "steps"), [(0.25, [1]), (0.3, [2]), (1, [4]), (2.5, [4, 4, 2]), (0.001, [1])])
def test_a_part_of_an_epoch_takes_a_part_of_its_batches(epochs: float, steps: list[int]) -> None:
    taken: list[int] = []
    data = replace(source(), loss_fn=counting(taken))
    done = finetune(strangers(), data, replace(SMALL, epochs=epochs, distillation=0.0, batch_size=16), progress=False)
    assert len(done.history) == len(steps) + 1
    assert not done.stopped_early
    assert len(taken) == sum(steps)
    assert done.history[-1].lr < 0.2 * SMALL.lr or len(taken) < 5


def counting(taken: list[int]) -> object:
    def loss(outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        if outputs.requires_grad:
            taken.append(len(labels))
        return F.cross_entropy(outputs, labels, reduction=reduction)

    return loss
