"""What a sweep says: gather trials, merge machines, count what is missing, compute, and hand it to the page. No torch.

    vdmreason report runs/sweeps/structured-small              its report/ folder: index.html, report.md, results.csv, ...
    vdmreason report here/structured there/structured --out both     two machines' halves as one

A folder is a sweep's (plan.json, trials/) or any folder of runs. A trial counts when it is whole: `sweep.standing` calls it
done, or, of a run that no sweep knows, all its answers are there. What is not whole is named, and is never a zero.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import adapters
import adapters.base
import tasks
from tasks.base import UserError
from vdmreason import (
    arc_scores,
    config,
    evaluate,
    report_answers,
    report_figures,
    report_page,
    statistics,
    store,
    sweep,
)

PRIMARY = "exact"  # what published tables report, and what every efficiency and test below is about
PUBLISHED = Path(__file__).parent / "data" / "paper_results.json"
OPEN = "open"  # a trial with questions whose answer nobody knows: done, and in no number
LEVEL = 0.05  # of tests, after Holm's correction
AUTOMATA = ("eca", "life", "langton")  # families whose thresholds the paper reports
CAVEAT = (
    "These are small backbones that we pretrained ourselves, on procedural video and plain text. What they learn shows that "
    "the experiment runs, and what pretraining gave these very models. It says nothing of how published video models and "
    "language models compare."
)


@dataclass(frozen=True)
class Trial:
    """One trial that counts."""

    id: str
    folder: Path
    run: config.Run
    arm: str  # as the plan names it
    control: str  # "" or "random"
    settings: tuple[tuple[str, Any], ...]  # other axes, (dotted key, value)
    records: list[dict[str, Any]]  # its answers, scored by the rules of today, in order
    result: dict[str, Any]
    answered: Mapping[str, Any] = field(default_factory=dict)  # a sweep's word on the code that answered: its done.json

    @property
    def task(self) -> str:
        """What it learned, and where it differs what it was asked."""
        return self.run.task + (f" → {self.run.test_task}" if self.run.test_task else "")

    @property
    def series(self) -> Series:
        return Series(self.arm, adapters.family(self.run.family).ARM, self.control, self.settings)

    @property
    def finite(self) -> bool:
        """Whether it is about a puzzle with a handful of examples, where n does not vary: ARC."""
        return tasks.is_arc(self.run.tested)

    @property
    def flavour(self) -> adapters.base.Flavour:
        return config.flavour_of(self.run)

    @property
    def published(self) -> bool:
        """Of a backbone in a folder only the machine where it lies can tell, and told."""
        return bool(_provenance(self).get("published", self.flavour.published))

    @property
    def sittings(self) -> list[Mapping[str, Any]]:
        """Which code trained and answered it, with what and on what: at least one of each, equal ones told twice."""
        made = _provenance(self)
        trained = made.get("sittings") or [made]
        return [*trained, *(self.result.get("answered") or [made | dict(self.answered)])]

    @property
    def commits(self) -> list[str]:
        return sorted({str(s["commit"]) for s in self.sittings if s.get("commit")})

    @property
    def dirty(self) -> bool:
        return any(bool(s.get("dirty")) for s in self.sittings)

    def values(self, name: str) -> np.ndarray:
        return np.array([float(record[name]) for record in self.records])


@functools.total_ordering
@dataclass(frozen=True)
class Series:
    """What one line of a figure is: an arm under its other settings, pretrained or as a control."""

    arm: str
    kind: str  # "video" or "language"
    control: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __lt__(self, other: Series) -> bool:
        return self._place < other._place

    @property
    def _place(self) -> tuple[Any, ...]:
        """Numbers by size, then texts; a key may be set to nothing in one run and to a number in another."""
        ranks = [
            (key, (0, value, "") if isinstance(value, int | float) else (1, 0, str(value)))
            for key, value in self.settings
        ]
        return (self.arm, self.kind, self.control, tuple(ranks))

    @property
    def name(self) -> str:
        settings = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.settings)
        return self.arm + (f" ({settings})" if settings else "") + (f", {self.control} init" if self.control else "")


@dataclass
class Gathered:
    """All that lies in the given folders."""

    names: list[str]  # the sweeps'
    sources: list[str]  # the folders
    trials: list[Trial]
    planned: int  # trials of the plans, together
    missing: list[dict[str, str]]  # {"id", "trial", "state", "why"}: what does not count, and why
    notes: list[str] = field(default_factory=list)  # what a reader must know before comparing

    @property
    def finished(self) -> bool:
        return all(gap["state"] == OPEN for gap in self.missing)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def gather(folders: Sequence[Path]) -> Gathered:
    """The trials of sweeps and folders of runs as one. Raises UserError for a folder that is neither, and where two folders
    hold different results for one id."""
    found: dict[str, Trial] = {}
    missing: dict[str, dict[str, str]] = {}
    names = []
    for folder in folders:
        name, trials, gaps = _read(Path(folder))
        names.append(name)
        missing |= {gap["id"]: gap for gap in gaps if gap["id"] not in missing}
        for trial in trials:
            first = found.setdefault(trial.id, trial)
            if _answers(first) != _answers(trial):
                raise UserError(
                    f"trial {trial.id}: {first.folder} and {trial.folder} hold different answers. "
                    "Remove one of the two, or report the folders apart."
                )
    gaps = [gap for id_, gap in missing.items() if id_ not in found]
    trials = _told_apart(sorted(found.values(), key=lambda t: (t.task, t.series, t.run.n, t.run.seed, t.id)))
    whole = Gathered(list(dict.fromkeys(names)), [str(f) for f in folders], trials, len(found) + len(gaps), gaps)
    whole.notes = _call_outs(trials)
    return whole


def _read(folder: Path) -> tuple[str, list[Trial], list[dict[str, str]]]:
    """(name, trials that count, those that do not) of a sweep's folder or a folder of runs."""
    plan = store.read_json(folder / "plan.json")
    if plan is None:
        runs = sorted(path for path in store.find_runs(folder))
        if not runs:
            raise UserError(f"{folder}: is neither a sweep (no plan.json) nor a folder of runs (no config.yaml in it).")
        entries: list[dict[str, Any]] = [{"folder": path} for path in runs]
        name = folder.resolve().name
    else:
        dropped = set(plan.get("dropped", ()))
        entries = [{**e, "folder": folder / e["folder"]} for e in plan["trials"] if e["id"] not in dropped]
        name = plan["name"]
    trials: list[Trial] = []
    gaps: list[dict[str, str]] = []
    for entry in entries:
        try:
            trials.append(_trial(entry, planned=plan is not None))
        except _NotWhole as why:
            trial = Path(entry["folder"]).name
            gaps.append(
                {"id": str(entry.get("id") or entry["folder"]), "trial": trial, "state": why.state, "why": str(why)}
            )
    return name, trials, gaps


class _NotWhole(Exception):
    """A trial that does not count."""

    def __init__(self, state: str, why: str = "") -> None:
        super().__init__(why)
        self.state = state


def _trial(entry: Mapping[str, Any], planned: bool) -> Trial:
    folder = Path(entry["folder"])
    try:
        if planned:
            stands = sweep.standing(folder.parent, {"folder": folder.name})
            if stands.state != "done":
                raise _NotWhole(stands.state, " ".join(stands.note.split()))
        run = store.read_config(folder)
        records = store.read_lines(folder / "predictions.jsonl")
        result = store.read_json(folder / "result.json")
        if len(records) < run.test or result is None:
            raise _NotWhole("unfinished", f"{len(records)} of {run.test} answers" + ("" if result else ", no result"))
        records = evaluate.rescore(tasks.get(run.tested), sorted(records, key=lambda r: r["i"]))
        if [record["i"] for record in records] != list(range(len(records))):
            raise _NotWhole("damaged", "an answer stands twice, or one is missing")
        if unknown := len(records) - len(evaluate.scorable(records)):
            raise _NotWhole(OPEN, f"nobody knows the answer to {unknown} of its {len(records)} questions")
    except UserError as error:
        raise _NotWhole("damaged", str(error)) from None
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise _NotWhole("damaged", f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    values = config.flat(config.to_dict(run))  # as they are used: a sheet's 1e-3 is a text to YAML
    return Trial(
        str(entry.get("id") or run.id),
        folder,
        run,
        str(entry.get("arm") or run.family),
        str(entry.get("control", "random" if run.init == "random" else "")),
        tuple(sorted((key, _hashable(values.get(key, value))) for key, value in (entry.get("set") or {}).items())),
        records,
        result,
        (store.read_json(folder / sweep.DONE) or {}) if planned else {},
    )


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _answers(trial: Trial) -> list[tuple[str, Any]]:
    """What makes two results of one trial the same: every question and every grid given. Times may differ."""
    return [(record["key"], record["proposed"]) for record in trial.records]


def _told_apart(trials: list[Trial]) -> list[Trial]:
    """Trials that one curve would mix, though their configs differ in more than n and seed, get what differs as a setting. So
    do those of all other arms that have such a key: two curves are compared where it is the same. A key that is an axis of one
    sweep and none of another, both of which have the arm, is a setting in both."""
    curves: dict[Any, list[Trial]] = {}
    for trial in trials:
        curves.setdefault((trial.task, trial.series), []).append(trial)
    keys: set[str] = set()
    for curve in curves.values():
        for other in curve[1:]:
            keys |= {line.partition(":")[0] for line in config.differences(curve[0].run, other.run)} - {"n", "seed"}
    axes: dict[tuple[str, str], list[set[str]]] = {}  # of each arm what each of its trials has as settings
    for trial in trials:
        axes.setdefault((trial.series.arm, trial.series.control), []).append({name for name, _ in trial.settings})
    for of_arm in axes.values():
        keys |= {key for key in set().union(*of_arm) if not all(key in of_trial for of_trial in of_arm)}

    def more(trial: Trial) -> tuple[tuple[str, Any], ...]:
        values = config.flat(config.to_dict(trial.run))
        return tuple(
            sorted(({key: _hashable(values[key]) for key in keys & values.keys()} | dict(trial.settings)).items())
        )

    return [dataclasses.replace(trial, settings=more(trial)) for trial in trials]


def _call_outs(trials: Sequence[Trial]) -> list[str]:
    """What makes numbers less comparable than they look, one line each."""
    notes = []
    for name, what in (("commit", "code commits"), ("device", "devices"), ("platform", "platforms")):
        # An adapter may be lent, or have been trained in several sittings: all of the code counts.
        counts = Counter(value for t in trials for value in {str(s.get(name)) for s in t.sittings if name in s})
        if len(counts) > 1:
            shown = ", ".join(
                f"{value[: 40 if name != 'commit' else 9]} ({count})" for value, count in counts.most_common()
            )
            twice = " A trial whose training and answers were not all made with one counts under each." * (
                counts.total() > len(trials)
            )
            notes.append(f"Trials come from {len(counts)} {what}: {shown}.{twice}")
    if dirty := sum(t.dirty for t in trials):
        notes.append(f"{dirty} trials ran on code with changes that were not committed.")
    versions = [s["libraries"] for t in trials for s in t.sittings if s.get("libraries")]
    for library in sorted({name for v in versions for name in v}):
        numbers = sorted({str(v.get(library, "none")) for v in versions})
        if len(numbers) > 1:
            notes.append(f"Trials ran with several versions of {library}: {', '.join(numbers)}.")
    notes += _differ(
        trials,
        lambda t: f"training examples of {t.run.task}, n = {t.run.n}, seed {t.run.seed}",
        lambda t: str(_provenance(t).get("data")),
        "have different data hashes; such trials are compared with none of the others",
    )
    notes += _differ(
        trials,
        lambda t: f"test examples of {t.task}, seed {t.run.seed}",
        lambda t: hashlib.sha256("".join(r["key"] for r in t.records).encode()).hexdigest(),
        "differ; such trials are compared with none of the others",
    )
    notes += _differ(
        trials,
        lambda t: (
            f"backbones called {t.run.family} {t.run.flavour}"
            + (f", random from seed {t.run.seed}" if t.run.init == "random" or not t.flavour.base else "")
        ),
        lambda t: str(_provenance(t).get("backbone")),
        "have different fingerprints; these are not the same weights",
    )
    return notes + _unequal(trials) + _own(trials)


# How a family learns best under one budget.
OWN = (
    "optim.lr", "optim.schedule", "optim.warmup", "optim.weight_decay", "optim.betas", "optim.clip", "lora.alpha",
    "lora.dropout", "options.shift", "precision",
)  # fmt: skip


def _own(trials: Sequence[Trial]) -> list[str]:
    """A line for each of OWN in which the families differ, with the values of each."""
    axes = {name for trial in trials for name, _ in trial.series.settings}
    said: dict[str, dict[str, set[str]]] = {
        key: {} for key in OWN if key not in axes
    }  # key -> of each backbone its values
    drawn: dict[str, set[str]] = {}  # of each backbone the temperatures
    for trial in trials:
        values = config.flat(config.to_dict(trial.run))
        name = f"{trial.run.family} {trial.run.flavour}"
        for key, of_each in said.items():
            if key in values or key == "options.shift":  # an option that other families have none of
                of_each.setdefault(name, set()).add(str(values.get(key, "none")))
        if values.get("options.temperature"):
            drawn.setdefault(name, set()).add(f"{values['options.temperature']:g}")
    notes = [
        f"Answers of {name} are drawn, one a view of a question, at temperature {' or '.join(sorted(heats))}. Greedy ones need "
        "no other training: --set options.temperature=0."
        for name, heats in sorted(drawn.items())
    ]
    for key, of_each in said.items():
        if len({frozenset(values) for values in of_each.values()}) > 1:
            shown = ", ".join(f"{' or '.join(sorted(values))} ({name})" for name, values in sorted(of_each.items()))
            notes.append(f"{key} is each family's own: {shown}.")
    return notes


def _unequal(trials: Sequence[Trial]) -> list[str]:
    """A line for each key of the budget in which arms differ that are compared with each other."""
    budgets: dict[str, dict[Series, dict[str, set[str]]]] = {}  # of each task: of each arm: key -> what its trials say
    for trial in trials:
        of_arm = budgets.setdefault(trial.task, {}).setdefault(trial.series, {})
        for key, value in config.budget(trial.run).items():
            of_arm.setdefault(key, set()).add(" + ".join(value) if isinstance(value, list | tuple) else str(value))
    notes: dict[str, None] = {}
    for of_task in budgets.values():
        for pair in [*pairs(of_task), *rivals(of_task)]:
            axes = {name for series in pair for name, _ in series.settings}  # an axis of the sweep is no oversight
            for key in config.BUDGET:
                if key in ("n", "seed") or key in axes:  # those are paired
                    continue
                ours, theirs = (sorted(of_task[series][key]) for series in pair)
                if ours != theirs:
                    values = " and ".join(
                        f"{' or '.join(v)} ({s.name})" for v, s in zip((ours, theirs), pair, strict=True)
                    )
                    notes.setdefault(f"Arms that are compared differ in {key}: {values}.")
    return list(notes)


def _differ(trials: Sequence[Trial], group: Any, value: Any, what: str) -> list[str]:
    seen: dict[str, Counter[str]] = {}
    for trial in trials:
        seen.setdefault(group(trial), Counter())[value(trial)] += 1
    return [
        f"The {name} {what}: " + ", ".join(f"{v[:8]} ({n} trials)" for v, n in counts.most_common()) + "."
        for name, counts in seen.items()
        if len(counts) > 1
    ]


def _provenance(trial: Trial) -> dict[str, Any]:
    return trial.result.get("provenance") or {}


# ---------------------------------------------------------------------------------------------------------------------
# Findings: plain numbers, from which both the page and the tables are made


Cells = dict[int, dict[int, Trial]]  # n -> seed -> trial


def findings(gathered: Gathered) -> dict[str, Any]:
    """Every number of the report as plain values. ARC puzzles, which have no n to vary, stand apart."""
    found: dict[str, Any] = {"accuracy": [], "needed": [], "ratio": [], "tests": [], "thresholds": [], "paths": []}
    for task, all_series in learning(gathered.trials).items():
        curves = {series: _curve(task, cells, PRIMARY) for series, cells in all_series.items()}
        measured = any(
            "path_success" in record["measures"] for trial in _all_of(all_series) for record in trial.records
        )
        for series, cells in all_series.items():
            found["accuracy"] += _accuracy(task, series, cells, curves[series])
            found["needed"].append(_needed(task, series, curves[series]))
            if measured:
                found["paths"] += _paths(task, series, cells)
            if task.split("/")[0] in AUTOMATA:
                of = statistics.threshold(curves[series])
                found["thresholds"].append({"task": task, "series": series.name, "threshold": of})
        for video, language in pairs(all_series):
            found["ratio"].append(_ratio(task, video, language, all_series))
        for first, second in [*pairs(all_series), *controls(all_series), *rivals(all_series)]:
            found["tests"] += _tests(task, first, second, all_series)
    _holm(found["tests"])
    found["pooled"] = _pooled(found["ratio"])
    found["settings"] = _settings(learning(gathered.trials))
    found["arc"] = {name: _arc(name, of_series) for name, of_series in puzzles(gathered.trials).items()}
    return found


def learning(trials: Iterable[Trial]) -> dict[str, dict[Series, Cells]]:
    """The trials of tasks that are learned from n examples: task -> series -> n -> seed -> trial."""
    found: dict[str, dict[Series, Cells]] = {}
    for trial in trials:
        if not trial.finite:
            cells = found.setdefault(trial.task, {}).setdefault(trial.series, {})
            cells.setdefault(trial.run.n, {})[trial.run.seed] = trial
    return found


def _all_of(all_series: Mapping[Series, Cells]) -> Iterator[Trial]:
    for cells in all_series.values():
        for cell in cells.values():
            yield from cell.values()


def puzzles(trials: Iterable[Trial]) -> dict[str, dict[Series, list[Trial]]]:
    """The trials on ARC puzzles: set of puzzles -> series -> trials by n and seed."""
    found: dict[str, dict[Series, list[Trial]]] = {}
    for trial in trials:
        if trial.finite:
            name = trial.run.tested
            of_set = "conceptarc" if name.startswith("conceptarc/") else name.rpartition("/")[0] or "arc: files"
            found.setdefault(of_set, {}).setdefault(_with_n(trial), []).append(trial)
    for of_series in found.values():
        for chosen in of_series.values():
            chosen.sort(key=lambda t: (t.run.n, t.run.seed))
    return found


def look(gathered: Gathered) -> list[report_answers.Sheet]:
    """The answers to look at, a sheet a task and a set of puzzles."""
    return [
        *(report_answers.of_task(task, all_series) for task, all_series in learning(gathered.trials).items()),
        *(report_answers.of_puzzles(name, of_series) for name, of_series in puzzles(gathered.trials).items()),
    ]


def pairs(series: Iterable[Series]) -> list[tuple[Series, Series]]:
    """(video, language) with the same control, and the same settings as far as both have them."""
    series = sorted(series)
    return [
        (video, language)
        for video in series
        if video.kind == "video"
        for language in series
        if language.kind == "language" and video.control == language.control and _agree(video, language)
    ]


def controls(series: Iterable[Series]) -> list[tuple[Series, Series]]:
    """(pretrained, its control): what pretraining gave."""
    series = sorted(series)
    return [
        (arm, control)
        for arm in series
        for control in series
        if not arm.control and control.control and (arm.arm, arm.settings) == (control.arm, control.settings)
    ]


def rivals(series: Iterable[Series]) -> list[tuple[Series, Series]]:
    """Two pretrained arms of one kind, or one arm under two settings that differ in one key."""
    found = []
    for first, second in itertools.combinations(sorted(s for s in series if not s.control), 2):
        apart = dict(first.settings).items() ^ dict(second.settings).items()
        one_key = first.arm == second.arm and len({key for key, _ in apart}) == 1
        if first.kind == second.kind and (one_key or (first.arm != second.arm and _agree(first, second))):
            found.append((first, second))
    return found


def _agree(first: Series, second: Series) -> bool:
    a, b = dict(first.settings), dict(second.settings)
    return all(a[key] == b[key] for key in a.keys() & b.keys())


def _curve(task: str, cells: Cells, name: str) -> statistics.Curve:
    return statistics.curve(
        task, {n: {seed: trial.values(name) for seed, trial in cell.items()} for n, cell in cells.items()}
    )


def _accuracy(task: str, series: Series, cells: Cells, exact: statistics.Curve) -> list[dict[str, Any]]:
    rows = []
    found = {name: statistics.accuracy(_curve(task, cells, name)) for name in ("valid", "right")}
    found |= {PRIMARY: statistics.accuracy(exact), "cells": statistics.means(_curve(task, cells, "cells"))}
    for i, n in enumerate(map(int, exact.n)):
        trials = [cells[n][seed] for seed in sorted(cells[n])]
        row: dict[str, Any] = {"task": task, "series": series.name, "arm": series.arm, "kind": series.kind}
        row |= {"control": series.control, "settings": dict(series.settings), "n": n}
        row |= {"seeds": [t.run.seed for t in trials], "tests": int(exact.answers[i])}
        row |= {name: found[name][i] for name in (PRIMARY, "valid", "right", "cells")}
        row["by_seed"] = [float(t.values(PRIMARY).mean()) for t in trials]
        row["unreadable"] = float(np.mean([np.mean([r["proposed"] is None for r in t.records]) for t in trials]))
        for name in evaluate.BASELINES:
            row[name] = _mean([_baseline(t, name) for t in trials])
        row["codec"] = _mean([_at(t.result, "codec", "exact", "value") for t in trials])
        row["small"] = not all(t.published for t in trials)
        rows.append(row)
    return rows


def _baseline(trial: Trial, name: str) -> float | None:
    return _at(trial.result, "baselines", name, PRIMARY, "value")


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _needed(task: str, series: Series, of: statistics.Curve) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task, "series": series.name, "n": of.n.tolist()}
    row |= {"seeds": [len(seeds) for seeds in of.seeds], "area": statistics.area(of)}
    return row | {f"{target:g}": statistics.n_needed(of, target) for target in statistics.TARGETS}


def _ratio(task: str, video: Series, language: Series, cells: Mapping[Series, Cells]) -> dict[str, Any]:
    """Who needs fewer examples, over the n and seeds that both have."""
    ours, theirs = _paired(cells[video], cells[language])
    row: dict[str, Any] = {"task": task, "video": video.name, "language": language.name, "control": video.control}
    row |= {"n": sorted(ours), "seeds": [len(ours[n]) for n in sorted(ours)], "area": None}
    if not ours:
        return row | {f"{target:g}": statistics.Bound(0.0, math.inf, 0.0, math.inf) for target in statistics.TARGETS}
    of_video, of_language = (_curve(task, part, PRIMARY) for part in (ours, theirs))
    for target in statistics.TARGETS:
        row[f"{target:g}"] = statistics.efficiency(of_language, of_video, target)
    return row | {"area": statistics.area_difference(of_video, of_language)}


def _paired(first: Cells, second: Cells) -> tuple[Cells, Cells]:
    """The trials of two arms that have a counterpart: the same n and seed, the same examples to learn from, and questions."""
    ours: Cells = {}
    theirs: Cells = {}
    for n in sorted(first.keys() & second.keys()):
        for seed in sorted(first[n].keys() & second[n].keys()):
            a, b = first[n][seed], second[n][seed]
            if _questions(a) == _questions(b) and _provenance(a).get("data") == _provenance(b).get("data"):
                ours.setdefault(n, {})[seed], theirs.setdefault(n, {})[seed] = a, b
    return ours, theirs


def _pooled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each pair of arms over the tasks that both have."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["video"], row["language"]), []).append(row)
    found = []
    for (video, language), group in groups.items():
        areas = [row["area"] for row in group if row["area"] is not None]
        pool: dict[str, Any] = {"video": video, "language": language, "tasks": len(group)}
        pool["n"] = group[0]["n"] if all(row["n"] == group[0]["n"] for row in group) else None  # None: not the same
        pool["seeds"] = [count for row in group for count in row["seeds"]]
        pool["area"] = statistics.pooled(areas).within(-1, 1) if areas else None
        for target in statistics.TARGETS:
            pool[f"{target:g}"] = statistics.pooled_ratio([row[f"{target:g}"] for row in group])
        found.append(pool)
    return found


def _settings(learned: Mapping[str, dict[Series, Cells]]) -> list[dict[str, Any]]:
    """Each arm under each of its settings, over the tasks and n that all of these have: which setting would one choose?"""
    groups: dict[tuple[str, str], set[Series]] = {}
    for series in itertools.chain.from_iterable(learned.values()):
        groups.setdefault((series.arm, series.control), set()).add(series)
    rows = []
    for (arm, control), group in sorted(groups.items()):
        shared = {
            task: sorted(set.intersection(*(set(all_series[one]) for one in group)))
            for task, all_series in learned.items()
            if group <= all_series.keys()
        }
        shared = {task: ns for task, ns in shared.items() if ns}
        if len(group) < 2 or not shared:
            continue
        means = {
            one: statistics.together(
                [statistics.area(_curve(task, learned[task][one], PRIMARY), ns) for task, ns in shared.items()]
            )
            for one in group
        }
        highest = max(mean.value for mean in means.values())
        for one in sorted(group):
            row: dict[str, Any] = {"arm": arm, "control": control, "series": one.name, "tasks": list(shared)}
            rows.append({**row, "area": means[one], "highest": means[one].value == highest})
    return rows


def _tests(task: str, first: Series, second: Series, cells: Mapping[Series, Cells]) -> list[dict[str, Any]]:
    """Paired tests at each n, over the trials that have a counterpart."""
    rows = []
    ours, theirs = _paired(cells[first], cells[second])
    for n in ours:
        one, other = ({s: trial.values(PRIMARY) for s, trial in arm[n].items()} for arm in (ours, theirs))
        differences = {s: one[s] - other[s] for s in one}
        row: dict[str, Any] = {"task": task, "first": first.name, "second": second.name, "n": n, "seeds": list(one)}
        row["pairs"] = sum(len(d) for d in differences.values())
        curves = [statistics.curve(task, {n: arm}) for arm in (one, other)]
        row["difference"] = statistics.area_difference(curves[0], curves[1])
        row["p"] = statistics.sign_flip(differences)
        row["p_seeds"] = statistics.sign_flip_seeds(differences)
        found = {s: statistics.mcnemar(one[s], other[s]) for s in one}
        row["mcnemar"] = [{"seed": s, "first": x, "second": y, "p": p} for s, (x, y, p) in found.items()]
        rows.append(row)
    return rows


def _questions(trial: Trial) -> list[str]:
    return [record["key"] for record in trial.records]


def _holm(rows: Sequence[dict[str, Any]]) -> None:
    """Correct each comparison over its tasks and n, and say where it is clear: for these adapters (p), and for other seeds and
    test examples (the interval, which with one seed knows nothing of others)."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["first"], row["second"]), []).append(row)
    for group in groups.values():
        for row, p in zip(group, statistics.holm([row["p"] for row in group]), strict=True):
            apart = row["difference"].low > 0 or row["difference"].high < 0
            row |= {"p_holm": p, "family": len(group), "clear": apart and p < LEVEL and len(row["seeds"]) > 1}


def _paths(task: str, series: Series, cells: Cells) -> list[dict[str, Any]]:
    """PSR over all answers (one that could not be read does not connect), RPL over the valid ones that have it."""
    rows = []
    for n, cell in sorted(cells.items()):
        measures = {seed: [record["measures"] for record in trial.records] for seed, trial in cell.items()}
        success = {s: [float(m.get("path_success", 0.0)) for m in of_seed] for s, of_seed in measures.items()}
        lengths = {
            s: [m["relative_length"] for m in of_seed if "relative_length" in m] for s, of_seed in measures.items()
        }
        lengths = {s: values for s, values in lengths.items() if values}
        row: dict[str, Any] = {"task": task, "series": series.name, "n": n, "seeds": sorted(cell)}
        row["path_success"] = statistics.accuracy(statistics.curve(task, {n: success}))[0]
        of = statistics.curve(task, {n: lengths}, (1, math.inf)) if lengths else None
        row["relative_length"] = statistics.means(of)[0] if of else None
        row["valid"] = sum(len(values) for values in lengths.values())
        rows.append(row)
    return rows


def _with_n(trial: Trial) -> Series:
    """The series of an ARC trial, which learns from all demonstrations unless it says how many."""
    if trial.run.n == tasks.count(trial.run.task, "train"):
        return trial.series
    return dataclasses.replace(trial.series, settings=(*trial.series.settings, ("n", trial.run.n)))


def _arc(name: str, of_series: Mapping[Series, Sequence[Trial]]) -> dict[str, Any]:
    """Scores, overlap and nearness on one set of puzzles: {"scores": [...], "overlap": [...], "near": [...]}. Attempts are the
    answers of the first seed, by votes, then those of the next."""
    solved: dict[Series, dict[int, dict[str, bool]]] = {}
    found: dict[str, Any] = {"scores": [], "overlap": [], "near": _near(name, of_series)}
    for series, chosen in of_series.items():
        attempts = arc_scores.from_records((t.run.tested, t.records) for t in chosen)
        allowed: Counter[str] = Counter()  # attempts; votes that agree leave some unused
        for trial in chosen:
            allowed[trial.run.tested] += trial.run.votes
        solved[series] = {}
        for k in range(1, 4):
            truth = arc_scores.truth_of(sorted(tested for tested, count in allowed.items() if count >= k))
            if not truth:
                break
            solved[series][k] = {id_: all(ok) for id_, ok in arc_scores.solved(attempts, truth, k).items()}
            hits, count = sum(solved[series][k].values()), len(truth)
            rate = statistics.Interval(hits / count, *statistics.wilson(hits, count))
            found["scores"].append({"series": series.name, "rule": f"strict@{k}", "puzzles": count, "score": rate})
            if name == "conceptarc" and k == 3:
                value = arc_scores.score(attempts, truth, "concept@3")
                nothing = statistics.Interval(value, math.nan, math.nan)
                found["scores"].append({"series": series.name, "rule": "concept@3", "puzzles": count, "score": nothing})
    for video, language in pairs(of_series):
        for k in sorted(solved[video].keys() & solved[language].keys()):
            row = {"video": video.name, "language": language.name, "attempts": k}
            found["overlap"].append(row | statistics.overlap(solved[video][k], solved[language][k]))
    return found


def _near(name: str, of_series: Mapping[Series, Sequence[Trial]]) -> dict[str, list[dict[str, Any]]]:
    """How much of the first answers is right, which says something where few puzzles are solved: {"arms": a row each with its
    baselines, "pairs": the difference of two over the puzzles that both have}. A puzzle counts once, with its seeds' mean."""
    shares: dict[Series, dict[str, float]] = {}  # puzzle -> share of cells, mean over test inputs and seeds
    rows = []
    for series, chosen in of_series.items():
        of_puzzle: dict[str, list[float]] = {}
        for trial in chosen:
            of_puzzle.setdefault(trial.run.tested, []).append(float(trial.values("cells").mean()))
        shares[series] = {puzzle: float(np.mean(values)) for puzzle, values in of_puzzle.items()}
        records = [record for trial in chosen for record in trial.records]
        row: dict[str, Any] = {"series": series.name, "puzzles": len(of_puzzle)}
        # Wilson's interval, for a share of cells spreads no wider than right and wrong do
        row["cells"] = statistics.accuracy(_point(name, shares[series].values()))[0]
        row["size"] = float(np.mean([np.shape(r["proposed"]) == np.shape(r["answer"]) for r in records]))
        row["unreadable"] = float(np.mean([r["proposed"] is None for r in records]))
        for baseline in evaluate.BASELINES:
            row[baseline] = _mean([_at(t.result, "baselines", baseline, "cells", "value") for t in chosen])
        rows.append(row)
    compared = []
    for video, language in pairs(of_series):
        both = sorted(shares[video].keys() & shares[language].keys())
        if both:
            ours, theirs = ([shares[series][puzzle] for puzzle in both] for series in (video, language))
            row = {"video": video.name, "language": language.name, "puzzles": len(both)}
            row["difference"] = statistics.area_difference(_point(name, ours), _point(name, theirs))
            compared.append(row | {"p": statistics.sign_flip({0: np.array(ours) - np.array(theirs)})})
    return {"arms": rows, "pairs": compared}


def _point(name: str, shares: Iterable[float]) -> statistics.Curve:
    """Shares, one a puzzle, as a curve of one point."""
    return statistics.curve(name, {1: {0: np.array([*shares])}})


# ---------------------------------------------------------------------------------------------------------------------
# The paper's own points


@functools.cache
def _paper() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return found


def published(task: str) -> dict[str, list[tuple[int, float]]]:
    """{"video": [(n, accuracy)], "language": [...]} that arXiv 2510.24448 reports for this task; {} where it has none.

    Other models, and 200 test examples: reference curves, not results of ours.
    """
    names = {
        "chess/mate-in-1": ("games", "Chess Mate-in-1"),
        "connect4/win-in-1": ("games", "Connect 4"),
        "hitori/5x5": ("games", "Hitori 5x5"),
        "sudoku/4x4": ("games", "Sudoku Mini"),
        "sudoku/9x9": ("games", "Sudoku"),
        "maze/21x21": ("route", "Base Maze"),
        "maze/13x13 → maze/21x21": ("route", "Maze Generalization"),
        "shortest_path/15x15": ("route", "Shortest Path"),
        "life/B3S2": ("life", "Life B3/S2"),
        "life/B3678S34678": ("life", "Day & Night"),
        "life/B3S12345": ("life", "Maze"),
        "life/B2S": ("life", "Seeds"),
        "life/B3S23": ("life", "Game of Life"),
    }
    family, _, variant = task.partition("/")
    group, name = names.get(task) or (family, variant)
    entry = _paper().get(group, {}).get(name) if group in ("games", "route", "langton", "life", "eca") else None
    if not entry:
        return {}
    found = {}
    for kind, key in (("video", "V"), ("language", "L")):
        points = entry[key]
        pairs_ = points.items() if isinstance(points, dict) else zip(_paper()["n"], points, strict=True)
        found[kind] = [(int(n), float(value)) for n, value in pairs_ if value is not None]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def report_sweep(folder: Path, out: Path | None = None) -> Path:
    """Write the report of one sweep, or of a folder of runs, and return its page, <out>/index.html.

    `out` is <folder>/report where it is left out. Raises UserError where there is nothing to report on.
    """
    return report([Path(folder)], out)


def report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """`report_sweep` of several folders merged."""
    gathered = gather(folders)
    out = Path(out) if out is not None else Path(folders[0]) / "report"
    found = findings(gathered)
    small = sorted({f"{t.run.family} {Path(t.run.flavour).name}" for t in gathered.trials if not t.published})
    caveat = f"{CAVEAT} (Here: {', '.join(small)}.)" if small else ""
    figures = report_figures.draw(found, look(gathered), published, out / "figures")
    written = [_write_csv(gathered, out), _write_parquet(gathered, out)]
    store.write_json(
        out / "report.json", _plain({"planned": gathered.planned, "trials": len(gathered.trials), **found})
    )
    tables = report_page.tables(gathered, found)
    store.write_text(out / "report.md", report_page.markdown(gathered, found, tables, caveat, figures, written))
    store.write_text(out / "index.html", report_page.html(gathered, found, tables, caveat, figures, written))
    return out / "index.html"


def rows(gathered: Gathered) -> list[dict[str, Any]]:
    """One flat row a trial, for tables that others read: scores from its answers, and where it comes from."""
    found = []
    for trial in gathered.trials:
        row: dict[str, Any] = {"id": trial.id, "task": trial.task, "arm": trial.arm, "kind": trial.series.kind}
        row |= {"family": trial.run.family, "flavour": trial.run.flavour, "published": trial.published}
        row |= {"control": trial.control, "settings": json.dumps(dict(trial.settings)), "n": trial.run.n}
        row |= {"seed": trial.run.seed, "tests": len(trial.records)}
        row |= {name: float(trial.values(name).mean()) for name in ("exact", "valid", "right", "cells")}
        row["unreadable"] = float(np.mean([record["proposed"] is None for record in trial.records]))
        row |= {f"baseline_{name}": _baseline(trial, name) for name in evaluate.BASELINES}
        row["codec"] = _at(trial.result, "codec", "exact", "value")
        row["seconds_per_answer"] = float(np.mean([record["seconds"] for record in trial.records]))
        origin = _provenance(trial)
        row |= {"commit": " ".join(trial.commits) or None, "dirty": trial.dirty}
        row |= {key: origin.get(key) for key in ("device", "platform", "python", "backbone", "data")}
        row |= {"date": origin.get("date"), "libraries": json.dumps(origin.get("libraries") or {})}
        found.append(row | {"folder": str(trial.folder)})
    return found


def _write_csv(gathered: Gathered, out: Path) -> str:
    text = io.StringIO()
    table = rows(gathered)
    if table:
        writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    store.write_text(out / "results.csv", text.getvalue())
    return "results.csv: one line a trial"


def _write_parquet(gathered: Gathered, out: Path) -> str:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return "results.parquet was left out, for pyarrow is not installed: pip install pyarrow"
    with store.new_file(out / "results.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows(gathered)), temporary)
    return "results.parquet: the same"


def _plain(value: Any) -> Any:
    """Findings as JSON knows them; an end that nothing bounds is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def command(
    folders: Annotated[list[Path], typer.Argument(help="A sweep's folder, or several to merge; or a folder of runs")],
    out: Annotated[
        Path | None, typer.Option(help="Where the report goes (default: report/ in the first folder)")
    ] = None,
) -> None:
    """Report on a sweep: one page, Markdown, tables and figures. An unfinished sweep says how much is there.

    vdmreason report runs/sweeps/structured-small
    vdmreason report here/structured-small there/structured-small --out report
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder.")
    print(report(folders, out))
