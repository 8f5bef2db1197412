"""Sudoku with exactly one solution (arXiv 2510.24448, "Sudoku" 9x9 with 40 givens and "Sudoku Mini" 4x4 with 8).

A full grid is drawn first, then givens are taken away in random order, each only if the puzzle keeps one solution, until
as many are left as asked for. A solver that counts to two is the proof. In the published data 58 % of the 9x9 and 14 %
of the 4x4 puzzles have several solutions, and all 9x9 solutions are shuffles of one pattern.

A 9x9 grid is drawn by randomised search (a random digit in the cell with the fewest candidates), which comes near to
uniform; a 4x4 grid is drawn uniformly from all 288.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from numba import njit

from tasks.base import Apart, Batch, Example, Grid, Task, UserError, all_grid_bytes, rows_as_bytes, wrong_size
from tasks.fast import Stream, below, complete, shuffle, stream, streams

EMPTY = 0
GIVENS = {9: {"": 40, "-medium": 32, "-hard": 24}, 4: {"": 8, "-medium": 6, "-hard": 5}}  # by side and level
VARIANTS = tuple(f"{side}x{side}{level}" for side, levels in GIVENS.items() for level in levels)
FEWEST = {9: 22, 4: 4}  # below, a random order hardly ever gets there


@dataclass(frozen=True)
class Sudoku(Task):
    side: int = 9
    givens: int = 40

    @property
    def about(self) -> str:
        return f"Fill the {self.side}x{self.side} grid: every row, column and box holds each of 1 to {self.side} once."

    @property
    def colours(self) -> Mapping[int, str]:
        return {EMPTY: "empty"} | {digit: str(digit) for digit in range(1, self.side + 1)}

    @property
    def turns(self) -> Sequence[int]:
        return range(8)

    @property
    def free_colours(self) -> Sequence[int]:
        return range(1, self.side + 1)

    @property
    def apart(self) -> Apart:
        return Apart("question", 0.3)

    @property
    def space(self) -> int | None:
        """A 9x9 grid has more puzzles than anybody has counted. The 4x4 are: of the 288 full grids all are the twelve that
        begin with 1234, digits renamed, and which cells may be empty does not depend on the names."""
        return _count_four_by_four(self.givens) if self.side == 4 else None

    @property
    def within_reach(self) -> int:
        return {22: 30, 23: 200}.get(self.givens, 1000)  # some two seconds: a random order hardly ever gets so far down

    def make(self, rng: random.Random) -> Example:
        draw = stream(rng)
        while True:
            answer = _full(self.side, draw)
            question = answer.copy()
            if _take_away(question, _boxes(self.side), self.givens, draw):
                return Example(question, answer, (self.side, self.side), (), {"givens": self.givens})

    @property
    def words(self) -> int:
        return 2

    def batch(self, numbers: npt.NDArray[np.uint32]) -> Batch:
        boxes, draws = _boxes(self.side), streams(numbers)
        if self.side == 4:
            questions, answers = _small_puzzles(_all_four_by_four(), _unavoidable(), self.givens, draws)
        else:
            questions, answers = _puzzles(boxes, self.givens, draws)
        canonical = rows_as_bytes(_descriptions(questions, boxes, self.givens))
        canvas, facts = (self.side, self.side), {"givens": self.givens}
        return Batch(
            all_grid_bytes(questions), canonical, lambda i: Example(questions[i], answers[i], canvas, (), facts)
        )

    def fault(self, proposed: Grid, question: Grid) -> str:
        """The givens stand, and every row, column and box holds each digit once."""
        if wrong := wrong_size(proposed, question):
            return wrong
        if np.any((question != EMPTY) & (proposed != question)):
            return "a given was changed"
        side, box = len(question), _box(len(question))
        digits = np.arange(1, side + 1)
        boxes = proposed.reshape(box, box, box, box).swapaxes(1, 2).reshape(side, side)
        for name, lines in (("row", proposed), ("column", proposed.T), ("box", boxes)):
            bad = np.flatnonzero((np.sort(lines, axis=1) != digits).any(axis=1))
            if len(bad):
                return f"{name} {bad[0] + 1} does not hold each of 1 to {side} once"
        return ""

    def canonical(self, question: Grid) -> bytes:
        """Equal for sudokus that are twins: digits renamed; rows or columns exchanged within a band, bands exchanged;
        transposed. Not a normal form but a description that no twin changes: for every given, how many givens its
        row, column and box hold, how many have its digit, and the same of the givens that it sees."""
        givens = np.count_nonzero(question)
        return bytes(_descriptions(question[None], _boxes(len(question)), givens)[0])


def solutions(question: Grid, most: int = 2) -> int:
    """How many solutions a sudoku has, counted up to `most`."""
    return int(complete(question.copy(), _boxes(len(question)), most, np.zeros(1, np.uint64), False))


@cache
def _boxes(side: int) -> npt.NDArray[np.int64]:
    """The number of each cell's box, (side, side)."""
    r, c = np.indices((side, side))
    return r // _box(side) * _box(side) + c // _box(side)


def _box(side: int) -> int:
    return 3 if side == 9 else 2


def _full(side: int, draw: Stream) -> Grid:
    """A full grid."""
    if side == 4:
        return _all_four_by_four()[below(draw, 288)].copy()
    grid = np.zeros((side, side), np.int8)
    complete(grid, _boxes(side), 1, draw, True)
    return grid


@cache
def _all_four_by_four() -> Grid:
    """All full 4x4 grids, (288, 4, 4)."""
    found = [np.zeros((4, 4), np.int8)]
    for r, c in np.ndindex(4, 4):
        fuller = []
        for grid in found:
            for digit in range(1, 5):
                near = grid[r // 2 * 2 : r // 2 * 2 + 2, c // 2 * 2 : c // 2 * 2 + 2]
                if digit not in grid[r] and digit not in grid[:, c] and digit not in near:
                    fuller.append(grid.copy())
                    fuller[-1][r, c] = digit
        found = fuller
    return np.stack(found)


@cache
def _unavoidable() -> npt.NDArray[np.int64]:
    """For every full 4x4 grid the least sets of cells in which another one differs from it, as bits of 16: (288, sets),
    filled up with sets that no grid has. A puzzle has one solution if and only if some cell of every such set is given."""
    grids = _all_four_by_four().reshape(288, 16)
    differ = (grids[:, None] != grids) @ (1 << np.arange(16))  # (288, 288)
    found = []
    for sets in differ:
        sets = np.unique(sets[sets > 0])
        inside = (sets[:, None] & sets) == sets[:, None]  # whether set i lies in set k
        found.append(sets[inside.sum(axis=0) == 1])
    return np.stack([np.pad(sets, (0, max(map(len, found)) - len(sets)), constant_values=1 << 16) for sets in found])


@njit(cache=True)
def _small_puzzles(full, unavoidable, givens, draws):  # type: ignore[no-untyped-def]
    """What `Sudoku.make` draws from every stream of `draws` (puzzles, 1), for 4x4: questions and answers int8
    (puzzles, 4, 4). `unavoidable` tells what `complete` would find out."""
    questions = np.empty((len(draws), 4, 4), np.int8)
    answers = np.empty((len(draws), 4, 4), np.int8)
    order = np.empty(16, np.int64)
    for i in range(len(draws)):
        standing = 16
        while standing > givens:
            which = below(draws[i], 288)
            order[:] = np.arange(16)
            shuffle(order, draws[i])
            standing, empty = 16, np.int64(0)
            for cell in order:
                if standing > givens and not _holds_any(empty | 1 << cell, unavoidable[which]):
                    empty |= 1 << cell
                    standing -= 1
        for r in range(4):
            for c in range(4):
                answers[i, r, c] = full[which, r, c]
                questions[i, r, c] = 0 if empty >> 4 * r + c & 1 else full[which, r, c]
    return questions, answers


@njit(cache=True)
def _holds_any(cells, sets):  # type: ignore[no-untyped-def]
    """Whether one of `sets` lies in `cells`, both as bits."""
    for one in sets:
        if one & ~cells == 0:
            return True
    return False


@njit(cache=True)
def _puzzles(boxes, givens, draws):  # type: ignore[no-untyped-def]
    """What `Sudoku.make` draws from every stream of `draws` (puzzles, 1), for 9x9: questions and answers int8
    (puzzles, 9, 9)."""
    questions = np.empty((len(draws), *boxes.shape), np.int8)
    answers = np.empty((len(draws), *boxes.shape), np.int8)
    for i in range(len(draws)):
        done = False
        while not done:
            answers[i] = 0
            complete(answers[i], boxes, 1, draws[i], True)
            questions[i] = answers[i]
            done = _take_away(questions[i], boxes, givens, draws[i])
    return questions, answers


@cache
def _count_four_by_four(givens: int) -> int:
    """How many 4x4 sudokus with so many givens have one solution."""
    plain = [grid for grid in _all_four_by_four() if (grid[0] == np.arange(1, 5)).all()]
    return 24 * sum(int(_unique_choices(grid, _boxes(4), givens)) for grid in plain)


@njit(cache=True)
def _unique_choices(solution, regions, givens):  # type: ignore[no-untyped-def]
    """In how many ways so many cells of a full grid can be given so that it is the only solution."""
    side, cells = solution.shape[0], solution.size
    count, draw = 0, np.zeros(1, np.uint64)
    for chosen in range(1 << cells):
        number, rest = 0, chosen
        while rest:
            rest &= rest - 1
            number += 1
        if number == givens:
            grid = solution.copy()
            for cell in range(cells):
                if not chosen >> cell & 1:
                    grid[cell // side, cell % side] = 0
            count += complete(grid, regions, 2, draw, False) == 1
    return count


@njit(cache=True)
def _take_away(grid, regions, givens, draw):  # type: ignore[no-untyped-def]
    """Empty cells of the full `grid` in random order while it keeps one solution, until `givens` are left. Whether it
    got there."""
    side = grid.shape[0]
    order = np.arange(side * side)
    shuffle(order, draw)
    standing = side * side
    for cell in order:
        if standing == givens:
            break
        r, c = cell // side, cell % side
        digit = grid[r, c]
        grid[r, c] = 0
        if complete(grid.copy(), regions, 2, draw, False) == 1:
            standing -= 1
        else:
            grid[r, c] = digit
    return standing == givens


@njit(cache=True)
def _descriptions(questions, regions, givens):  # type: ignore[no-untyped-def]
    """What `Sudoku.canonical` says of every given of every question, sorted: int64 (questions, givens)."""
    side = questions.shape[1]
    found = np.empty((len(questions), givens), np.int64)
    line = np.empty((4, givens), np.int64)  # the row, column, box and digit of every given
    code, mixed = np.empty(givens, np.int64), np.empty(givens, np.int64)
    for q in range(len(questions)):
        held = np.zeros((4, side + 1), np.int64)  # how many givens each of them has
        i = 0
        for r in range(side):
            for c in range(side):
                if questions[q, r, c]:
                    line[0, i], line[1, i], line[2, i], line[3, i] = r, c, regions[r, c], questions[q, r, c]
                    for kind in range(4):
                        held[kind, line[kind, i]] += 1
                    i += 1
        for i in range(givens):
            in_row, in_column = held[0, line[0, i]], held[1, line[1, i]]
            fewer, more = min(in_row, in_column), max(in_row, in_column)  # a transposed twin has rows for columns
            code[i] = fewer + 16 * more + 256 * held[2, line[2, i]] + 4096 * held[3, line[3, i]]
            mixed[i] = code[i] * code[i] % 65521
        for i in range(givens):
            around = alike = 0
            for k in range(givens):
                if line[0, k] == line[0, i] or line[1, k] == line[1, i] or line[2, k] == line[2, i]:
                    around += mixed[k]
                if line[3, k] == line[3, i]:
                    alike += mixed[k]
            said, k = code[i] + 65536 * (around % 65521) + 65536 * 65536 * (alike % 65521), i
            while k > 0 and found[q, k - 1] > said:  # into its place among those before it
                found[q, k] = found[q, k - 1]
                k -= 1
            found[q, k] = said
    return found


def task(variant: str) -> Sudoku:
    """ "9x9", "9x9-medium", "9x9-hard", "4x4"; or a number of givens: "9x9-28"."""
    match = re.fullmatch(r"(9x9|4x4)(-[a-z]+|-[0-9]{1,2}|)", variant)
    if match is None:
        raise UserError(f"unknown sudoku {variant!r}; one of {', '.join(VARIANTS)}, or a number of givens: '9x9-28'")
    side, level = int(match[1][0]), match[2]
    givens = GIVENS[side].get(level) or (int(level[1:]) if level[1:].isdigit() else 0)
    if not FEWEST[side] <= givens < side * side:
        raise UserError(f"no sudoku {variant!r}: {side}x{side} takes {FEWEST[side]} to {side * side - 1} givens")
    return Sudoku(f"sudoku/{side}x{side}{level}", side, givens)
