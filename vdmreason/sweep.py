"""A sweep: one file describes an experiment, any number of workers do its trials, and any of them may be killed at any time.

    vdmreason sweep run protocols/structured.yaml --scale small

    name: structured                          # the folder: runs/sweeps/<name>[-<scale>]
    tasks: [maze/7x7, {all: arc1/evaluation}, {sample: 100, of: arc1/evaluation}]
    n: [10, 30]                               # or all: what a finite task has
    seeds: [0, 1, 2]
    arms:
      video: {family: cogvideox}              # any keys of a run; and n, seeds, tasks, controls of its own
      language: {family: causal_lm, n: [30]}
    controls: [random]                        # each arm again on a backbone with random weights
    axes: {lora.rank: [8, 32]}                # any other key, with the values to try
    set: {test: 100, optim.updates: 300}      # for all trials
    scales:                                   # the same keys again, for --scale NAME
      small: {n: [10]}

Trials are ordinary runs, named by the hash of their full resolved config (`config.Run.id`), in runs/sweeps/<name>/:

    sweep.yaml        the file as it was given
    plan.json         {"name", "scale", "created", "commit", "trials": [{"id", "folder", "task", "arm", "control", "n", "seed",
                      "set", "config", "training"}], "dropped": [ids that an earlier version of the file had]}
    trials/<name>/    a run's folder, and beside it claim.json (who works on it; its time of change is the heartbeat),
                      done.json (written last: sha256 of what counts), failed.json (error, end of the log, attempts)
    workers/          what the workers printed
    STOP              while it is there, no worker goes on

Trials that differ only in how and what the adapter is asked (`Run.training_id`: votes, denoising steps, another test) have one
training: the first that is done lends the others its adapter.

Workers pull: each takes the first trial that nobody has claimed, so it matters to nobody where they run, how many there are or
who started them. A trial is done when its done.json says so and what it vouches for is still there. Needs no torch but to work.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

import tasks
from tasks.base import UserError, suggest
from vdmreason import config, evaluate, jobs, store
from vdmreason.config import Run, merge, nested
from vdmreason.launchers import HOPELESS, LAUNCHERS, PARENT, Launcher, Local, Ray, Slurm, devices_here
from vdmreason.progress import duration, progress

try:
    import fcntl
except ImportError:  # Windows: two workers that take over one trial are then only told apart by its folder's lock
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from vdmreason.train import Resident

PLAN, SHEET, CLAIM, DONE, FAILED = "plan.json", "sweep.yaml", "claim.json", "done.json", "failed.json"
ASIDE = f"{DONE}.damaged"  # the word that was taken back of a trial whose files were no longer what it vouches for
VOUCHED = ("predictions.jsonl", "result.json")  # what done.json holds the hashes of
RETRIES = 2  # of what is the machine's fault, by themselves
BEAT = 15.0  # seconds between heartbeats
STALE = 300.0  # seconds without one after which an owner on another machine is taken for dead
PAUSE = 10.0  # seconds to wait after a failure that is the machine's, times the attempts

# ---------------------------------------------------------------------------------------------------------------------
# The file


@dataclass(frozen=True)
class Trial:
    """A run and its place among the axes."""

    run: Run
    arm: str
    control: str = ""
    set: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"trials/{self.run.name}"

    def entry(self) -> dict[str, Any]:
        """As it stands in plan.json."""
        run = self.run
        return {
            "id": run.id, "folder": self.folder, "task": run.task, "arm": self.arm, "control": self.control,
            "n": run.n, "seed": run.seed, "set": dict(self.set), "config": config.to_dict(run), "training": run.training_id,
        }  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """What a file asks for: its trials in the order they are done in, and what was left out and why."""

    name: str
    scale: str
    text: str
    trials: tuple[Trial, ...]
    left_out: Mapping[str, int]  # reason -> trials
    samples: tuple[str, ...] = ()  # a line for each sample of tasks

    @property
    def folder(self) -> Path:
        return store.runs_root() / "sweeps" / folder_name(self.name, self.scale)


AXES = ("tasks", "n", "seeds", "controls")
KEYS = ("name", *AXES, "arms", "axes", "set", "scales")
CONTROLS = ("random",)
#: Keys of a run that an axis of the file gives, and the axis.
TAKEN = {"task": "tasks", "seed": "seeds"}
#: Where a run is refused for what a task has or allows, the trial cannot exist; anything else is a fault of the file.
CANNOT_EXIST = ("n:", "test:", "far_from:", "votes:", "augment:")


def folder_name(name: str, scale: str) -> str:
    return config.slug("-".join(filter(None, (name, scale))))


def read(path: str | Path, scale: str = "", most: int | None = None) -> Sweep:
    """The sweep in a YAML file, with every trial resolved.

    Trials that cannot exist (more examples than a task has) are left out and counted. Raises UserError, one line, for a file that
    is missing or no YAML, an unknown key (with a suggestion), a scale that is missing or unknown, a run that `config.resolve`
    refuses; with `most`, a file that asks for more trials than that.
    """
    path = Path(path)
    text, given = _yaml(path)
    with _in(path):
        sheet = _at_scale(given, scale)
        found: dict[str, Trial] = {}
        left_out: Counter[str] = Counter()
        samples: list[str] = []
        asked_for = 0
        for arm, asked in sheet["arms"].items():
            own = {key: sheet.get(key) if asked.get(key) is None else asked[key] for key in AXES}
            keys = {key: value for key, value in asked.items() if key not in AXES}
            named, lines = _task_names(own["tasks"] or [])
            samples += [line for line in lines if line not in samples]
            points = [named, own["n"] or ["all"], own["seeds"] or [0], ["", *(own["controls"] or [])]]
            axes = sheet.get("axes") or {}
            asked_for += math.prod(map(len, [*points, *axes.values()]))
            if most is not None and asked_for > most:  # told before any of them is made
                raise UserError(
                    f"asks for more than {most} trials. Ask for fewer, or plan it in a shell: vdmreason sweep run FILE --dry-run"
                )
            for (task, n, seed, control), values in itertools.product(itertools.product(*points), _combinations(axes)):
                tree = merge(nested(sheet.get("set") or {}), nested(keys), nested(values))
                tree |= {"task": task, "seed": seed, **({"n": n} if n != "all" else {})}
                tree |= {"init": "random"} if control == "random" else {}
                try:
                    run = config.resolve(tree)
                except UserError as error:
                    if not str(error).startswith(CANNOT_EXIST):
                        raise UserError(f"arms.{arm}: {error}") from None
                    left_out[str(error)] += 1
                    continue
                trial = Trial(run, arm, control, values)
                first = found.setdefault(run.id, trial)
                if (first.arm, first.control, first.set) != (arm, control, values):
                    raise UserError(
                        f"{_said(trial)}: is the same run as {_said(first)}: no key that changes a result differs."
                    )
        if not found:
            raise UserError(f"describes no trial that can exist. {next(iter(left_out), '')}".rstrip())
    return Sweep(str(given["name"]), scale, text, tuple(_ordered(found.values())), left_out, tuple(samples))


def _said(trial: Trial) -> str:
    """Where a trial stands in its file: "arms.video, options.steps 4"."""
    return ", ".join([f"arms.{trial.arm}", *(f"{key} {value}" for key, value in trial.set.items())])


def _yaml(path: Path) -> tuple[str, dict[str, Any]]:
    return config.read_yaml(path, "protocols/ holds some.", "A sweep needs at least name, tasks and arms.")


@contextmanager
def _in(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _at_scale(given: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """The file's keys with those of its scale laid over: `set` and `axes` key by key, the others in their place."""
    _refuse_unknown(given, KEYS, "")
    if not isinstance(given.get("name"), str):
        raise UserError("name: is missing. It names the results' folder, as in name: structured.")
    if not config.slug(given["name"]).strip("."):
        raise UserError(f"name: {given['name']!r} names no folder. Use letters, as in name: structured.")
    scales = {str(name): part for name, part in _mapping(given.get("scales") or {}, "scales").items()}
    if scale not in scales and (scale or scales):
        if not scales:
            raise UserError(f"--scale {scale}: this file has no scales; leave it out.")
        if not scale:
            raise UserError(f"has the scales {', '.join(scales)}; say which, as in --scale {next(iter(scales))}.")
        raise UserError(f"--scale {scale}: unknown.{suggest(scale, scales)} This file has {', '.join(scales)}.")
    over = _mapping(scales.get(scale) or {}, f"scales.{scale}")
    _refuse_unknown(over, KEYS[1:-1], f"scales.{scale}.")
    sheet = {**{k: v for k, v in given.items() if k != "scales"}, **over}
    for key in ("set", "axes"):
        both = [_mapping(part.get(key) or {}, key) for part in (given, over)]
        sheet[key] = merge(*map(nested, both)) if key == "set" else {**both[0], **both[1]}
    _check(sheet)
    return sheet


def _check(sheet: Mapping[str, Any]) -> None:
    """Refuse what is no list where a list belongs, and a key that nobody would read."""
    arms = _mapping(sheet.get("arms") or {}, "arms")
    if not arms:
        raise UserError("arms: is missing. Name each and say what it is, as in arms: {video: {family: cogvideox}}.")
    for place, part in [("", sheet), *((f"arms.{arm}.", _mapping(keys, f"arms.{arm}")) for arm, keys in arms.items())]:
        for key in [key for key in AXES if part.get(key) is not None]:
            if not isinstance(part[key], list):
                raise UserError(f"{place}{key}: must be a list, not {part[key]!r}.")
        for control in part.get("controls") or []:
            if control not in CONTROLS:
                raise UserError(
                    f"{place}controls: unknown '{control}'.{suggest(str(control), CONTROLS)} Known: random."
                )
        for n in part.get("n") or []:
            if n != "all" and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
                raise UserError(f"{place}n: must hold whole numbers from 1, or all; not {n!r}.")
        for seed in part.get("seeds") or []:
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                raise UserError(f"{place}seeds: must hold whole numbers from 0, not {seed!r}.")
        if not (part.get("tasks") or sheet.get("tasks") or place == ""):
            raise UserError("tasks: is missing. Name at least one, as in tasks: [maze/7x7].")
    axes = sheet.get("axes") or {}
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"axes.{key}: must be a list of the values to try, not {values!r}.")
    known = [*Run.__dataclass_fields__]
    for place, keys in [("set", sheet.get("set") or {}), ("axes", axes), *((f"arms.{a}", k) for a, k in arms.items())]:
        for key in keys:
            top = str(key).partition(".")[0]
            if top in TAKEN or (top == "n" and place in ("set", "axes")):
                raise UserError(f"{place}.{key}: is an axis of its own; write {TAKEN.get(top, 'n')}: [...] instead.")
            if top not in known and not (place.startswith("arms.") and top in AXES):
                hint = suggest(top, [*known, *AXES] if place.startswith("arms.") else known)
                raise UserError(f"{place}.{key}: unknown key.{hint} Known are the keys of a run: {', '.join(known)}.")


def _refuse_unknown(given: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{place}{key}: unknown key.{suggest(str(key), known)} Known here: {', '.join(known)}.")


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{place}: must hold keys, not {value!r}.")
    return value


def _task_names(entries: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The names that a list of tasks means, each once, and a line for each sample with the hash that names it."""
    names: list[str] = []
    lines: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            names.append(entry)
        elif isinstance(entry, Mapping) and set(entry) == {"all"}:
            names += _known(entry["all"])
        elif isinstance(entry, Mapping) and set(entry) == {"sample", "of"} and isinstance(entry["sample"], int):
            every = _known(entry["of"])
            if not 1 <= entry["sample"] <= len(every):
                raise UserError(f"tasks: {entry['of']} has {len(every)} tasks, not {entry['sample']}.")
            # by the hash of the name: no hand chose, a larger sample holds a smaller one, and everyone's is the same
            chosen = sorted(sorted(every, key=lambda name: hashlib.sha256(name.encode()).digest())[: entry["sample"]])
            called = hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:12]
            lines.append(f"{entry['sample']} of the {len(every)} tasks of {entry['of']}: sample {called}")
            names += chosen
        else:
            raise UserError(f"tasks: {entry!r} is no name, no {{all: family}} and no {{sample: 100, of: family}}.")
    return list(dict.fromkeys(names)), lines


def _known(family: Any) -> list[str]:
    found = tasks.variants(str(family))
    if not found:
        raise UserError(f"tasks: {family} has no tasks here.")
    return found


def _combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def samples_of(run: Mapping[str, Any]) -> int:
    """What a trial learns from in all: examples over all updates. `run` is `config.to_dict`'s."""
    return int(run["optim"]["updates"] * run["optim"]["batch"])


def answers_of(run: Mapping[str, Any]) -> int:
    return int(run["test"] * run["votes"])


def tier(run: Mapping[str, Any]) -> tuple[int, int]:
    """How dear a trial is: first what it computes, then how much data it needs."""
    return samples_of(run), int(run["n"])


def backbone_of(run: Mapping[str, Any]) -> str:
    """Equal for trials that one loaded backbone serves (`train.Resident` decides; this says which are worth doing in a row)."""
    keys = ("family", "flavour", "init", "quantise", "options", "precision", "speed")
    return json.dumps([*(run[k] for k in keys), run["seed"] if run["init"] == "random" else None], sort_keys=True)


def _ordered(trials: Iterable[Trial]) -> list[Trial]:
    """The cheap ones first and seed by seed, so that what is there half way is a whole curve of fewer points; within a seed, one
    backbone after the other."""
    given = list(trials)
    arms = list(dict.fromkeys((t.arm, t.control) for t in given))
    return sorted(given, key=lambda t: (*tier(config.to_dict(t.run)), t.run.seed, arms.index((t.arm, t.control))))


# ---------------------------------------------------------------------------------------------------------------------
# The plan


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
    done = _word(place / DONE)
    return bool(done) and done.get("sha256") == hashes(place)


def _word(path: Path) -> dict[str, Any]:
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
    failed = _read_failed(place)
    if failed:
        return Standing(entry, "failed" if failed.get("final", True) else "again", str(failed.get("error", "")))
    if owner is not None:
        return Standing(entry, "lost", f"its worker on {owner.get('host', '?')} is gone")
    return Standing(entry, "stopped" if (place / "state.json").exists() else "waiting")


def _read_failed(place: Path) -> dict[str, Any]:
    try:
        return store.read_json(place / FAILED) or {}
    except UserError as error:
        return {"error": str(error)}


def look(folder: str | Path, check: bool = True) -> list[Standing]:
    """Where every trial of a sweep stands, in the plan's order."""
    folder = Path(folder)
    return [standing(folder, entry, check) for entry in read_plan(folder)["trials"]]


# ---------------------------------------------------------------------------------------------------------------------
# Claims: claim.json, made with O_EXCL, so that one worker gets a trial whatever the disk


def identity() -> dict[str, Any]:
    """This process, told apart from those of other machines and containers, and from a later one with its number."""
    return {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "created": jobs._created(os.getpid())}


def _space() -> str:
    """Which process numbers mean anything to this process: those of one boot of one machine, or of one container."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


class Claim:
    """A trial that is this process's alone. Its file is touched every few seconds; `lost` says that another one took it over."""

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path, self.record, self.lost = path, dict(record), False
        self._ended = threading.Event()

    def mine(self) -> bool:
        return (read_claim(self.path) or {}).get("token") == self.record["token"]

    def release(self) -> None:
        if self.mine():
            self.path.unlink(missing_ok=True)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Touch the claim while the block runs, from a thread of its own: an update may take minutes."""

        def beat() -> None:
            while not self._ended.wait(BEAT):
                with contextlib.suppress(OSError):
                    self.lost = not self.mine()
                    if self.lost:
                        return
                    os.utime(self.path)

        thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()


def claim(place: Path, driver: str = "") -> Claim | None:
    """Claim the trial in `place` for this process; None where another one has it. A dead owner's claim is taken over."""
    path = place / CLAIM
    record = {**identity(), "token": secrets.token_hex(8), "driver": driver, "vanished": 0, "since": time.time()}
    with store.disk_errors(path):
        place.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return _take_over(path, record)
        try:
            os.write(descriptor, json.dumps(record).encode())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    return Claim(path, record)


def _take_over(path: Path, record: dict[str, Any]) -> Claim | None:
    """Put this process's claim in a dead one's place. Those who want to do so take turns, and look again when it is theirs."""
    old = read_claim(path)
    if old is None or not is_stale(path, old):
        return None
    with open(path.with_name(".claim.lock"), "w") as turn:
        if fcntl is not None:
            fcntl.flock(turn, fcntl.LOCK_EX)
        old = read_claim(path)
        if old is None or not is_stale(path, old):
            return None
        # A driver that is started anew gives every trial its tries again.
        same = old.get("driver") == record["driver"]
        record["vanished"] = 1 + (int(old.get("vanished", 0)) if same else 0)
        store.write_json(path, record)
    return Claim(path, record)


def read_claim(path: Path) -> dict[str, Any] | None:
    """Who holds a claim; {} where its first words are not written yet; None where there is no claim."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def is_stale(path: Path, owner: Mapping[str, Any]) -> bool:
    """Whether the owner of a claim is dead: here, by its process; elsewhere, by a heartbeat that is long ago."""
    me = identity()
    if owner and (owner.get("host"), owner.get("space")) == (me["host"], me["space"]):
        return not jobs.is_alive(owner.get("pid"), owner.get("created"))
    try:
        beat = path.stat().st_mtime
        # A shared disk has its own clock: ask it what time it is before judging by this machine's.
        if time.time() - beat < STALE / 5:
            return False
        clock = path.with_name(f".clock.{os.getpid()}")
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink(missing_ok=True)
    except OSError:
        return False
    return now - beat > STALE


# ---------------------------------------------------------------------------------------------------------------------
# A worker


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
    with wish.listening():
        while not wish():
            found = _next(folder, settled, loaded, driver, part)
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
            if done.get("final"):
                settled.add(entry["id"])
            if done["machine"]:
                _let_go_of_memory()
                if done.get("final") and done["full"]:
                    raise DiskFull(done["error"])  # the next trial would find the same disk
                _pause(PAUSE * done["attempts"], wish)
    raise jobs.Stopped


def _next(
    folder: Path, settled: set[str], loaded: str, driver: str, part: tuple[int, int] = (1, 1)
) -> tuple[Mapping[str, Any], Claim] | Literal["wait"] | None:
    """The next trial, claimed; None where there is none, "wait" where all that are left want an adapter that another worker is
    training. The plan is read anew: its file may have changed."""
    plan = read_plan(folder)["trials"]
    twins, wait = _by_training(plan), False
    which, parts = part
    mine_to_train = set(itertools.islice(twins, which - 1, None, parts))
    left = [entry for entry in plan if entry["id"] not in settled and _training(entry) in mine_to_train]
    for _, tied in itertools.groupby(left, key=lambda entry: tier(entry["config"])):
        for entry in sorted(tied, key=lambda entry: backbone_of(entry["config"]) != loaded):  # stable
            place = folder / entry["folder"]
            now = standing(folder, entry)
            if now.settled:
                settled.add(entry["id"])
            if now.settled or now.state == "running":
                continue
            if any(standing(folder, twin, check=False).state == "running" for twin in twins[_training(entry)]):
                wait = True
                continue
            if (mine := claim(place, driver)) is None:
                continue
            # Between the look and the claim another worker may have finished it, or given it up.
            done, failed = is_done(place), _read_failed(place)
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


def _training(entry: Mapping[str, Any]) -> str:
    return str(entry.get("training", entry["id"]))  # a plan of an earlier version says nothing of it


def _by_training(plan: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in plan:
        found.setdefault(_training(entry), []).append(entry)
    return found


def _borrow(folder: Path, entry: Mapping[str, Any], run: Run) -> None:
    """Take the adapter of a trial that the same training serves, where one is done: one of the plan, or of an earlier version of
    the file, which may have asked for fewer tests."""
    from vdmreason.predict import share_adapter

    if store.whole_folder(folder / entry["folder"] / "adapter"):
        return  # trained or lent in an earlier sitting: what the lender learned from need not be drawn again
    plan = read_plan(folder)
    twins = [folder / twin["folder"] for twin in _by_training(plan["trials"])[_training(entry)]]
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
    vouched = _word(place / ASIDE).get("sha256", {}).get("predictions.jsonl")
    result = store.read_json(place / "result.json") or {}
    return bool(vouched) and vouched == hashes(place)["predictions.jsonl"] and {"provenance", "codec"} <= set(result)


def _finish(place: Path, seconds: float) -> None:
    """What is needed no more goes, and done.json vouches for the rest."""
    result = store.read_json(place / "result.json") or {}
    made, (commit, dirty) = result.get("provenance", {}), store.code()
    spent = [
        sum(line["seconds"] for line in store.read_lines(place / f"{name}.jsonl"))
        for name in ("metrics", "predictions")
    ]
    done = {
        "sha256": hashes(place),
        # The code that answered; whose adapter was lent or trained in an earlier sitting, result.json says what trained it.
        "commit": commit,
        "dirty": dirty,
        "data": made.get("data"),
        "versions": store.versions(),
        "host": socket.gethostname(),
        "device": made.get("device"),
        "seconds": round(seconds, 3),  # of the last sitting, all in all
        "training": round(spent[0], 3),  # all updates, over all sittings
        "answering": round(spent[1], 3),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if _answered(place):  # who answered, when and in what time, is as it was
        done |= {key: value for key, value in _word(place / ASIDE).items() if key != "sha256"}
    (place / FAILED).unlink(missing_ok=True)
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    store.write_json(place / DONE, done)


def set_aside(place: Path) -> None:
    """Take a damaged trial's word back and keep what is damaged under another name; what is whole stays, and need not be made
    again. A result that is only told otherwise (`vdmreason evaluate` under newer rules) is computed from the same answers."""
    vouched = _word(place / DONE).get("sha256", {})
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
    attempts = 1 + int(_read_failed(place).get("attempts", 0))
    return {
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
    """Out of memory, a full disk, a disk that went away, a device that fell over: not what the trial is."""
    disk = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "cuda error", "nccl error")
    for cause in _causes(error):
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in disk):
            return True
        if isinstance(cause, RuntimeError) and any(word in str(cause).lower() for word in words):
            return True
    return isinstance(error, UserError) and "another process is working there" in str(error)


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


# ---------------------------------------------------------------------------------------------------------------------
# What is to come


class Forecast:
    """Seconds that trials take, from those of the same backbone that are finished in this folder."""

    def __init__(self, folder: Path, sizes: bool = True) -> None:
        """`sizes`: whether to learn how much disk trials take as well, which walks their folders."""
        self.folder, self.bytes, self.sizes = folder, 0.0, sizes
        self._known: dict[str, dict[str, float]] = {}  # by kind
        self._on_task: dict[tuple[str, str], dict[str, float]] = {}  # by kind and task: a long question takes longer
        self._seen: set[str] = set()
        self._trained: set[str] = set()  # trainings whose adapter is there: it will be lent
        self._sizes: list[int] = []

    def learn(self, standings: Iterable[Standing]) -> None:
        for now in standings:
            if now.state != "done" or now.entry["id"] in self._seen:
                continue
            place, run = self.folder / now.entry["folder"], now.entry["config"]
            try:
                done = store.read_json(place / DONE) or {}
                spent = {"trials": 1, "training": done["training"], "answering": done["answering"]}
                # of a trial that was interrupted only the last sitting's seconds are known
                spent["rest"] = max(0.0, done["seconds"] - done["training"] - done["answering"])
            except (UserError, KeyError, TypeError):  # it cannot be read, or it vouches for its files and says no times
                continue
            self._seen.add(now.entry["id"])
            # where it was unpacked, its adapter stayed elsewhere
            lends = store.whole_folder(place / "adapter") is not None
            if lends:
                self._trained.add(_training(now.entry))
            # where the adapter was lent, nothing is learned about how long learning takes
            spent |= {"samples": samples_of(run) if spent["training"] else 0, "answers": answers_of(run)}
            for sums in (
                self._known.setdefault(_kind(run), {}),
                self._on_task.setdefault((_kind(run), run["task"]), {}),
            ):
                for key, value in spent.items():
                    sums[key] = sums.get(key, 0.0) + value
            if not (self.sizes and lends):
                continue
            with contextlib.suppress(OSError):  # its worker may still be letting go of it
                self._sizes.append(sum(path.stat().st_size for path in place.rglob("*") if path.is_file()))
        self.bytes = sum(self._sizes) / len(self._sizes) if self._sizes else 0.0

    def seconds(self, run: Mapping[str, Any], trained: bool = True) -> float | None:
        """How long a trial takes, its training too where it is `trained`: from its kind on its task, or else on any task.
        None where none of its kind is finished."""
        for known in (self._on_task.get((_kind(run), run["task"])), self._known.get(_kind(run))):
            if known and known["samples"]:
                return self._seconds(run, known, trained)
        return None

    def _seconds(self, run: Mapping[str, Any], known: Mapping[str, float], trained: bool) -> float:
        learning = known["training"] / known["samples"] * samples_of(run) if trained else 0.0
        answering = known["answering"] / known["answers"] * answers_of(run)
        return learning + answering + known["rest"] / known["trials"]

    def total(self, entries: Iterable[Mapping[str, Any]], workers: int = 1) -> tuple[float, set[str]]:
        """Seconds until so many workers are done with what can be told, and the kinds of which no trial is finished."""
        found = [(entry["config"], self.seconds(entry["config"], new)) for entry, new in self._in_turn(entries)]
        return _shared([s for _, s in found if s is not None], workers), {_kind(run) for run, s in found if s is None}

    def guess(self, entries: Iterable[Mapping[str, Any]], workers: int = 1) -> float | None:
        """`total` with kinds that are not known yet taken for as slow as those that are; None where none is."""
        told = [known for known in self._known.values() if known["samples"]]
        if not told:
            return None
        mean = {key: sum(known[key] for known in told) for key in told[0]}
        every = []
        for entry, new in self._in_turn(entries):
            seconds = self.seconds(entry["config"], new)
            every.append(self._seconds(entry["config"], mean, new) if seconds is None else seconds)
        return _shared(every, workers)

    def _in_turn(self, entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], bool]]:
        """Each trial, and whether it trains: where its training was done or stands before it, an adapter is lent."""
        trained = set(self._trained)
        for entry in entries:
            yield entry, _training(entry) not in trained
            trained.add(_training(entry))

    @property
    def finished(self) -> int:
        return len(self._seen)


def _shared(seconds: Sequence[float], workers: int) -> float:
    """Until so many workers are done; the last trial is one worker's alone."""
    return max([*seconds, sum(seconds) / workers])


def _kind(run: Mapping[str, Any]) -> str:
    return f"{run['family']} {Path(run['flavour']).name}"


def describe(folder: Path, sweep: Sweep, plan: Mapping[str, Any], workers: int) -> str:
    """The plan for a person: trials by axis, what is done, how long and how much disk the rest takes, and how that is known."""
    (_, first), *rows = describing(folder, sweep, plan, workers)
    return "\n".join(
        [f"{folder_name(sweep.name, sweep.scale)}: {first}", *(f"  {key:<9} {line}" for key, line in rows)]
    )


def describing(folder: Path, sweep: Sweep, plan: Mapping[str, Any], workers: int) -> list[tuple[str, str]]:
    """`describe` as (what, line)."""
    entries = plan["trials"]
    now = [standing(folder, entry) for entry in entries]
    forecast = Forecast(folder)
    forecast.learn(now)
    left = [s.entry for s in now if not s.settled]
    states = Counter(s.state for s in now)
    rows = [("trials", f"{len(entries)} trials, in {folder}")]
    axes = {"tasks": "task", "arms": "arm", "n": "n", "seeds": "seed"}
    for title, key in axes.items():
        rows.append((title, _counts(_called(e, key) for e in entries)))
    if asked := Counter(e["config"]["test_task"] for e in entries if e["config"]["test_task"]):
        rows.append(("asked", ", ".join(f"{name} x {count}" for name, count in asked.items())))
    trainings = len({_training(e) for e in entries})
    others = (
        f"; the other {len(entries) - trainings} ask the adapter of one otherwise" if trainings < len(entries) else ""
    )
    updates = _counts(e["config"]["optim"]["updates"] for e in entries)
    rows.append(("trainings", f"{trainings}{others}; updates {updates}"))
    for key in dict.fromkeys(key for e in entries for key in e["set"]):
        rows.append((key, _counts(e["set"][key] for e in entries if key in e["set"])))
    rows += [("sample", line) for line in sweep.samples]
    rows.append(("state", ", ".join(f"{state} {count}" for state, count in states.most_common())))
    if plan["dropped"]:
        rows.append(("dropped", f"{len(plan['dropped'])}: in an earlier version of the file; kept, not reported"))
    if sweep.left_out:
        reason, _ = Counter(sweep.left_out).most_common(1)[0]
        rows.append(("left out", f"{sum(sweep.left_out.values())} that cannot exist, such as: {reason}"))
    rows.append(("time", _time_line(forecast, left, workers)))
    free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
    need = f"about {forecast.bytes * len(left) / 1e9:.2f} GB more" if forecast.bytes else "known after the first trial"
    return [*rows, ("disk", f"{need}; {free / 1e9:.0f} GB free")]


def _called(entry: Mapping[str, Any], key: str) -> str:
    random = key == "arm" and entry["control"]
    return f"{entry[key]} ({entry['control']} init)" if random else str(entry[key])


def _counts(values: Iterable[Any], most: int = 12) -> str:
    """Each value with how often it comes; of many names only their families."""
    counted = Counter(str(value) or "none" for value in values)
    if len(counted) > most:
        families: Counter[str] = Counter()
        for name in counted:
            families[name.rpartition("/")[0] or name] += 1
        return ", ".join(f"{name}: {number} tasks" if number > 1 else name for name, number in families.items())
    return ", ".join(f"{name} x {count}" for name, count in counted.items())


def _time_line(forecast: Forecast, left: Sequence[Mapping[str, Any]], workers: int) -> str:
    if not left:
        return "nothing is left to do"
    seconds, unknown = forecast.total(left, workers)
    parts = []
    if seconds:
        told = [e for e in left if _kind(e["config"]) not in unknown]
        parts.append(
            f"about {duration(seconds)} with {workers} worker{'s' * (workers > 1)} for {len(told)} of {len(left)} "
            f"trials, from the {forecast.finished} finished here"
        )
    if unknown:
        parts.append(f"{', '.join(sorted(unknown))}: no finished trial yet; the first one is timed")
    return "; ".join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# The driver


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
    if os.environ.get(jobs.IN_JOB) != str(folder.resolve()):
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
                print(f"time: {_time_line(forecast, left, launcher.workers)}", file=sys.stderr, flush=True)
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
            if launcher.hopeless or launcher.deaths - deaths_then > (1 + RETRIES) * launcher.workers + 1:
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
        lines.append(f"  left: {_time_line(forecast, left, max(1, counts['running']))}")
    if (folder / jobs.STOP).exists():
        lines.append("  cancelled: workers stop; vdmreason sweep run goes on")
    for s in now:
        if s.state not in ("done", "waiting"):
            lines.append(f"  {s.state:<8} {s.entry['folder'].removeprefix('trials/')}" + f"  {s.note}".rstrip())
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Commands

app = typer.Typer(no_args_is_help=True, help="Many trials from one file, here or on a cluster, and one report.")

FileOrFolder = Annotated[Path, typer.Argument(help="The sweep's file, or its folder")]
Scale = Annotated[
    str, typer.Option(help="Which of the file's scales: small (shipped backbones), paper; arc.yaml has all too")
]


def _folder_of(path: Path, scale: str) -> Path:
    """The folder that a file or a folder means."""
    if path.is_dir():
        return path
    _, given = _yaml(path)
    with _in(path):
        _at_scale(given, scale)
    return store.runs_root() / "sweeps" / folder_name(str(given["name"]), scale)


@app.command("run")
def run_command(
    file: Annotated[Path, typer.Argument(help="protocols/structured.yaml")],
    scale: Scale = "",
    out: Annotated[Path | None, typer.Option(help="The folder (default: runs/sweeps/<name>)")] = None,
    launcher: Annotated[str, typer.Option(help="local, slurm or ray: where workers run")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many (default: one a GPU; without, half the cores)")
    ] = None,
    devices: Annotated[str | None, typer.Option(help="GPUs, as in 0,1 (default: all that are here)")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="slurm_partition=gpu, gpus_per_node=1")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs a worker, for ray (default: 1 where there are any)")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan")] = False,
) -> None:
    """Do all trials of a file. The same command goes on where it was stopped or killed; a changed file adds what is new.

    vdmreason sweep run protocols/structured.yaml --scale small --workers 2
    vdmreason sweep run protocols/arc.yaml --scale small --dry-run
    vdmreason sweep run protocols/structured.yaml --scale paper --launcher slurm --workers 16 --slurm slurm_partition=gpu
    """
    if launcher not in LAUNCHERS:
        raise UserError(f"--launcher {launcher}: unknown.{suggest(launcher, LAUNCHERS)} One of {', '.join(LAUNCHERS)}.")
    sweep = read(file, scale)
    folder = out or sweep.folder
    cards = [name for name in devices.split(",") if name] if devices is not None else devices_here()
    count = workers or usual_workers(cards)
    options = _options(slurm or [])

    def make(driver: str) -> Launcher:
        if launcher == "slurm":
            return Slurm(folder, count, options, driver)
        if launcher == "ray":
            return Ray(folder, count, gpus if gpus is not None else float(bool(cards)), driver)
        return Local(folder, count, cards, driver)

    run_sweep(sweep, folder, make, count, retry_failed, dry_run)


def usual_workers(cards: Sequence[str]) -> int:
    """How many workers where nobody says: one a GPU; without one, half the cores."""
    return len(cards) or min(8, max(1, (os.cpu_count() or 1) // 2))


def _options(given: Sequence[str]) -> dict[str, Any]:
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--slurm {text}: must look like slurm_partition=gpu.")
        options[key] = yaml.safe_load(value)
    return options


@app.command("status")
def status_command(path: FileOrFolder, scale: Scale = "") -> None:
    """Say where a sweep stands: what is done, running, failed and why, lost, damaged. Exit code 1 unless all is done.

    vdmreason sweep status runs/sweeps/structured-small
    """
    folder = _folder_of(path, scale)
    print("\n".join(status_lines(folder)))
    if any(s.state != "done" for s in look(folder)):
        raise typer.Exit(1)


@app.command("cancel")
def cancel_command(path: FileOrFolder, scale: Scale = "") -> None:
    """Have all workers of a sweep stop after their update, on whatever machine. `sweep run` goes on from there.

    vdmreason sweep cancel runs/sweeps/structured-small
    """
    running = cancel(_folder_of(path, scale))
    print(f"{running} trial{'s' * (running != 1)} running; each stops after its update, with a checkpoint")


@app.command("worker")
def worker_command(
    path: FileOrFolder,
    scale: Scale = "",
    part: Annotated[
        str, typer.Option(help="Such as 2/3: only the second of three parts, where no disk is shared")
    ] = "1/1",
    driver: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Do trials of a sweep until none is left: what every launcher starts, and what you can start anywhere yourself.

    vdmreason sweep worker runs/sweeps/structured-small

    On machines that share no disk, copy the sweep's folder to each, let each do its part, and report on all:

    vdmreason sweep worker structured-small --part 2/3

    vdmreason report first/structured-small second/structured-small third/structured-small
    """
    folder = _folder_of(path, scale)
    read_plan(folder)
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", part)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--part {part}: say which of how many, such as 2/3.")
    try:
        print(f"{work(folder, driver, (int(match[1]), int(match[2])))} trials done by this worker", flush=True)
    except DiskFull as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(HOPELESS) from None


@app.command("report")
def report_command(
    path: FileOrFolder,
    scale: Scale = "",
    out: Annotated[Path | None, typer.Option(help="Where to write it (default: the sweep's report/)")] = None,
) -> None:
    """Write the report of what is done: a page, tables and figures.

    vdmreason sweep report runs/sweeps/structured-small
    """
    from vdmreason.report import report_sweep

    print(report_sweep(_folder_of(path, scale), out))


@app.command("pack")
def pack_command(
    path: FileOrFolder,
    scale: Scale = "",
    out: Annotated[Path | None, typer.Option(help="The file (default: <sweep>.tar.xz here)")] = None,
) -> None:
    """Put what is finished into one small file: answers, results and where they come from, without adapters.

    vdmreason sweep pack runs/sweeps/structured-small
    """
    from vdmreason.parcel import pack

    file, done, trials = pack(_folder_of(path, scale), out)
    print(f"{file}: {done} of {trials} trials, {file.stat().st_size / 1e6:.2f} MB")


@app.command("unpack")
def unpack_command(
    file: Annotated[Path, typer.Argument(help="What `sweep pack` wrote")],
    out: Annotated[Path | None, typer.Option(help="The sweep's folder (default: runs/sweeps/<name>)")] = None,
) -> None:
    """Add what such a file holds to a sweep's folder, to report on it or to go on.

    vdmreason sweep unpack structured-small.tar.xz
    vdmreason sweep run runs/sweeps/structured-small/sweep.yaml --scale small      (does the rest)
    """
    from vdmreason.parcel import unpack

    folder, counts = unpack(file, out)
    words = {
        "added": "added", "there": "were there", "running": "are being worked on here", "unknown": "this sweep has not",
    }  # fmt: skip
    print(f"{folder}: " + ", ".join(f"{counts[key]} {said}" for key, said in words.items() if counts[key]))
