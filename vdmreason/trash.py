"""Removed runs: moved aside whole, put back on demand, deleted for good after a week.

    <runs>/.trash/<when>-<name>/note.json     {"was": place under the runs' root, "when": seconds since 1970}
                                run/          the folder as it was

The note is written first and the folder moved in one step. So a kill in between leaves the run where it was, and an entry
without a run, which nobody lists and `empty` clears away. The trash is hidden, and what looks for runs passes over hidden
folders. Needs no torch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.base import UserError
from vdmreason import jobs, library, store
from vdmreason.sweep.claims import CLAIM, is_stale, read_claim

TRASH, NOTE, RUN = ".trash", "note.json", "run"
GOING = ".going-"  # the start of an entry's name while it is being deleted
KEPT = 7 * 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Removed:
    """A run in the trash."""

    name: str  # of its entry: <when>-<name>
    was: str  # its place under the runs' root, with "/" between the parts
    when: float  # seconds since 1970

    @property
    def until(self) -> float:
        """From when on `empty` deletes it, seconds since 1970."""
        return self.when + KEPT


def root() -> Path:
    return store.runs_root() / TRASH


def remove(folder: str | Path) -> Removed:
    """Move a run's or a job's folder to the trash, with everything in it.

    Raises UserError for what is no run under the runs' root, ships with vdmreason, or is being worked on.

        entry = remove("runs/maze-7x7--causal_lm--n30--s0--ab12cd")
        restore(entry.name)
    """
    folder = Path(folder)
    place, runs = folder.resolve(), store.runs_root().resolve()
    if place.is_relative_to(library.zoo().resolve()):
        raise UserError(f"{folder.name}: ships with vdmreason and stays.")
    inside = place.relative_to(runs) if place.is_relative_to(runs) and place != runs else None
    if inside is None or any(part.startswith(".") for part in inside.parts):
        raise UserError(f"{folder}: is no run under {store.runs_root()}; only those can be removed.")
    if not any((place / name).is_file() for name in ("config.yaml", "state.json", jobs.JOB)):
        raise UserError(f"{folder}: is no run's folder (no config.yaml and no state.json).")
    _refuse_busy(place, runs)

    when = time.time()
    entry, name = _new_entry(when, place.name)
    removed = Removed(name, inside.as_posix(), when)
    try:
        with _held(place), store.disk_errors(entry):
            store.write_json(entry / NOTE, {"was": removed.was, "when": when})
            os.replace(place, entry / RUN)
    except OSError as error:
        shutil.rmtree(entry, ignore_errors=True)
        if error.errno == errno.EXDEV:
            raise UserError(
                f"{folder}: lies on another disk than {runs} and is not moved. Delete it by hand."
            ) from None
        raise
    except BaseException:
        if not (entry / RUN).exists():
            shutil.rmtree(entry, ignore_errors=True)
        raise
    return removed


def restore(name: str) -> Path:
    """Put a removed run back where it was and return that. Raises UserError where something else is there by now."""
    removed = _find(name)
    runs = store.runs_root().resolve()
    place = (runs / removed.was).resolve()
    if not place.is_relative_to(runs) or place == runs:
        raise UserError(f"{name}: its note says that it was outside of {runs}. Move {root() / name / RUN} by hand.")
    if place.exists() or place.is_symlink():
        raise UserError(f"{removed.was}: is there again, and nothing is overwritten. Remove or rename that one first.")
    with store.disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(root() / name / RUN, place)
    shutil.rmtree(root() / name, ignore_errors=True)
    return store.runs_root() / removed.was


def listing() -> list[Removed]:
    """What is in the trash, the latest first. Entries that cannot be read are passed over."""
    found = []
    for entry in _entries():
        if entry.name.startswith(".") or not (entry / RUN).is_dir():
            continue
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
            note = store.read_json(entry / NOTE)
            found.append(Removed(entry.name, str(note["was"]), float(note["when"])))
    return sorted(found, key=lambda removed: -removed.when)


def delete(name: str) -> None:
    """Delete a removed run for good. A kill in the middle leaves nothing that could be put back in parts."""
    _find(name)
    going = root() / f"{GOING}{name}"
    os.rename(root() / name, going)
    shutil.rmtree(going, ignore_errors=True)


def empty(older: float = KEPT) -> list[str]:
    """Delete for good what was removed more than `older` seconds ago, and what kills left behind; returns the names."""
    gone = []
    for removed in listing():
        if time.time() - removed.when > older:
            with contextlib.suppress(UserError, OSError):  # another page may be at it
                delete(removed.name)
                gone.append(removed.name)
    for entry in _entries():
        left = entry.name.startswith(GOING) or not (entry / RUN).exists()
        with contextlib.suppress(OSError):
            if left and time.time() - entry.stat().st_mtime > 60:  # a younger one may be in the making
                shutil.rmtree(entry, ignore_errors=True)
    return gone


def _entries() -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(entry for entry in root().iterdir() if entry.is_dir() and not entry.is_symlink())
    return []


def _find(name: str) -> Removed:
    found = next((removed for removed in listing() if removed.name == name), None)
    if found is None:
        raise UserError(f"{str(name)[:80]}: is not in the trash (any more).")
    return found


def _new_entry(when: float, name: str) -> tuple[Path, str]:
    """A new folder in the trash; two removals within a second get different ones."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(when))}-{name}"
    for label in [stem, *(f"{stem}.{k}" for k in range(2, 1000))]:
        with contextlib.suppress(FileExistsError), store.disk_errors(root()):
            (root() / label).mkdir(parents=True)
            return root() / label, label
    raise UserError(f"{root()}: cannot take {name}. Empty it first.")


def _refuse_busy(place: Path, runs: Path) -> None:
    """No folder is moved under a process that works in it, below it, or for it."""
    above = [parent for parent in place.parents if parent.is_relative_to(runs) and parent != runs]
    states = [jobs.status(parent) for parent in above if (parent / "state.json").is_file()]
    for status in [*jobs.find(place), *states]:
        if status.active:
            raise UserError(f"{status.folder.name}: is {status.state}. Stop it first, then remove it.")
    # A worker of a sweep may be elsewhere, and writes no state but its trial's.
    for parent, folders, files in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        claim = Path(parent) / CLAIM
        if CLAIM in files and (owner := read_claim(claim)) is not None and not is_stale(claim, owner):
            raise UserError(f"{claim.parent.name}: a worker is at it. Stop it first, then remove it.")
        if ".lock" in files:
            with store.lock(parent):  # held by somebody else, it says so; else it is free again at once
                pass


@contextlib.contextmanager
def _held(place: Path) -> Iterator[None]:
    """The run's lock, so that no training or answering starts in the moment of the move; jobs that are no runs have none."""
    if (place / "config.yaml").is_file():
        with store.lock(place):
            yield
    else:
        yield
