"""Examples by name: deterministic, nested in n, and with training and test sets that never share a puzzle.

Draw i of a list comes from `Random(f"{task}/{split}/{seed}/{i}")`, so any two lists are independent streams. Whether a
puzzle belongs to training or to test is a property of the puzzle: a hash of its canonical form decides, about one in
four for the test. So the two are disjoint for every n and every seed, symmetric twins included. Independent draws alone
would not be: small games repeat.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from functools import lru_cache

from tasks.base import Example, Split, Task, UserError, grid_bytes

SPLITS: tuple[Split, Split] = ("train", "test")


def examples(task: Task, split: Split, n: int, seed: int = 0) -> list[Example]:
    """The first n examples of a list; those of a smaller n are a prefix. Raises UserError if the task has fewer.

    A task with a stock (ARC) gives its own examples: in published order for seed 0, training examples in another order
    for any other seed.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; one of train, test")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UserError(f"the number of examples is a whole number of at least 1, not {n!r}")
    stock = task.stock(split)
    if stock is None:
        return _stream(task, split, seed).take(n)
    if n > len(stock):
        raise UserError(f"{task.name} has {len(stock)} {split} examples, {n} were asked for; use n <= {len(stock)}")
    ordered = list(stock)
    if split == "train" and seed != 0:
        random.Random(f"{task.name}/{split}/{seed}").shuffle(ordered)
    return ordered[:n]


def refuse_leak(train: Sequence[Example], test: Sequence[Example]) -> None:
    """Raises UserError where a pair to be tested on is among those to learn from. Tasks that make their examples cannot
    leak; files of puzzles can: 376 of ARC-AGI-1's 400 evaluation puzzles lie in ARC-AGI-2's training set."""
    learned = {example.key: i for i, example in enumerate(train)}
    for i, example in enumerate(test):
        if example.key in learned:
            raise UserError(
                f"test pair {i} is also training pair {learned[example.key]}: a model tested on what it has learned from "
                "says nothing; take the pair out of one of them"
            )


class _Stream:
    """A list that is drawn as far as somebody asked."""

    def __init__(self, task: Task, split: Split, seed: int):
        self.task, self.split, self.seed = task, split, seed
        self.found: list[Example] = []
        self.seen: set[bytes] = set()
        self.draws = 0
        self.lock = threading.Lock()  # the page asks from several threads

    def take(self, n: int) -> list[Example]:
        with self.lock:
            patience = self.draws_without_luck
            while len(self.found) < n:
                if patience == 0:
                    raise UserError(
                        f"{self.task.name} gives {len(self.found)} distinct {self.split} examples, {n} were asked for; "
                        + (f"use n <= {len(self.found)}" if self.found else "take a larger puzzle")
                    )
                patience -= 1
                if self._draw():
                    patience = self.draws_without_luck
            return self.found[:n]

    @property
    def draws_without_luck(self) -> int:
        """So many draws in a row without a new example mean that there are no more, or as good as none."""
        return 2000 + len(self.found) // 4

    def _draw(self) -> bool:
        rng = random.Random(f"{self.task.name}/{self.split}/{self.seed}/{self.draws}")
        self.draws += 1
        example = self.task.make(rng)
        asked = grid_bytes(example.question)
        if asked in self.seen or self.task.split_of(example.question) != self.split:
            return False
        self.seen.add(asked)
        self.found.append(example)
        return True


@lru_cache(maxsize=128)
def _stream(task: Task, split: Split, seed: int) -> _Stream:
    return _Stream(task, split, seed)
