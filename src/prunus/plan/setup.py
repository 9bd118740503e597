"""How a network is run where something of it is measured: in which runtime, on how many examples, on how many cores."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from prunus.errors import BudgetError
from prunus.runtime.fields import check_fields
from prunus.runtime.ranges import Count

Runtime = Literal["eager", "compiled", "onnx", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


@dataclass(frozen=True)
class Setup:
    """In what a network is timed, or its memory counted.

    Attributes:
        runtime: `eager` and `compiled` PyTorch where the model lies, or on the CPU `onnx` (ONNX Runtime) and
            `openvino`.
        batch: examples at once.
        threads: cores that one pass may use, on the CPU.

    Example:
        >>> str(Setup.parse("eager/batch=8")), str(Setup())
        ('eager/batch=8', 'onnx')
    """

    runtime: Runtime = "onnx"
    batch: Count = 1
    threads: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def parse(cls, text: str) -> Setup:
        """A setup from what stands behind the `@` of a bound: `onnx`, `eager/batch=8`, `threads=2`.

        Raises:
            BudgetError: it names no runtime and no number.
        """
        found = cls()
        for part in text.split("/"):
            name, _, value = part.partition("=")
            if name in RUNTIMES and not value:
                found = replace(found, runtime=name)
            elif name in ("batch", "threads") and re.fullmatch(r"[1-9]\d{0,6}", value):
                found = replace(found, **{name: int(value)})  # type: ignore[arg-type]
            else:
                fix = f"write one of {', '.join(RUNTIMES)}, batch=N or threads=N, with / between them"
                raise BudgetError(f"setup {text!r}", f"{part!r} says nothing", fix)
        return found

    def __str__(self) -> str:
        counts = [f"{name}={count}" for name, count in (("batch", self.batch), ("threads", self.threads)) if count > 1]
        return "/".join([self.runtime, *counts])
