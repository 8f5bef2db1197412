"""Which answers a report shows as pictures. A number says how often an arm was right, a picture says what it did instead.

Of a learning task, the first test example of one seed, as every arm answers it at every n: a rule that no result can choose. Of a
set of ARC puzzles, some that were solved and the nearest misses: chosen by result, and said so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import tasks
from tasks.base import Grid
from vdmreason import arc_scores

if TYPE_CHECKING:
    from vdmreason.report import Cells, Series, Trial

SOLVED, PUZZLES = 8, 12  # of a set of ARC puzzles: at most so many solved ones, and so many in all


@dataclass(frozen=True)
class Picture:
    """A grid (None: there is none to draw) and the line beneath it. `cells`: its share of right cells."""

    grid: Grid | None
    note: str = ""
    right: bool = False
    cells: float = 0.0


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
    every = [(seed, trial) for cells in all_series.values() for of_n in cells.values() for seed, trial in of_n.items()]
    counts = Counter(seed for seed, _ in every)
    seed = min(counts, key=lambda seed: (-counts[seed], seed))  # an arm may have others, or not have come so far
    first = next(trial for of_seed, trial in every if of_seed == seed).records[0]
    rows: list[tuple[str, list[Picture | None]]] = []
    for series, cells in all_series.items():
        given = [] if rows else [_grid(first["question"]), _grid(first["answer"])]
        row: list[Picture | None] = [*given] or [None, None]
        for n in ns:
            trial = cells.get(n, {}).get(seed)
            if trial is None:
                row.append(None)
            elif trial.records[0]["key"] != first["key"]:
                row.append(Picture(None, "another question"))
            else:
                row.append(_answer(trial.records[0]))
        rows.append((series.name, row))
    about = (
        f"{task}: the first test example of seed {seed}, as every arm answers it after n training examples; empty where an arm "
        "was not tested. One question of many: the rates are in the tables."
    )
    return Sheet(task, about, ("question", "right answer", *(f"n = {n}" for n in ns)), rows)


def of_puzzles(puzzles: str, of_series: Mapping[Series, Sequence[Trial]]) -> Sheet:
    """Some puzzles that were solved, then the nearest misses, with a demonstration and every arm's attempts. Solved is what the
    table of who solved which calls so."""
    allowed = arc_scores.attempts_at(puzzles)
    names = {arc_scores.id_of(t.run.tested): t.run.tested for trials in of_series.values() for t in trials}
    attempts = {s: arc_scores.from_records((t.run.tested, t.records) for t in ts) for s, ts in of_series.items()}
    truth = arc_scores.truth_of(sorted(names.values()))
    solved = {s: arc_scores.solved(of_arm, truth, allowed) for s, of_arm in attempts.items()}
    rows: dict[str, tuple[str, list[Picture | None]]] = {}
    winners: dict[str, list[str]] = {}
    for id_ in sorted(names):
        demonstration, *_ = tasks.get(names[id_]).stock("train") or ()
        asked, *others = tasks.get(names[id_]).stock("test") or ()
        row: list[Picture | None] = [_grid(demonstration.question), _grid(demonstration.answer)]
        row += [_grid(asked.question), _grid(asked.answer)]
        for of_arm in attempts.values():
            tried = [_attempt(grid, asked.answer) for grid in of_arm.get(id_, [[]])[0][:allowed]]
            row += [*tried, *[None] * (allowed - len(tried))]
        winners[id_] = [series.name for series in of_series if id_ in attempts[series] and all(solved[series][id_])]
        also = f"\ninput 1 of {1 + len(others)}" if others else ""
        rows[id_] = (f"{id_}{also}\nsolved by {', '.join(winners[id_]) or 'none'}", row)

    def nearest(id_: str) -> float:
        return max(picture.cells for picture in rows[id_][1][4:] if picture)

    hits = sorted((id_ for id_ in rows if winners[id_]), key=lambda id_: (len(winners[id_]), id_))
    misses = sorted((id_ for id_ in rows if not winners[id_]), key=lambda id_: (-nearest(id_), id_))
    shown = hits[: max(SOLVED, PUZZLES - len(misses))][:PUZZLES]
    shown_misses = misses[: PUZZLES - len(shown)]
    about = (
        f"{puzzles}: {len(shown)} of the {len(hits)} puzzles that an arm solved with {allowed} attempts, those of one arm alone "
        f"first, and {len(shown_misses)} of the {len(misses)} others, those with the most cells right. Chosen by result: how all "
        "answers fare is in the tables. One demonstration and the first test input of each."
    )
    heads = [f"{series.name}, attempt {k + 1}" for series in of_series for k in range(allowed)]
    chosen = [rows[id_] for id_ in (*shown, *shown_misses)]
    return Sheet(puzzles, about, ("demonstration", "its answer", "question", "right answer", *heads), chosen)


def _attempt(grid: Grid | None, answer: Grid) -> Picture:
    if grid is None:
        return Picture(None, "not readable")
    if grid.shape != answer.shape:
        return Picture(grid, "another size")
    share = float((grid == answer).mean())
    return Picture(grid, "right" if share == 1 else _cells(share), share == 1, share)


def _answer(record: Mapping[str, Any]) -> Picture:
    """An answer under the verdict of today's rules; other than the stored one it may be right all the same."""
    grid = None if record["proposed"] is None else np.asarray(record["proposed"], np.int8)
    found = _attempt(grid, np.asarray(record["answer"], np.int8))
    return Picture(grid, "right, another way", True, found.cells) if record["right"] and not found.right else found


def _cells(share: float) -> str:
    return f"{min(99.9, 100 * share):.1f} % of cells"  # never 100 where one is wrong


def _grid(rows: Any) -> Picture:
    return Picture(np.asarray(rows, np.int8))
