"""Progress where there is no terminal: a line every half a minute, with rate and remaining time, and none before."""

from __future__ import annotations

import pytest

from prunus.runtime import progress
from prunus.runtime.progress import progress_bar, spoken


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_a_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("fine-tuning", 1000) as bar:
        for _ in range(150):  # a step every half a second
            clock[0] += 0.5
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "fine-tuning: 60 of 1,000 (6%), 2/s, about 8 minutes left",
        "fine-tuning: 120 of 1,000 (12%), 2/s, about 7 minutes left",
    ]


def test_what_was_done_before_took_no_time(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("learning", 400) as bar:
        bar.skip(340)
        bar.describe("epoch 9")
        clock[0] += 30
        bar.advance(30)
    assert capsys.readouterr().err == "epoch 9: 370 of 400 (92%), 1/s, about 30 seconds left\n"


def test_what_ends_soon_or_is_not_wanted_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for wanted, seconds in ((True, 29), (False, 500)):
        with progress_bar("repair", 3, wanted) as bar:
            clock[0] += seconds
            bar.advance(3)
    assert capsys.readouterr().err == ""


def test_times_as_people_say_them() -> None:
    assert [spoken(s) for s in (1.25, 90, 180, 9000)] == ["1.2 seconds", "90 seconds", "3 minutes", "2 hours"]
