"""Examples by name: deterministic, nested in n, and with training and test sets that never share a puzzle.

Draw i of a list comes from `Random(f"{task}/{split}/{seed}/{i}")`, so any two lists are independent streams. Whether a
puzzle belongs to training or to test is a property of the puzzle: a hash of its canonical form decides, about one in
four for the test. So the two are disjoint for every n and every seed, symmetric twins included. Independent draws alone
would not be: small games repeat.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tasks.base import Batch, Example, Split, Task, UserError, grid_bytes, split_by

MOST_AT_ONCE = 1024  # draws of a batch: more do not gain speed, and a batch lies in memory whole
BATCH_SECONDS = 0.25  # what a batch may take: compiled code lets no other thread of the page run meanwhile
ATTEMPTS = 20  # draws for every far example wanted before giving up, as published
SPLITS: tuple[Split, Split] = ("train", "test")


def examples(task: Task, split: Split, n: int, seed: int = 0, far_from: Sequence[Example] = ()) -> list[Example]:
    """The first n examples of a list; those of a smaller n are a prefix. Raises UserError if the task has fewer.

    A task with a stock (ARC) gives its own examples: in published order for seed 0, training examples in another order
    for any other seed. `far_from` keeps only those that lie at least `task.apart` from each of the given ones, as the
    paper's test sets do.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; one of train, test")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UserError(f"the number of examples is a whole number of at least 1, not {n!r}")
    if far_from:
        return _far(task, split, n, seed, far_from)
    stock = task.stock(split)
    if stock is None:
        try:
            return _stream(task, split, seed).take(n)
        except UserError:  # only now: counting a space may take longer than drawing from it
            if task.space is None or n <= task.space:
                raise
        raise UserError(f"{task.name} has {task.space} puzzles in all, {n} {split} examples were asked for")
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


def _far(task: Task, split: Split, n: int, seed: int, others: Sequence[Example]) -> list[Example]:
    if task.apart is None:
        raise UserError(f"{task.name}: no distance between training and test was published")
    nearest, least = Nearest(others, task.apart.of), task.apart.least
    found: list[Example] = []
    tried, wanted, most = 0, n, max(ATTEMPTS * n, 2000)
    while True:
        drawn = _at_most(task, split, wanted, seed)
        for example in drawn[tried:]:
            if nearest.distance(example) >= least:
                found.append(example)
                if len(found) == n:
                    return found
        tried = len(drawn)
        if tried < wanted or tried >= most:
            raise UserError(
                f"{task.name}: {len(found)} of {tried} {split} examples lie {least:g} or more from all {len(others)} others, "
                f"{n} were asked for; ask for fewer, or keep away from fewer"
            )
        wanted = min(2 * wanted, most)


def _at_most(task: Task, split: Split, n: int, seed: int) -> list[Example]:
    """`examples`, fewer where there are no more."""
    stock = task.stock(split)
    if stock is not None:
        return examples(task, split, min(n, len(stock)), seed)
    stream = _stream(task, split, seed)
    try:
        return stream.take(n)
    except UserError:
        return list(stream.found)


class Nearest:
    """How far an example is from the nearest of many, by what `Apart.of` names. Examples of another size are 1 away."""

    def __init__(self, others: Sequence[Example], of: Literal["question", "answer", "way"]):
        self.of = of
        rows: dict[tuple[int, ...], list[Any]] = {}
        for other in others:
            grid = self._compared(other)
            rows.setdefault(grid.shape, []).append(self._row(grid))
        self._others = {shape: np.stack(found) for shape, found in rows.items()}  # (examples, cells or words) each
        self._sizes = {shape: _ones(found) for shape, found in self._others.items()} if of == "way" else {}

    def distance(self, example: Example) -> float:
        grid = self._compared(example)
        others = self._others.get(grid.shape)
        if others is None:
            return 1.0
        row = self._row(grid)
        if self.of == "way":
            shared = _ones(others & row)
            return float(1 - (shared / (self._sizes[grid.shape] + int(grid.sum()) - shared)).max())
        return int(np.count_nonzero(others != row, axis=1).min()) / grid.size

    def _compared(self, example: Example) -> npt.NDArray[Any]:
        if self.of == "way":
            from tasks import paths  # only now: it needs numba

            return np.isin(example.answer, (paths.START, paths.SOLUTION, paths.END))
        return example.question if self.of == "question" else example.answer

    def _row(self, grid: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A grid's cells; those on a way as bits of whole words, so that 64 are compared at once."""
        if self.of != "way":
            return grid.ravel()
        bits = np.zeros(-(-grid.size // 64) * 64, np.uint8)
        bits[: grid.size] = grid.ravel()
        return np.packbits(bits).view(np.uint64)


def _ones(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """How many bits of each row (rows, words) are set."""
    return np.bitwise_count(words).sum(axis=1, dtype=np.int64)


class _Stream:
    """A list that is drawn as far as somebody asked."""

    def __init__(self, task: Task, split: Split, seed: int):
        self.task, self.split = task, split
        self.name = f"{task.name}/{split}/{seed}"
        self.found: list[Example] = []
        self.seen: set[bytes] = set()
        self.draws = 0
        self.in_vain = 0  # draws in a row without a new example
        self.batch: Batch | None = None
        self.batch_start = self.batch_end = 0  # the batch holds draws start..end-1, from `draws` on not looked at yet
        self.at_once = 32  # draws that a batch may have, as far as is known
        self.lock = threading.Lock()  # the page asks from several threads

    def take(self, n: int) -> list[Example]:
        with self.lock:
            while len(self.found) < n:
                if self.in_vain >= self.draws_without_luck:  # stays so: how many there are depends on no earlier call
                    raise UserError(
                        f"{self.task.name} gives {len(self.found)} distinct {self.split} examples, {n} were asked for; "
                        + (f"use n <= {len(self.found)}" if self.found else "take a larger puzzle")
                    )
                if not self.task.words:
                    self._draw_alone()
                    continue
                if self.draws == self.batch_end:
                    self._draw_batch(n - len(self.found))
                self._sift(n)
            return self.found[:n]

    @property
    def draws_without_luck(self) -> int:
        """So many draws in a row without a new example mean that there are no more, or as good as none."""
        return 2000 + len(self.found) // 4

    def _draw_batch(self, missing: int) -> None:
        """So many draws at once as `missing` examples may take, more after many without luck. How many makes no difference
        to the list."""
        from tasks import fast  # only now: it needs numba

        likely = (missing + math.isqrt(missing)) * 4 // (3 if self.split == "train" else 1)
        start, end = self.draws, self.draws + min(max(likely, self.in_vain), self.at_once)
        names = [f"{self.name}/{draw}" for draw in range(start, end)]
        began = time.perf_counter()
        self.batch = self.task.batch(fast.first_numbers(names, self.task.words))
        pace = (time.perf_counter() - began) / len(names)
        self.at_once = min(MOST_AT_ONCE, max(1, int(BATCH_SECONDS / max(pace, 1e-9))))
        self.batch_start, self.batch_end = start, end

    def _sift(self, n: int) -> None:
        """Look at the batch's draws until there are n examples, or the batch or the patience is at its end."""
        assert self.batch is not None
        asked, canonical, example = self.batch.asked, self.batch.canonical, self.batch.example
        seen, split, most = self.seen, self.split, self.draws_without_luck
        for i in range(self.draws - self.batch_start, self.batch_end - self.batch_start):
            question = asked[i]
            if question is None:
                self._draw_alone()
            else:
                self.draws += 1
                if question in seen or split_by(canonical[i]) != split:
                    self.in_vain += 1
                else:
                    seen.add(question)
                    self.found.append(example(i))
                    self.in_vain = 0
            if self.in_vain == 0:
                if len(self.found) == n:
                    return
                most = self.draws_without_luck
            elif self.in_vain >= most:
                return

    def _draw_alone(self) -> None:
        """The next draw by its definition."""
        example = self.task.make(random.Random(f"{self.name}/{self.draws}"))
        self.draws += 1
        asked = grid_bytes(example.question)
        if asked in self.seen or self.task.split_of(example.question) != self.split:
            self.in_vain += 1
        else:
            self.seen.add(asked)
            self.found.append(example)
            self.in_vain = 0


@lru_cache(maxsize=32)  # an old list is drawn again in milliseconds; many of them slow down every other object
def _stream(task: Task, split: Split, seed: int) -> _Stream:
    return _Stream(task, split, seed)
