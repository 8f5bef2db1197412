"""Mazes with exactly one way through (arXiv 2510.24448, "Base Maze").

Walls lie between the cells of a lattice of (side - 1) / 2 by (side - 1) / 2 rooms. Which doors are open is a spanning
tree of the lattice, drawn uniformly from all of them by Wilson's algorithm (STOC 1996), so every two rooms are joined
by one path. 13x13 and 21x21 run from the top left to the bottom right room as published. 7x7 has only 192 trees, so
there start and end are two random rooms at least two steps of the lattice apart; that makes 9216 mazes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks import paths
from tasks.base import MAX_SIDE, Example, Grid, Task, UserError
from tasks.paths import END, PATH, SOLUTION, START, WALL, Cell

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

    def make(self, rng: random.Random) -> Example:
        rooms = (self.side - 1) // 2
        parent = spanning_tree(rooms, rng)
        question = np.full((self.side, self.side), WALL, dtype=np.int8)
        for (r, c), (pr, pc) in parent.items():
            question[2 * r + 1, 2 * c + 1] = PATH
            question[r + pr + 1, c + pc + 1] = PATH  # the door between a room and its parent; the root is its own
        start, end = self._ends(rooms, rng)
        question[start] = START
        question[end] = END

        way = paths.shortest(question)[1:-1]
        answer = question.copy()
        frames = [question]
        for cell in way:
            answer[cell] = SOLUTION
            frames.append(answer.copy())
        canvas = (self.side, self.side)
        return Example(question, answer, canvas, tuple(frames), {"path_cells": len(way), "rooms": rooms**2})

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


def spanning_tree(side: int, rng: random.Random) -> dict[Room, Room]:
    """A uniformly random spanning tree of the side x side lattice: every room's parent; the root is its own parent.

    Wilson's algorithm: from every room not yet in the tree walk at random until the tree is met, remembering only the
    last exit taken from each room, which erases loops; then add the walk.
    """
    tree: dict[Room, Room] = {}
    root = (rng.randrange(side), rng.randrange(side))
    tree[root] = root
    for room in [(r, c) for r in range(side) for c in range(side)]:
        exits: dict[Room, Room] = {}
        at = room
        while at not in tree:
            r, c = at
            doors = [(a, b) for a, b in ((r + 1, c), (r, c + 1), (r - 1, c), (r, c - 1)) if 0 <= a < side > b >= 0]
            exits[at] = at = doors[int(rng.random() * len(doors))]
        at = room
        while at not in tree:
            tree[at] = at = exits[at]
    return tree


def task(variant: str) -> Maze:
    """ "7x7" to "29x29", odd and square."""
    match = re.fullmatch(r"([0-9]{1,3})x([0-9]{1,3})", variant)
    if match is None:
        raise UserError(f"unknown maze {variant!r}; a maze is named by its size, for example 'maze/13x13'")
    side = int(match[1])
    if match[1] != match[2] or side % 2 == 0 or not 7 <= side < MAX_SIDE:
        raise UserError(f"no maze of {variant}: mazes are square with an odd side from 7 to {MAX_SIDE - 1}")
    return Maze(f"maze/{side}x{side}", side=side, random_ends=side == 7)
