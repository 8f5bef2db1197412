"""The vocabulary that every room shares: Grid, Example, Verdict, Task, UserError. Needs numpy only."""

from __future__ import annotations

import difflib
import functools
import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Grid = npt.NDArray[np.int8]  # (rows, cols), values 0..15, at most 30 x 30
Frames = npt.NDArray[np.int8] | tuple[Grid, ...]  # (frames, rows, cols), or as many grids
Split = Literal["train", "test"]

MAX_SIDE = 30
VALUES = 16


class UserError(ValueError):
    """Something the user can fix. Its message is one line that says how; the command line prints it, exit code 2."""


class Missing(UserError, ImportError):
    """A library that is not installed here. Another machine may have it."""


class Unreachable(UserError):
    """Something that is not on this machine and could not be fetched. Another time, or another machine, it may be."""


def suggest(word: str, words: Iterable[str]) -> str:
    """The end of an error message: " Did you mean 'x'?" with the nearest of `words`, or "" when none is near."""
    by_folded = {w.lower(): w for w in words}
    near = difflib.get_close_matches(word.lower(), by_folded, n=1, cutoff=0.6)
    return f" Did you mean {by_folded[near[0]]!r}?" if near else ""


def as_path(text: str) -> Path:
    """A path that the system can look up. Raises UserError for no such user, a name that is too long or is no text."""
    try:
        path = Path(text).expanduser()
        path.exists()
        return path
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{text[:80]!r} is no path: {getattr(error, 'strerror', None) or error}") from None


def as_grid(x: Any, where: str = "", values: int = VALUES) -> Grid:
    """A checked int8 copy of `x` (nested lists or an array), shape (rows, cols), values 0..values-1.

    Raises UserError that names the place: `where`, then the row and column, both counted from 1.
    """
    at = f"{where}: " if where else ""
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "iu":
            raise UserError(f"{at}a grid holds whole numbers, not {x.dtype}")
        if x.ndim == 2 and x.size and max(x.shape) <= MAX_SIDE and x.min() >= 0 and x.max() < values:
            return x.astype(np.int8)
        x = x.tolist()
    if not isinstance(x, list | tuple):
        raise UserError(f"{at}a grid is a list of rows, not {_kind(x)}")
    if len(x) == 0:
        raise UserError(f"{at}a grid needs at least one row")
    if len(x) > MAX_SIDE:
        raise UserError(f"{at}{len(x)} rows, a grid has at most {MAX_SIDE}")
    for r, row in enumerate(x, 1):
        if not isinstance(row, list | tuple):
            raise UserError(f"{at}row {r} is {_kind(row)}, not a list of numbers")
        if len(row) == 0:
            raise UserError(f"{at}row {r} is empty")
        if len(row) > MAX_SIDE:
            raise UserError(f"{at}row {r} has {len(row)} values, a row has at most {MAX_SIDE}")
        if len(row) != len(x[0]):
            raise UserError(f"{at}row {r} has {len(row)} values, row 1 has {len(x[0])}; all rows must be equally long")
        for c, value in enumerate(row, 1):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise UserError(f"{at}row {r}, column {c} is {_kind(value)}, not a whole number")
            if not 0 <= value < values:
                raise UserError(f"{at}row {r}, column {c} is {_kind(value)}, values are 0 to {values - 1}")
    return np.array(x, dtype=np.int8)


def _kind(x: Any) -> str:
    """A short, one-line name of a wrong thing for an error message."""
    if isinstance(x, list | tuple | dict):
        return f"a {type(x).__name__}"
    text = repr(x) if not isinstance(x, int) or abs(x) < 10**9 else "a huge number"
    return text if len(text) <= 30 else text[:27] + "..."


UNKNOWN: Grid = np.zeros((0, 0), np.int8)  # the answer that nobody knows
_NO_FACTS: Mapping[str, Any] = {}


@dataclass(frozen=True, eq=False, slots=True, init=False)
class Example:
    """One puzzle with one right answer, which is not always the only one. Compare examples by `key`.

    The answer to a puzzle that waits to be solved is `UNKNOWN`: see `open`.

    Its grids are made read-only, because lists of examples are cached and shared.
    """

    question: Grid
    answer: Grid
    canvas: tuple[int, int]  # (rows, cols) of the picture, in cells; known without the answer
    frames: Frames  # the true trajectory, first = question, last = answer; of length 0 where there is none
    facts: Mapping[str, Any]  # for reports; adapters never read it

    def __init__(
        self,
        question: Grid,
        answer: Grid,
        canvas: tuple[int, int],
        frames: Frames = (),
        facts: Mapping[str, Any] = _NO_FACTS,
    ) -> None:
        # By hand, for what a frozen dataclass generates takes twice as long, which for simple puzzles is most of drawing
        # one. So does write=False by its name.
        question.setflags(False)  # type: ignore[call-arg]
        answer.setflags(False)  # type: ignore[call-arg]
        for grid in (frames,) if type(frames) is np.ndarray else frames:
            grid.setflags(False)  # type: ignore[call-arg]
        _put_question(self, question)
        _put_answer(self, answer)
        _put_canvas(self, canvas)
        _put_frames(self, frames)
        _put_facts(self, facts)

    @property
    def open(self) -> bool:
        """Whether nobody knows the answer, so that an arm can be asked but not scored by it."""
        return self.answer.size == 0

    @property
    def key(self) -> str:
        """16 hex digits of the sha256 over question and answer."""
        return hashlib.sha256(grid_bytes(self.question) + grid_bytes(self.answer)).hexdigest()[:16]


_put_question, _put_answer, _put_canvas, _put_frames, _put_facts = (
    getattr(Example, slot).__set__ for slot in ("question", "answer", "canvas", "frames", "facts")
)


@dataclass(frozen=True)
class Batch:
    """Many draws of a task: what tells which of them to keep, and how to come by the examples of those."""

    asked: Sequence[bytes | None]  # `grid_bytes` of every question; None for a draw that has to be made alone
    canonical: Sequence[bytes]  # `Task.canonical` of every question
    example: Callable[[int], Example]  # of draw i; costly things wait for it


@dataclass(frozen=True)
class Verdict:
    exact: bool  # the whole grid equals the stored answer
    valid: bool  # obeys the rules, told from question and answer given alone: a way that leads from start to end
    optimal: bool  # valid, and nothing would be better: a shortest way
    cells: float  # share of cells equal, 0 where the shape differs
    reason: str  # one line: why it is not right, "" if it is
    measures: Mapping[str, float] = field(default_factory=dict)  # what else the field reports, such as relative length

    @property
    def right(self) -> bool:
        """Right by the rules: valid and optimal."""
        return self.optimal


@dataclass(frozen=True)
class Apart:
    """How far the published test examples lie from every training example (arXiv 2510.24448, official code).

    "question" and "answer": share of cells that differ. "way": one minus the overlap of the cells on the ways, start and
    end included, over their union (Jaccard).
    """

    of: Literal["question", "answer", "way"]
    least: float


@dataclass(frozen=True)
class Task:
    """A variant of a family is a value: a frozen dataclass with the parameters of its rule. Subclasses add fields."""

    name: str  # "maze/7x7", "life/B3S23", "eca/110", "arc1/evaluation/00d62c1b"

    @property
    def about(self) -> str:
        """One line for people: what is given and what is wanted."""
        return ""

    @property
    def colours(self) -> Mapping[int, str]:
        """What the values mean, for people."""
        return {}

    @property
    def turns(self) -> Sequence[int]:
        """The rotations and reflections, as numbers of `dihedral`, under which the rule stays what it is; 0 is none."""
        return (0,)

    @property
    def free_colours(self) -> Sequence[int]:
        """The values that may exchange their names without touching the rule."""
        return ()

    @property
    def apart(self) -> Apart | None:
        """How far apart training and test were kept when the task was published; None where that was not asked."""
        return None

    @property
    def space(self) -> int | None:
        """How many different questions there are, in training and test together; None where nobody has counted."""
        return None

    @property
    def within_reach(self) -> int:
        """How many of its examples may be asked for by number where somebody waits: all that come before are drawn, too."""
        return 1000

    def card(self) -> dict[str, str]:
        """What a person may want to know of the task, by keyword."""
        colours = ", any names" if self.free_colours else ""
        compared = {"question": "questions differ", "answer": "answers differ", "way": "ways differ (Jaccard)"}
        card = {"values": ", ".join(f"{value} {name}" for value, name in self.colours.items() if name != str(value))}
        if self.space is not None:
            card["puzzles"] = f"{self.space:,}" if self.space < 10**9 else f"about {self.space:.1e}"
        if len(self.turns) > 1 or self.free_colours:
            card["views"] = f"{len(self.turns)} turns{colours}"
        if self.apart:
            card["published"] = f"test and training {compared[self.apart.of]} by {self.apart.least:.2g} or more"
        return card

    def make(self, rng: random.Random) -> Example:
        """A new example; all randomness comes from `rng`."""
        raise NotImplementedError

    @property
    def words(self) -> int:
        """How many 32-bit numbers `batch` wants of every draw; 0 for a task that is drawn one by one."""
        return 0

    def batch(self, numbers: npt.NDArray[np.uint32]) -> Batch:
        """What `make` gives from generators whose next numbers are the rows of `numbers` (draws, words), only faster."""
        raise NotImplementedError

    def stock(self, split: Split) -> Sequence[Example] | None:
        """All examples of a split in their published order; None for a task that makes examples without end."""
        return None

    def solve(self, question: Grid) -> Grid | None:
        """The one right answer, where the rules alone give it; None where there may be several, or no rule is known."""
        return None

    def fault(self, proposed: Grid, question: Grid) -> str | None:
        """Why `proposed` breaks the rules, in one line; "" if it obeys them; None where only the answer could tell (ARC).

        The stored answer is not at hand here, so this is a metric, a selector among many answers and a reward at once.
        """
        solution = self.solve(question)
        return None if solution is None else difference(proposed, solution)

    def optimal(self, proposed: Grid, question: Grid) -> bool:
        """Whether a valid answer could not be better."""
        return True

    def measures(self, proposed: Grid, question: Grid) -> dict[str, float]:
        """What else the field reports of an answer."""
        return {}

    def check(self, proposed: Grid | None, example: Example) -> Verdict:
        """Scores an answer; None is an answer that could not be read, and is wrong."""
        if proposed is None:
            return Verdict(False, False, False, 0.0, "no grid could be read")
        exact = np.array_equal(proposed, example.answer)
        same_shape = proposed.shape == example.answer.shape
        cells = float(np.mean(proposed == example.answer)) if same_shape else 0.0
        measures = self.measures(proposed, example.question)
        fault = self.fault(proposed, example.question)
        if fault is None:
            reason = "nobody knows the answer" if example.open else difference(proposed, example.answer)
            return Verdict(exact, exact, exact, cells, reason, measures)
        if fault:
            return Verdict(exact, False, False, cells, fault, measures)
        optimal = self.optimal(proposed, example.question)
        reason = "" if optimal else "it obeys the rules, but there is a better one"
        return Verdict(exact, True, optimal, cells, reason, measures)

    def canonical(self, question: Grid) -> bytes:
        """Equal for questions that are twins under a symmetry of the rule, so that twins never lie in both splits."""
        return grid_bytes(question)

    def split_of(self, question: Grid) -> Split:
        """The only split that may hold this question or a symmetric twin of it."""
        return split_by(self.canonical(question))


def split_by(canonical: bytes) -> Split:
    """The only split that may hold the questions of this canonical form."""
    return "test" if hashlib.sha256(canonical).digest()[0] < 64 else "train"


def wrong_size(proposed: Grid, wanted: Grid) -> str:
    """Says so in one line where two grids differ in size; "" if they do not."""
    same = proposed.shape == wanted.shape
    return "" if same else f"the size is {size_text(proposed.shape)}, not {size_text(wanted.shape)}"


def difference(proposed: Grid, answer: Grid) -> str:
    """How two grids differ, in one line; "" if they are equal."""
    if wrong_size(proposed, answer):
        return wrong_size(proposed, answer)
    wrong = int(np.count_nonzero(proposed != answer))
    return f"{wrong} of {proposed.size} cells {'is' if wrong == 1 else 'are'} wrong" if wrong else ""


def grid_bytes(grid: Grid) -> bytes:
    """Shape and values of a grid as bytes: equal only for equal grids."""
    return bytes(grid.shape) + np.ascontiguousarray(grid, dtype=np.int8).tobytes()


def all_grid_bytes(grids: npt.NDArray[np.int8]) -> list[bytes]:
    """`grid_bytes` of every grid of (grids, rows, cols)."""
    head = bytes(grids.shape[1:])
    return [head + row for row in rows_as_bytes(grids)]


def rows_as_bytes(table: npt.NDArray[Any]) -> list[bytes]:
    """The bytes of every entry along the first axis."""
    rows = np.ascontiguousarray(table).reshape(len(table), -1)
    found: list[bytes] = rows.view(f"V{rows.shape[1] * rows.itemsize}")[:, 0].tolist()
    return found


def renamed(grid: Grid, fixed: Sequence[int] = ()) -> bytes:
    """Equal for grids that differ in the names of their values: each is numbered in the order in which it appears, those
    in `fixed` before all others."""
    number = {value: i for i, value in enumerate(fixed)}
    numbers = [number.setdefault(value, len(number)) for value in grid.ravel().tolist()]
    return grid_bytes(np.array(numbers, dtype=np.int8).reshape(grid.shape))


def twins_key(*grids: Grid) -> bytes:
    """Equal for grids that are rotations or reflections of one another; of several grids that of the least one.

    The least of the hashes of all twins, a hash being a sum of the values with fixed random weights modulo 2**64. So it
    costs one small matrix product where comparing the twins themselves would take most of the time of drawing a puzzle.
    """
    shape = grids[0].shape
    weights = twin_weights(*shape)
    least = min(int((weights @ grid.ravel().astype(np.uint64)).min()) for grid in grids)
    return bytes(sorted(shape)) + least.to_bytes(8, "big")


@functools.cache
def twin_weights(rows: int, cols: int) -> npt.NDArray[np.uint64]:
    """(8, rows * cols): row k times the grid's cells is the hash of the grid's k-th twin."""
    cells = np.arange(rows * cols).reshape(rows, cols)
    weights = np.empty((8, rows * cols), np.uint64)
    for k, twin in enumerate(dihedral(cells)):  # twin[i, j] is the cell of the grid that comes to lie at (i, j)
        named = np.random.Generator(np.random.PCG64([*twin.shape]))
        weights[k, twin.ravel()] = named.integers(2**64, size=twin.size, dtype=np.uint64)
    return weights


def dihedral(grid: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The eight rotations and reflections of a grid, itself first."""
    turns = [np.rot90(grid, k) for k in range(4)]
    return turns + [turn[:, ::-1] for turn in turns]


def size_text(shape: Sequence[int]) -> str:
    """(rows, cols) as "3x4"."""
    return "x".join(str(side) for side in shape)
