"""Tower of Hanoi, as a picture of one move and as a table of a whole plan.

    hanoi/4-step   towers of 4 disks on three pegs; move one disk on a shortest way to all of them on the marked peg
    hanoi/4-plan   a table of states, one a row, a column a disk, values the pegs 1 to 3: the first row is the start, the
                   last one the goal; fill the rows after the start with a shortest plan and leave the others blank

From any state to all disks on one peg the shortest way is unique. Between two arbitrary states there may be two; then
both are right.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from tasks.base import Apart, Batch, Example, Grid, Task, UserError, grid_bytes, wrong_size

State = tuple[int, ...]  # the peg 0..2 of each disk, the smallest first
PEGS = 3
BASE, GOAL = 6, 7  # values of the row below the towers; disks are 1 (smallest) to 5
BLANK = 0
VARIANTS = ("4-step", "5-step", "3-plan", "4-plan")
DISKS = {"step": (4, 5), "plan": (3, 4)}  # fewer have too few puzzles to share out, more do not fit on a grid


@dataclass(frozen=True)
class Step(Task):
    disks: int = 4

    @property
    def about(self) -> str:
        return "Move one disk, on the shortest way to the whole tower on the marked peg."

    @property
    def colours(self) -> Mapping[int, str]:
        disks = {n: f"disk {n}" for n in range(1, self.disks + 1)}
        return {0: "empty"} | disks | {BASE: "peg", GOAL: "peg to build on"}

    @property
    def turns(self) -> Sequence[int]:
        return (0, 4)  # the pegs from right to left

    @property
    def apart(self) -> Apart:
        return Apart("question", 0.01)

    @property
    def space(self) -> int:
        return PEGS * (PEGS**self.disks - 1)

    def make(self, rng: random.Random) -> Example:
        goal = rng.randrange(PEGS)
        while len(set(state := tuple(rng.randrange(PEGS) for _ in range(self.disks)))) == 1 and state[0] == goal:
            pass
        return _step(state, goal)

    @property
    def words(self) -> int:
        return 4 * (self.disks + 1)  # a number gives a peg in three cases of four

    def batch(self, numbers: npt.NDArray[np.uint32]) -> Batch:
        asked: list[bytes | None] = []
        canonical, puzzles = [], []
        for row in (numbers >> np.uint32(30)).tolist():  # `randrange(3)` takes two bits, again where they are 3
            goal, *pegs = [peg for peg in row if peg < PEGS][: self.disks + 1] or [0]
            state = tuple(pegs)
            alone = len(state) < self.disks or set(state) == {goal}
            asked.append(None if alone else grid_bytes(draw(state, goal)))
            canonical.append(bytes(_renamed([goal, *state])))
            puzzles.append((state, goal))
        return Batch(asked, canonical, lambda i: _step(*puzzles[i]))

    def solve(self, question: Grid) -> Grid:
        state, goal = read(question)
        return _after(state, goal)

    def canonical(self, question: Grid) -> bytes:
        """Equal however the pegs are named."""
        state, goal = read(question)
        return bytes(_renamed([goal, *state]))


@cache
def _step(state: State, goal: int) -> Example:
    question, answer = draw(state, goal), _after(state, goal)
    facts = {"disks": len(state), "moves_left": distances((goal,) * len(state))[state]}
    return Example(question, answer, (question.shape[0], question.shape[1]), (question, answer), facts)


def _after(state: State, goal: int) -> Grid:
    """The towers after the one move that leads on."""
    left = distances((goal,) * len(state))
    return draw(min(moves(state), key=left.__getitem__), goal)


@dataclass(frozen=True)
class Plan(Task):
    disks: int = 4

    @property
    def about(self) -> str:
        return "Fill in the states of a shortest plan from the first row to the last, one move a row."

    @property
    def colours(self) -> Mapping[int, str]:
        return {BLANK: "blank"} | {peg: f"peg {peg}" for peg in range(1, PEGS + 1)}

    @property
    def space(self) -> int:
        states = itertools.product(range(PEGS), repeat=self.disks)
        return sum(sum(left >= 2 for left in distances(goal).values()) for goal in states)

    def make(self, rng: random.Random) -> Example:
        while True:
            start, goal = (tuple(rng.randrange(PEGS) for _ in range(self.disks)) for _ in range(2))
            if distances(goal)[start] >= 2:
                break
        way = [start]
        while way[-1] != goal:
            way.append(min(moves(way[-1]), key=distances(goal).__getitem__))
        question = np.zeros((2**self.disks, self.disks), np.int8)
        question[0], question[-1] = np.array(start) + 1, np.array(goal) + 1
        frames = [question]
        for row, state in enumerate(way[1:-1], 1):
            frames.append(frames[-1].copy())
            frames[-1][row] = np.array(state) + 1
        canvas = (question.shape[0], question.shape[1])
        return Example(question, frames[-1], canvas, tuple(frames), {"disks": self.disks, "moves": len(way) - 1})

    def fault(self, proposed: Grid, question: Grid) -> str:
        """First and last row stand; each row is one legal move after the row above; behind the plan all is blank."""
        if wrong := wrong_size(proposed, question):
            return wrong
        if not np.array_equal(proposed[[0, -1]], question[[0, -1]]):
            return "the start or the goal was changed"
        if proposed.max() > PEGS:
            return f"there are {PEGS} pegs"
        way = self._way(proposed)
        rest = proposed[len(way) : -1]
        if rest.any():
            return f"row {len(way) + 1 + int(rest.any(axis=1).argmax())} does not follow from a blank one"
        way.append(_state(proposed[-1]))
        for row, (before, after) in enumerate(itertools.pairwise(way), 2):
            if after not in moves(before):
                return f"no one move leads to row {row if row <= len(way) - 1 else len(proposed)} from the state before"
        return ""

    def optimal(self, proposed: Grid, question: Grid) -> bool:
        return len(self._way(proposed)) == distances(_state(question[-1]))[_state(question[0])]

    def _way(self, proposed: Grid) -> list[State]:
        """The states from the first row to the last before a blank one."""
        full = (proposed[:-1] != BLANK).all(axis=1)
        return [_state(row) for row in proposed[: len(full) if full.all() else int(full.argmin())]]

    def canonical(self, question: Grid) -> bytes:
        """Equal however the pegs are named, and for start and goal exchanged."""
        start, goal = question[0].tolist(), question[-1].tolist()
        return min(bytes(_renamed([*start, *goal])), bytes(_renamed([*goal, *start])))


@cache
def draw(state: State, goal: int) -> Grid:
    """The towers as a picture: int8 (disks + 1, 3 pegs of 2 disks - 1 cells and gaps of one), read-only. There are few."""
    disks = len(state)
    width = 2 * disks - 1
    picture = np.zeros((disks + 1, PEGS * (width + 1) - 1), np.int8)
    for peg in range(PEGS):
        left = peg * (width + 1)
        picture[-1, left : left + width] = GOAL if peg == goal else BASE
        for height, disk in enumerate(reversed([d for d in range(disks) if state[d] == peg])):
            middle = left + disks - 1
            picture[-2 - height, middle - disk : middle + disk + 1] = disk + 1
    picture.setflags(write=False)
    return picture


def read(picture: Grid) -> tuple[State, int]:
    """The inverse of `draw` for a picture that it drew."""
    disks = len(picture) - 1
    width = 2 * disks
    rows, columns = np.nonzero(picture[:-1])
    peg_of = dict(zip(picture[rows, columns].tolist(), (columns // width).tolist(), strict=True))
    goal = int(np.argmax(picture[-1] == GOAL)) // width
    return tuple(peg_of[disk + 1] for disk in range(disks)), goal


def is_step(picture: Grid) -> bool:
    """Whether a picture of the right size is a question: every disk once, on a larger one or its peg's foot, one peg marked as
    the goal, and not all disks there."""
    try:
        state, goal = read(picture)
    except (KeyError, ValueError):
        return False
    return set(state) != {goal} and max(state) < PEGS and np.array_equal(draw(state, goal), picture)


def moves(state: State) -> list[State]:
    """The states that one legal move leads to: a peg's smallest disk onto another peg whose smallest is larger."""
    tops: dict[int, int] = {}
    for disk, peg in enumerate(state):
        tops.setdefault(peg, disk)
    return [
        (*state[:disk], peg, *state[disk + 1 :])
        for disk in tops.values()
        for peg in range(PEGS)
        if tops.get(peg, len(state)) > disk
    ]


@cache
def distances(goal: State) -> dict[State, int]:
    """How many moves each state is from `goal`: breadth-first search over all 3 ** disks states."""
    found = {goal: 0}
    queue = deque([goal])
    while queue:
        state = queue.popleft()
        for near in moves(state):
            if near not in found:
                found[near] = found[state] + 1
                queue.append(near)
    return found


def _state(row: Grid) -> State:
    return tuple(int(v) - 1 for v in row)


def _renamed(pegs: list[int]) -> list[int]:
    number: dict[int, int] = {}
    return [number.setdefault(peg, len(number)) for peg in pegs]


def task(variant: str) -> Step | Plan:
    """ "4-step", "5-step", "3-plan" or "4-plan"."""
    match = re.fullmatch(r"([0-9])-(step|plan)", variant)
    if match is None or int(match[1]) not in DISKS[match[2]]:
        raise UserError(f"unknown tower {variant!r}; one of {', '.join(VARIANTS)}")
    return (Step if match[2] == "step" else Plan)(f"hanoi/{variant}", int(match[1]))
