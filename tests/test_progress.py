"""Time left on long work: said by the piece, never before a piece is done."""

from __future__ import annotations

import re
import time

import pytest

from vdmreason import progress as progress_module
from vdmreason.progress import duration, progress


@pytest.fixture(autouse=True)
def _every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "SECONDS_A_LINE", 0)


@pytest.mark.parametrize("first", [0, 7])
def test_no_time_is_guessed_before_a_piece_is_done(first: int, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress("work", 10, first) as show:
        now[0] += 60
        show(first, None, "")
        assert "not known yet" in capsys.readouterr().err
        show(first + 1, None, "")  # a piece took a minute
        assert f"{duration(60 * (9 - first))} left" in capsys.readouterr().err
        show(first + 1, 30, "")  # who asks knows better
        assert "30 s left" in capsys.readouterr().err


def test_a_duration_is_read_back_within_its_last_digit() -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    for seconds in (0, 1, 59.6, 99, 101, 3000, 5999, 6001, 1e5):
        number, unit = re.fullmatch(r"([\d.]+) (s|min|h)", duration(seconds)).groups()  # type: ignore[union-attr]
        slack = units[unit] * (0.05 if "." in number else 0.5)
        assert abs(float(number) * units[unit] - seconds) <= slack + 1e-9
