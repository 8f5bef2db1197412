"""Life-like cellular automata (arXiv 2510.24448, table 8: five rules on 8x8, one step, dead borders).

A rule B.../S... says with how many living neighbours of eight a dead cell is born and a living one survives. A cell of the
start lives with probability 0.4.

    life/B3S23              the Game of Life as published; also by name: life/game-of-life
    life/B3S23-3            after three steps
    life/B3S23-wrap         opposite edges joined
    life/B3S23-16x16-wrap-2 all of it
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numba import njit

from tasks.base import Apart, Batch, Example, Frames, Grid, Task, UserError, all_grid_bytes, suggest, twins_key
from tasks.fast import twins_keys, uniform

SIDE, LARGEST, MOST_STEPS = 8, 30, 20
DENSITY = 0.4
# The paper's five rules. Its "Life" without further name is B3/S2.
ALIASES = {
    "game-of-life": "B3S23",
    "day-and-night": "B3678S34678",
    "maze": "B3S12345",
    "seeds": "B2S",
    "life-b3s2": "B3S2",
}
VARIANTS = tuple(ALIASES.values())


@dataclass(frozen=True)
class Life(Task):
    born: frozenset[int] = frozenset({3})
    survives: frozenset[int] = frozenset({2, 3})
    steps: int = 1
    wrap: bool = False
    size: tuple[int, int] = (SIDE, SIDE)

    @property
    def about(self) -> str:
        known = {v: k for k, v in ALIASES.items()}.get(self.name.removeprefix("life/"))
        after = "The next generation" if self.steps == 1 else f"{self.steps} generations later,"
        edges = ", opposite edges joined" if self.wrap else ""
        return f"{after} under {_rule_text(self.born, self.survives)}{edges}" + (f" ({known})." if known else ".")

    @property
    def colours(self) -> Mapping[int, str]:
        return {0: "dead", 1: "alive"}

    @property
    def turns(self) -> Sequence[int]:
        return range(8)

    @property
    def apart(self) -> Apart:
        return Apart("answer", 0.25)

    @property
    def space(self) -> int:
        return 2 ** (self.size[0] * self.size[1])

    def make(self, rng: random.Random) -> Example:
        alive = [rng.random() < DENSITY for _ in range(self.size[0] * self.size[1])]
        question = np.array(alive, dtype=np.int8).reshape(self.size)
        frames = self.frames(question)
        return self._example(tuple(frames), int((question != frames[-1]).sum()))

    def _example(self, frames: Frames, changed: int) -> Example:
        return Example(frames[0], frames[-1], self.size, frames, {"rule": self._rule, "changed": changed})

    @property
    def words(self) -> int:
        return 2 * self.size[0] * self.size[1]

    def batch(self, numbers: npt.NDArray[np.uint32]) -> Batch:
        questions = (uniform(numbers) < DENSITY).astype(np.int8).reshape(-1, *self.size)
        frames = _generations(questions, self._outcome, self.steps, self.wrap)
        changed = (frames[:, -1] != questions).sum((1, 2)).tolist()
        shifts = np.ndindex(self.size) if self.wrap else [(0, 0)]
        twins = self._exchanges(questions)
        canonical = twins_keys(np.roll(twin, shift, (1, 2)) for shift in shifts for twin in twins)
        return Batch(all_grid_bytes(questions), canonical, lambda i: self._example(frames[i], changed[i]))

    def solve(self, question: Grid) -> Grid:
        return self.frames(question)[-1]

    def frames(self, question: Grid) -> list[Grid]:
        """The generations from a grid of 0 and 1 on, any size."""
        return list(_generations(question[None], self._outcome, self.steps, self.wrap)[0])

    @cached_property
    def _rule(self) -> str:
        return _rule_text(self.born, self.survives)

    @cached_property
    def _outcome(self) -> Grid:
        """[state, living neighbours] -> the next state."""
        return np.array([[n in self.born for n in range(9)], [n in self.survives for n in range(9)]], dtype=np.int8)

    def canonical(self, question: Grid) -> bytes:
        """Equal for the eight rotations and reflections, a neighbour counts the same from every side; where edges are
        joined, for shifts too; and for dead and alive exchanged where the rule does not tell them apart."""
        shifts = np.ndindex(*question.shape) if self.wrap else [(0, 0)]
        twins = self._exchanges(question)
        return twins_key(*(np.roll(twin, shift, (0, 1)) for shift in shifts for twin in twins))

    def _exchanges(self, questions: Grid) -> list[Grid]:
        """Grids, and their negatives where the rule does the same to those: a border is dead, and would not be."""
        alone = (self._outcome == self._outcome[:, :1]).all()  # what lies around a cell makes no difference
        own = (self.wrap or alone) and np.array_equal(self._outcome, 1 - self._outcome[::-1, ::-1])
        return [questions, 1 - questions] if own else [questions]


@njit(cache=True)
def _generations(questions, outcome, steps, wrap):  # type: ignore[no-untyped-def]
    """int8 (questions, steps + 1, rows, cols): each question and what follows."""
    count, rows, cols = questions.shape
    frames = np.empty((count, steps + 1, rows, cols), np.int8)
    above = np.zeros((rows + 2, cols + 2), np.int8)  # the generation before, with a border: dead, or the opposite edge
    for i in range(count):
        frames[i, 0] = questions[i]
        for k in range(steps):
            above[1:-1, 1:-1] = frames[i, k]
            if wrap:
                above[0], above[-1] = above[-2], above[1]
                above[:, 0], above[:, -1] = above[:, -2], above[:, 1]
            for r in range(rows):
                for c in range(cols):
                    alive = -above[r + 1, c + 1]
                    for y in range(r, r + 3):
                        for x in range(c, c + 3):
                            alive += above[y, x]
                    frames[i, k + 1, r, c] = outcome[above[r + 1, c + 1], alive]
    return frames


def _rule_text(born: frozenset[int], survives: frozenset[int]) -> str:
    return f"B{''.join(map(str, sorted(born)))}/S{''.join(map(str, sorted(survives)))}"


def task(variant: str) -> Life:
    """A rule such as "B3S23" or "B3/S23", or one of the paper's names; behind it size, "wrap" and steps."""
    name, *extras = variant.split("-") if variant.upper().startswith("B") else _named(variant)
    rule = ALIASES.get(name, name)
    match = re.fullmatch(r"B([0-8]*)/?S([0-8]*)", rule, re.IGNORECASE)
    given = re.fullmatch(r"(?:([0-9]{1,2})x([0-9]{1,2})-)?(wrap-)?(?:([0-9]{1,2})-)?", "".join(f"{e}-" for e in extras))
    if match is None or given is None:
        hint = suggest(variant, [*ALIASES, *VARIANTS])
        raise UserError(f"unknown rule {variant!r}; write it as B3S23 or take one of {', '.join(ALIASES)}.{hint}")
    born, survives = (frozenset(int(d) for d in digits) for digits in match.groups())
    size = (int(given[1] or SIDE), int(given[2] or SIDE))
    steps = int(given[4] or 1)
    if not 3 <= min(size) <= max(size) <= LARGEST or not 1 <= steps <= MOST_STEPS:
        raise UserError(f"no life/{variant}: sides are 3 to {LARGEST}, steps 1 to {MOST_STEPS}")
    parts = [_rule_text(born, survives).replace("/", "")]
    parts += [f"{size[0]}x{size[1]}"] if size != (SIDE, SIDE) else []
    parts += ["wrap"] if given[3] else []
    parts += [str(steps)] if steps > 1 else []
    return Life("life/" + "-".join(parts), born, survives, steps, bool(given[3]), size)


def _named(variant: str) -> list[str]:
    """A variant that begins with a name of the paper, which may hold dashes itself: the name, and what is behind it."""
    folded = variant.lower().replace("_", "-")
    name = max((n for n in ALIASES if folded == n or folded.startswith(n + "-")), key=len, default=folded)
    return [name, *folded[len(name) :].split("-")[1:]]
