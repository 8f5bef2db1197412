"""The file of a sweep: read, checked, and every trial that it asks for resolved. What the keys mean: `vdmreason.sweep`."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tasks
from tasks.base import UserError, suggest
from vdmreason import config, store
from vdmreason.config import Run, merge, nested


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
    with config.said_of(path):
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


def folder_of(path: Path, scale: str) -> Path:
    """The folder that a file or a folder means."""
    if path.is_dir():
        return path
    _, given = _yaml(path)
    with config.said_of(path):
        _at_scale(given, scale)
    return store.runs_root() / "sweeps" / folder_name(str(given["name"]), scale)
