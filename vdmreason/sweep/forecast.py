"""How long a sweep will take and how much disk, from the trials that are finished; and its plan in words."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.base import UserError
from vdmreason import store
from vdmreason.progress import duration
from vdmreason.sweep.sheet import Sweep, answers_of, folder_name, samples_of
from vdmreason.sweep.trials import DONE, Standing, standing, training_of


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
                self._trained.add(training_of(now.entry))
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
            yield entry, training_of(entry) not in trained
            trained.add(training_of(entry))

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
    trainings = len({training_of(e) for e in entries})
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
    rows.append(("time", time_line(forecast, left, workers)))
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


def time_line(forecast: Forecast, left: Sequence[Mapping[str, Any]], workers: int) -> str:
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
