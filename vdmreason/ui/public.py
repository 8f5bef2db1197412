"""A page that strangers use, as on a hosted Space: what they may do, how often, and what they are not told.

Private is the default. `VDMREASON_PUBLIC=1`, or a Space around us, makes the page public: it shows everything that is
there and answers live, within a quota, and starts no training, no sweep, no import and no deletion.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from pathlib import Path

from tasks.base import UserError
from vdmreason import jobs, library, store

LIVE = 30  # live answers a visitor may have in an hour
HOUR = 3600.0
VISITORS = 10_000  # whose quotas are remembered


def on() -> bool:
    """Whether the page is public."""
    return os.environ.get("VDMREASON_PUBLIC", "1" if "SPACE_ID" in os.environ else "") not in ("", "0")


def off(what: str = "") -> str:
    """That something is not done on a public page, and where it is."""
    return f"{f'{what} is off' if what else 'Off'} on this public page. On your own machine: pip install, then vdmreason app."


def refuse(what: str) -> None:
    """Raises UserError on a public page: `what` ("Training", "Importing an adapter") is done on one's own machine."""
    if on():
        raise UserError(off(what))


def place(folder: Path) -> str:
    """A folder as the page may name it: whole on one's own machine, its last part in public."""
    return folder.name if on() else str(folder)


def clean(text: object) -> str:
    """A line as the page may say it: on a public one without the folders of this machine."""
    line = " ".join(str(text).split())
    if on():
        home = os.path.expanduser("~")
        roots = (library.zoo().resolve(), store.runs_root().resolve(), Path.cwd(), store.runs_root(), home)
        for root in map(str, roots):
            line = line.replace(f"{root}{os.sep}", "") if len(root) > 1 else line
    return line


def log_of(folder: Path, lines: int = 60) -> str:
    """The end of a job's log. A public page does not show it: it names folders."""
    if on():
        return "The log is not shown on a public page."
    return jobs.log_tail(folder, lines) or "It left no log: it was started by hand, or came from elsewhere."


class Quota:
    """So many uses an hour for each visitor; on a private page as many as one likes."""

    def __init__(self, most: int = LIVE, window: float = HOUR) -> None:
        self.most, self.window = most, window
        self._uses: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, visitor: str, count: int = 1) -> None:
        """Count so many uses, as many as there are left. Raises UserError where the visitor has had all of them."""
        if not on():
            return
        now = time.monotonic()
        with self._lock:
            uses = self._uses.setdefault(visitor, deque())
            self._uses.move_to_end(visitor)
            while len(self._uses) > VISITORS:
                self._uses.popitem(last=False)
            while uses and now - uses[0] > self.window:
                uses.popleft()
            if len(uses) >= self.most:
                wait = (self.window - (now - uses[0])) / 60
                raise UserError(
                    f"That was the last of {self.most} live answers an hour here. The next is free in {wait:.0f} min; "
                    "the recorded answers are always there."
                )
            uses.extend([now] * min(count, self.most - len(uses)))


QUOTA = Quota()  # of live answers, however they are asked for
