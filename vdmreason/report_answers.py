"""Which answers a report shows as pictures. A number says how often an arm was right, a picture says what it did instead.

Of a learning task, the first test example of the first seed, as every arm answers it at every n: a rule that no result can
choose. Of a set of ARC puzzles, those that somebody solved, then the nearest misses: chosen by result, and said so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import tasks
from tasks.base import Grid

if TYPE_CHECKING:
    from vdmreason.report import Cells, Series, Trial

PUZZLES = 12  # of a set of ARC puzzles
ATTEMPTS = 2  # of each arm at each


@dataclass(frozen=True)
class Picture:
    """A grid (None: there is none to draw) and the line beneath it."""

    grid: Grid | None
    note: str
    right: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table of pictures: a head a column; a row is its name and as many pictures, None where the place is empty."""

    name: str  # of the task or the set of puzzles
    about: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, Sequence[Picture | None]]]


def of_task(task: str, all_series: Mapping[Series, Cells]) -> Sheet:
    """One question and what every arm answers as its examples grow."""
    ns = sorted({n for cells in all_series.values() for n in cells})
    seed = min(seed for cells in all_series.values() for of_n in cells.values() for seed in of_n)
    first = next(of_n[seed] for cells in all_series.values() for of_n in cells.values() if seed in of_n).records[0]
    rows: list[tuple[str, list[Picture | None]]] = []
    for series, cells in all_series.items():
        trials = [cells.get(n, {}).get(seed) for n in ns]
        answers = [_answer(t.records[0]) if t and t.records[0]["key"] == first["key"] else None for t in trials]
        given = [_grid(first["question"]), _grid(first["answer"])]
        rows.append((series.name, [*(given if not rows else [None, None]), *answers]))
    about = (
        f"{task}: the first test example of seed {seed}, as every arm answers it after n training examples. One question of "
        "many: the rates are in the tables."
    )
    return Sheet(task, about, ("question", "right answer", *(f"n = {n}" for n in ns)), rows)


def of_puzzles(puzzles: str, of_series: Mapping[Series, Sequence[Trial]]) -> Sheet:
    """The puzzles that somebody solved, then the nearest misses, with a demonstration and each arm's attempts."""
    by_name: dict[str, dict[Series, Trial]] = {}  # of several seeds the first
    for series, trials in of_series.items():
        for trial in trials:
            by_name.setdefault(trial.run.tested, {}).setdefault(series, trial)
    ranked = sorted(by_name, key=lambda name: (*_best(by_name[name].values()), name))[:PUZZLES]
    rows: list[tuple[str, list[Picture | None]]] = []
    for name in ranked:
        record = next(iter(by_name[name].values())).records[0]
        demonstration = (tasks.get(name).stock("train") or ())[0]
        row: list[Picture | None] = [
            _grid(demonstration.question),
            _grid(demonstration.answer),
            _grid(record["question"]),
            _grid(record["answer"]),
        ]
        for series in of_series:
            of_arm = by_name[name].get(series)
            row += _attempts(of_arm.records[0]) if of_arm else [None] * ATTEMPTS
        rows.append((name.rpartition("/")[2], row))
    shown = "all" if len(ranked) == len(by_name) else f"{len(ranked)} of {len(by_name)}"
    about = (
        f"{puzzles}: {shown} puzzles, those that an arm solved first, then those to which an answer has the most cells right. "
        "Chosen by result: what most answers look like is in the tables. The first test input of each, the first seed; the "
        "model learned from the demonstrations, of which one is shown."
    )
    attempts = [f"{series.name}\nattempt {k + 1}" for series in of_series for k in range(ATTEMPTS)]
    return Sheet(puzzles, about, ("demonstration", "", "question", "right answer", *attempts), rows)


def _best(trials: Collection[Trial]) -> tuple[bool, float]:
    """What sorts a puzzle: unsolved last, then by the cells of its best answer, most first."""
    firsts = [[picture for picture in _attempts(trial.records[0]) if picture] for trial in trials]
    solved = any(picture.right for pictures in firsts for picture in pictures)
    return not solved, -max(float(trial.records[0]["cells"]) for trial in trials)


def _attempts(record: Mapping[str, Any]) -> list[Picture | None]:
    """The first attempts at a puzzle, by votes where there were any."""
    votes = record.get("votes") or []
    if not votes:
        return [_answer(record)] + [None] * (ATTEMPTS - 1)
    answer = np.asarray(record["answer"], np.int8)
    pictures: list[Picture | None] = []
    for vote in votes[:ATTEMPTS]:
        grid = np.asarray(vote["grid"], np.int8)
        alike = grid.shape == answer.shape
        exact = alike and bool((grid == answer).all())
        note = "solved" if exact else _cells(float((grid == answer).mean())) if alike else "another size"
        pictures.append(Picture(grid, note, exact))
    return pictures + [None] * (ATTEMPTS - len(pictures))


def _answer(record: Mapping[str, Any]) -> Picture:
    """An answer under the verdict of today's rules; other than the stored one it may be right all the same."""
    if record["proposed"] is None:
        return Picture(None, "not readable")
    grid = np.asarray(record["proposed"], np.int8)
    if record["exact"] or record["right"]:
        return Picture(grid, "right" if record["exact"] else "right, another way", True)
    alike = grid.shape == np.shape(record["answer"])
    return Picture(grid, _cells(record["cells"]) if alike else "another size")


def _cells(share: float) -> str:
    return f"{min(99.9, 100 * share):.1f} % of cells"  # never 100 where one is wrong


def _grid(rows: Any) -> Picture:
    return Picture(np.asarray(rows, np.int8), "")
