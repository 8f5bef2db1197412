"""The plan of a sweep's folder, and where each of its trials stands. Both are files, which tell everyone the same."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import UserError
from vdmreason import store
from vdmreason.sweep.claims import CLAIM, is_stale, read_claim
from vdmreason.sweep.sheet import Sweep, folder_name

PLAN, SHEET, DONE, FAILED = "plan.json", "sweep.yaml", "done.json", "failed.json"
VOUCHED = ("predictions.jsonl", "result.json")  # what done.json holds the hashes of


def write_plan(folder: Path, sweep: Sweep) -> dict[str, Any]:
    """Make `folder` this sweep's: trials that are new are added, those that the file has no more are marked as dropped.

    Raises UserError where the folder holds a sweep of another name or scale.
    """
    old = store.read_json(folder / PLAN) or {}
    if old and (old["name"], old.get("scale", "")) != (sweep.name, sweep.scale):
        raise UserError(
            f"{folder}: holds the sweep {folder_name(old['name'], old.get('scale', ''))}. Take another --out."
        )
    wanted = [trial.entry() for trial in sweep.trials]
    ids = {entry["id"] for entry in wanted}
    before = [*old.get("dropped", []), *(entry["id"] for entry in old.get("trials", []))]
    plan = {
        "name": sweep.name,
        "scale": sweep.scale,
        "created": old.get("created") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": store.code()[0],
        "trials": wanted,
        "dropped": list(dict.fromkeys(id_ for id_ in before if id_ not in ids)),
    }
    if {**plan, "commit": None} != {**old, "commit": None}:
        store.write_json(folder / PLAN, plan)
    store.write_text(folder / SHEET, sweep.text)
    return plan


def preview(folder: Path, sweep: Sweep) -> dict[str, Any]:
    """What `write_plan` would write of trials, and which ones it would drop. Writes nothing."""
    ids = {trial.run.id for trial in sweep.trials}
    old = store.read_json(folder / PLAN) or {}
    known = [e["id"] for e in old.get("trials", [])] + old.get("dropped", [])
    return {"trials": [t.entry() for t in sweep.trials], "dropped": [id_ for id_ in known if id_ not in ids]}


def read_plan(folder: str | Path) -> dict[str, Any]:
    """The plan of a sweep's folder. Raises UserError where there is none."""
    plan = store.read_json(Path(folder) / PLAN)
    if plan is None:
        raise UserError(
            f"{folder}: is not a sweep's folder (it has no {PLAN}). Start one: vdmreason sweep run FILE.yaml"
        )
    return dict(plan)


def training_of(entry: Mapping[str, Any]) -> str:
    return str(entry.get("training", entry["id"]))  # a plan of an earlier version says nothing of it


def by_training(plan: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in plan:
        found.setdefault(training_of(entry), []).append(entry)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Where a trial stands


@dataclass(frozen=True)
class Standing:
    """Where a trial stands, as its folder tells everyone.

    done; damaged (a done.json, but what it vouches for is not there as it was: does not count); running; lost (its worker is
    gone: whoever looks next takes it); failed; again (failed by the machine's fault, will be tried again); stopped (begun, nobody
    works on it); waiting.
    """

    entry: Mapping[str, Any]
    state: str
    note: str = ""
    driver: str = ""  # whose worker is at it

    @property
    def settled(self) -> bool:
        return self.state in ("done", "failed")


def hashes(place: Path) -> dict[str, str]:
    """sha256 of the files that done.json vouches for; "" for one that is not there."""
    found = {}
    for name in VOUCHED:
        path = place / name
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


def is_done(place: Path) -> bool:
    """Whether the trial in this folder counts: it was finished, and its results are what they were then."""
    done = read_done(place / DONE)
    return bool(done) and done.get("sha256") == hashes(place)


def read_done(path: Path) -> dict[str, Any]:
    """What a done.json says; {} where there is none, or it cannot be read."""
    try:
        said = store.read_json(path)
    except UserError:
        return {}
    return said if isinstance(said, dict) else {}


def standing(folder: Path, entry: Mapping[str, Any], check: bool = True) -> Standing:
    """Where a trial of the plan stands. Without `check` a done.json is believed."""
    place = folder / entry["folder"]
    if (place / DONE).exists():
        if not check or is_done(place):
            return Standing(entry, "done")
        return Standing(entry, "damaged", "predictions.jsonl or result.json is not what done.json vouches for")
    owner = read_claim(place / CLAIM)
    if owner is not None and not is_stale(place / CLAIM, owner):
        where = f"{owner.get('host', '?')}, process {owner.get('pid', '?')}"
        return Standing(entry, "running", where, str(owner.get("driver", "")))
    failed = read_failed(place)
    if failed:
        return Standing(entry, "failed" if failed.get("final", True) else "again", str(failed.get("error", "")))
    if owner is not None:
        return Standing(entry, "lost", f"its worker on {owner.get('host', '?')} is gone")
    return Standing(entry, "stopped" if (place / "state.json").exists() else "waiting")


def read_failed(place: Path) -> dict[str, Any]:
    try:
        return store.read_json(place / FAILED) or {}
    except UserError as error:
        return {"error": str(error)}


def look(folder: str | Path, check: bool = True) -> list[Standing]:
    """Where every trial of a sweep stands, in the plan's order."""
    folder = Path(folder)
    return [standing(folder, entry, check) for entry in read_plan(folder)["trials"]]
