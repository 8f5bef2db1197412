"""A job is a folder and a process: start it, follow it, stop it, find it again after a crash.

Nothing long runs inside a page's event. The process works on its own; its folder tells everyone the same story: the
page, the command line, a second browser, the page after a reload. `job.json` is written once by `start` and names the
process; `state.json` is written by the process itself (see `store.write_state`).

States: queued -> starting -> running -> stopping -> stopped | done | failed | lost. `lost` is never written: it is
what `status` says when the folder speaks of a process that is not there any more. Needs no torch.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tasks.base import UserError
from vdmreason import store

ACTIVE = ("queued", "starting", "running", "stopping")
LOG, STOP, JOB = "log.txt", "STOP", "job.json"
SAVE, PREVIEW = "SAVE", "PREVIEW"  # files that ask a training for a checkpoint, or previews, after its next step
ENDING = 60.0  # seconds that a job's process may take to end, or to begin with what else the job does
BEAT = 15.0  # seconds between two touches of a working process's state.json
SILENT = 180.0  # seconds without one after which a process of another machine is taken for dead
IN_JOB = "VDMREASON_JOB"  # the environment of a job's process: its folder


@dataclass(frozen=True)
class Status:
    """Where a job stands. Times are seconds since 1970, `eta` is seconds left or None."""

    folder: Path
    kind: str  # "train", "predict", "compare", "pretrain"; "" for a run started without `start`
    state: str
    pid: int | None
    step: int
    updates: int
    eta: float | None
    error: str  # one line, "" where nothing went wrong
    started: float | None
    beat: float | None  # the last sign of life

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


def start(kind: str, argv: Sequence[str], folder: str | Path, after: str | Path | None = None) -> Status:
    """Start `argv` as a process of its own, that outlives this one, with its output in the folder's log.txt.

    With `after`, a job's folder, the process waits (state "queued") until that job is over, however it ended.
    Raises UserError when a job is already working in `folder`.
    """
    folder = Path(folder).resolve()
    refuse_active(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for wish in (STOP, SAVE, PREVIEW):  # of a process that is gone
        (folder / wish).unlink(missing_ok=True)
    argv = list(argv)
    store.write_json(folder / JOB, {"kind": kind, "argv": argv, "after": str(after) if after else None})
    store.write_state(
        folder, state="queued" if after else "starting", pid=None, created=None, host=None, space=None,
        error="", eta=None, step=0,
    )  # fmt: skip

    command = argv
    if after:
        waiting = ["--after", str(Path(after).resolve()), "--folder", str(folder), "--"]
        command = [sys.executable, "-m", "vdmreason.jobs", *waiting, *argv]
    with store.disk_errors(folder / LOG), open(folder / LOG, "ab") as log:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a signal to the page's group does not reach it; and it is a group of its own
                env={**environment(), "PYTHONUNBUFFERED": "1", IN_JOB: str(folder)},
            )
        except OSError as error:
            store.write_state(folder, state="failed", error=f"{command[0]}: {error.strerror}")
            raise UserError(f"{command[0]}: cannot be started: {error.strerror}") from None
    _reap_later(process)
    job = {"kind": kind, "argv": argv, "after": str(after) if after else None, "started": time.time()}
    store.write_json(folder / JOB, {**job, **identity(), "pid": process.pid, "created": _created(process.pid)})
    return status(folder)


def environment() -> dict[str, str]:
    """What a process of ours (`python -m vdmreason`) is started with: it finds our code, and does not take a tasks.py of the
    folder it is started in for ours."""
    ours = Path(__file__).resolve().parents[1]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(ours)]
    # Of an installed package the standard library is to stay before it, and it is found anyway.
    if ours.name not in ("site-packages", "dist-packages"):
        paths.insert(0, str(ours))
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}


def resume(folder: str | Path) -> Status:
    """Start a job again with the command it was started with. Commands of ours go on where they were."""
    job = store.read_json(Path(folder) / JOB)
    if job is None:
        raise UserError(f"{folder}: was not started as a job. Run its command again: vdmreason train --folder {folder}")
    return start(job["kind"], job["argv"], folder)


def refuse_active(folder: Path) -> None:
    """Raises UserError where a job is already working in `folder`."""
    if status(folder).active:
        where = ""
        job, state = read(folder)
        if host := _elsewhere(job, state):  # no signal gets there; and its machine may have been started anew
            seconds = max(0.0, _since_heard(folder, state))
            where = f" on {host}, or was {seconds:.0f} s ago. After {SILENT:.0f} s of silence it counts as lost"
        raise UserError(f"{folder.name}: is already running{where}. Wait for it, or stop it first.")


def is_this(folder: str | Path) -> bool:
    """Whether this process was started by `start` as the job of `folder`."""
    return os.environ.get(IN_JOB) == str(Path(folder).resolve())


def status(folder: str | Path) -> Status:
    """Where the job in `folder` stands, as every process sees it. State "" where there is no job."""
    folder = Path(folder)
    job, state = read(folder)
    name = state.get("state", "")
    error = state.get("error") or ""
    if name in ACTIVE:
        alive = _is_seen(job) or _is_seen(state)
        alive = alive or bool(_elsewhere(job, state) and _since_heard(folder, state) < SILENT)
        if not alive and not _being_started(job, state):
            # A process that died before its first word failed; one that died at work was lost (a kill, a power cut).
            name = "failed" if name in ("queued", "starting") else "lost"
            error = error or _last_line(folder / LOG) or "the process ended without a word"
        elif (folder / STOP).exists() and name != "queued":
            name = "stopping"
    return Status(
        folder=folder,
        kind=job.get("kind", ""),
        state=name,
        pid=state.get("pid") or job.get("pid"),
        step=state.get("step") or 0,
        updates=state.get("updates") or 0,
        eta=state.get("eta"),
        error=error,
        started=job.get("started") or state.get("created"),
        beat=state.get("beat"),
    )


def request_stop(folder: str | Path) -> Status:
    """Ask for a checkpoint and an end after the current step. Returns at once. On another machine a job is asked even where it
    seems lost: that is no more than that it was not heard of."""
    if status(folder).active or _elsewhere(*read(folder)):
        store.write_text(Path(folder) / STOP, "")
    return status(folder)


def ask(folder: str | Path, what: str) -> Status:
    """Ask a job for something that it does after the current step and goes on: SAVE, PREVIEW. Returns at once.

    Raises UserError where no job is at work that could hear it.
    """
    if status(folder).state != "running":
        raise UserError(f"{Path(folder).name}: is not running, so it cannot be asked for anything. Resume it first.")
    store.write_text(Path(folder) / what, "")
    return status(folder)


def stop(folder: str | Path, grace: float = 20.0) -> Status:
    """End a job: a STOP file first (checkpoint and stop), SIGTERM after `grace` seconds, SIGKILL after as many more.

    Returns when the process is gone. A job that is not active is left as it is. One of another machine, where no signal gets,
    has only the file, and may be stopping still when this returns.
    """
    folder = Path(folder)
    if not request_stop(folder).active or _wait_for_end(folder, grace) or _elsewhere(*read(folder)):
        return status(folder)
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(folder, number)
        if _wait_for_end(folder, grace):
            break
    if store.read_state(folder).get("state") in ACTIVE:  # killed before it could say so itself
        store.write_state(folder, state="stopped", eta=None)
    (folder / STOP).unlink(missing_ok=True)
    return status(folder)


def find(*roots: str | Path, within: bool = True) -> list[Status]:
    """Every job and run under `roots`, the latest sign of life first; without those `within` another job (the arms of a
    comparison, the trials of a sweep) where so asked."""
    found = []
    for root in roots:
        for parent, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            if "state.json" in files:
                found.append(status(parent))
            if JOB in files and not within:
                folders.clear()
    return sorted(found, key=lambda s: -(s.beat or 0))


def log_tail(folder: str | Path, lines: int = 30) -> str:
    """The last lines of a job's log; "" where there is none."""
    try:
        with open(Path(folder) / LOG, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200 * lines))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.replace("\r", "\n").splitlines()[-lines:])


# ---------------------------------------------------------------------------------------------------------------------
# Inside the process


class Working:
    """The pen of a working process: `beat` says where it stands, `stop_wanted` whether someone asked it to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signalled = False
        self._last = 0.0

    def beat(self, step: int, updates: int, eta: float | None, often: float = 1.0) -> None:
        """Write progress, but not more often than every `often` seconds."""
        if time.monotonic() - self._last >= often or step >= updates:
            self._last = time.monotonic()
            store.write_state(self.folder, state="running", step=step, updates=updates, eta=eta)

    def stop_wanted(self) -> bool:
        return self.signalled or (self.folder / STOP).exists()

    def asked(self, what: str) -> bool:
        """Whether someone asked for SAVE or PREVIEW (see `ask`); `answered` when it is done."""
        return (self.folder / what).exists()

    def answered(self, what: str) -> None:
        (self.folder / what).unlink(missing_ok=True)


class Stopped(Exception):
    """Raised inside `working` to end it in the state "stopped"."""


@contextmanager
def listening(folder: str | Path) -> Iterator[Working]:
    """For a process that works along with the one that writes the state: SIGTERM becomes a wish to stop."""
    pen = Working(Path(folder))
    with _on_sigterm(pen):
        yield pen


@contextmanager
def working(folder: str | Path, listens: bool = True, keeps_stop: bool = False, **first: Any) -> Iterator[Working]:
    """Keep state.json true while the block runs: running, then done, stopped or failed with one line.

    SIGTERM becomes a wish to stop (`Working.stop_wanted`) where the block `listens` and this is the main thread. The STOP
    file goes with the block that heard it, but where it `keeps_stop` for others that have yet to see it.
    """
    folder = Path(folder)
    pen = Working(folder)

    def heard() -> None:
        if not keeps_stop:
            (folder / STOP).unlink(missing_ok=True)

    if not keeps_stop and not is_this(folder):  # begun by hand: who asked for an end before that meant another
        with contextlib.suppress(OSError):
            if (folder / STOP).stat().st_mtime < (_created(os.getpid()) or 0.0):
                (folder / STOP).unlink()
    with _on_sigterm(pen) if listens else contextlib.nullcontext():
        store.write_state(folder, state="running", **identity(), error="", eta=None, **first)
        try:
            with _beating(folder):
                yield pen
        except (Stopped, KeyboardInterrupt):
            _last_words(folder, state="stopped", eta=None)
            heard()
            raise
        except BaseException as error:
            text = " ".join(str(error).split()) or type(error).__name__
            line = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
            _last_words(folder, state="failed", eta=None, error=line)
            raise
        else:
            store.write_state(folder, state="done", eta=None)
            heard()


@contextmanager
def _beating(folder: Path) -> Iterator[None]:
    """Touch state.json every few seconds while the block runs, from a thread of its own: other machines can tell by nothing else
    that this process lives, and an update may take minutes."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(folder / "state.json")

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def tell(line: str) -> None:
    """Leave one line about what went wrong in the folder of the job that this process works for, if it is a job."""
    if folder := os.environ.get(IN_JOB):
        early = store.read_state(folder).get("state") in ("queued", "starting")
        _last_words(Path(folder), error=line, **({"state": "failed"} if early else {}))


def _last_words(folder: Path, **changes: Any) -> None:
    """Write the ending; where the disk is full, the first error is the one to tell."""
    with contextlib.suppress(UserError, OSError):
        store.write_state(folder, **changes)


@contextmanager
def _on_sigterm(pen: Working) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: object) -> None:
        pen.signalled = True

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def identity() -> dict[str, Any]:
    """This process, told apart from those of other machines and containers, and from a later one with its number."""
    return {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "created": _created(os.getpid())}


@functools.cache
def _space() -> str:
    """Which process numbers mean anything to this process: those of one boot of one machine, or of one container."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _is_here(record: Mapping[str, Any]) -> bool:
    """Whether the process that job.json or state.json names would be seen from here. Old files name no host: it is looked for, as
    is one of this machine before it was started anew. A machine may change its name, but not during a boot its number."""
    ours, theirs, same = _space(), record.get("space") or "", record.get("host") == socket.gethostname()
    if not record.get("host") or (ours and ours == theirs):
        return True
    return same and ours.split(" ")[0] != theirs.split(" ")[0] if ours else same


def _is_seen(record: Mapping[str, Any]) -> bool:
    """Whether the process that job.json or state.json names lives here."""
    return _is_here(record) and is_alive(record.get("pid"), record.get("created"))


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A folder's job.json and state.json, {} for what is not there."""
    return store.read_json(Path(folder) / JOB) or {}, store.read_state(folder)


def _since_heard(folder: Path, state: Mapping[str, Any]) -> float:
    """Seconds since a folder's process gave a sign of life."""
    beat = state.get("beat") or 0.0
    touched = store.stamp(folder / "state.json")
    return time.time() - max(beat, touched[0] / 1e9 if touched else 0.0)


def _elsewhere(job: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """The host, or container, that an unfinished job is on; "" where that is this one."""
    record = state if state.get("pid") else job
    return "" if state.get("state") not in ACTIVE or _is_here(record) else str(record["host"])


def is_alive(pid: int | None, created: float | None) -> bool:
    """Whether the process is there: same number and same creation time (numbers are used again), and no zombie."""
    if not pid:
        return False
    try:
        process = psutil.Process(pid)
        same = created is None or abs(process.create_time() - created) < 2
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _goes_on(folder: Path) -> bool:
    """Whether a job that is done has more to do: between training and answers it says so for a moment. A process that hangs as it
    ends holds nobody up."""
    job, state = read(folder)
    lately = time.time() - (state.get("beat") or 0) < ENDING
    known = job.get("created") is not None
    return state.get("state") == "done" and lately and known and (_is_seen(job) or not _is_here(job))


def _created(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _being_started(job: dict[str, Any], state: dict[str, Any]) -> bool:
    """Between `start` announcing a job and naming its process, another reader must not call it lost."""
    return bool(job) and "pid" not in job and time.time() - (state.get("beat") or 0) < 10


def _wait_for_end(folder: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while status(folder).active:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _signal(folder: Path, number: int) -> None:
    """Signal the job's whole group, its launcher and its workers; or the one process of a run started by hand."""
    job, state = read(folder)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if _is_seen(job):
            os.killpg(job["pid"], number)
        elif _is_seen(state):
            os.kill(state["pid"], number)


def _reap_later(process: subprocess.Popen[bytes]) -> None:
    """Collect the exit code when the child ends, so that it is no zombie while its parent lives on."""
    threading.Thread(target=process.wait, daemon=True, name=f"reap-{process.pid}").start()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log_tail(log.parent, 5).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _wait_then_become(after: Path, folder: Path, argv: list[str], nap: Callable[[float], None] = time.sleep) -> None:
    """Wait until the job in `after` is over, then become `argv`: same process number, same creation time."""
    with _beating(folder):
        while status(after).active or _goes_on(after):
            if (folder / STOP).exists():
                store.write_state(folder, state="stopped", eta=None)
                (folder / STOP).unlink(missing_ok=True)
                return
            nap(0.5)
    store.write_state(folder, state="starting")
    os.execvp(argv[0], argv)


if __name__ == "__main__":  # python -m vdmreason.jobs --after FOLDER --folder FOLDER -- COMMAND ...
    _wait_then_become(Path(sys.argv[2]), Path(sys.argv[4]), sys.argv[6:])
