"""Where a sweep stands, as the page shows it: a matrix of its trials, the trials of one cell, and its report.

`Watched` is what a poll asks: files that have not changed are not read again, and one look serves every visitor.
gradio writes a `matrix.pyi` next to this file on import; git ignores it.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adapters
import tasks
from tasks.base import UserError
from vdmreason import jobs, report_page, store, sweep
from vdmreason.progress import duration
from vdmreason.ui import public
from vdmreason.ui.components import Part, script

SHOWN = 200  # trials of a cell that the table shows
ALL = "all"  # the column of puzzles that have a handful of examples, where n does not vary
HOUR = 3600.0
BREATH = 10  # a look that took a second is not repeated for ten


@dataclass(frozen=True)
class Seen:
    """A trial as its folder shows it: where it stands and, once it is done, what it scored."""

    entry: Mapping[str, Any]
    state: str
    note: str  # who works on it, or why it failed
    exact: float | None = None  # share of its test answers that match, from result.json
    right: float | None = None
    seconds: float | None = None
    host: str = ""
    commit: str = ""
    finished: float = 0.0  # when, seconds since 1970
    step: int = 0
    updates: int = 0

    @property
    def row(self) -> tuple[str, ...]:
        return _row(self.entry)[0]

    @property
    def column(self) -> str:
        return ALL if _finite(_tested(self.entry)) else str(self.entry["n"])


@dataclass(frozen=True)
class Look:
    """All trials of a sweep at one moment. `stamp` is equal for two looks that show the same."""

    folder: Path
    name: str
    trials: tuple[Seen, ...]
    dropped: int
    stopped: bool  # a STOP file is there
    driver: jobs.Status  # the job that this page started, if it did
    left: float | None  # seconds of work for one worker; None where no trial is finished
    unknown: tuple[str, ...]  # backbones of which no trial is finished: taken for as slow as the others
    stamp: int

    @functools.cached_property
    def counts(self) -> Counter[str]:
        return Counter(trial.state for trial in self.trials)

    @functools.cached_property
    def cells(self) -> dict[tuple[tuple[str, ...], str], list[Seen]]:
        """(row, column) -> its trials."""
        found: dict[tuple[tuple[str, ...], str], list[Seen]] = {}
        for trial in self.trials:
            found.setdefault((trial.row, trial.column), []).append(trial)
        return found

    @property
    def results(self) -> int:
        """Changes when there is another result to report."""
        return hash(tuple((t.entry["id"], t.finished) for t in self.trials if t.state == "done"))

    @property
    def waiting(self) -> int:
        """Trials that are neither done nor failed nor being worked on."""
        return len(self.trials) - sum(self.counts[state] for state in ("done", "failed", "running"))


def _row(entry: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """A trial's row as words (task, arm, kind), and what rows are ordered by."""
    tested = _tested(entry)
    task = entry["task"] + (f" → {tested}" if tested != entry["task"] else "")
    if _finite(tested):
        task = "conceptarc" if tested.startswith("conceptarc/") else tested.rpartition("/")[0] or tested
    settings = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in sorted(entry["set"].items()))
    arm = entry["arm"] + (f" ({settings})" if settings else "")
    arm += f", {entry['control']} init" if entry["control"] else ""
    kind = _kind(entry["config"]["family"])
    order = (task, kind != "video", entry["arm"], settings, entry["control"])
    return (task, arm, kind), order


def _tested(entry: Mapping[str, Any]) -> str:
    return str(entry["config"].get("test_task") or entry["task"])


@functools.cache
def _kind(family: str) -> str:
    """Which arm a family is; "" for one that is not here."""
    try:
        return str(adapters.family(family).ARM)
    except UserError:
        return ""


@functools.cache
def _finite(task: str) -> bool:
    try:
        return tasks.is_arc(task)
    except UserError:
        return False


class Watched:
    """A sweep's folder that is looked at again and again. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._plan: tuple[Any, dict[str, Any]] = (None, {})
        self._outcomes: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._forecast = sweep.Forecast(folder, sizes=False)
        self._last: Look | None = None
        self._until = 0.0  # the last look serves until then

    def look(self, fresh: bool = False) -> Look:
        """Where every trial stands. A look is shared for as long as ten of its kind take; `fresh` asks for a new one.

        Raises UserError where the folder is no sweep's.
        """
        with self._lock:
            if self._last is None or fresh or time.monotonic() > self._until:
                began = time.monotonic()
                self._last = self._look()
                now = time.monotonic()
                self._until = now + max(0.5, BREATH * (now - began))
            return self._last

    def _look(self) -> Look:
        path = str(self.folder / sweep.PLAN)
        stamp = store.stamp(path)
        if stamp is None or stamp != self._plan[0]:
            self._plan = stamp, sweep.read_plan(self.folder)
        plan = self._plan[1]
        trials = tuple(self._trial(entry) for entry in plan["trials"])
        self._forecast.learn(sweep.Standing(t.entry, t.state) for t in trials if t.state == "done")
        left, unknown = self._left([trial for trial in trials if trial.state not in ("done", "failed")])
        name = sweep.folder_name(plan["name"], plan.get("scale", ""))
        stopped = (self.folder / jobs.STOP).exists()
        driver = jobs.status(self.folder)
        shown = [(t.state, t.note, t.exact, t.finished, t.step) for t in trials]
        dropped = len(plan.get("dropped", ()))
        changes = hash((stamp, stopped, driver.state, driver.error, dropped, tuple(shown)))
        return Look(self.folder, name, trials, dropped, stopped, driver, left, unknown, changes)

    def _left(self, trials: Sequence[Seen]) -> tuple[float | None, tuple[str, ...]]:
        """`Look.left` and `Look.unknown` of trials that are not settled."""
        entries = [trial.entry for trial in trials]
        seconds, (_, unknown) = self._forecast.guess(entries), self._forecast.total(entries)
        if seconds is not None:
            for trial in trials:  # of one that runs, so much of its training is done; answers are still to come
                if trial.state == "running" and trial.updates:
                    whole = self._forecast.guess([trial.entry]) or 0.0
                    asking = self._forecast.seconds(trial.entry["config"], trained=False) or 0.0
                    seconds -= max(0.0, whole - asking) * trial.step / trial.updates
            seconds = max(0.0, seconds)
        return seconds, tuple(sorted(unknown))

    def _trial(self, entry: Mapping[str, Any]) -> Seen:
        place = f"{self.folder}/{entry['folder']}"
        done = store.stamp(f"{place}/{sweep.DONE}")
        if done is None:
            stands = sweep.standing(self.folder, entry, check=False)
            if stands.state != "running":
                return Seen(entry, stands.state, stands.note)
            at = _state_of(Path(place))
            return Seen(entry, "running", stands.note, step=at.get("step") or 0, updates=at.get("updates") or 0)
        stamp = (done, *(store.stamp(f"{place}/{name}") for name in sweep.VOUCHED))
        if self._outcomes.get(entry["id"], (None,))[0] != stamp:
            self._outcomes[entry["id"]] = stamp, _outcome(Path(place))
        return Seen(entry, finished=done[0] / 1e9, **self._outcomes[entry["id"]][1])


def _state_of(place: Path) -> dict[str, Any]:
    try:
        return store.read_state(place)
    except UserError:
        return {}


def _outcome(place: Path) -> dict[str, Any]:
    """What a done trial scored, if what its done.json vouches for is still there."""
    if not sweep.is_done(place):
        return {"state": "damaged", "note": "its files are not what done.json vouches for; Resume makes it anew"}
    try:
        result, done = store.read_json(place / "result.json") or {}, store.read_json(place / sweep.DONE) or {}
        scores, made = result["scores"], result.get("provenance") or {}
        return {
            "state": "done", "note": "", "exact": float(scores["exact"]["value"]), "right": float(scores["right"]["value"]),
            "seconds": done.get("seconds"), "host": str(done.get("host") or made.get("device") or ""),
            "commit": str(done.get("commit") or made.get("commit") or ""),
        }  # fmt: skip
    except (UserError, KeyError, TypeError, ValueError) as error:
        return {"state": "damaged", "note": f"result.json cannot be read: {' '.join(str(error).split())}"}


def matrix(look: Look) -> dict[str, Any]:
    """What the component draws: {"rows": [[task, arm, kind], ...], "columns": [...], "cells": [row][column] of null or
    [done, trials, mean exact match or null, failed, running]}."""
    order: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for trial in look.trials:
        row, place = _row(trial.entry)
        order.setdefault(row, place)
    rows = sorted(order, key=lambda row: order[row])
    columns = sorted({column for _, column in look.cells}, key=lambda c: (c == ALL, int(c) if c != ALL else 0))
    cells = [[_cell(look.cells.get((row, column))) for column in columns] for row in rows]
    return {"name": look.name, "rows": [list(row) for row in rows], "columns": columns, "cells": cells}


def _cell(trials: list[Seen] | None) -> list[Any] | None:
    if not trials:
        return None
    counts = Counter(trial.state for trial in trials)
    known = [trial.exact for trial in trials if trial.exact is not None]
    mean = round(sum(known) / len(known), 4) if known else None
    return [counts["done"], len(trials), mean, counts["failed"] + counts["damaged"], counts["running"]]


def cell(look: Look, row: Any, column: Any) -> dict[str, Any] | None:
    """The trials of one cell for the table below the matrix; None where there is no such cell (any more)."""
    key = (tuple(map(str, row)) if isinstance(row, list | tuple) else (), str(column))
    found = look.cells.get(key)
    if not found:
        return None
    found = sorted(found, key=lambda t: (t.entry["task"], t.entry["seed"], t.entry["n"]))
    many = len({trial.entry["task"] for trial in found}) > 1
    about = f"{key[0][0]} · {key[0][1]} · " + ("every n that a puzzle has" if key[1] == ALL else f"n {key[1]}")
    rows = [_told(look.folder, trial) for trial in found[:SHOWN]]
    return {
        "row": list(key[0]),
        "column": key[1],
        "about": about,
        "many": many,
        "trials": rows,
        "more": len(found) - len(rows),
    }


def _told(folder: Path, trial: Seen) -> dict[str, Any]:
    entry, note, log = trial.entry, trial.note, ""
    if trial.state in ("failed", "again"):
        try:
            failed = store.read_json(folder / entry["folder"] / sweep.FAILED) or {}
        except UserError as error:
            failed = {"log": str(error)}
        log = str(failed.get("log") or "")[-4000:]
    if trial.state == "running" and trial.updates:
        note = f"update {trial.step} of {trial.updates}, on {note}"
    host = trial.host
    if public.on():  # strangers are told what failed, not on which machine and from which folder
        note, log, host = note.partition(", on ")[0].replace(str(folder), folder.name), "", ""
        note = "" if trial.state == "running" and not trial.updates else note
    return {
        "id": entry["id"], "task": entry["task"], "seed": entry["seed"], "n": entry["n"], "state": trial.state,
        "exact": trial.exact, "right": trial.right, "time": duration(trial.seconds) if trial.seconds else "",
        "host": host, "commit": trial.commit[:9], "note": note, "log": log,
    }  # fmt: skip


class Matrix(Part):
    """The matrix and, below it, the trials of the cell that was picked. Its value: {"matrix": `matrix`, "cell": `cell`}, or None.

    Events: `pick`, {"row": [task, arm, kind], "column": text}; `open`, {"id": a trial's id}.
    """

    def __init__(self, value: dict[str, Any] | None = None, **kwargs: Any) -> None:
        frame = '<div class="matrix-box"></div><section class="trials" aria-live="off"></section>'
        super().__init__(value, frame, script("matrix.js"), "matrix", **kwargs)


class Report(Part):
    """A report's tables and drawings, sortable, with its files to keep. Its value: {"name", "badge", "main"} or None.

    `keep({"name", "kind"})` gives a file: {"name", "type", "text"} or {"error": one line}.
    """

    def __init__(self, keep: Callable[[Any], dict[str, str]], **kwargs: Any) -> None:
        frame = '<div class="report-head"></div><div class="report-main"></div>'
        js = report_page.SORT + script("report.js")
        super().__init__(None, frame, js, "report", server_functions=[keep], **kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# All sweeps


@dataclass
class Shelf:
    """The sweeps under the runs' root."""

    _watched: dict[Path, Watched] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self) -> list[str]:
        """Folders with a plan, relative to the runs' root, the one that changed last first."""
        root = store.runs_root()
        places = [path for parent in (root, root / "sweeps") for path in _folders(parent)]
        found = {path: stamp for path in places if (stamp := _alive(path))}
        return [str(path.relative_to(root)) for path in sorted(found, key=lambda p: -found[p])]

    def watched(self, name: object) -> Watched:
        """The sweep of a name that `names` gave. Raises UserError for any other."""
        root = store.runs_root()
        folder = root / name if isinstance(name, str) and name and "\0" not in name else None
        if folder is None or not folder.resolve().is_relative_to(root.resolve()) or not (folder / sweep.PLAN).is_file():
            raise UserError("That is no sweep of this page. Choose one from the list.")
        with self._lock:
            return self._watched.setdefault(folder.resolve(), Watched(folder.resolve()))


def _folders(parent: Path) -> Iterable[Path]:
    try:
        with os.scandir(parent) as entries:
            return [parent / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []


def _alive(folder: Path) -> int:
    """When a sweep last did something (ns); 0 for a folder that is none. A new trial changes trials/, a start the sheet."""
    times = [store.stamp(f"{folder}/{name}") for name in (sweep.PLAN, sweep.SHEET, "trials", "workers", "state.json")]
    return max(stamp[0] for stamp in times if stamp) if times[0] else 0
