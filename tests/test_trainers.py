"""A cut in the middle of a training: the same objects go on, with the momenta of what stays, in others' loops too."""

from __future__ import annotations

import copy
import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import ConfigError, PlanError, SurgeryError
from prunus.trainers import cut_midway_

X, Y = torch.randn(32, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()


def test_model_optimiser_and_schedule_go_on_as_the_objects_that_they_are() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    steps(model, optimizer, 3)
    before = copy.deepcopy(optimizer.state[model[0].weight]["exp_avg"])
    layer, data = model[0], [(X, Y)]
    result = cut_midway_(
        model, optimizer, X[:2], method="l1", target={"0": 4}, data=data, loss_fn=F.cross_entropy, repair=False
    )
    kept = list(result.plan.kept["0"])
    assert model[0] is layer
    assert layer.weight.shape == (4, 6)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert set(optimizer.state) == set(model.parameters())
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], before[kept])
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.005
    again = copy.deepcopy(model.state_dict())
    steps(model, optimizer, 1)
    assert all(not torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    assert int(optimizer.state[model[0].weight]["step"]) == 4


def test_repaired_weights_are_those_that_go_on_and_modes_stay() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).train()
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps(model, optimizer, 2)
    result = cut_midway_(model, optimizer, X[:2], method="l1", target=0.5, data=[(X, Y)], loss_fn=F.cross_entropy)
    assert result.refits
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert [m.training for m in model.modules()] == [True, True, False, True, True]


def test_what_can_not_go_on_is_refused_and_changes_nothing() -> None:
    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 1), nn.Linear(32, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.relu(self.a(x)).view(-1, 32))

    model = View()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SurgeryError, match="own_class"):
        cut_midway_(model, optimizer, torch.randn(2, 1, 2, 2), method="l1", target=0.5)
    assert model.a.weight.shape[0] == 8
    with pytest.raises(ConfigError, match="fill them again"):
        cut_midway_(net(), optimizer, X[:2], method="dpp", target="2:3")
    model, other = net(), torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(PlanError, match="not in both models"):
        cut_midway_(model, other, X[:2], method="l1", target=0.5)
    assert model[0].weight.shape == (12, 6)


def test_transformers_trainer_learns_is_cut_and_goes_on(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from prunus.trainers.transformers import PruneCallback

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, num_labels=2
    )
    model = transformers.BertForSequenceClassification(config)
    examples = [{"input_ids": torch.randint(30, (8,)), "labels": torch.tensor(i % 2)} for i in range(32)]
    args = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, max_steps=6, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    callback = PruneCallback(3, method="taylor", target="macs<=70%", repair=False)
    trainer = transformers.Trainer(model, args, train_dataset=examples, callbacks=[callback])
    seen: list[int] = []
    layer = model.bert.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    trainer.train()
    assert trainer.state.global_step == 6
    assert callback.result is not None
    plan = callback.result.plan
    assert plan.after.macs <= 0.7 * plan.before.macs
    kept = len(plan.kept["bert.encoder.layer.0.intermediate.dense"])
    assert layer.weight.shape[0] == seen[-1] == kept < 24
    optimizer = trainer.optimizer.optimizer
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(model.parameters())
    assert int(optimizer.state[layer.weight]["step"]) == 6
    before = callback.result.model.state_dict()
    assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items())  # it went on learning


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Lightning is not installed its name alone: the callback then is called as Lightning's source calls it."""
    try:
        import lightning.pytorch  # noqa: F401
    except ImportError:
        package, inner = ModuleType("lightning"), ModuleType("lightning.pytorch")
        inner.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "lightning", package)
        monkeypatch.setitem(sys.modules, "lightning.pytorch", inner)
        monkeypatch.delitem(sys.modules, "prunus.trainers.lightning", raising=False)


@pytest.mark.usefixtures("lightning")
def test_lightning_callback_cuts_at_its_step_alone() -> None:
    from prunus.trainers.lightning import PruneCallback

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    callback = PruneCallback(2, X[:2], network="net", method="l1", target={"0": 4}, loss_fn=F.cross_entropy)
    trainer: Any = SimpleNamespace(
        global_step=0,
        world_size=1,
        optimizers=[optimizer],
        train_dataloader=[(X[i : i + 8], Y[i : i + 8]) for i in (0, 8)],
    )
    for _ in range(4):
        steps(model, optimizer, 1)
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, nn.ModuleDict({"net": model}), None, None, 0)
        assert model[0].out_features == (12 if trainer.global_step < 2 else 4)
    assert isinstance(callback.result, prunus.Result)
    assert callback.result.refits  # on the trainer's own loader
    shared: Any = SimpleNamespace(global_step=2, world_size=2, optimizers=[optimizer], train_dataloader=[])
    with pytest.raises(ConfigError, match="2 processes"):
        PruneCallback(2, X[:2]).on_train_batch_end(shared, nn.ModuleDict({"model": model}), None, None, 0)


@pytest.mark.usefixtures("lightning")
def test_a_lightning_checkpoint_tells_of_its_cuts_and_a_dense_module_becomes_what_was_saved() -> None:
    from prunus.trainers.lightning import PruneCallback, cut_as_saved_

    model = nn.ModuleDict({"net": net()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer: Any = SimpleNamespace(global_step=1, world_size=1, optimizers=[optimizer], train_dataloader=None)
    dense: dict[str, Any] = {"state_dict": copy.deepcopy(model.state_dict())}
    callbacks = [PruneCallback(n, X[:2], network="net", method="l1", target={"0": k}) for n, k in ((2, 4), (1, 8))]
    for callback in (*callbacks[::-1], *callbacks):
        trainer.global_step = callback.at
        callback.on_train_batch_end(trainer, model, None, None, 0)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    for callback in callbacks:
        callback.on_save_checkpoint(trainer, model, checkpoint)
    checkpoint = torch.load(stored(checkpoint), weights_only=True)

    again = nn.ModuleDict({"net": net()})
    for _ in range(2):  # the second time it is what it has to be
        cut_as_saved_(again, checkpoint)
        again.load_state_dict(checkpoint["state_dict"])
    assert again["net"][0].out_features == again["net"][2].in_features == 4
    assert torch.equal(again["net"](X), model["net"](X))
    resumed = PruneCallback(2, X[:2], network="net", method="l1", target={"0": 4})
    resumed.on_load_checkpoint(trainer, again, checkpoint)
    trainer.global_step = 2
    resumed.on_train_batch_end(trainer, again, None, None, 0)
    assert resumed.result is None
    resumed.on_save_checkpoint(trainer, again, written := {})
    assert written["prunus"] == checkpoint["prunus"][:1]

    cut_as_saved_(other := nn.ModuleDict({"net": net()}), dense)
    assert other["net"][0].out_features == 12
    with pytest.raises(SurgeryError, match="tells of no cut"):
        cut_as_saved_(other, {"state_dict": checkpoint["state_dict"]})


def stored(checkpoint: dict[str, Any]) -> io.BytesIO:
    torch.save(checkpoint, file := io.BytesIO())
    file.seek(0)
    return file
