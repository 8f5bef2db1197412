"""Views of a puzzle and the way back: the eight symmetries, renamed colours, the demonstrations in another order.

A rule that holds for a puzzle nearly always holds for its views, so an arm can learn from more of them, answer several,
turn its answers back and vote. Every view has an exact inverse and a name that says what it is: "t3-0214356789".
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tasks.base import VALUES, Example, Grid, Task, UserError, dihedral, grid_bytes

TURNS = 8
BACK = (0, 3, 2, 1, 4, 5, 6, 7)  # the turn that undoes each: rotations by a quarter undo each other, mirrors themselves
SAME = tuple(range(VALUES))


@dataclass(frozen=True)
class View:
    """Turn number `turn` of `dihedral`, then value v becomes `colours[v]`."""

    turn: int = 0
    colours: tuple[int, ...] = SAME

    @property
    def across(self) -> bool:
        """Whether rows and columns change places, as with quarter turns, mirrored or not."""
        return self.turn % 2 == 1

    @property
    def name(self) -> str:
        return f"t{self.turn}-" + "".join(f"{v:x}" for v in self.colours)

    def apply(self, grid: Grid) -> Grid:
        return np.array(self.colours, np.int8)[dihedral(grid)[self.turn]]

    def undo(self, grid: Grid) -> Grid:
        """`undo(apply(x)) == x`."""
        return np.ascontiguousarray(dihedral(np.argsort(self.colours).astype(np.int8)[grid])[BACK[self.turn]])

    def example(self, example: Example) -> Example:
        """The same puzzle seen so."""
        rows, cols = example.canvas
        return replace(
            example,
            question=self.apply(example.question),
            answer=self.apply(example.answer),
            canvas=(cols, rows) if self.across else (rows, cols),
            frames=tuple(self.apply(frame) for frame in example.frames),
        )


def view(name: str) -> View:
    """The inverse of `View.name`."""
    match = re.fullmatch(rf"t([0-7])-([0-9a-f]{{{VALUES}}})", name)
    if match is None or sorted(match[2]) != [f"{v:x}" for v in range(VALUES)]:
        raise UserError(f"{name!r} names no view; a view is called like {View().name!r}")
    return View(int(match[1]), tuple(int(digit, 16) for digit in match[2]))


def views(task: Task, count: int, seed: int = 0) -> list[View]:
    """`count` different views of a task's puzzles, the plain one first, then its other turns, then random ones of them
    with renamed colours. Those of a smaller count are a prefix. Raises UserError if the task has fewer.
    """
    turns, free = list(task.turns), list(task.free_colours)
    there_are = len(turns) * math.factorial(len(free))
    if count > there_are:
        raise UserError(f"{task.name} has {there_are} view{'s' * (there_are > 1)}, {count} were asked for")
    found = [View(turn) for turn in turns][:count]
    rng = random.Random(f"views/{seed}")
    seen = set(found)
    while len(found) < count:
        shuffled = rng.sample(free, len(free))
        renamed = dict(zip(free, shuffled, strict=True))
        new = View(rng.choice(turns), tuple(renamed.get(v, v) for v in range(VALUES)))
        if new not in seen:
            seen.add(new)
            found.append(new)
    return found


@dataclass(frozen=True)
class Vote:
    grid: Grid
    count: int  # how many answers are this grid
    certainty: float  # their mean certainty, 0..1


def vote(answers: Sequence[tuple[Grid | None, float]]) -> list[Vote]:
    """The different grids among (grid, certainty), most frequent first, ties by first seen.

    Not by certainty, which is only told: an arm that has none of its own would lose what another gains. Answers that could not
    be read have no vote.
    """
    groups: dict[bytes, list[tuple[Grid, float]]] = {}
    for grid, certainty in answers:
        if grid is not None:
            groups.setdefault(grid_bytes(grid), []).append((grid, certainty))
    votes = [Vote(g[0][0], len(g), float(np.mean([c for _, c in g]))) for g in groups.values()]
    return sorted(votes, key=lambda v: -v.count)  # stable


def twin_of_any(task: Task, example: Example) -> bytes:
    """Equal for examples of a task of which one is the other under one of its views: the least of its turns, its free colours
    numbered as they appear, question first."""
    fixed = [value for value in range(VALUES) if value not in task.free_colours]
    least = []
    for turn in task.turns:
        seen = View(turn).example(example)
        number = {value: i for i, value in enumerate(fixed)}
        cells = [*seen.question.ravel().tolist(), *seen.answer.ravel().tolist()]
        shape = (*seen.question.shape, *seen.answer.shape)
        least.append(bytes([*shape, *(number.setdefault(value, len(number)) for value in cells)]))
    return min(least)


def leave_one_out(demos: Sequence[Example]) -> list[tuple[list[Example], Example]]:
    """Each demonstration once as the test of the others."""
    return [([*demos[:i], *demos[i + 1 :]], demos[i]) for i in range(len(demos))]
