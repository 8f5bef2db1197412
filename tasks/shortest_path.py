"""Shortest way between two places among obstacles on 15x15 (arXiv 2510.24448, "Shortest Path").

Walls all round, a twentieth of the cells walled at random, three barriers of 8 to 14 gaps, three to eight blocks of two or
three cells a side; start and end at least 15 steps of a rook apart, as published. Nearly every puzzle has many shortest
ways (published: a median of over two hundred), so every one of them is right. The stored one is what breadth-first search
meets first, looking down, right, up, left, as published; exact match asks for that very one.

Beside exact match stand the paper's two figures, with the definition that it leaves open:

    path_success      PSR: marked cells on free ground join start and end; what else was drawn does not count against it
    relative_length   RPL: steps of the marked way over steps of a shortest one; of valid answers only
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from tasks import paths
from tasks.base import Apart, Example, Grid, Task, UserError
from tasks.fast import below, shuffle, stream
from tasks.paths import END, PATH, SOLUTION, START, WALL, shortest

SIDE, APART = 15, 15
VARIANTS = ("15x15",)


@dataclass(frozen=True)
class ShortestPath(Task):
    @property
    def about(self) -> str:
        return "Mark a shortest way from start to end round the obstacles."

    @property
    def colours(self) -> Mapping[int, str]:
        return paths.NAMES

    @property
    def turns(self) -> Sequence[int]:
        return range(8)

    @property
    def apart(self) -> Apart:
        return Apart("way", 0.5)

    def make(self, rng: random.Random) -> Example:
        question = _obstacles(stream(rng))
        way = paths.shortest(question)
        frames = paths.along(question, way)
        return Example(question, frames[-1], (SIDE, SIDE), frames, {"steps": len(way) - 1})

    def fault(self, proposed: Grid, question: Grid) -> str:
        return paths.fault(proposed, question)

    def optimal(self, proposed: Grid, question: Grid) -> bool:
        return self._relative_length(proposed, question) == 1

    def measures(self, proposed: Grid, question: Grid) -> dict[str, float]:
        found = {"path_success": float(paths.success(proposed, question))}
        if not self.fault(proposed, question):
            found["relative_length"] = self._relative_length(proposed, question)
        return found

    def _relative_length(self, proposed: Grid, question: Grid) -> float:
        steps = int((proposed == SOLUTION).sum()) + 1
        return steps / (len(paths.shortest(question)) - 1)

    def canonical(self, question: Grid) -> bytes:
        """Equal for the eight rotations and reflections, and for start and end exchanged."""
        return paths.canonical(question)


@njit(cache=True)
def _obstacles(draw):  # type: ignore[no-untyped-def]
    """A board with start and end that a way joins."""
    while True:
        board = np.full((SIDE, SIDE), PATH, np.int8)
        board[0], board[-1], board[:, 0], board[:, -1] = WALL, WALL, WALL, WALL
        inner = SIDE - 2
        cells = np.arange(inner * inner)
        shuffle(cells, draw)
        for cell in cells[: SIDE * SIDE // 20]:
            board[1 + cell // inner, 1 + cell % inner] = WALL
        for _ in range(3):
            upright, line = below(draw, 2), 1 + below(draw, inner)
            gaps = np.arange(inner)
            shuffle(gaps, draw)
            closed = gaps[8 + below(draw, 6) :]  # 8 to 13 of the 13 cells stay as they are
            for k in closed:
                if upright:
                    board[1 + k, line] = WALL
                else:
                    board[line, 1 + k] = WALL
        for _ in range(3 + below(draw, 6)):
            height, width = 2 + below(draw, 2), 2 + below(draw, 2)
            top, left = 1 + below(draw, inner - height + 1), 1 + below(draw, inner - width + 1)
            board[top : top + height, left : left + width] = WALL
        for _ in range(20):  # a pair of places that suits, or other obstacles
            a, b, c, d = (
                1 + below(draw, inner),
                1 + below(draw, inner),
                1 + below(draw, inner),
                1 + below(draw, inner),
            )
            free = board[a, b] == PATH and board[c, d] == PATH
            if free and abs(a - c) + abs(b - d) >= APART:
                board[a, b], board[c, d] = START, END
                if len(shortest(board)):
                    return board
                board[a, b], board[c, d] = PATH, PATH


def task(variant: str) -> ShortestPath:
    if variant not in VARIANTS:
        raise UserError(f"unknown board {variant!r}; there is 'shortest_path/{VARIANTS[0]}'")
    return ShortestPath(f"shortest_path/{variant}")
