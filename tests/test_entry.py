"""Public functions in states and on models that nobody ordered: modes of the caller, threads, models without values."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.data.datasets import ArrayDataset, Batches, crop_and_flip, split_indices
from prunus.errors import ConfigError, PruneError, TraceError


def made(seed: int = 0) -> tuple[nn.Module, Tensor, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(8, 6)
    return model.eval(), x, [(x, torch.randint(0, 3, (8,)))]


def pruned(seed: int, method: str) -> dict[str, tuple[int, ...]]:
    model, x, data = made(seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = prunus.prune(model, x, method=method, target=0.5, data=data, loss_fn=F.cross_entropy, progress=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert result.verification.passed
    assert all(not p.is_inference() and p.requires_grad for p in result.model.parameters())
    return dict(result.plan.kept)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_data_do_not_depend_on_the_default_device(place: str) -> None:
    labels = torch.arange(20) % 4
    data = ArrayDataset(torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)), labels)
    with torch.device(place):
        batches = list(Batches(data, 6, shuffle=True, augment=crop_and_flip))
        stays, held_out = split_indices(labels, 0.25, seed=0)
    assert {t.device.type for batch in batches for t in batch} == {"cpu"}
    expected = list(Batches(data, 6, shuffle=True, augment=crop_and_flip))
    assert all(
        torch.equal(a, b) for one, two in zip(batches, expected, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert torch.equal(torch.cat([stays, held_out]).sort().values, torch.arange(20))


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast fp16": lambda: torch.autocast("cpu", torch.float16),
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "anomaly": torch.autograd.detect_anomaly,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("method", ["l1", "taylor", "sbp"])
def test_the_callers_modes_change_nothing(ambient: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pruned(0, method)
    model, x, data = made(0)
    loss = F.cross_entropy
    with AMBIENT[ambient]():
        result = prunus.prune(model, x, method=method, target=0.5, data=data, loss_fn=loss, progress=False)
    assert dict(result.plan.kept) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", ["l1", "taylor", "dirichlet", "random"])
def test_the_default_dtype_decides_nothing(dtype: torch.dtype, method: str) -> None:
    model, x, data = made(0)
    settings: dict[str, Any] = {"target": 0.5, "data": data, "loss_fn": F.cross_entropy, "progress": False}
    expected = prunus.prune(model, x, method=method, **settings)
    with default_dtype(dtype):
        found = prunus.prune(model, x, method=method, **settings)
    assert found.plan.kept == expected.plan.kept
    assert all(torch.equal(v, expected.scores.values[n]) for n, v in found.scores.values.items())


def test_random_generators_are_put_back() -> None:
    model, x, data = made()
    python, numbers, torchs = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr]

    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            random.random(), np.random.rand(), torch.rand(1)
            return super().forward(x)  # type: ignore[no-any-return]

    prunus.prune(Noisy(*model), x, method="taylor", target=0.5, data=data, loss_fn=F.cross_entropy, progress=False)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numbers)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), torchs)


@pytest.mark.parametrize("shared", [True, False])
def test_threads_take_turns(shared: bool) -> None:
    expected = [pruned(seed, "taylor") for seed in (0, 1)]
    models = [made(0), made(0)] if shared else [made(0), made(1)]
    if shared:
        models[1], expected[1] = models[0], expected[0]
    before = [copy.deepcopy(m.state_dict()) for m, _, _ in models]
    found: list[Any] = [None, None]

    def work(number: int) -> None:
        model, x, data = models[number]
        try:
            for _ in range(2):
                result = prunus.prune(
                    model, x, method="taylor", target=0.5, data=data, loss_fn=F.cross_entropy, progress=False
                )
            found[number] = dict(result.plan.kept)
        except BaseException as error:  # a thread's error would only be printed
            found[number] = error

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    for (model, _, _), state in zip(models, before, strict=True):
        assert all(type(v) is Tensor and torch.equal(v, state[n]) for n, v in model.state_dict().items())


def compiled_part() -> nn.Module:
    model, x, _ = made()
    assert isinstance(model, nn.Sequential)
    model[3].compile(backend="eager")
    model(x)
    return model


def test_hooks_are_seen_by_what_was_compiled_and_run_before() -> None:
    expected, model = pruned(0, "taylor"), compiled_part()
    _, x, data = made(0)
    result = prunus.prune(model, x, method="taylor", target=0.5, data=data, loss_fn=F.cross_entropy, progress=False)
    assert dict(result.plan.kept) == expected


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return made()[0]


REFUSED: dict[str, tuple[Callable[[], Any], type[PruneError], str]] = {
    "function": (lambda: F.relu, ConfigError, r"no torch.nn.Module"),
    "script": (lambda: torch.jit.trace(made()[0], made()[1]), TraceError, "the Python module that it was made from"),
    "meta": (lambda: made()[0].to("meta"), ConfigError, "without values"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), ConfigError, "run the model once"),
    "inference": (in_inference_mode, ConfigError, "inference mode"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_models_without_values_or_code_are_refused(kind: str) -> None:
    make, error, words = REFUSED[kind]
    _, x, _ = made()
    with pytest.raises(error, match=words):
        prunus.prune(make(), x, method="l1", target=0.5, progress=False)


def test_a_copy_of_a_model_made_in_inference_mode_is_pruned() -> None:
    model, x = copy.deepcopy(in_inference_mode()), made()[1]
    assert prunus.prune(model, x, method="l1", target=0.5, progress=False).verification.passed


class Holding(nn.Sequential):
    def __init__(self, held: Any, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.held = held


def replaced() -> nn.Module:
    model = made()[0]
    inner = model.forward
    model.forward = lambda x: inner(x)  # type: ignore[method-assign]
    return model


def test_what_cannot_be_copied_is_refused_before_anything_is_learned() -> None:
    model, x, data = made()

    def never(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("nothing is to be learned")

    settings: dict[str, Any] = {"target": 0.5, "data": data, "loss_fn": never, "progress": False}
    with pytest.raises(ConfigError, match="a copy would run the original"):
        prunus.prune(replaced(), x, method="taylor", **settings)
    with pytest.raises(ConfigError, match="can't be copied"):
        prunus.prune(Holding(threading.Lock(), *model), x, method="taylor", **settings)
    kept = Holding({"features": [model(x).mul(2)]}, *model)
    assert prunus.prune(kept, x, method="l1", target=0.5, progress=False).verification.passed


def test_data_made_in_inference_mode_are_learned_from() -> None:
    model, x, data = made()
    with torch.inference_mode():
        mine = [(a.clone(), b.clone()) for a, b in data]
        mine_x = x.clone()
    found = [
        prunus.prune(model, i, method="taylor", target=0.5, data=d, loss_fn=F.cross_entropy, progress=False)
        for i, d in ((x, data), (mine_x, mine))
    ]
    assert found[0].plan.kept == found[1].plan.kept


def test_wrappers_over_devices_and_sparse_inputs_are_refused() -> None:
    model, x, _ = made()
    spread = nn.DataParallel(model)
    spread.device_ids = [0, 1]
    with pytest.raises(TraceError, match=r"model\.module"):
        prunus.trace(spread, x)
    with pytest.raises(TraceError, match="sparse"):
        prunus.prune(model, x.to_sparse(), method="l1", target=0.5, progress=False)
