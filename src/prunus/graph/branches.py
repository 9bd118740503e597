"""Branches on data: what the example inputs decide is written down in a first run and read back while capturing.

Code such as `if x.sum() > 0` asks a tensor for a number. Capturing has no numbers, so it gets those of the first run,
in the same order, and follows the way that the example inputs take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunus.errors import TraceError

READS = frozenset(
    (
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
        Tensor.__complex__,
        Tensor.item,
        Tensor.tolist,
    )
)
"""Ways in which code asks a tensor for numbers."""


class Recording(TorchFunctionMode):
    """Within this mode the numbers that code asks tensors for are written down, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Any] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in READS:
            self.answers.append(result)
        return result


class Replay(TorchFunctionMode):
    """Within this mode tensors answer what they answered in the recorded run.

    Raises:
        TraceError: more is asked than was recorded, so that the code does not run the same way twice.
    """

    def __init__(self, answers: list[Any]) -> None:
        super().__init__()
        self.left = list(answers)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in READS:
            return func(*args, **(kwargs or {}))
        if not self.left:
            raise _another_way("more")
        return self.left.pop(0)

    def finish(self) -> None:
        """Check that everything was asked. Raises TraceError if not."""
        if self.left:
            raise _another_way("fewer")


def _another_way(asked: str) -> TraceError:
    what = f"the code asks tensors for {asked} numbers than in its first run on the same inputs"
    return TraceError("follow_branches", what, "remove randomness and state from the branches")
