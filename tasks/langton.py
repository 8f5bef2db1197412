"""Langton's ant after k steps on an 8x8 torus (arXiv 2510.24448, table 14).

On a white cell the ant turns right, on a black one left; the cell changes its colour, the ant moves on. It starts in
(4, 4) on white, facing up, among random cells. It is drawn as a value of its own that hides its cell's colour; its
heading is not drawn, so it is the same in every question.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from tasks.base import Apart, Batch, Example, Frames, Grid, Task, UserError, all_grid_bytes
from tasks.fast import bits

SIDE = 8
WHITE, BLACK, ANT = range(3)
START = (4, 4)
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
        return self._example(tuple(frames), int((frames[-1] != question).sum()))

    def _example(self, frames: Frames, changed: int) -> Example:
        facts = {"steps": self.steps, "changed": changed}
        return Example(frames[0], frames[-1], (SIDE, SIDE), frames, facts)

    @property
    def words(self) -> int:
        return SIDE * SIDE

    def batch(self, numbers: npt.NDArray[np.uint32]) -> Batch:
        questions = bits(numbers).reshape(-1, SIDE, SIDE)
        questions[:, *START] = ANT
        frames = _walks(questions, self.steps)
        changed = (frames[:, -1] != questions).sum((1, 2)).tolist()
        asked = all_grid_bytes(questions)
        return Batch(asked, asked, lambda i: self._example(frames[i], changed[i]))

    def solve(self, question: Grid) -> Grid:
        return self.frames(question)[-1]

    def frames(self, question: Grid) -> list[Grid]:
        """The states from the question on, one a step; any size."""
        return list(_walks(question[None], self.steps)[0])


@njit(cache=True)
def _walks(questions, steps):  # type: ignore[no-untyped-def]
    """int8 (questions, steps + 1, rows, cols): each question and the state after each step."""
    frames = np.empty((len(questions), steps + 1, *questions.shape[1:]), np.int8)
    for i in range(len(questions)):
        _walk(questions[i], frames[i])
    return frames


@njit(cache=True)
def _walk(question, frames):  # type: ignore[no-untyped-def]
    """One question's walk, written to `frames` (steps + 1, rows, cols)."""
    rows, columns = question.shape
    frames[0] = question
    floor, r, c, heading = question.copy(), 0, 0, 0
    for row in range(rows):
        for column in range(columns):
            if question[row, column] == ANT:
                r, c, floor[row, column] = row, column, WHITE
    for k in range(len(frames) - 1):
        heading = (heading + (1 if floor[r, c] == WHITE else -1)) % 4
        floor[r, c] = 1 - floor[r, c]
        r = (r + (heading == 2) - (heading == 0)) % rows  # up, right, down, left: a right turn is one further
        c = (c + (heading == 1) - (heading == 3)) % columns
        frames[k + 1] = floor
        frames[k + 1, r, c] = ANT


def task(variant: str) -> Langton:
    """The number of steps."""
    if re.fullmatch(r"[1-9][0-9]{0,2}", variant) is None or int(variant) > MOST:
        raise UserError(f"unknown ant {variant!r}; name the steps it takes, 1 to {MOST}: 'langton/5'")
    return Langton(f"langton/{int(variant)}", int(variant))
