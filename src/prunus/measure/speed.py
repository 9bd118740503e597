"""True speed and memory, before and after, measured in one run with interleaved repeats.

MACs are a promise; this is the check. On a machine that others use too the least of many short samples is what an idle
one would show, and what is compared; median and quartiles say how much the others were in the way. A mode that cannot
run here (no compiler, no ONNX Runtime) is listed with its reason, and where MACs fell and time did not, the comparison
says so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.errors import ConfigError, PruneError
from prunus.measure.memory import peak_memory
from prunus.measure.runtimes import cores, runner
from prunus.plan.advice import remedies
from prunus.plan.setup import RUNTIMES, Runtime
from prunus.runtime.arguments import examples_in
from prunus.runtime.entry import entry
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import to_device
from prunus.runtime.processes import model_device
from prunus.runtime.shown import Shown
from prunus.runtime.timing import NOTICEABLE, Run, interleaved, waiter

MODES: tuple[Runtime, ...] = ("eager", "compiled", "onnx")
SCATTERED = 0.5


@dataclass(frozen=True)
class Timing:
    """Time of one forward pass, milliseconds.

    Attributes:
        least: by the clock on the wall, of all repeats.
        median: over the repeats.
        low: lower quartile.
        high: upper quartile.
        cpu: least time of the processor, of all cores together; without meaning where a GPU does the work.
    """

    least: float
    median: float
    low: float
    high: float
    cpu: float


@dataclass(frozen=True)
class ModeComparison:
    """One way to run both models.

    Attributes:
        mode: `eager`, `compiled`, `onnx` or `openvino`.
        before: the dense model's time, or None if the mode failed.
        after: the pruned model's.
        reason: why it failed; empty if it did not.
    """

    mode: str
    before: Timing | None
    after: Timing | None
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """Least time after / least time before; below 1 is faster."""
        return None if self.before is None or self.after is None else self.after.least / self.before.least

    @property
    def told(self) -> str:
        """How the two compare, in words."""
        if self.ratio is None:
            return f"not measured: {self.reason}"
        return f"{1 / self.ratio:.2f}x faster" if self.ratio <= 1 else f"{self.ratio:.2f}x slower"

    @property
    def slower(self) -> bool:
        """True if the pruned model takes noticeably longer."""
        return self.ratio is not None and self.ratio > 1 / NOTICEABLE


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Both models side by side; pairs are (before, after).

    Attributes:
        modes: one entry per mode asked for, failed ones with their reason.
        parameters: number of parameters.
        parameter_bytes: their size, with buffers.
        peak_bytes: most memory in use during a forward pass in eager mode: parameters, buffers, inputs and live
            activations (CPU: tensors' storages, without the kernels' own workspace; CUDA: what the allocator saw).
        macs: multiply-accumulates per example, if given.
        batch_size: of the example inputs.
        device: where it was measured.
        threads: cores that one pass may use on the CPU.
        warnings: what a reader of the ratios must know, in plain words.
    """

    modes: tuple[ModeComparison, ...]
    parameters: tuple[int, int]
    parameter_bytes: tuple[int, int]
    peak_bytes: tuple[int, int]
    macs: tuple[int, int] | None
    batch_size: int
    device: str
    threads: int
    warnings: tuple[str, ...] = field(default=())

    def line(self) -> str:
        """Share of the parameters that stays, and how much faster each way to run it is."""
        share = f"{_share(*self.parameters) or 'none'} of the parameters"
        return ", ".join([share, *(f"{m.mode} {m.told}" for m in self.modes)])

    def explain(self) -> str:
        """Sizes, times and warnings, a line each."""
        rows = [("parameters", *(f"{count:,}" for count in self.parameters), _share(*self.parameters))]
        sizes = (("parameters, MB", self.parameter_bytes), ("peak memory, MB", self.peak_bytes))
        rows += [(name, *(f"{size / 1e6:.2f}" for size in pair), _share(*pair)) for name, pair in sizes]
        if self.macs is not None:
            rows.append(("MACs per example", *(f"{count:,}" for count in self.macs), _share(*self.macs)))
        for mode in self.modes:
            times = ["" if t is None else f"{t.least:.3f} ms" for t in (mode.before, mode.after)]
            rows.append((f"{mode.mode}, batch {self.batch_size}", *times, mode.told))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        told = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
        where = f"least times on {self.device}, {self.threads} thread{'' if self.threads == 1 else 's'}"
        return "\n".join([*told, where, *(f"warning: {warning}" for warning in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the ratios included."""
        plain = asdict(self)
        plain["modes"] = [{**asdict(m), "ratio": m.ratio} for m in self.modes]
        return plain


def _share(before: int, after: int) -> str:
    return f"{100 * after / before:.1f} %" if before else ""


@entry()
def compare(
    dense: nn.Module,
    pruned: nn.Module,
    example_inputs: Any,
    *,
    modes: Sequence[str] = MODES,
    repeats: int = 30,
    warmup: int = 5,
    macs: tuple[int, int] | None = None,
    threads: int | None = None,
) -> Comparison:
    """Measure both models in eval mode, without gradients, on the device where `dense` lies.

    Each repeat times both models, in alternating order, so that a machine that slows down slows both. A repeat runs
    as many forward passes as last 2 ms. `compiled` resets TorchDynamo's cache first and last.

    Args:
        dense: before.
        pruned: after; on the same device.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments; their batch size is what is
            measured.
        modes: which of `eager`, `compiled` (torch.compile), `onnx` (ONNX Runtime) and `openvino`, both on the CPU.
        repeats: samples per model and mode.
        warmup: untimed passes before.
        macs: per example, before and after, for the warnings.
        threads: cores that one pass may use on the CPU; None takes as many as PyTorch has been given.

    Returns:
        Times, memory and sizes; never an error because a mode cannot run here.

    Raises:
        ConfigError: unknown modes, impossible repeats, or models on different devices.

    Example:
        >>> net, smaller = nn.Linear(64, 64), nn.Linear(64, 8)
        >>> found = prunus.benchmark(net, smaller, torch.randn(4, 64), modes=("eager",), repeats=2)
        >>> found.parameters, found.batch_size, found.modes[0].mode
        ((4160, 520), 4, 'eager')
    """
    check_modes(modes)
    threads = torch.get_num_threads() if threads is None else threads
    _check(dense, pruned, repeats, warmup, threads)
    device = model_device(dense)
    inputs = to_device(example_inputs, device)
    with eval_mode(dense), eval_mode(pruned), torch.no_grad(), cores(threads):
        results = tuple(_compare_mode(m, dense, pruned, inputs, repeats, warmup) for m in modes)
        peaks = peak_memory(dense, inputs), peak_memory(pruned, inputs)
    batch_size = examples_in(inputs)
    return Comparison(
        modes=results,
        parameters=(_parameters(dense), _parameters(pruned)),
        parameter_bytes=(_bytes(dense), _bytes(pruned)),
        peak_bytes=peaks,
        macs=macs,
        batch_size=batch_size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=threads,
        warnings=warnings_for(results, macs, remedies(dense, pruned, batch_size)),
    )


def warnings_for(modes: Sequence[ModeComparison], macs: tuple[int, int] | None, remedy: str) -> tuple[str, ...]:
    """What must be said about the modes' times, given MACs before and after; empty if the time fell with them."""
    said = [f"{m.mode}: not measured: {m.reason}" for m in modes if m.reason]
    for mode in modes:
        if max(_spread(mode.before), _spread(mode.after)) > SCATTERED:
            said.append(f"{mode.mode}: the times scatter widely; measure again on an idle machine, with more repeats")
        if mode.ratio is None or mode.ratio <= NOTICEABLE:
            continue
        if macs is not None and macs[1] < NOTICEABLE * macs[0]:
            fell = f"MACs fell by {100 * (1 - macs[1] / macs[0]):.0f} % and time did not"
        elif mode.slower:
            fell = "the pruned model is slower"
        else:
            continue
        said.append(f"{mode.mode}: {fell} (time x {mode.ratio:.2f}); what may help: {remedy}")
    return tuple(said)


def _spread(timing: Timing | None) -> float:
    return 0.0 if timing is None else (timing.high - timing.low) / timing.median


def check_modes(modes: Sequence[str]) -> None:
    """Raise ConfigError if one of them is none of `RUNTIMES`."""
    unknown = sorted(set(modes) - set(RUNTIMES))
    if unknown:
        raise ConfigError(f"modes {unknown}", "unknown", f"choose from {', '.join(RUNTIMES)}")


def _check(dense: nn.Module, pruned: nn.Module, repeats: int, warmup: int, threads: int) -> None:
    if repeats < 1 or warmup < 0 or threads < 1:
        given = f"repeats={repeats}, warmup={warmup}, threads={threads}"
        raise ConfigError(given, "outside their range", "repeats >= 1, warmup >= 0, threads >= 1")
    if model_device(dense) != model_device(pruned):
        where = f"{model_device(dense)} and {model_device(pruned)}"
        raise ConfigError("models", f"they lie on different devices: {where}", "move both to one device")


def _compare_mode(
    mode: str, dense: nn.Module, pruned: nn.Module, inputs: Any, repeats: int, warmup: int
) -> ModeComparison:
    runtime: Any = mode
    spent: tuple[list[float], list[float]] = ([], [])
    try:
        if mode == "compiled":
            # Many models of one class in a process would reach the recompilation limit and silently run uncompiled.
            torch.compiler.reset()
        runs = [runner(runtime, model, inputs, threads=torch.get_num_threads()) for model in (dense, pruned)]
        before, after = (_counted(run, seconds) for run, seconds in zip(runs, spent, strict=True))
        samples = interleaved(before, after, repeats, warmup, waiter(model_device(dense)))
    except Exception as error:
        return ModeComparison(mode, None, None, _reason(error))
    finally:
        if mode == "compiled":
            torch.compiler.reset()
    first, second = (_timing(*taken) for taken in zip(samples, spent, strict=True))
    return ModeComparison(mode, first, second)


def _counted(run: Run, seconds: list[float]) -> Run:
    """The same pass, whose time of the processor is noted."""

    def counted() -> None:
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)

    return counted


def _reason(error: Exception) -> str:
    if isinstance(error, PruneError):
        return f"{error.what}; {error.fix}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _timing(samples: Sequence[float], seconds: Sequence[float]) -> Timing:
    least, low, median, high = np.percentile(samples, [0, 25, 50, 75]).tolist()
    return Timing(least, median, low, high, 1e3 * min(seconds, default=0.0))


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _bytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
