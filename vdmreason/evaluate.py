"""Predictions to scores, with intervals. numpy only: stored predictions are scored again without a model.

Scores stand side by side: `exact` (the whole grid equals the stored answer, what published tables report), `valid` (it
obeys the rules: a path that leads from start to end) and `right` (and nothing is better: any shortest path). `cells` is
the share of cells equal, 0 where the size differs. An answer that could not be read is wrong, and `unreadable` says how
often that was.

Intervals are 95 %. A rate of one run has Wilson's interval over its test examples. A mean of several seeds has that of
`statistics`, over seeds and over answers, because the answers of one seed share one trained adapter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import tasks
from tasks.base import UNKNOWN, Example, Grid, Task, UserError, Verdict
from vdmreason import config, library, statistics, store
from vdmreason.statistics import wilson

RATES = ("exact", "valid", "right", "unreadable")


def mean_of(by_seed: Mapping[int, Sequence[float]], within: tuple[float, float] = (0.0, 1.0)) -> dict[str, float]:
    """{"value", "low", "high"} of a mean over seeds and their test examples. Nothing: 0, and anything is possible."""
    if not any(len(values) for values in by_seed.values()):
        return {"value": 0.0, "low": within[0], "high": within[1]}
    return asdict(statistics.means(statistics.curve("", {0: by_seed}, within))[0])


def rate_of(by_seed: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """The same of a rate; of one seed its Wilson interval."""
    return asdict(statistics.accuracy(statistics.curve("", {0: by_seed}))[0])


def score(verdicts: Sequence[Verdict], unreadable: int = 0) -> dict[str, Any]:
    """{"n", and for exact, valid, right, cells, unreadable: {"value", "low", "high"}} of one run's verdicts, and with
    {"value", "low", "high", "n"} each measure of the answers that have it."""
    n = len(verdicts)
    result: dict[str, Any] = {"n": n}
    counts = {name: sum(getattr(v, name) for v in verdicts) for name in ("exact", "valid", "right")}
    for name, hits in {**counts, "unreadable": unreadable}.items():
        low, high = wilson(hits, n)
        result[name] = {"value": hits / n if n else 0.0, "low": low, "high": high}
    result["cells"] = mean_of({0: [v.cells for v in verdicts]})
    for name in sorted({name for v in verdicts for name in v.measures}):
        values = [v.measures[name] for v in verdicts if name in v.measures]
        result[name] = {**mean_of({0: values}, (-math.inf, math.inf)), "n": len(values)}
    return result


def rescore(task: Task, predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The predictions with exact, right, cells and reason computed anew from the stored grids."""
    fresh = []
    for record in predictions:
        example = example_of(record)
        proposed = None if record["proposed"] is None else np.asarray(record["proposed"], dtype=np.int8)
        verdict = task.check(proposed, example)
        fresh.append({**record, **as_record(verdict, str(record.get("problem", "")))})
    return fresh


def as_record(verdict: Verdict, problem: str = "") -> dict[str, Any]:
    """A verdict as it stands in predictions.jsonl. What kept the answer from being read is the better reason."""
    reason = problem or verdict.reason
    scores = {name: getattr(verdict, name) for name in ("exact", "valid", "right")}
    return {**scores, "cells": round(verdict.cells, 6), "measures": dict(verdict.measures), "reason": reason}


def example_of(record: Mapping[str, Any]) -> Example:
    """The test example that a prediction's line carries."""
    question = np.asarray(record["question"], dtype=np.int8)
    answer = np.asarray(record["answer"], dtype=np.int8) if record["answer"] else UNKNOWN
    return Example(question, answer, tuple(record["canvas"]))


def scorable(predictions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The predictions to whose questions somebody knows the answer."""
    return [p for p in predictions if p["answer"]]


def score_records(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`score` of prediction lines, by the verdicts they carry."""
    verdicts = [
        Verdict(p["exact"], p["valid"], p["right"], p["cells"], p["reason"], p["measures"]) for p in predictions
    ]
    return score(verdicts, sum(p["proposed"] is None for p in predictions))


# ---------------------------------------------------------------------------------------------------------------------
# Baselines: is the task trivial?


def copy_input(train: Sequence[Example], question: Grid) -> Grid:
    """The question itself."""
    return question


def nearest(train: Sequence[Example], question: Grid) -> Grid:
    """The answer of the training example whose question differs in the fewest cells; the first of equals.

    Cells outside the smaller of two grids count as different.
    """

    def distance(other: Grid) -> int:
        rows, cols = min(question.shape[0], other.shape[0]), min(question.shape[1], other.shape[1])
        same = int(np.count_nonzero(question[:rows, :cols] == other[:rows, :cols]))
        return max(question.size, other.size) - same

    return min(train, key=lambda example: distance(example.question)).answer


BASELINES = {"copy": copy_input, "nearest": nearest}


def baselines(task: Task, train: Sequence[Example], test: Sequence[Example]) -> dict[str, Any]:
    """Scores of the answers that need no model: {"copy": score, "nearest": score}."""
    return {
        name: score([task.check(answer(train, example.question), example) for example in test])
        for name, answer in BASELINES.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def evaluate(folder: str | Path) -> dict[str, Any]:
    """Score a run's stored predictions by the rules of today, write result.json, and return it. No torch.

    Raises UserError when there are no predictions yet.
    """
    folder = Path(folder)
    run = store.read_config(folder)
    predictions = store.read_lines(folder / "predictions.jsonl")
    if not predictions:
        raise UserError(f"{folder}: has no predictions yet. Make them with: vdmreason predict {folder}")
    task = tasks.get(run.tested)
    predictions = rescore(task, sorted(predictions, key=lambda p: p["i"]))
    train = config.train_examples(run)
    known = scorable(predictions)
    result = store.read_json(folder / "result.json") or {}
    result |= {
        "id": run.id,
        "run": config.to_dict(run),
        "complete": len(predictions) >= run.test,
        "scores": score_records(known) if known else {},
        "baselines": baselines(task, train, [example_of(p) for p in known]) if known else {},
        **votes(known),
        "seconds_per_answer": float(np.mean([p["seconds"] for p in predictions])),
    }
    store.write_json(folder / "result.json", result)
    library.leave_card(folder)
    return result


def votes(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What voting over views could have reached: {"votes": {"oracle": share of questions to which some view gave a right
    grid, "within_2": to which one of the first two did, "rank": its mean place where it was given}}; {} without votes."""
    ranks = [p["rank"] for p in predictions if "rank" in p]
    if not ranks:
        return {}
    given = [rank for rank in ranks if rank is not None]
    rates = {"oracle": len(given), "within_2": sum(rank <= 2 for rank in given)}
    found: dict[str, Any] = {"n": len(ranks), "rank": float(np.mean(given)) if given else None}
    for name, hits in rates.items():
        low, high = wilson(hits, len(ranks))
        found[name] = {"value": hits / len(ranks), "low": low, "high": high}
    return {"votes": found}


Trial = tuple[config.Run, list[dict[str, Any]], dict[str, Any]]
"""A run, its predictions' verdicts (at least exact, right, cells and proposed) and its result.json."""


def over_seeds(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """`rows` of runs' folders, scored by the rules of today. Folders without predictions are passed over."""
    trials: list[Trial] = []
    for folder in map(Path, folders):
        run, predictions = store.read_config(folder), store.read_lines(folder / "predictions.jsonl")
        if known := scorable(predictions):
            predictions = rescore(tasks.get(run.tested), known)
            trials.append((run, predictions, store.read_json(folder / "result.json") or {}))
    return rows(trials)


def rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row an experiment: runs that differ in nothing but the seed, averaged, with intervals over seeds and answers.

    A row is {"run": the config without seed, "seeds": [...], "n_test", "exact", "right", "cells", "unreadable":
    {"value", "low", "high"}, "codec": mean exact of the codec ceiling or None, "baselines": {"copy", "nearest": mean exact},
    "data": [hashes]}.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_experiment(trial[0]), []).append(trial)
    return [_row(group) for group in groups.values()]


def _experiment(run: config.Run) -> str:
    """What two seeds of one experiment share."""
    return dataclasses.replace(run, seed=0).id


def _row(group: list[Trial]) -> dict[str, Any]:
    by_seed = {run.seed: (predictions, result) for run, predictions, result in group}
    run = group[0][0]
    row: dict[str, Any] = {"run": {k: v for k, v in config.to_dict(run).items() if k not in ("seed", "note")}}
    row |= {"seeds": sorted(by_seed), "n_test": sum(len(p) for p, _ in by_seed.values())}
    for name in (*RATES, "cells"):
        of_seed = {seed: [_value(p, name) for p in predictions] for seed, (predictions, _) in by_seed.items()}
        row[name] = mean_of(of_seed) if name == "cells" else rate_of(of_seed)
    ceilings = [r["codec"]["exact"]["value"] for _, r in by_seed.values() if r.get("codec")]
    row["codec"] = float(np.mean(ceilings)) if ceilings else None
    trivial = [r["baselines"] for _, r in by_seed.values() if r.get("baselines")]
    row["baselines"] = {k: float(np.mean([b[k]["exact"]["value"] for b in trivial])) for k in BASELINES if trivial}
    row["data"] = [r.get("provenance", {}).get("data") for _, r in by_seed.values()]
    return row


def _value(record: Mapping[str, Any], name: str) -> float:
    return float(record["proposed"] is None) if name == "unreadable" else float(record[name])
