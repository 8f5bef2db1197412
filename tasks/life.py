"""Life-like cellular automata on an 8x8 grid, one step (arXiv 2510.24448, table 8).

A rule B.../S... says with how many living neighbours of eight a dead cell is born and a living one survives. Cells
beyond the border are dead, as published. A cell of the start lives with probability 0.4.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.base import Example, Grid, Task, UserError, suggest, twins_key

SIDE = 8
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

    @property
    def about(self) -> str:
        known = {v: k for k, v in ALIASES.items()}.get(self.name.removeprefix("life/"))
        return f"The next generation under {_rule_text(self.born, self.survives)}" + (f" ({known})." if known else ".")

    @property
    def colours(self) -> Mapping[int, str]:
        return {0: "dead", 1: "alive"}

    def make(self, rng: random.Random) -> Example:
        alive = [rng.random() < DENSITY for _ in range(SIDE * SIDE)]
        question = np.array(alive, dtype=np.int8).reshape(SIDE, SIDE)
        answer = self.solve(question)
        facts = {"rule": _rule_text(self.born, self.survives), "changed": int((question != answer).sum())}
        return Example(question, answer, (SIDE, SIDE), (question, answer), facts)

    def solve(self, question: Grid) -> Grid:
        """The next generation of a grid of 0 and 1, any size."""
        padded = np.pad(question, 1)  # dead border
        rows, cols = question.shape
        neighbours = sum(padded[r : r + rows, c : c + cols] for r in range(3) for c in range(3)) - question
        outcome = np.array([[n in self.born for n in range(9)], [n in self.survives for n in range(9)]], dtype=np.int8)
        return outcome[question, neighbours]

    def canonical(self, question: Grid) -> bytes:
        """Equal for the eight rotations and reflections: a neighbour counts the same from every side."""
        return twins_key(question)


def _rule_text(born: frozenset[int], survives: frozenset[int]) -> str:
    return f"B{''.join(map(str, sorted(born)))}/S{''.join(map(str, sorted(survives)))}"


def task(variant: str) -> Life:
    """A rule such as "B3S23" or "B3/S23", or one of the paper's names."""
    rule = ALIASES.get(variant.lower().replace("_", "-"), variant)
    match = re.fullmatch(r"B([0-8]*)/?S([0-8]*)", rule, re.IGNORECASE)
    if match is None:
        hint = suggest(variant, [*ALIASES, *VARIANTS])
        raise UserError(f"unknown rule {variant!r}; write it as B3S23 or take one of {', '.join(ALIASES)}.{hint}")
    born, survives = (frozenset(int(d) for d in digits) for digits in match.groups())
    return Life("life/" + _rule_text(born, survives).replace("/", ""), born, survives)
