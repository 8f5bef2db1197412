"""Elementary cellular automata, all 256 rules (arXiv 2510.24448, table 7).

Sixteen cells in a ring and seven steps. Row 0 of the question is the first state, 1 for a cell that is off and 2 for
one that is on; the other rows are 0, "not computed yet", and are to be filled in. Wolfram's numbering: bit
4 left + 2 self + right of the rule is a cell's next state.

    eca/110             as published
    eca/110-12x30       a start and eleven steps of thirty cells
    eca/110-dead        the row has ends, and beyond them all is off
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
from numba import njit

from tasks.base import Apart, Batch, Example, Frames, Grid, Task, UserError, all_grid_bytes, rows_as_bytes
from tasks.fast import bits

WIDTH = 16
ROWS = 8  # the start and seven steps
LARGEST = 30
BLANK, OFF, ON = range(3)
# The paper's sixteen, by its four classes as printed there (from dying out to complex).
PAPER_RULES = (8, 32, 128, 160, 4, 108, 170, 250, 30, 45, 90, 150, 110, 54, 62, 106)
VARIANTS = tuple(str(rule) for rule in PAPER_RULES)


@dataclass(frozen=True)
class Eca(Task):
    rule: int = 110
    size: tuple[int, int] = (ROWS, WIDTH)
    wrap: bool = True

    @property
    def about(self) -> str:
        place = f"a ring of {self.size[1]} cells" if self.wrap else f"{self.size[1]} cells between dead ends"
        return f"{self.size[0] - 1} steps of elementary cellular automaton {self.rule} on {place}, a row a step."

    @property
    def colours(self) -> Mapping[int, str]:
        return {BLANK: "not computed", OFF: "off", ON: "on"}

    @property
    def turns(self) -> Sequence[int]:
        return (0, 4) if _mirrored(self._table) == self._table else (0,)

    @property
    def apart(self) -> Apart:
        return Apart("answer", 2 / (self.size[1] * (self.size[0] - 1)))

    @property
    def space(self) -> int:
        return 2 ** self.size[1]

    def make(self, rng: random.Random) -> Example:
        question = np.full(self.size, BLANK, dtype=np.int8)
        question[0] = [OFF + rng.getrandbits(1) for _ in range(self.size[1])]
        answer = self.solve(question)
        return self._example(answer * _known(self.size[0]))  # blank is 0

    def _example(self, frames: Frames) -> Example:
        return Example(frames[0], frames[-1], self.size, frames, {"rule": self.rule})

    @property
    def words(self) -> int:
        return self.size[1]

    def batch(self, numbers: npt.NDArray[np.uint32]) -> Batch:
        first = bits(numbers)
        frames = self._answers(first, self.size[0])[:, None] * _known(self.size[0])  # (draws, frames, rows, cells)
        return Batch(all_grid_bytes(frames[:, 0]), self._canonical(first), lambda i: self._example(frames[i]))

    def solve(self, question: Grid) -> Grid:
        return self._answers(question[:1] - np.int8(OFF), len(question))[0]

    def _answers(self, first: npt.NDArray[np.int8], rows: int) -> npt.NDArray[np.int8]:
        """The grids (starts, rows, cells) that follow from first rows of 0 and 1, (starts, cells)."""
        return _rows(first, np.array(self._table, np.int8), rows, self.wrap) + np.int8(OFF)

    @cached_property
    def _table(self) -> list[int]:
        return [self.rule >> pattern & 1 for pattern in range(8)]

    @property
    def _alone(self) -> bool:
        """Whether a cell follows from itself, whatever lies beside it."""
        return all(self._table[pattern] == self._table[pattern & 2] for pattern in range(8))

    def canonical(self, question: Grid) -> bytes:
        """Equal for rotations of the ring; if the rule allows, also for mirror images, for on and off exchanged, and for both at
        once, which some rules allow that allow neither (184)."""
        return self._canonical(question[:1] - np.int8(OFF))[0]

    def _canonical(self, first: npt.NDArray[np.int8]) -> list[bytes]:
        """The least twin of every row of cells 0 and 1, (starts, cells), rows compared as binary numbers."""
        width = first.shape[1]
        places = np.arange(width)[::-1]
        twins = [first]
        if _mirrored(self._table) == self._table:
            twins.append(first[:, ::-1])
        if self.wrap or self._alone:  # dead ends are off, and stay so
            if _exchanged(self._table) == self._table:
                twins.append(1 - first)
            if _mirrored(_exchanged(self._table)) == self._table:
                twins.append(1 - first[:, ::-1])
        least = np.full(len(first), 2**width)
        for twin in twins:
            ring = twin.astype(np.int64) @ (1 << places)
            for k in range(width if self.wrap else 1):
                np.minimum(least, ring << k & 2**width - 1 | ring >> width - k, out=least)
        return rows_as_bytes((least[:, None] >> places & 1).astype(np.int8))


def _mirrored(table: list[int]) -> list[int]:
    """A rule with left and right exchanged."""
    return [table[pattern] for pattern in (0, 4, 2, 6, 1, 5, 3, 7)]


def _exchanged(table: list[int]) -> list[int]:
    """A rule with on and off exchanged."""
    return [1 - on for on in reversed(table)]


@cache
def _known(rows: int) -> Grid:
    """(frames, rows, 1): row r is known in frame k, 0 or 1."""
    return np.tri(rows, dtype=np.int8)[:, :, None]


@njit(cache=True)
def _rows(first, table, rows, wrap):  # type: ignore[no-untyped-def]
    """Rows of cells 0 and 1, (starts, cells), and what follows each, int8 (starts, rows, cells)."""
    count, width = first.shape
    states = np.zeros((count, rows, width), np.int8)
    for i in range(count):
        states[i, 0] = first[i]
        for r in range(1, rows):
            above = states[i, r - 1]
            for c in range(width):
                left = above[c - 1] if c or wrap else 0  # index -1 is the last cell
                right = above[c + 1 if c + 1 < width else 0] if c + 1 < width or wrap else 0
                states[i, r, c] = table[4 * left + 2 * above[c] + right]
    return states


def task(variant: str) -> Eca:
    """ "0" to "255"; behind it rows x columns and "dead"."""
    match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,2})x([0-9]{1,2}))?(-dead)?", variant)
    if match is None or int(match[1]) > 255:
        raise UserError(f"unknown rule {variant!r}; elementary automata are numbered 0 to 255, for example 'eca/110'")
    rule, size = int(match[1]), (int(match[2] or ROWS), int(match[3] or WIDTH))
    if not 2 <= size[0] <= LARGEST or not 3 <= size[1] <= LARGEST:
        raise UserError(f"no eca/{variant}: 2 to {LARGEST} rows of 3 to {LARGEST} cells")
    shape = f"-{size[0]}x{size[1]}" if size != (ROWS, WIDTH) else ""
    return Eca(f"eca/{rule}{shape}{match[4] or ''}", rule, size, not match[4])
