"""ARC-style puzzles of one rule each, in which coloured cells move on an 8x8 grid. Our own, not from the paper.

mirror    every coloured cell goes to its mirror image, left and right exchanged
fall      coloured cells fall straight down until they rest on the bottom or on one another; order is kept
shift     every cell moves one column to the right; the last column comes in again on the left
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.base import Example, Grid, Task, UserError, renamed, suggest

SIDE = 8
FEWEST, MOST = 4, 16  # coloured cells
COLOURS = {0: "empty"} | {value: f"colour {value}" for value in range(1, 10)}

ABOUT = {
    "mirror": "Every coloured cell moves to its mirror image, left and right exchanged.",
    "fall": "The coloured cells fall down and pile up.",
    "shift": "Every cell moves one column to the right, round the edge.",
}
VARIANTS = tuple(ABOUT)


@dataclass(frozen=True)
class ColourMoves(Task):
    move: str = "mirror"

    @property
    def about(self) -> str:
        return ABOUT[self.move]

    @property
    def colours(self) -> Mapping[int, str]:
        return COLOURS

    @property
    def turns(self) -> Sequence[int]:
        """Each move goes along one axis and stays as it is across it."""
        return {"mirror": (0, 2, 4, 6), "fall": (0, 4), "shift": (0, 6)}[self.move]

    @property
    def free_colours(self) -> Sequence[int]:
        return range(1, 10)

    def make(self, rng: random.Random) -> Example:
        while True:
            question = np.zeros((SIDE, SIDE), dtype=np.int8)
            for place in rng.sample(range(SIDE * SIDE), rng.randint(FEWEST, MOST)):
                question.flat[place] = rng.randint(1, 9)
            frames = self.frames(question)
            if not np.array_equal(frames[-1], question):  # a picture that stays as it is teaches nothing
                break
        # A mirror image has no states between: the cells would have to pass through one another.
        trajectory = () if self.move == "mirror" else tuple(frames)
        return Example(question, frames[-1], (SIDE, SIDE), trajectory, {"coloured": int((question > 0).sum())})

    def solve(self, question: Grid) -> Grid:
        return self.frames(question)[-1]

    def frames(self, question: Grid) -> list[Grid]:
        """The states from the question to the answer, both included; any size."""
        if self.move == "mirror":
            return [question, question[:, ::-1].copy()]
        if self.move == "shift":
            return [question, np.roll(question, 1, axis=1)]
        frames = [question]
        while not np.array_equal(fallen := _fall_one_row(frames[-1]), frames[-1]):
            frames.append(fallen)
        return frames

    def canonical(self, question: Grid) -> bytes:
        """Equal after renaming the colours and after the mirror images and rotations that the rule does not notice."""
        twins = [question, question[:, ::-1]] if self.move != "shift" else [question]
        if self.move != "fall":
            twins += [twin[::-1] for twin in twins]
        if self.move == "shift":
            twins = [np.roll(twin, k, axis=1) for twin in twins for k in range(SIDE)]
        shapes = [(twin > 0).tobytes() for twin in twins]  # first by where the colours are, which is cheap to compare
        least = min(shapes)
        return min(renamed(twin, fixed=(0,)) for twin, shape in zip(twins, shapes, strict=True) if shape == least)


def _fall_one_row(grid: Grid) -> Grid:
    """Every coloured cell with a free cell somewhere below it moves down by one."""
    loose = (grid > 0) & (np.cumsum((grid == 0)[::-1], axis=0)[::-1] > 0)
    fallen = np.where(loose, 0, grid)
    fallen[1:] += np.where(loose, grid, 0)[:-1]
    return fallen.astype(np.int8)


def task(variant: str) -> ColourMoves:
    if variant not in VARIANTS:
        raise UserError(f"unknown move {variant!r}; one of {', '.join(VARIANTS)}.{suggest(variant, VARIANTS)}")
    return ColourMoves(f"colour_moves/{variant}", variant)
