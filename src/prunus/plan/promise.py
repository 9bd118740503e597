"""Promises: how much worse a smaller network may be, and with which confidence that has to be shown, as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from prunus.errors import ConfigError

Metric = Literal["accuracy", "agreement", "loss"]
METRICS: tuple[Metric, ...] = get_args(Metric)
FORMS = "'accuracy>=dense-1%@95%', 'accuracy>=90%@95%' or 'agreement>=98%@95%'"
NUMBER = r"(?:\d+\.?\d*|\.\d+)"
MEANT = re.compile(rf"\s*({'|'.join(METRICS)})\b", re.IGNORECASE)
SHARE = re.compile(
    rf"(accuracy|agreement)\s*>=\s*(?:(dense)\s*-\s*)?({NUMBER})\s*%\s*@\s*({NUMBER})\s*%", re.IGNORECASE
)
LOSS = re.compile(
    rf"loss\s*<=\s*(?:(dense)\s*\+\s*)?({NUMBER})\s*@\s*({NUMBER})\s*%\s*in\s*(-?{NUMBER})\s*\.\.\s*(-?{NUMBER})",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Promise:
    """The mean over examples of what is lost is at most `margin`, with this confidence over the held-out draw.

    What is lost on an example: of `accuracy` the right answer, of `agreement` the dense network's answer, both in
    shares; of `loss` the loss itself.

    Attributes:
        metric: what is promised.
        margin: the most that may be lost on average: a share of the examples, or a loss.
        confidence: at least 0.5 and below 1.
        relative: against what the dense network loses on the same examples.
        low: smallest loss that is possible.
        high: largest loss that is possible.
        text: as it was asked.

    Example:
        >>> from prunus.plan import Promise
        >>> promise = Promise.parse("accuracy>=dense-1%@95%")
        >>> promise.metric, promise.margin, promise.level
        ('accuracy', 0.01, 0.05)
    """

    metric: Metric
    margin: float
    confidence: float
    relative: bool
    text: str
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        where = f"target {self.text!r}"
        if not 0.5 <= self.confidence < 1:
            what = f"a confidence of {100 * self.confidence:g} % is out of range"
            raise ConfigError(where, what, "give at least 50 % and less than 100 %, such as @95%")
        if not self.low < self.high:
            raise ConfigError(where, "its range of losses is empty", "write the smallest first, such as 'in 0..1'")
        floor = 0.0 if self.relative else self.low
        most = self.high - self.low if self.relative else self.high
        if not floor < self.margin < most:
            what = f"a margin of {self.margin:g} can't be shown, or says nothing"
            raise ConfigError(where, what, f"give a margin above {floor:g} and below {most:g}")

    @property
    def level(self) -> float:
        """How probable it may be that what is shown is not so."""
        return round(1 - self.confidence, 12)

    @property
    def span(self) -> tuple[float, float]:
        """Between what the loss of one example lies, against the dense network's if relative."""
        most = self.high - self.low
        return (-most, most) if self.relative else (self.low, self.high)

    @classmethod
    def parse(cls, text: str) -> Promise:
        """Read a promise: `accuracy>=dense-1%@95%` (percentage points), `accuracy>=90%@95%`, `agreement>=98%@95%`, or,
        of a loss whose values never leave a range, `loss<=dense+0.05@95% in 0..1`.

        Raises:
            ConfigError: the text is not of these forms, names no confidence, or promises what no held-out set can show.
        """
        where, asked = f"target {text!r}", " ".join(text.split())
        if "@" not in asked:
            raise ConfigError(where, "it does not say with which confidence", f"write for example {asked}@95%")
        if found := SHARE.fullmatch(asked):
            name, dense, number = found[1].lower(), bool(found[2]), float(found[3]) / 100
            if name == "agreement" and dense:
                what = "the dense network always agrees with itself"
                raise ConfigError(where, what, "say of how many of its answers: 'agreement>=98%@95%'")
            margin = round(number if dense else 1 - number, 12)
            metric: Metric = "accuracy" if name == "accuracy" else "agreement"
            return cls(metric, margin, float(found[4]) / 100, dense, asked)
        if found := LOSS.fullmatch(asked):
            low, high = float(found[4]), float(found[5])
            return cls("loss", float(found[2]), float(found[3]) / 100, bool(found[1]), asked, low, high)
        if asked.lower().startswith("loss"):
            what = "nothing can be shown of a loss that may be of any size: one unseen example can outweigh all others"
            fix = f"promise {FORMS}; or, of a loss that never leaves a range, 'loss<=dense+0.05@95% in 0..1'"
            raise ConfigError(where, what, fix)
        raise ConfigError(where, "it is not of a form that can be read, one promise at a time", f"write {FORMS}")
