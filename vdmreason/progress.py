"""Progress with time left: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

SECONDS_A_LINE = 5

Show = Callable[[int, float | None, str], None]
"""Called as `show(done, seconds left, text)`; None: as long as it took so far, by the piece."""


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: "95 s", "12 min", "5.2 h"."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def print_keys(rows: Iterable[tuple[str, Any, str]], value: str = "default") -> None:
    """A table of what may be set: (key, `value`, what it is)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("key", value, "what it is", box=None, padding=(0, 2, 0, 0))
    for key, given, about in rows:
        table.add_row(key, "" if given is None else escape(str(given)), escape(about))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


@contextmanager
def progress(name: str, total: int, first: int = 0, shown: bool = True) -> Iterator[Show]:
    """Shows how many of `total` are done, beginning at `first`; nothing unless `shown`."""
    began = time.monotonic()

    def left(done: int, seconds: float | None) -> str:
        if seconds is None and first < done:
            seconds = (time.monotonic() - began) / (done - first) * (total - done)
        return "time left not known yet" if seconds is None else f"{duration(seconds)} left"

    if not shown:
        yield lambda done, seconds, text: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total, completed=first, text="")
            yield lambda done, seconds, text: bar.update(task, completed=done, text=f"{left(done, seconds)}  {text}")
    else:
        last = -math.inf

        def plain(done: int, seconds: float | None, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_A_LINE or done >= total:
                last = time.monotonic()
                print(f"{name}: {done}/{total}  {left(done, seconds)}  {text}".rstrip(), file=sys.stderr, flush=True)

        print(f"{name}: from {first} of {total}", file=sys.stderr, flush=True)
        yield plain
