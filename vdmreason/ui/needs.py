"""What a run will need in memory and on the disk, as `vdmreason doctor --config --json` says it: asked of a process in the
background, because it needs torch, and kept, because it takes some seconds. How much disk is free is asked anew each time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import psutil

import adapters
from tasks.base import UserError
from vdmreason import config, doctor, jobs, store
from vdmreason.config import Run

FOLDER = ".needs"  # under the runs; hidden, so that nobody takes it for one
NO_MATTER = ("seed", "test", "note", "checkpoint_every", "preview_every", "previews", "votes")  # to memory and disk
NO_MATTER_OPTIM = ("lr", "updates", "warmup", "schedule", "weight_decay", "betas", "clip")
WAITING = 2  # runs that are looked at, an arm each; of a form that is being edited the older are dropped
PATIENCE = 180  # seconds
AGAIN = 60.0  # seconds after which one that could not be told is looked at again


def key(run: Run) -> str:
    """16 hex digits over everything that what it needs depends on: the run, this machine, and whether the backbone is here."""
    told = {name: value for name, value in config.to_dict(run).items() if name not in NO_MATTER}
    told["optim"] = {name: value for name, value in told["optim"].items() if name not in NO_MATTER_OPTIM}
    told["here"] = [_device(), _fetched(run)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _device() -> str:
    from vdmreason.ui import training  # which imports this

    gpu = training.gpu_memory()
    return f"GPU {gpu:.1f}" if gpu else f"CPU {psutil.virtual_memory().total / 2**30:.1f}"


def _fetched(run: Run) -> list[Any]:
    """Changes when a backbone comes onto this disk or goes: its folder's time, and that of its snapshots in the hub's cache."""
    base = config.flavour_of(run).base
    kept = adapters.base.hub_cache(base)
    fetching = len([*kept.glob("blobs/*.incomplete")])  # a snapshot's folder is there before what it names is
    return [store.stamp(base), fetching, *(store.stamp(path) for path in sorted(kept.glob("snapshots/*")))]


_failed: dict[str, tuple[float, dict[str, Any]]] = {}  # what could not be told in this process, by key: when, and why


def known(run_key: str) -> dict[str, Any] | None:
    """What was found for that key: `doctor.needs`, or for a minute {"error": one line}; None where nobody has looked yet."""
    when, why = _failed.get(run_key, (0.0, {}))
    if why and time.monotonic() - when < AGAIN:
        return why
    try:
        found = store.read_json(store.runs_root() / FOLDER / f"{run_key}.json")
    except UserError:
        return None
    return found if isinstance(found, dict) else None


def words(found: dict[str, Any]) -> str:
    """ "0.20 GiB of memory, 18 MiB on the disk", or why not."""
    if found.get("error"):
        return str(found["error"])
    disk = {name: int(size) for name, size in found["disk"].items()}
    parts = ", ".join(f"{name} {size_of(size)}" for name, size in disk.items())
    said = f"{size_of(found['memory'])} of {size_of(found['room'])} {found['device']} memory"
    said += f", {size_of(sum(disk.values()))} on the disk ({parts})" if disk else ""
    if found["problem"]:
        said += f". {found['problem']}"
    elif lacking := doctor.disk_problem(disk):
        said += f". {lacking[0].upper()}{lacking[1:].rstrip('.')}"
    return said


def size_of(count: float) -> str:
    """Bytes, for people."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size / 10:
            return f"{count / size:.2g} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count / 2**10:.0f} KiB"


class Lookout:
    """One thread that asks for one run at a time, the one that was named last first."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[str, Run] = OrderedDict()
        self.lock = threading.Lock()
        self.busy = False

    def look(self, run: Run) -> None:
        """Have a run's needs found, if nobody has. Returns at once."""
        if known(key(run)) is not None:
            return
        with self.lock:
            self.waiting[key(run)] = run
            self.waiting.move_to_end(key(run))
            while len(self.waiting) > WAITING:
                self.waiting.popitem(last=False)
            if not self.busy:
                self.busy = True
                threading.Thread(target=self._work, daemon=True, name="needs").start()

    def _work(self) -> None:
        while True:
            with self.lock:
                if not self.waiting:
                    self.busy = False
                    return
                run_key, run = self.waiting.popitem()
            if known(run_key) is None:
                found = ask(run)
                if "error" in found:  # no memory was free, say: no word on the run, so nothing to keep
                    _failed[run_key] = (time.monotonic(), found)
                    continue
                try:
                    store.write_json(store.runs_root() / FOLDER / f"{run_key}.json", found)
                except (UserError, OSError):  # a disk that is full or read-only: nothing is shown
                    continue


def ask(run: Run) -> dict[str, Any]:
    """`doctor.needs` of a run, from a process of its own; {"error": one line} where it cannot tell."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(config.to_yaml(run), encoding="utf-8")
        command = [sys.executable, "-m", "vdmreason", "doctor", "--config", str(file), "--json"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=jobs.environment()) as process:
            try:
                psutil.Process(process.pid).nice(10)  # it computes for seconds, and nobody should wait for it
                said, complained = process.communicate(timeout=PATIENCE)
            except (subprocess.TimeoutExpired, psutil.Error):
                process.kill()
                return {"error": "memory and disk: not known; the look at it did not end"}
    try:
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        lines = [line for line in complained.strip().splitlines() if line.strip()]
        return {"error": f"memory and disk: not known ({lines[-1][:300] if lines else 'doctor said nothing'})"}
    return found


lookout = Lookout()
