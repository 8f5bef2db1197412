"""Any grid puzzle of the library reasoning-gym as a task, without code: the text is read, the library stays as it is.

    reasoning_gym/mini_sudoku
    reasoning_gym/rotate_matrix:min_rotations=1,max_rotations=1     the data set's own settings behind a colon

A data set fits if its answers are grids, its questions hold one, and no more than sixteen symbols occur. What else a question
says must be the same in every one of them, because the picture shows the grid only: a data set of rotations by any number of
quarters does not fit, one by a single quarter does. Numbers 0 to 15 keep their value; other symbols get those left over.

Right is the stored answer, cell by cell: the library's own scorers accept others for some of its puzzles, but need more than
the question to do so. Install it without its pins, which contradict ours: pip install --no-deps reasoning-gym, and what it
then asks for.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tasks.base import MAX_SIDE, VALUES, Example, Missing, Task, UserError, suggest

Symbols = list[list[str]]  # a grid before its symbols have values
# Those of reasoning-gym 0.1.25 that fit as they are or with these settings.
FITTING = (
    "mini_sudoku", "sudoku", "game_of_life", "binary_matrix",
    "rotate_matrix:min_rotations=1,max_rotations=1",
    "n_queens:min_remove=1,max_remove=1",
)  # fmt: skip
SAMPLE = 40  # questions that are looked at to find the symbols and whether the words change


@dataclass(frozen=True)
class Bridge(Task):
    dataset: str = ""
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def about(self) -> str:
        words = " ".join(self._read.words.split())
        return (words if len(words) <= 200 else words[:197] + "...").rstrip(".: ") + "."

    @property
    def colours(self) -> Mapping[int, str]:
        return {value: symbol for symbol, value in self._read.values.items()}

    def make(self, rng: random.Random) -> Example:
        rows, cols = self._read.canvas
        for _ in range(1000):
            entry = self._read.source[rng.getrandbits(30)]
            question, _ = found(entry["question"])
            answer = grid_of(str(entry["answer"]))
            try:
                grids = [self._read.grid(symbols) for symbols in (question, answer) if symbols]
            except KeyError:  # a symbol that the sample did not have: too rare to give a value away
                continue
            if len(grids) == 2 and all(grid.shape[0] <= rows and grid.shape[1] <= cols for grid in grids):
                return Example(grids[0], grids[1], (rows, cols))
        raise UserError(f"{self.name}: 1000 puzzles in a row do not fit on its canvas of {rows}x{cols} cells")

    @property
    def _read(self) -> Reader:
        return _reader(self.name, self.dataset, self.settings)


@dataclass(frozen=True, eq=False)
class Reader:
    """What the first questions of a data set say of all of them."""

    source: Any  # [index] -> {"question", "answer"}
    words: str  # what every question says beside its grid
    values: dict[str, int]  # symbol -> value
    canvas: tuple[
        int, int
    ]  # (rows, cols) that hold every grid of the sample: one for all, so that it gives no answer away

    def grid(self, symbols: Symbols) -> Any:
        return np.array([[self.values[symbol] for symbol in row] for row in symbols], np.int8)


@cache
def _reader(name: str, dataset: str, settings: tuple[tuple[str, str], ...]) -> Reader:
    library = _library()
    if dataset not in library.factory.DATASETS:
        hint = suggest(dataset, library.factory.DATASETS)
        raise UserError(f"reasoning-gym has no data set {dataset!r}.{hint}")
    try:
        chosen = {key: json.loads(value) for key, value in settings}
        few = library.create_dataset(dataset, seed=0, size=SAMPLE, **chosen)
        entries = [few[i] for i in range(SAMPLE)]
    except Exception as error:  # whatever the library makes of a setting
        raise UserError(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from None
    said, symbols, sides = set(), set(), [(1, 1)]
    for entry in entries:
        question, words = found(entry["question"])
        answer = grid_of(str(entry["answer"]))
        if not question or not answer:
            raise UserError(f"{name}: its {'answers are' if question else 'questions hold'} no grids")
        said.add(re.sub(r"[0-9]+ ?[x*] ?[0-9]+", "", words))  # the size is in the picture
        symbols |= {symbol for row in question + answer for symbol in row}
        sides += [(len(grid), len(grid[0])) for grid in (question, answer)]
    if len(said) > 1:
        raise UserError(f"{name}: its questions say more than their grids; settle it, as in {FITTING[4]!r}")
    values = _values(name, symbols)
    canvas = (max(rows for rows, _ in sides), max(cols for _, cols in sides))
    if max(canvas) > MAX_SIDE:
        raise UserError(f"{name}: has grids of {canvas[0]}x{canvas[1]} cells; here they have at most {MAX_SIDE} a side")
    # Only now: some data sets that do not fit make all their items at once.
    return Reader(library.create_dataset(dataset, seed=0, size=2**30, **chosen), said.pop(), values, canvas)


def _values(name: str, symbols: set[str]) -> dict[str, int]:
    """Whole numbers keep their value, the other symbols take what is free: signs such as "_" before letters, each in order."""
    numbers = {symbol: int(symbol) for symbol in symbols if symbol.isdecimal() and symbol.isascii()}
    if len(symbols) > VALUES or any(value >= VALUES for value in numbers.values()):
        raise UserError(
            f"{name}: has {len(symbols)} symbols or numbers above {VALUES - 1}; a grid here holds 0 to {VALUES - 1}"
        )
    free = [value for value in range(VALUES) if value not in numbers.values()]
    others = sorted(symbols - numbers.keys(), key=lambda symbol: (symbol.isalnum(), symbol))
    return dict(sorted({**numbers, **dict(zip(others, free, strict=False))}.items(), key=lambda pair: pair[1]))


def found(text: str) -> tuple[Symbols, str]:
    """The last grid in a text, and the text without it; no grid is []."""
    arrays = list(re.finditer(r"\[\s*\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])+\s*\]", text))
    if arrays:
        return grid_of(arrays[-1][0]), text[: arrays[-1].start()] + text[arrays[-1].end() :]
    lines = text.split("\n")
    blocks: list[tuple[int, int]] = []  # runs of lines that could be rows, all equally wide
    for i, line in enumerate(lines):
        width = len(_row(line))
        if width and blocks and blocks[-1][1] == i and len(_row(lines[i - 1])) == width:
            blocks[-1] = (blocks[-1][0], i + 1)
        elif width:
            blocks.append((i, i + 1))
    blocks = [(a, b) for a, b in blocks if b - a >= 2]
    if not blocks:
        return [], text
    first, last = blocks[-1]
    return [_row(line) for line in lines[first:last]], "\n".join(lines[:first] + lines[last:])


def grid_of(text: str) -> Symbols:
    """The grid that a text is: a JSON array of rows, or lines of symbols; [] if it is something else."""
    text = text.strip()
    if text.startswith("["):
        try:
            rows = json.loads(text)
        except ValueError:
            return []
        listed = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
        symbols = [[str(cell) for cell in row] for row in rows] if listed else []
    else:
        symbols = [_row(line) for line in text.split("\n")]
    return symbols if symbols and symbols[0] and len({len(row) for row in symbols}) == 1 else []


def _row(line: str) -> list[str]:
    """The symbols of a line: numbers or single characters between spaces, or characters without any between; [] for words."""
    parts = line.split()
    if len(parts) > 1:
        return parts if all(len(part) == 1 or (part.isdecimal() and part.isascii()) for part in parts) else []
    return (
        list(parts[0]) if parts and len(parts[0]) > 1 and not any(c.isalnum() and c.isascii() for c in parts[0]) else []
    )


def _library() -> Any:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise Missing(
            "the library is not installed; run: pip install --no-deps reasoning-gym, and what it then asks for"
        )
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise Missing(f"reasoning-gym lacks {error.name}; run: pip install --no-deps {error.name}") from None


def variants() -> list[str]:
    """Known to fit; none where the library is not installed."""
    there = importlib.util.find_spec("reasoning_gym") is not None
    return [f"reasoning_gym/{variant}" for variant in FITTING] if there else []


def task(variant: str) -> Bridge:
    """A data set's name and, behind a colon, its settings: "rotate_matrix:min_rotations=1,max_rotations=1"."""
    dataset, _, rest = variant.partition(":")
    pairs = tuple(tuple(pair.partition("=")[::2]) for pair in rest.split(",")) if rest else ()
    for key, value in pairs:
        try:
            json.loads(value)
        except ValueError:
            raise UserError(f"reasoning_gym/{variant}: {key}={value} is not like min_rotations=1") from None
    made = Bridge(f"reasoning_gym/{variant}", dataset.strip(), pairs)  # type: ignore[arg-type]
    _reader(made.name, made.dataset, made.settings)
    return made
