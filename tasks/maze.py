"""Mazes with exactly one way through (arXiv 2510.24448, "Base Maze").

Walls lie between the cells of a lattice of (side - 1) / 2 by (side - 1) / 2 rooms. Which doors are open is a spanning
tree of the lattice, drawn uniformly from all of them by Wilson's algorithm (STOC 1996), so every two rooms are joined
by one path. 13x13 and 21x21 run from the top left to the bottom right room as published. 7x7 has only 192 trees, so
there start and end are two random rooms at least two steps of the lattice apart; that makes 9216 mazes.
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

from tasks import paths
from tasks.base import MAX_SIDE, Apart, Batch, Example, Grid, Task, UserError, all_grid_bytes
from tasks.fast import below, stream, streams, twins_keys
from tasks.paths import END, PATH, START, WALL, Cell

Room = tuple[int, int]  # (row, col) on the lattice

VARIANTS = ("7x7", "9x9", "13x13", "21x21")


@dataclass(frozen=True)
class Maze(Task):
    side: int = 7  # cells, odd
    random_ends: bool = False  # start and end anywhere, or in opposite corners

    @property
    def about(self) -> str:
        return f"Mark the way from start to end in a maze of {self.side}x{self.side} cells; there is exactly one."

    @property
    def colours(self) -> Mapping[int, str]:
        return paths.NAMES

    @property
    def turns(self) -> Sequence[int]:
        return range(8) if self.random_ends else (0, 7)  # transposed, the corners stay where they are

    @property
    def apart(self) -> Apart:
        return Apart("way", 0.5)

    @property
    def space(self) -> int:
        """Spanning trees of the lattice, times the places of start and end."""
        rooms = (self.side - 1) // 2
        ends = 1
        if self.random_ends:
            steps = np.abs(np.subtract.outer(np.arange(rooms), np.arange(rooms)))
            ends = int((np.add.outer(steps, steps) >= 2).sum())
        return trees(rooms) * ends

    def make(self, rng: random.Random) -> Example:
        rooms = (self.side - 1) // 2
        question = _carved(rooms, stream(rng))
        start, end = self._ends(rooms, rng)
        question[start] = START
        question[end] = END
        return self._example(question)

    def _example(self, question: Grid) -> Example:
        frames = paths.solved(question)
        facts = {"path_cells": len(frames) - 1, "rooms": ((self.side - 1) // 2) ** 2}
        return Example(frames[0], frames[-1], (self.side, self.side), frames, facts)

    @property
    def words(self) -> int:
        return 0 if self.random_ends else 2

    def batch(self, numbers: npt.NDArray[np.uint32]) -> Batch:
        questions = _all_carved((self.side - 1) // 2, streams(numbers))
        exchanged = questions.copy()
        questions[:, 1, 1], questions[:, -2, -2] = START, END
        exchanged[:, 1, 1], exchanged[:, -2, -2] = END, START
        canonical = twins_keys([questions, exchanged])
        return Batch(all_grid_bytes(questions), canonical, lambda i: self._example(questions[i]))

    def _ends(self, rooms: int, rng: random.Random) -> tuple[Cell, Cell]:
        if not self.random_ends:
            return (1, 1), (self.side - 2, self.side - 2)
        lattice = [(r, c) for r in range(rooms) for c in range(rooms)]
        while True:
            a, b = rng.sample(lattice, 2)
            if abs(a[0] - b[0]) + abs(a[1] - b[1]) >= 2:
                return (2 * a[0] + 1, 2 * a[1] + 1), (2 * b[0] + 1, 2 * b[1] + 1)

    def fault(self, proposed: Grid, question: Grid) -> str:
        """Walls, start and end untouched; the marked cells with start and end are one simple path between them."""
        return paths.fault(proposed, question)

    def canonical(self, question: Grid) -> bytes:
        """Equal for the eight rotations and reflections, and for start and end exchanged."""
        return paths.canonical(question)


@njit(cache=True)
def _all_carved(side, draws):  # type: ignore[no-untyped-def]
    """`_carved` for every stream of `draws` (boards, 1): int8 (boards, 2 side + 1, 2 side + 1)."""
    boards = np.empty((len(draws), 2 * side + 1, 2 * side + 1), np.int8)
    for i in range(len(draws)):
        boards[i] = _carved(side, draws[i])
    return boards


@njit(cache=True)
def _carved(side, draw):  # type: ignore[no-untyped-def]
    """The board of side x side rooms whose open doors are `spanning_tree`, int8 (2 side + 1, 2 side + 1)."""
    parent = spanning_tree(side, draw)
    board = np.full((2 * side + 1, 2 * side + 1), WALL, np.int8)
    for room in range(side * side):
        r, c = room // side, room % side
        board[2 * r + 1, 2 * c + 1] = PATH
        board[r + parent[room] // side + 1, c + parent[room] % side + 1] = PATH  # the root is its own parent
    return board


@njit(cache=True)
def spanning_tree(side, draw):  # type: ignore[no-untyped-def]
    """A uniformly random spanning tree of the side x side lattice: every room's parent, int64 (side * side,), the root's
    being itself.

    Wilson's algorithm: from every room not yet in the tree walk at random until the tree is met, remembering only the
    last exit taken from each room, which erases loops; then add the walk.
    """
    rooms = side * side
    parent, exits = np.full(rooms, -1, np.int64), np.zeros(rooms, np.int64)
    root = below(draw, rooms)
    parent[root] = root
    for room in range(rooms):
        at, r, c = room, room // side, room % side
        while parent[at] < 0:
            step = below(draw, 4)
            y, x = r + (step == 0) - (step == 2), c + (step == 1) - (step == 3)
            if 0 <= y < side and 0 <= x < side:  # a door that there is
                exits[at] = y * side + x
                at, r, c = exits[at], y, x
        at = room
        while parent[at] < 0:
            parent[at] = exits[at]
            at = exits[at]
    return parent


@cache
def trees(side: int) -> int:
    """How many spanning trees the side x side lattice has: any cofactor of its Laplacian (Kirchhoff), by elimination in
    whole numbers (Bareiss, Math. Comp. 22, 1968)."""
    rooms = [(r, c) for r in range(side) for c in range(side)]
    near = [[abs(a - c) + abs(b - d) == 1 for c, d in rooms] for a, b in rooms]
    matrix = [[sum(row) if i == k else -int(row[k]) for k in range(1, len(rooms))] for i, row in enumerate(near)][1:]
    before = 1
    for k in range(len(matrix) - 1):
        for row in matrix[k + 1 :]:
            for c in range(len(matrix) - 1, k - 1, -1):
                row[c] = (row[c] * matrix[k][k] - row[k] * matrix[k][c]) // before
        before = matrix[k][k]
    return matrix[-1][-1]


def task(variant: str) -> Maze:
    """ "7x7" to "29x29", odd and square."""
    match = re.fullmatch(r"([0-9]{1,3})x([0-9]{1,3})", variant)
    if match is None:
        raise UserError(f"unknown maze {variant!r}; a maze is named by its size, for example 'maze/13x13'")
    side = int(match[1])
    if match[1] != match[2] or side % 2 == 0 or not 7 <= side < MAX_SIDE:
        raise UserError(f"no maze of {variant}: mazes are square with an odd side from 7 to {MAX_SIDE - 1}")
    return Maze(f"maze/{side}x{side}", side=side, random_ends=side == 7)
