"""Elementary cellular automata, all 256 rules (arXiv 2510.24448, table 7).

Sixteen cells in a ring and seven steps. Row 0 of the question is the first state, 1 for a cell that is off and 2 for
one that is on; the other rows are 0, "not computed yet", and are to be filled in. Wolfram's numbering: bit
4 left + 2 self + right of the rule is a cell's next state.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tasks.base import Example, Grid, Task, UserError

WIDTH = 16
ROWS = 8  # the start and seven steps
BLANK, OFF, ON = range(3)
# The paper's sixteen, by its four classes as printed there (from dying out to complex).
PAPER_RULES = (8, 32, 128, 160, 4, 108, 170, 250, 30, 45, 90, 150, 110, 54, 62, 106)
KNOWN = np.tri(ROWS, dtype=np.int8)[:, :, None]  # [k, r]: row r is known in frame k
VARIANTS = tuple(str(rule) for rule in PAPER_RULES)


@dataclass(frozen=True)
class Eca(Task):
    rule: int = 110

    @property
    def about(self) -> str:
        return f"Seven steps of elementary cellular automaton {self.rule} on a ring of {WIDTH} cells, a row a step."

    @property
    def colours(self) -> Mapping[int, str]:
        return {BLANK: "not computed", OFF: "off", ON: "on"}

    def make(self, rng: random.Random) -> Example:
        question = np.full((ROWS, WIDTH), BLANK, dtype=np.int8)
        question[0] = [OFF + rng.getrandbits(1) for _ in range(WIDTH)]
        answer = self.solve(question)
        frames = answer * KNOWN  # (ROWS frames, ROWS, WIDTH), blank is 0
        return Example(question, answer, (ROWS, WIDTH), tuple(frames), {"rule": self.rule})

    def solve(self, question: Grid) -> Grid:
        rows = [(question[0] - np.int8(OFF)).tolist()]
        for _ in range(len(question) - 1):
            rows.append(self.step(rows[-1]))
        return np.array(rows, dtype=np.int8) + np.int8(OFF)

    def step(self, state: list[int]) -> list[int]:
        """The next state of a ring of cells 0 and 1, any length."""
        lefts, rights = state[-1:] + state[:-1], state[1:] + state[:1]
        return [self._table[4 * a + 2 * b + c] for a, b, c in zip(lefts, state, rights, strict=True)]

    @cached_property
    def _table(self) -> list[int]:
        return [self.rule >> pattern & 1 for pattern in range(8)]

    def canonical(self, question: Grid) -> bytes:
        """Equal for rotations of the ring; if the rule allows, also for mirror images and for on and off exchanged."""
        states = [(question[0] - np.int8(OFF)).tolist()]
        if [self._table[p] for p in (0, 4, 2, 6, 1, 5, 3, 7)] == self._table:  # left and right exchanged
            states.append(states[0][::-1])
        if [1 - on for on in reversed(self._table)] == self._table:
            states += [[1 - cell for cell in state] for state in states]
        rings = [bytes(state) for state in states]
        return min(ring[k:] + ring[:k] for ring in rings for k in range(WIDTH))


def task(variant: str) -> Eca:
    """ "0" to "255"."""
    if not (variant.isascii() and variant.isdigit() and len(variant) <= 3 and int(variant) < 256):
        raise UserError(f"unknown rule {variant!r}; elementary automata are numbered 0 to 255, for example 'eca/110'")
    return Eca(f"eca/{int(variant)}", int(variant))
