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

from tasks.base import Apart, Example, Grid, Task, UserError, wrong_size
from tasks.fast import Stream, below, complete, shuffle, stream

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

    def make(self, rng: random.Random) -> Example:
        draw = stream(rng)
        while True:
            answer = _full(self.side, draw)
            question = answer.copy()
            if _take_away(question, _boxes(self.side), self.givens, draw):
                return Example(question, answer, (self.side, self.side), (), {"givens": self.givens})

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
        return bytes(_description(question, _boxes(len(question))))


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
def _description(question, regions):  # type: ignore[no-untyped-def]
    """What `Sudoku.canonical` says of every given, sorted: int64 (givens,)."""
    r, c = np.nonzero(question)
    count = len(r)
    digit, box = np.empty(count, np.int64), np.empty(count, np.int64)
    for i in range(count):
        digit[i], box[i] = question[r[i], c[i]], regions[r[i], c[i]]
    code = np.empty(count, np.int64)
    for i in range(count):
        in_row = in_column = in_box = alike = 0
        for k in range(count):
            in_row += r[k] == r[i]
            in_column += c[k] == c[i]
            in_box += box[k] == box[i]
            alike += digit[k] == digit[i]
        fewer, more = min(in_row, in_column), max(in_row, in_column)  # a transposed twin has rows for columns
        code[i] = fewer + 16 * more + 256 * in_box + 4096 * alike
    description = np.empty(count, np.int64)
    for i in range(count):
        around = alike_around = 0
        for k in range(count):
            mixed = code[k] * code[k] % 65521
            if r[k] == r[i] or c[k] == c[i] or box[k] == box[i]:
                around += mixed
            if digit[k] == digit[i]:
                alike_around += mixed
        description[i] = code[i] + 65536 * (around % 65521) + 65536 * 65536 * (alike_around % 65521)
    description.sort()
    return description


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
