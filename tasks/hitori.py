"""Hitori with exactly one solution (arXiv 2510.24448, "Hitori 5x5").

Shade cells so that no number stands twice in a row or column unshaded, no two shaded cells share a side, and all unshaded
cells hang together. The answer is the mask: 1 shaded, 0 not.

A mask that obeys the last two rules is drawn first, as full as it goes: a cell that could be shaded without need would be
a second solution. Unshaded cells get the numbers of a random Latin square, shaded ones repeat a number of their row or
column. A solver that counts to two is the proof.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from tasks.base import Apart, Example, Grid, Task, UserError, dihedral, renamed, wrong_size
from tasks.fast import below, complete, shuffle, stream

UNKNOWN, WHITE, BLACK = 0, 1, 2
VARIANTS = ("5x5", "6x6", "8x8")
LARGEST = 9  # digits


@dataclass(frozen=True)
class Hitori(Task):
    side: int = 5

    @property
    def about(self) -> str:
        return (
            "Shade cells until no number repeats in a row or column; shaded cells never touch by a side and the others "
            "hang together."
        )

    @property
    def colours(self) -> Mapping[int, str]:
        return {0: "0, or unshaded", 1: "1, or shaded"} | {n: str(n) for n in range(2, self.side + 1)}

    @property
    def turns(self) -> Sequence[int]:
        return range(8)

    @property
    def apart(self) -> Apart:
        return Apart("question", 0.3)

    def make(self, rng: random.Random) -> Example:
        question, answer = _puzzle(self.side, stream(rng))
        return Example(question, answer, (self.side, self.side), (), {"shaded": int(answer.sum())})

    def fault(self, proposed: Grid, question: Grid) -> str:
        if wrong := wrong_size(proposed, question):
            return wrong
        if not np.isin(proposed, (0, 1)).all():
            return "a mask holds 0 and 1 only"
        shaded = proposed == 1
        if (shaded[1:] & shaded[:-1]).any() or (shaded[:, 1:] & shaded[:, :-1]).any():
            return "two shaded cells share a side"
        for name, lines, masks in (("row", question, shaded), ("column", question.T, shaded.T)):
            for i, (line, mask) in enumerate(zip(lines, masks, strict=True), 1):
                left = line[~mask]
                if len(set(left.tolist())) < len(left):
                    return f"a number repeats in {name} {i}"
        return "" if _together(proposed) else "the unshaded cells do not hang together"

    def canonical(self, question: Grid) -> bytes:
        """Equal for rotations, reflections and renamed numbers."""
        return min(renamed(twin) for twin in dihedral(question))


def solutions(question: Grid, most: int = 2) -> int:
    """How many solutions a hitori has, counted up to `most`."""
    return int(_count(question, most))


@njit(cache=True)
def _puzzle(side, draw):  # type: ignore[no-untyped-def]
    """(question, answer), both int8 (side, side)."""
    while True:
        mask = _mask(side, draw)
        grid = _numbers(mask, draw)
        if grid[0, 0] and _count(grid, 2) == 1:
            return grid, mask


@njit(cache=True)
def _mask(side, draw):  # type: ignore[no-untyped-def]
    """Shade cells in random order wherever the rules allow it."""
    mask = np.zeros((side, side), np.int8)
    order = np.arange(side * side)
    shuffle(order, draw)
    for cell in order:
        r, c = cell // side, cell % side
        if _touches(mask, r, c):
            continue
        mask[r, c] = 1
        if not _together(mask):
            mask[r, c] = 0
    return mask


@njit(cache=True)
def _touches(mask, r, c):  # type: ignore[no-untyped-def]
    """Whether a cell beside this one is shaded."""
    side = len(mask)
    return (
        (r > 0 and mask[r - 1, c] == 1)
        or (r + 1 < side and mask[r + 1, c] == 1)
        or (c > 0 and mask[r, c - 1] == 1)
        or (c + 1 < side and mask[r, c + 1] == 1)
    )


@njit(cache=True)
def _together(mask):  # type: ignore[no-untyped-def]
    """Whether the cells that are not 1 are one piece."""
    rows, columns = mask.shape
    seen = mask == 1
    todo = np.empty((rows * columns, 2), np.int64)
    pieces = 0
    for r0 in range(rows):
        for c0 in range(columns):
            if seen[r0, c0]:
                continue
            pieces += 1
            if pieces > 1:
                return False
            seen[r0, c0] = True
            todo[0, 0], todo[0, 1] = r0, c0
            waiting = 1
            while waiting:
                waiting -= 1
                r, c = todo[waiting, 0], todo[waiting, 1]
                for k in range(4):
                    a, b = r + (k == 0) - (k == 1), c + (k == 2) - (k == 3)
                    if 0 <= a < rows and 0 <= b < columns and not seen[a, b]:
                        seen[a, b] = True
                        todo[waiting, 0], todo[waiting, 1] = a, b
                        waiting += 1
    return True


@njit(cache=True)
def _numbers(mask, draw):  # type: ignore[no-untyped-def]
    """Numbers for a mask: a random Latin square, then each shaded cell takes a number that stands unshaded in its row
    or its column (in both if there is one). A grid of zeros where a shaded cell finds none."""
    side = len(mask)
    square, rows = np.zeros((side, side), np.int8), np.zeros((side, side), np.int64)
    for r in range(side):
        rows[r] = r
    complete(square, rows, 1, draw, True)
    grid = square.copy()
    for r in range(side):
        for c in range(side):
            if not mask[r, c]:
                continue
            in_row = np.zeros(side + 1, np.int64)
            for k in range(side):
                if not mask[r, k]:
                    in_row[square[r, k]] |= 1
                if not mask[k, c]:
                    in_row[square[k, c]] |= 2
            best = in_row.max()
            if best == 0:
                return np.zeros((side, side), np.int8)
            choices = np.flatnonzero(in_row == best)
            grid[r, c] = choices[below(draw, len(choices))]
    return grid


@njit(cache=True)
def _count(grid, most):  # type: ignore[no-untyped-def]
    """Solutions of a hitori, counted up to `most`: depth first, each cell white or black, with what follows from it."""
    side = len(grid)
    cells = side * side
    states = np.zeros((cells + 1, side, side), np.int8)  # by depth
    tried = np.zeros(cells + 1, np.int8)
    where = np.zeros(cells + 1, np.int64)
    count = depth = 0
    where[0] = _next(states[0])
    while depth >= 0:
        tried[depth] += 1
        if tried[depth] > 2:
            depth -= 1
            continue
        r, c = where[depth] // side, where[depth] % side
        states[depth + 1] = states[depth]
        value = BLACK if tried[depth] == 1 else WHITE
        if not _follow(states[depth + 1], grid, r, c, value):
            continue
        following = _next(states[depth + 1])
        if following < 0:
            count += 1
            if count == most:
                return count
            continue
        depth += 1
        where[depth], tried[depth] = following, 0
    return count


@njit(cache=True)
def _next(state):  # type: ignore[no-untyped-def]
    """The first cell that is not decided, or -1."""
    side = len(state)
    for cell in range(side * side):
        if state[cell // side, cell % side] == UNKNOWN:
            return cell
    return -1


@njit(cache=True)
def _follow(state, grid, r0, c0, value):  # type: ignore[no-untyped-def]
    """Decide a cell and what the rules then force; False where they are broken."""
    side = len(state)
    todo = np.empty((side * side + 1, 2), np.int64)
    todo[0, 0], todo[0, 1] = r0, c0
    state[r0, c0] = value
    waiting = 1
    blackened = value == BLACK
    while waiting:
        waiting -= 1
        r, c = todo[waiting, 0], todo[waiting, 1]
        if state[r, c] == BLACK:  # its neighbours are white
            for k in range(4):
                a, b = r + (k == 0) - (k == 1), c + (k == 2) - (k == 3)
                if 0 <= a < side and 0 <= b < side:
                    if state[a, b] == BLACK:
                        return False
                    if state[a, b] == UNKNOWN:
                        state[a, b] = WHITE
                        todo[waiting, 0], todo[waiting, 1] = a, b
                        waiting += 1
        else:  # its like in the row and the column are black
            for k in range(2 * side):
                a, b = (r, k) if k < side else (k - side, c)
                if (a != r or b != c) and grid[a, b] == grid[r, c]:
                    if state[a, b] == WHITE:
                        return False
                    if state[a, b] == UNKNOWN:
                        state[a, b] = BLACK
                        blackened = True
                        todo[waiting, 0], todo[waiting, 1] = a, b
                        waiting += 1
    if not blackened:
        return True
    return _together((state == BLACK).astype(np.int8))


def task(variant: str) -> Hitori:
    """ "5x5" to "9x9"."""
    match = re.fullmatch(r"([0-9]{1,2})x([0-9]{1,2})", variant)
    if match is None or match[1] != match[2] or not 4 <= int(match[1]) <= LARGEST:
        raise UserError(f"unknown hitori {variant!r}; squares of 4x4 to {LARGEST}x{LARGEST}, for example 'hitori/5x5'")
    side = int(match[1])
    return Hitori(f"hitori/{side}x{side}", side)
