"""A worker of a sweep: it takes the first trial that nobody has claimed, does it, and goes on until none is left. Any number may
work on one folder, and any of them may be killed at any time."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.base import Unreachable, UserError
from vdmreason import config, evaluate, jobs, store
from vdmreason.config import Run
from vdmreason.launchers import PARENT
from vdmreason.sweep.claims import Claim, claim
from vdmreason.sweep.sheet import backbone_of, tier
from vdmreason.sweep.trials import (
    DONE,
    FAILED,
    by_training,
    hashes,
    is_done,
    read_done,
    read_failed,
    read_plan,
    standing,
    training_of,
)

if TYPE_CHECKING:
    from vdmreason.train import Resident

ASIDE = f"{DONE}.damaged"  # the word that was taken back of a trial whose files were no longer what it vouches for
RETRIES = 2  # of what is the machine's fault, by themselves
PAUSE = 10.0  # seconds to wait after a failure that is the machine's, times the attempts


class Wish:
    """Whether this process is to stop: a signal, a STOP file in the sweep's folder, or a driver that is gone."""

    def __init__(self, folder: Path) -> None:
        self.stop_file, self.signalled = folder / jobs.STOP, False
        self.parent = int(os.environ.get(PARENT, 0))

    def __call__(self) -> bool:
        orphaned = bool(self.parent) and os.getppid() != self.parent
        return self.signalled or orphaned or self.stop_file.exists()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals become a wish, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def heard(number: int, frame: object) -> None:
            self.signalled = True

        before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class DiskFull(UserError):
    """The disk stays full: no trial can be done, and none should fail for it."""


class Unfit(UserError):
    """This worker's code or libraries cannot do what the plan asks: it ends, and leaves the trials to others."""


def work(folder: str | Path, driver: str = "", part: tuple[int, int] = (1, 1)) -> int:
    """Do trials of the sweep in `folder` until none is left that nobody works on. Returns how many this worker finished.

    `part`, say (2, 3): only the second of three parts, for machines that share no disk. Trials of one training are in one part.

    The backbone stays loaded between trials; among equally dear ones those that it serves come first. A trial that raises is
    written down as failed and the next one begins. Raises `jobs.Stopped` when it was told to stop: the trial at hand has its
    checkpoint, and whoever comes next goes on from there. Raises `DiskFull` where the disk stays full, `Unfit` where the plan was
    written by other code or a library is missing here: that is no trial's fault.

    Example: vdmreason sweep worker runs/sweeps/structured-small       (as many as you like, on as many machines)
    """
    from vdmreason.train import Resident  # torch, only now

    store.code()  # what runs is what stands in the files now
    folder, finished = Path(folder), 0
    wish, resident, loaded = Wish(folder), Resident(), ""
    settled: set[str] = set()
    held: dict[str, float] = {}  # trials that another process holds -> when to look again
    with wish.listening():
        while not wish():
            held = {id_: when for id_, when in held.items() if when > time.monotonic()}
            found = _next(folder, settled, loaded, driver, part, held)
            if found is None:
                return finished
            if found == "wait":
                _pause(PAUSE, wish)
                continue
            entry, mine = found
            try:
                with mine.beating():
                    done = _attempt(folder, entry, mine, resident, wish)
            finally:
                mine.release()
            if done is None:
                finished, loaded = finished + 1, backbone_of(entry["config"])
                settled.add(entry["id"])
                continue
            resident, loaded = Resident(), ""  # what failed may have left anything behind
            gc.collect()
            if done.get("held"):
                held[entry["id"]] = time.monotonic() + PAUSE
                continue
            if done.get("final"):
                settled.add(entry["id"])
            if done["machine"]:
                _let_go_of_memory()
                if done.get("final") and done["full"]:
                    raise DiskFull(done["error"])  # the next trial would find the same disk
                _pause(PAUSE * done["attempts"], wish)
    raise jobs.Stopped


def _next(
    folder: Path,
    settled: set[str],
    loaded: str,
    driver: str,
    part: tuple[int, int] = (1, 1),
    held: Collection[str] = (),
) -> tuple[Mapping[str, Any], Claim] | Literal["wait"] | None:
    """The next trial, claimed; None where there is none, "wait" where all that are left are `held` by other processes, or want
    an adapter that another worker is training. The plan is read anew: its file may have changed."""
    plan = read_plan(folder)["trials"]
    twins, wait = by_training(plan), False
    which, parts = part
    mine_to_train = set(itertools.islice(twins, which - 1, None, parts))
    left = [entry for entry in plan if entry["id"] not in settled and training_of(entry) in mine_to_train]
    for _, tied in itertools.groupby(left, key=lambda entry: tier(entry["config"])):
        for entry in sorted(tied, key=lambda entry: backbone_of(entry["config"]) != loaded):  # stable
            place = folder / entry["folder"]
            now = standing(folder, entry)
            if now.settled:
                settled.add(entry["id"])
            if now.settled or now.state == "running":
                continue
            if entry["id"] in held:
                wait = True
                continue
            others = [twin for twin in twins[training_of(entry)] if twin["id"] != entry["id"]]
            if _at_work(folder, others):
                wait = True
                continue
            if (mine := claim(place, driver)) is None:
                continue
            if _at_work(folder, others):  # one that was claimed in the meantime: whose adapter this one will borrow
                mine.release()
                wait = True
                continue
            # Between the look and the claim another worker may have finished it, or given it up.
            done, failed = is_done(place), read_failed(place)
            if not done and (place / DONE).exists():
                set_aside(place)
            if done or failed.get("final"):
                settled.add(entry["id"])
            elif mine.record["vanished"] > RETRIES:
                error = f"its worker vanished {mine.record['vanished']} times (killed, or out of memory)"
                _write_failed(
                    place, {"error": error, "final": True, "machine": True, "full": False, "attempts": 1 + RETRIES}
                )
                settled.add(entry["id"])
            else:
                return entry, mine
            mine.release()
    return "wait" if wait else None


def _at_work(folder: Path, trials: Iterable[Mapping[str, Any]]) -> bool:
    return any(standing(folder, trial, check=False).state == "running" for trial in trials)


def _borrow(folder: Path, entry: Mapping[str, Any], run: Run) -> None:
    """Take the adapter of a trial that the same training serves, where one is done: one of the plan, or of an earlier version of
    the file, which may have asked for fewer tests."""
    from vdmreason.predict import share_adapter

    if store.whole_folder(folder / entry["folder"] / "adapter"):
        return  # trained or lent in an earlier sitting: what the lender learned from need not be drawn again
    plan = read_plan(folder)
    twins = [folder / twin["folder"] for twin in by_training(plan["trials"])[training_of(entry)]]
    dropped = [place for id_ in plan["dropped"] for place in (folder / "trials").glob(f"*--{id_[:6]}")]
    for lender in (*twins, *dropped):
        if lender.name == run.name or not _trained_alike(lender, run):
            continue
        if is_done(lender) and store.whole_folder(lender / "adapter"):
            return share_adapter(lender, run, folder / entry["folder"])


def _trained_alike(place: Path, run: Run) -> bool:
    try:
        return store.read_config(place).training_id == run.training_id
    except UserError:  # what lies there is damaged, or of other code
        return False


def _attempt(
    folder: Path, entry: Mapping[str, Any], mine: Claim, resident: Resident, wish: Wish
) -> dict[str, Any] | None:
    """Do a claimed trial. None when it is done; else what failed.json says. Raises `jobs.Stopped` when told to stop."""
    from vdmreason.predict import predict
    from vdmreason.train import train

    place = folder / entry["folder"]
    began = time.time()

    def stop() -> bool:
        return wish() or mine.lost

    with _log_of(place):
        try:
            run = config.resolve(entry["config"])
            if run.id != entry["id"]:
                raise Unfit("this code reads the plan otherwise. Run the sweep's file again, with this code.")
            if "provenance" not in (store.read_json(place / "result.json") or {}):
                # Damaged or gone: where it came from is written by the end of a training, which its last checkpoint repeats.
                shutil.rmtree(place / "adapter", ignore_errors=True)
            if _answered(place):  # only told otherwise, and its adapter may be on another machine
                evaluate.evaluate(place)
                _finish(place, time.time() - began)
                return None
            if not store.whole_folder(place / "adapter") and not store.checkpoints(place):
                _rename(place / "predictions.jsonl")  # another adapter's
            _borrow(folder, entry, run)
            arm = train(run, place, stop=stop, resident=resident)
            if store.read_state(place).get("state") != "done":
                wish.signalled |= not mine.lost  # a signal during the training was the training's to hear
                raise jobs.Stopped
            predict(place, arm=arm, stop=stop)
            if mine.lost:
                raise jobs.Stopped
            _finish(place, time.time() - began)
            return None
        except (jobs.Stopped, KeyboardInterrupt):
            if mine.lost and not wish():
                return {"machine": True, "full": False, "attempts": 0, "error": "another worker took this trial over"}
            raise jobs.Stopped from None
        except Unfit:
            raise
        except ImportError as error:
            raise Unfit(
                f"{entry['folder']}: {error}. Install it here, or let workers elsewhere do the rest."
            ) from error
        except Exception as error:
            traceback.print_exc()
            failed = _failure(place, error)
    _write_failed(place, failed)
    return failed


def _answered(place: Path) -> bool:
    """Whether all answers are there that a done.json, set aside since, vouched for."""
    vouched = read_done(place / ASIDE).get("sha256", {}).get("predictions.jsonl")
    result = store.read_json(place / "result.json") or {}
    return bool(vouched) and vouched == hashes(place)["predictions.jsonl"] and {"provenance", "codec"} <= set(result)


def _finish(place: Path, seconds: float) -> None:
    """What is needed no more goes, and done.json vouches for the rest."""
    result = store.read_json(place / "result.json") or {}
    made, (commit, dirty) = result.get("provenance", {}), store.code()
    answered = (result.get("answered") or [made | {"commit": commit, "dirty": dirty}])[-1]
    spent = [
        sum(line["seconds"] for line in store.read_lines(place / f"{name}.jsonl"))
        for name in ("metrics", "predictions")
    ]
    done = {
        "sha256": hashes(place),
        # The code that answered; whose adapter was lent or trained in an earlier sitting, result.json says what trained it.
        "commit": answered.get("commit"),
        "dirty": answered.get("dirty"),
        "data": made.get("data"),
        "versions": store.versions(),
        "host": socket.gethostname(),
        "device": answered.get("device"),
        "seconds": round(seconds, 3),  # of the last sitting, all in all
        "training": round(spent[0], 3),  # all updates, over all sittings
        "answering": round(spent[1], 3),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if _answered(place):  # who answered, when and in what time, is as it was
        done |= {key: value for key, value in read_done(place / ASIDE).items() if key != "sha256"}
    (place / FAILED).unlink(missing_ok=True)
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    store.write_json(place / DONE, done)


def set_aside(place: Path) -> None:
    """Take a damaged trial's word back and keep what is damaged under another name; what is whole stays, and need not be made
    again. A result that is only told otherwise (`vdmreason evaluate` under newer rules) is computed from the same answers."""
    vouched = read_done(place / DONE).get("sha256", {})
    try:
        readable = {"provenance", "codec"} <= set(store.read_json(place / "result.json") or {})
    except UserError:
        readable = False
    whole = {name for name, found in hashes(place).items() if found and found == vouched.get(name)}
    if "predictions.jsonl" not in whole or not readable:
        _rename(place / "predictions.jsonl")
    if not readable:
        _rename(place / "result.json")
    _rename(place / DONE)


def _rename(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, path.with_name(f"{path.name}.damaged"))


def _failure(place: Path, error: BaseException) -> dict[str, Any]:
    """What failed.json says of an error. The machine's fault is tried again; what the trial itself does wrong is not."""
    text = " ".join(str(error).split()) or type(error).__name__
    full, machine = _is_full(error), _is_the_machines(error)
    # One that another process holds has not been tried: it is free when that one ends.
    attempts = int(read_failed(place).get("attempts", 0)) + (not isinstance(error, store.Held))
    return {
        "held": isinstance(error, store.Held),
        "error": text if isinstance(error, UserError) else f"{type(error).__name__}: {text}",
        "machine": machine,
        "full": full,
        "attempts": attempts,
        "final": not machine or attempts > RETRIES,
        "log": jobs.log_tail(place),
        "host": socket.gethostname(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _write_failed(place: Path, failed: Mapping[str, Any]) -> None:
    """Where not even that can be written, the claim of a process that is gone tells that something is wrong."""
    try:
        store.write_json(place / FAILED, {"log": jobs.log_tail(place), **failed})
    except (UserError, OSError) as error:
        print(f"{place}: {failed['error']}; and {FAILED} cannot be written: {error}", file=sys.stderr, flush=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    return any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in _causes(error))


def _is_the_machines(error: BaseException) -> bool:
    """Out of memory, a full disk, a disk that went away, a device that fell over, no network: not what the trial is."""
    disk = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "cuda error", "nccl error")
    for cause in _causes(error):
        if isinstance(cause, Unreachable):
            return True
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in disk):
            return True
        if isinstance(cause, RuntimeError) and any(word in str(cause).lower() for word in words):
            return True
    return isinstance(error, store.Held)


def _let_go_of_memory() -> None:
    import torch

    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def _pause(seconds: float, wish: Wish) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not wish():
        time.sleep(min(0.2, seconds))


@contextmanager
def _log_of(place: Path) -> Iterator[None]:
    """What is printed on the way is the trial's."""
    with store.disk_errors(place / jobs.LOG):
        log = open(place / jobs.LOG, "a", buffering=1, encoding="utf-8", errors="replace")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
