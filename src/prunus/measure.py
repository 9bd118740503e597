"""Time and memory, before and after, measured in one run: interleaved, with spread, and honest about no gain.

MACs are a count, not a time. `compare` measures both models in turns, so that a machine that slows down slows both
down, and says plainly when fewer MACs bought nothing.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.capture import as_arguments
from prunus.precision import to_device
from prunus.runners import MODES, Mode, Runner, failure_reason, make_runner, peak_bytes, synchronise
from prunus.verify import eval_mode

MIN_SAMPLE_SECONDS = 2e-3
MAX_CALLS = 1000
# Less than this is not worth the name of a gain, whatever the spread.
LEAST_SPEEDUP = 1.05
LEAST_SAVING = 0.05


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call.

    Attributes:
        median: over the repeats.
        lower: first quartile.
        upper: third quartile.
        repeats: number of samples.
        calls: calls averaged in each sample, so that short ones are not lost in the clock.
    """

    median: float
    lower: float
    upper: float
    repeats: int
    calls: int


@dataclass(frozen=True)
class Latency:
    """One mode of one model: a timing, or the reason why there is none."""

    mode: Mode
    timing: Timing | None
    reason: str | None = None


@dataclass(frozen=True)
class ModeComparison:
    """One mode, before and after.

    Attributes:
        mode: `eager`, `compiled` or `onnx`.
        dense: timing of the dense model, None if the mode failed.
        pruned: timing of the pruned one.
        speedup: median over the repeats of dense time / pruned time; above 1 is faster.
        speedup_lower: first quartile of the same.
        speedup_upper: third quartile.
        reason: why there are no timings.
    """

    mode: Mode
    dense: Timing | None = None
    pruned: Timing | None = None
    speedup: float | None = None
    speedup_lower: float | None = None
    speedup_upper: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Footprint:
    """What a model occupies.

    Attributes:
        params: number of parameters, tied ones once.
        weight_bytes: of parameters and buffers.
        peak_bytes: of the tensors that one forward pass makes, at their peak, without weights and inputs. On the CPU
            an operation's scratch space is not seen; on a GPU it is.
    """

    params: int
    weight_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Before and after, from one run.

    Attributes:
        modes: one row for every mode that was asked for, failed ones with their reason.
        dense: footprint before.
        pruned: footprint after.
        macs: (before, after) as passed in.
        warnings: plain sentences about what did not pay.
        environment: device, threads, batch size, versions.
    """

    modes: tuple[ModeComparison, ...]
    dense: Footprint
    pruned: Footprint
    macs: tuple[int, int] | None
    warnings: tuple[str, ...]
    environment: dict[str, str | int]

    def row(self, mode: Mode) -> ModeComparison:
        """The row of one mode.

        Raises:
            ConfigError: the mode was not measured.
        """
        for row in self.modes:
            if row.mode == mode:
                return row
        raise ConfigError(f"mode {mode!r}", "it was not measured", f"measured: {[r.mode for r in self.modes]}")

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-serialisable values."""
        return asdict(self)


def latency(
    model: nn.Module,
    example_inputs: Any,
    *,
    modes: Sequence[Mode] = ("eager",),
    repeats: int = 20,
    warmup: int = 3,
    threads: int | None = None,
) -> dict[Mode, Latency]:
    """Time of one forward pass in eval mode, on the device where the model lies.

    Args:
        model: any module; flags, weights and device stay as they are.
        example_inputs: a tensor, a tuple of arguments or a dict of keywords; its batch is what is timed.
        modes: `eager`, `compiled` (torch.compile) and `onnx` (ONNX Runtime on the CPU).
        repeats: samples of each mode.
        warmup: calls before the first sample.
        threads: CPU threads of PyTorch and ONNX Runtime; None leaves PyTorch's.

    Raises:
        ConfigError: an unknown mode, or no repeats.

    Example:
        >>> import torch
        >>> result = latency(torch.nn.Linear(8, 8), torch.randn(2, 8), repeats=3)
        >>> result["eager"].timing.median > 0
        True
    """
    _check(modes, repeats, warmup, threads)
    inputs = to_device(example_inputs, _device(model))
    with _threads(threads) as used, eval_mode(model):
        return {mode: _one_latency(model, inputs, mode, used, repeats, warmup) for mode in modes}


def compare(
    dense: nn.Module,
    pruned: nn.Module,
    example_inputs: Any,
    *,
    modes: Sequence[Mode] = MODES,
    repeats: int = 30,
    warmup: int = 3,
    threads: int | None = None,
    macs: tuple[int, int] | None = None,
) -> Comparison:
    """Measure two models in one run, taking turns, so that drift of the machine cancels in the ratio.

    Args:
        dense: the model before; may be `pruned` itself to see the noise.
        pruned: the model after, on the same device.
        example_inputs: see `latency`.
        modes: a mode that fails is reported with its reason, the others go on.
        repeats: pairs of samples of each mode.
        warmup: calls of each model before the first sample.
        threads: see `latency`.
        macs: multiply-accumulates (before, after), for the verdict on whether fewer of them bought time.

    Raises:
        ConfigError: models on different devices, an unknown mode, or no repeats.
    """
    _check(modes, repeats, warmup, threads)
    device = _device(dense)
    if _device(pruned) != device:
        what = f"the dense model lies on {device}, the pruned one on {_device(pruned)}"
        raise ConfigError("compare", what, "move both to one device")
    inputs = to_device(example_inputs, device)
    with _threads(threads) as used, eval_mode(dense), eval_mode(pruned), torch.no_grad():
        footprints = [_footprint(model, inputs) for model in (dense, pruned)]
        rows = tuple(_compared(dense, pruned, inputs, mode, used, repeats, warmup) for mode in modes)
    return Comparison(
        modes=rows,
        dense=footprints[0],
        pruned=footprints[1],
        macs=macs,
        warnings=tuple(_warnings(rows, macs, pruned)),
        environment=_environment(device, used, inputs),
    )


def _one_latency(model: nn.Module, inputs: Any, mode: Mode, threads: int, repeats: int, warmup: int) -> Latency:
    with ExitStack() as stack:
        try:
            runner = make_runner(model, inputs, mode, threads, stack)
            samples, calls = _samples([runner], _device(model), repeats, warmup)
        except Exception as error:
            return Latency(mode, None, failure_reason(error))
    return Latency(mode, _timing(samples[0], calls[0]))


def _compared(
    dense: nn.Module, pruned: nn.Module, inputs: Any, mode: Mode, threads: int, repeats: int, warmup: int
) -> ModeComparison:
    with ExitStack() as stack:
        try:
            runners = [make_runner(model, inputs, mode, threads, stack) for model in (dense, pruned)]
            samples, calls = _samples(runners, _device(dense), repeats, warmup)
        except Exception as error:
            return ModeComparison(mode, reason=failure_reason(error))
    middle, lower, upper = (float(v) for v in np.percentile(samples[0] / samples[1], [50, 25, 75]))
    return ModeComparison(mode, _timing(samples[0], calls[0]), _timing(samples[1], calls[1]), middle, lower, upper)


def _samples(
    runners: list[Runner], device: torch.device, repeats: int, warmup: int
) -> tuple[list[np.ndarray[Any, np.dtype[np.float64]]], list[int]]:
    """Seconds of one call, [repeats] for each runner, and how many calls every sample averages."""
    with torch.no_grad():
        for runner in runners:
            for _ in range(warmup):
                runner()
        calls = [_calls_for(_seconds(runner, 1, device)) for runner in runners]
        found: list[list[float]] = [[] for _ in runners]
        for repeat in range(repeats):
            # Forth and back, so that neither model always runs in the other's warm cache.
            order = range(len(runners)) if repeat % 2 == 0 else reversed(range(len(runners)))
            for index in order:
                found[index].append(_seconds(runners[index], calls[index], device))
    return [np.array(seconds) for seconds in found], calls


def _calls_for(seconds: float) -> int:
    return max(1, min(MAX_CALLS, math.ceil(MIN_SAMPLE_SECONDS / max(seconds, 1e-9))))


def _seconds(runner: Callable[[], object], calls: int, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        runner()
    synchronise(device)
    return (time.perf_counter() - start) / calls


def _timing(seconds: np.ndarray[Any, np.dtype[np.float64]], calls: int) -> Timing:
    median, lower, upper = (float(v) for v in np.percentile(1e3 * seconds, [50, 25, 75]))
    return Timing(median, lower, upper, len(seconds), calls)


def _footprint(model: nn.Module, inputs: Any) -> Footprint:
    # state_dict would miss buffers that are not persistent.
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    weight_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    return Footprint(sum(p.numel() for p in model.parameters()), weight_bytes, peak_bytes(model, inputs))


def _warnings(rows: Sequence[ModeComparison], macs: tuple[int, int] | None, pruned: nn.Module) -> Iterator[str]:
    if macs is None or macs[1] > (1 - LEAST_SAVING) * macs[0]:
        return
    for row in rows:
        if row.speedup is None or row.speedup_lower is None or row.dense is None or row.pruned is None:
            continue
        if row.speedup >= LEAST_SPEEDUP and row.speedup_lower > 1.0:
            continue
        yield (
            f"{row.mode}: MACs fell by {100 * (1 - macs[1] / macs[0]):.0f} % and the time did not: "
            f"{row.dense.median:.3g} ms before, {row.pruned.median:.3g} ms after (x{row.speedup:.2f}). "
            f"{_odd_widths(pruned)}Prune with round_to=8 so that widths fit the hardware's vectors, or measure a "
            "larger batch if the calls are too short to be bound by arithmetic."
        )


def _odd_widths(model: nn.Module) -> str:
    widths = {name: _width(module) for name, module in model.named_modules()}
    counted = {name: width for name, width in widths.items() if width is not None}
    odd = {name: width for name, width in counted.items() if width % 8}
    if not odd:
        return ""
    name, width = next(iter(odd.items()))
    return f"{len(odd)} of {len(counted)} layers have a width that is no multiple of 8 ({width} in {name}). "


def _width(module: nn.Module) -> int | None:
    width = getattr(module, "out_channels", getattr(module, "out_features", None))
    return width if isinstance(width, int) else None


def _check(modes: Sequence[Mode], repeats: int, warmup: int, threads: int | None) -> None:
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ConfigError(f"modes={list(modes)}", f"unknown: {unknown}", f"choose from {list(MODES)}")
    if repeats < 1 or warmup < 0 or (threads is not None and threads < 1):
        found = f"repeats={repeats}, warmup={warmup}, threads={threads}"
        raise ConfigError("measure", found, "repeats and threads of at least 1, warmup of at least 0")


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _environment(device: torch.device, threads: int, inputs: Any) -> dict[str, str | int]:
    args, kwargs = as_arguments(inputs)
    batch = next((t.shape[0] for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim()), 1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device.type}: {name}",
        "threads": threads,
        "cpus": os.cpu_count() or 1,
        "batch": batch,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
