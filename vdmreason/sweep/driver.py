"""The driver of a sweep: it has a launcher keep workers at work until every trial is done, and says how far they are."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.base import UserError
from vdmreason import jobs, store
from vdmreason.launchers import Launcher
from vdmreason.progress import progress
from vdmreason.sweep import worker
from vdmreason.sweep.claims import claim, identity
from vdmreason.sweep.forecast import Forecast, describe, time_line
from vdmreason.sweep.sheet import Sweep, folder_name
from vdmreason.sweep.trials import FAILED, is_done, look, preview, read_plan, standing, write_plan
from vdmreason.sweep.worker import Wish, set_aside


def run_sweep(
    sweep: Sweep,
    folder: Path,
    make: Callable[[str], Launcher],
    workers: int = 1,
    retry_failed: bool = False,
    dry_run: bool = False,
) -> None:
    """Print the plan, start workers and follow them until every trial is done.

    Running it again goes on; a second driver on the same folder helps. `make(driver)` gives the launcher. Raises UserError, with
    the first error, where trials failed or workers die without getting anywhere; `jobs.Stopped` when told to stop.
    """
    if dry_run:
        print(describe(folder, sweep, preview(folder, sweep), workers))
        return
    plan = write_plan(folder, sweep)
    if retry_failed:
        forget_failures(folder, plan)
    if not jobs.is_this(folder):  # a job's was removed as it started; one that is there is new
        (folder / jobs.STOP).unlink(missing_ok=True)
    print(describe(folder, sweep, plan, workers), flush=True)
    _set_damaged_aside(folder, plan)
    driver = secrets.token_hex(4)
    with _as_a_job(folder) as tell:
        _follow(folder, make(driver), driver, tell)
        verdict(folder)


def forget_failures(folder: Path, plan: Mapping[str, Any]) -> None:
    """Let failed trials be tried again. What is known of the failure stays, under another name."""
    for entry in plan["trials"]:
        place = folder / entry["folder"]
        if (place / FAILED).exists():
            number = next(k for k in itertools.count(1) if not (place / f"failed-{k}.json").exists())
            os.replace(place / FAILED, place / f"failed-{number}.json")


def _set_damaged_aside(folder: Path, plan: Mapping[str, Any]) -> None:
    """A result that is not what it was is made anew, by whoever holds the trial."""
    for entry in plan["trials"]:
        place = folder / entry["folder"]
        if standing(folder, entry).state == "damaged" and (mine := claim(place)):
            try:
                if not is_done(place):
                    set_aside(place)
            finally:
                mine.release()


@contextmanager
def _as_a_job(folder: Path) -> Iterator[Callable[[int, int, float | None], None]]:
    """Where this driver is the job of its folder (`jobs.start`), say in its state.json where it stands: `tell(settled, trials,
    eta)`."""
    if not jobs.is_this(folder):
        yield lambda settled, trials, eta: None
        return
    told: list[Any] = []

    def tell(settled: int, trials: int, eta: float | None) -> None:
        moment = time.monotonic() // 10  # a sign of life, also where nothing changes
        if told != [settled, trials, moment]:
            told[:] = [settled, trials, moment]
            store.write_state(folder, state="running", step=settled, updates=trials, eta=eta)

    # The STOP file stays when a driver stops: workers on other machines have yet to see it. `Wish` hears the signals.
    with jobs.working(folder, listens=False, keeps_stop=True):
        yield tell


def _follow(folder: Path, launcher: Launcher, driver: str, tell: Callable[[int, int, float | None], None]) -> None:
    """Keep the launcher's workers at work until no trial is left, and show how far they are."""
    wish, forecast = Wish(folder), Forecast(folder)
    now = look(folder, check=False)
    forecast.learn(now)
    told = not forecast.total(s.entry for s in now if not s.settled)[1]
    settled_then, deaths_then, nap = -1, 0, 0.5
    title = f"{read_plan(folder)['name']}: trials"
    with wish.listening(), progress(title, len(now), sum(s.settled for s in now)) as show:
        while True:
            counts, settled = Counter(s.state for s in now), sum(s.settled for s in now)
            left = [s.entry for s in now if not s.settled]
            eta = forecast.guess(left, launcher.workers)
            if not told and not forecast.total(left)[1]:
                told = True
                print(f"time: {time_line(forecast, left, launcher.workers)}", file=sys.stderr, flush=True)
            also = "".join(f", {counts[state]} {state}" for state in ("failed", "again", "lost") if counts[state])
            show(settled, eta, f"{counts['running']} running{also}")
            tell(settled, len(now), eta)
            if not left:
                break
            if wish():
                _end(launcher, wish)
                raise jobs.Stopped
            if settled != settled_then:
                settled_then, deaths_then = settled, launcher.deaths
            elsewhere = sum(s.state == "running" and s.driver != driver for s in now)
            launcher.tend(len(left) - elsewhere)
            if launcher.hopeless or launcher.deaths - deaths_then > (1 + worker.RETRIES) * launcher.workers + 1:
                _end(launcher, wish)
                raise UserError(f"{folder}: workers end without finishing a trial. The last one: {launcher.why()}")
            time.sleep(nap)
            began = time.monotonic()
            now = look(folder, check=False)
            forecast.learn(now)
            nap = max(
                0.5, 10 * (time.monotonic() - began)
            )  # thousands of trials on a slow disk are not asked all the time
    deadline = time.monotonic() + 60
    while launcher.alive() and time.monotonic() < deadline:  # they see for themselves that nothing is left
        time.sleep(0.05)
    launcher.stop()


def _end(launcher: Launcher, wish: Wish, grace: float = 600) -> None:
    """Have all workers stop: each finishes its update and writes a checkpoint. A second signal does not wait for that."""
    wish.signalled = False
    began = told = time.monotonic()
    launcher.stop()
    while launcher.alive():
        time.sleep(0.05)
        hard = wish.signalled or time.monotonic() - began > grace
        if hard or time.monotonic() - told > 2:  # a signal between two trials may have found nobody listening
            told = time.monotonic()
            launcher.stop(hard)


def verdict(folder: Path) -> None:
    """One line when all is done; else raise UserError that says what is not."""
    now = look(folder)
    counts = Counter(s.state for s in now)
    if set(counts) == {"done"}:
        print(f"all {len(now)} trials are done: {folder}\nnext: vdmreason sweep report {folder}")
        return
    first = next(s for s in now if s.state != "done")
    what = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    why = f" {first.entry['folder']}: {first.note}." if first.note else ""
    raise UserError(f"{folder}: {what}.{why} All of them: vdmreason sweep status {folder}; again: --retry-failed")


def cancel(folder: str | Path) -> int:
    """Leave a STOP file, at which every worker of the sweep stops after its update, wherever it runs. How many are running."""
    folder = Path(folder)
    running = sum(s.state == "running" for s in look(folder, check=False))
    store.write_text(folder / jobs.STOP, json.dumps({**identity(), "date": time.time()}) + "\n")
    return running


def status_lines(folder: str | Path) -> list[str]:
    """Where a sweep stands: counts by state, time left, and a line for each trial that is neither done nor waiting."""
    folder = Path(folder)
    plan, now = read_plan(folder), look(folder)
    counts = Counter(s.state for s in now)
    forecast = Forecast(folder)
    forecast.learn(now)
    lines = [
        f"{folder_name(plan['name'], plan.get('scale', ''))}: {counts['done']} of {len(now)} trials are done"
        + "".join(f", {count} {state}" for state, count in counts.most_common() if state != "done")
        + (f", {len(plan['dropped'])} dropped" if plan["dropped"] else "")
    ]
    left = [s.entry for s in now if not s.settled]
    if left:
        lines.append(f"  left: {time_line(forecast, left, max(1, counts['running']))}")
    if (folder / jobs.STOP).exists():
        lines.append("  cancelled: workers stop; vdmreason sweep run goes on")
    for s in now:
        if s.state not in ("done", "waiting"):
            lines.append(f"  {s.state:<8} {s.entry['folder'].removeprefix('trials/')}" + f"  {s.note}".rstrip())
    return lines
