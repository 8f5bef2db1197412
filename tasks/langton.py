"""Langton's ant after k steps on an 8x8 torus (arXiv 2510.24448, table 14).

On a white cell the ant turns right, on a black one left; the cell changes its colour, the ant moves on. It starts in
(4, 4) on white, facing up, among random cells. It is drawn as a value of its own that hides its cell's colour; its
heading is not drawn, so it is the same in every question.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.base import Apart, Example, Grid, Task, UserError

SIDE = 8
WHITE, BLACK, ANT = range(3)
START = (4, 4)
HEADINGS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left: a right turn is one further
VARIANTS = ("2", "3", "5", "10")  # steps, as published
MOST = 100


@dataclass(frozen=True)
class Langton(Task):
    steps: int = 2

    @property
    def about(self) -> str:
        return f"Langton's ant {self.steps} step{'s' * (self.steps > 1)} later; it faces up at first. The edges are joined."

    @property
    def colours(self) -> Mapping[int, str]:
        return {WHITE: "white", BLACK: "black", ANT: "the ant"}

    @property
    def apart(self) -> Apart:
        return Apart("answer", 0.3)

    @property
    def space(self) -> int:
        return 2 ** (SIDE * SIDE - 1)  # the ant stands on white

    def make(self, rng: random.Random) -> Example:
        question = np.array([rng.getrandbits(1) for _ in range(SIDE * SIDE)], dtype=np.int8).reshape(SIDE, SIDE)
        question[START] = ANT
        frames = self.frames(question)
        facts = {"steps": self.steps, "changed": int((frames[-1] != question).sum())}
        return Example(question, frames[-1], (SIDE, SIDE), tuple(frames), facts)

    def solve(self, question: Grid) -> Grid:
        return self.frames(question)[-1]

    def frames(self, question: Grid) -> list[Grid]:
        """The states from the question on, one a step; any size."""
        rows, columns = question.shape
        (r, c), heading = (int(i) for i in np.argwhere(question == ANT)[0]), 0
        floor = np.where(question == ANT, WHITE, question).astype(np.int8)
        frames = [question]
        for _ in range(self.steps):
            heading = (heading + (1 if floor[r, c] == WHITE else -1)) % 4
            floor[r, c] = 1 - floor[r, c]
            r, c = (r + HEADINGS[heading][0]) % rows, (c + HEADINGS[heading][1]) % columns
            drawn = floor.copy()
            drawn[r, c] = ANT
            frames.append(drawn)
        return frames


def task(variant: str) -> Langton:
    """The number of steps."""
    if not (variant.isascii() and variant.isdigit() and 1 <= int(variant[:4]) <= MOST):
        raise UserError(f"unknown ant {variant!r}; name the steps it takes, 1 to {MOST}: 'langton/5'")
    return Langton(f"langton/{int(variant)}", int(variant))
