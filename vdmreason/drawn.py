"""Puzzles that people draw: checked, kept as ARC JSON, sent as a link, and judged by a family's rules where they have one.

    runs/drawn/<hash>.json      {"train": [{"input", "output"}], "test": [{"input", "output"}]}, as `tasks.get` reads it

A file is named after what is in it: the same drawing is the same file in every browser, and its adapters are found again.
Needs no torch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tasks
from tasks import arc, hanoi, paths
from tasks.base import Example, Grid, Task, UserError, as_grid
from vdmreason import store

PAIRS, TESTS = 10, 4  # as many tests as a puzzle of ARC has
VALUES = len(arc.COLOURS)
MAX_BYTES = 1 << 20  # of JSON; the largest puzzle that is allowed is a quarter of it
PLAIN = 3  # pairs that are taken from a family that makes them without end
PATHS = ("maze", "shortest_path")
ANY_SIZE = (*PATHS, "life", "colour_moves", "langton")  # families whose rules hold on grids of every size


@dataclass(frozen=True)
class Drawing:
    """A puzzle as it was drawn: pairs of (input, output), tests of (input, output or None), and the family whose rules it
    follows ("maze/7x7"), or ""."""

    train: tuple[tuple[Grid, Grid], ...]
    test: tuple[tuple[Grid, Grid | None], ...]
    family: str = ""

    def as_json(self) -> dict[str, Any]:
        """The puzzle in the ARC format. A test without an output has no "output"."""
        pairs = [{"input": question.tolist(), "output": answer.tolist()} for question, answer in self.train]
        tests = [
            {"input": question.tolist()} | ({} if answer is None else {"output": answer.tolist()})
            for question, answer in self.test
        ]
        return {"train": pairs, "test": tests}


def checked(x: Any) -> Drawing:
    """A drawing from JSON that anybody may have sent: at most 30 x 30, whole numbers 0 to 9, at most PAIRS pairs and TESTS
    tests. A test may lack its output. Raises UserError, one line that names the place."""
    if not isinstance(x, dict) or not {"train", "test"} <= x.keys():
        raise UserError("A puzzle is an object with the lists 'train' and 'test'.")
    pairs = [_pair(pair, f"train pair {i}") for i, pair in enumerate(_listed(x["train"], "train", PAIRS), 1)]
    whole = []
    for i, (question, answer) in enumerate(pairs, 1):
        if answer is None:
            raise UserError(f"train pair {i} has no 'output'.")
        whole.append((question, answer))
    tests = [_pair(pair, f"test {i}") for i, pair in enumerate(_listed(x["test"], "test", TESTS), 1)]
    return Drawing(tuple(whole), tuple(tests), _family(x.get("family")))


def _listed(x: Any, name: str, most: int) -> list[Any]:
    if not isinstance(x, list) or not x:
        raise UserError(f"'{name}' is not a list of at least one pair.")
    if len(x) > most:
        raise UserError(f"'{name}' holds {len(x)} pairs; the page takes at most {most}.")
    return x


def _pair(pair: Any, where: str) -> tuple[Grid, Grid | None]:
    if not isinstance(pair, dict) or "input" not in pair:
        raise UserError(f"{where} is not an object with an 'input'.")
    question = as_grid(pair["input"], f"{where}, input", VALUES)
    answer = pair.get("output")
    return question, None if answer is None else as_grid(answer, f"{where}, output", VALUES)


def _family(name: Any) -> str:
    """The family a drawing says it follows, where it is one that has rules; else ""."""
    try:
        return rules(name).name if isinstance(name, str) and 0 < len(name) < 80 else ""
    except UserError:
        return ""


def parse(text: str | bytes) -> Drawing:
    """A drawing from the text of a JSON file. Raises UserError."""
    if len(text) > MAX_BYTES:
        raise UserError(f"That is larger than {MAX_BYTES >> 20} MB; one puzzle is not.")
    try:
        return checked(json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text))
    except UnicodeDecodeError as error:
        raise UserError(f"Not a JSON file: byte {error.start} is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"Not JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from None
    except UserError:
        raise
    except (ValueError, RecursionError):  # a number of thousands of digits, lists nested thousands deep
        raise UserError("Not a puzzle: a number is too long, or lists are nested too deep.") from None


# ---------------------------------------------------------------------------------------------------------------------
# Links


def encode(drawing: Drawing) -> str:
    """What stands behind "#puzzle=" in a link: the JSON, packed with zlib, in base64 for addresses without padding."""
    puzzle = drawing.as_json() | ({"family": drawing.family} if drawing.family else {})
    packed = zlib.compress(json.dumps(puzzle, separators=(",", ":")).encode(), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(text: str) -> Drawing:
    """The inverse of `encode`. Raises UserError for anything else, before much memory is spent on it."""
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        unpacking = zlib.decompressobj()
        plain = unpacking.decompress(packed, MAX_BYTES)
        if not unpacking.eof:
            raise ValueError
    except (ValueError, zlib.error):
        raise UserError("This link holds no puzzle: it was cut off or changed on its way.") from None
    return parse(plain)


# ---------------------------------------------------------------------------------------------------------------------
# Starting from a puzzle there is


def blank(rows: int = 5, cols: int = 5) -> Drawing:
    grid = np.zeros((rows, cols), np.int8)
    return Drawing(((grid, grid),), ((grid, None),))


def begin(name: str) -> Drawing:
    """A drawing that starts from a named puzzle: all demonstrations and tests of an ARC puzzle, or the first examples of a
    family. Raises UserError, also for a path: a browser may not name this machine's files."""
    task = _named(name)
    finite = tasks.count(task, "train")
    train = tasks.examples(task, "train", min(finite or PLAIN, PAIRS))
    test = tasks.examples(task, "test", min(tasks.count(task, "test") or 1, TESTS))
    highest = max(int(grid.max(initial=0)) for e in [*train, *test] for grid in (e.question, e.answer))
    if highest >= VALUES:
        raise UserError(f"{task.name} uses values up to {highest}; ARC JSON, and so this page, has 0 to {VALUES - 1}.")
    family = task.name if has_rules(task) else ""

    def answer(example: Example) -> Grid | None:
        return None if example.open or (family and truth(task, example.question) is not None) else example.answer

    return Drawing(tuple((e.question, e.answer) for e in train), tuple((e.question, answer(e)) for e in test), family)


def _named(name: str) -> Task:
    name = name.strip() if isinstance(name, str) else ""
    if not name:
        raise UserError("Type a puzzle's name, such as maze/7x7 or arc1/evaluation/00576224.")
    settings = ":" in name and name not in tasks.variants("reasoning_gym")  # behind a colon a family may read a file
    if settings or name.startswith(("/", ".", "~")) or name.endswith(".json") or "\0" in name or len(name) > 200:
        raise UserError("That is the name of a file. Open a file of your own with “Open a JSON file”.")
    return tasks.get(name)


# ---------------------------------------------------------------------------------------------------------------------
# Truth by the rules


@dataclass(frozen=True)
class Truth:
    """What the rules say of one pair: why the input is none of the family's ("" if it is one), the right answer where the
    rules give one, and why the drawn answer is wrong ("" if it is right, None where none was drawn or no rule can tell)."""

    trouble: str = ""
    answer: Grid | None = None
    fault: str | None = None


def has_rules(task: Task) -> bool:
    return not isinstance(task, arc.Arc)


def rules(family: str) -> Task:
    """The task whose rules a drawing follows. Raises UserError where it has none."""
    task = _named(family)
    if not has_rules(task):
        raise UserError(f"{family}: no rule is known for this puzzle.")
    return task


def truth(task: Task, question: Grid) -> Grid | None:
    """The answer to a question that `trouble` lets pass. Of several right ones, such as two shortest ways, it is one."""
    if task.name.partition("/")[0] not in PATHS:
        return task.solve(question)
    way = paths.shortest(question)
    if not len(way):
        return None
    answer = question.copy()
    answer[tuple(way[1:-1].T)] = paths.SOLUTION
    return answer


def trouble(task: Task, question: Grid) -> str:
    """Why a grid is no question of the family, in one line; "" if it is one.

    Rules are written for questions that their own family makes, some of them compiled without bounds checks. What was
    drawn is held against such questions before any rule is asked.
    """
    family = task.name.partition("/")[0]
    known = [e.question for e in tasks.examples(task, "train", min(PLAIN, tasks.count(task, "train") or PLAIN))]
    allowed = set(np.unique(known[0]).tolist()).union(*(np.unique(grid).tolist() for grid in known[1:]))
    if family == "chess":
        allowed = set(task.colours)  # a few positions need not hold every piece
    names = task.colours
    if strange := sorted(set(np.unique(question).tolist()) - allowed):
        name = names.get(strange[0], "").split(",")[0]
        called = f" ({name})" if name not in ("", str(strange[0])) else ""
        return f"an input of {family} holds no {strange[0]}{called}"
    if family not in ANY_SIZE and question.shape != known[0].shape:
        rows, cols = known[0].shape
        return f"an input of {task.name} has {rows} rows and {cols} columns"
    for value in {"maze": (2, 3), "shortest_path": (2, 3), "langton": (2,)}.get(family, ()):
        if (count := int((question == value).sum())) != 1:
            return f"it has {count} cells “{names[value]}” ({value}), and there must be exactly 1"
    if family in PATHS and not len(paths.shortest(question)):
        return "no way leads from start to end"
    if family == "hanoi" and task.name.endswith("-step") and not hanoi.is_step(question):
        return "each disk lies once, on a larger one or on its peg's foot; one foot is the goal, where not all disks are yet"
    if family == "eca" and ((question[0] == 0).any() or question[1:].any()):
        return "its first row must be 1 (off) and 2 (on), all other rows 0"
    return ""


def judged(task: Task, question: Grid, drawn: Grid | None) -> Truth:
    """What the task's rules say of a drawn question and of the answer drawn to it."""
    if why := trouble(task, question):
        return Truth(why)
    try:
        answer = truth(task, question)
        fault = None
        if drawn is not None:
            fault = task.fault(drawn, question)
            if fault == "" and not task.optimal(drawn, question):
                fault = "it obeys the rules, but there is a shorter way"
        return Truth("", answer, fault)
    except Exception:  # rules written for their own questions may trip over a drawn one in many ways; all mean the same
        return Truth(f"the rules of {task.name} cannot read this grid")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def finished(drawing: Drawing) -> Drawing:
    """The drawing with a truth in every test: what was drawn, or what the rules say; a test to which nobody knows the answer
    stays open. Raises UserError, one line that says how to mend it, where a drawn truth breaks the rules and where a test
    can be looked up among the pairs."""
    task = rules(drawing.family) if drawing.family else None
    tests = []
    for i, (question, answer) in enumerate(drawing.test, 1):
        if any(np.array_equal(question, learned) for learned, _ in drawing.train):
            raise UserError(
                f"The input of test {i} is also a pair's, so its answer can be looked up. Change one of them."
            )
        if task is not None:
            said = judged(task, question, answer)
            if answer is None:
                answer = said.answer
            elif said.fault:
                raise UserError(
                    f"Your answer to test {i} is not right by the rules of {task.name}: {said.fault}. Mend it."
                )
            if answer is None and said.trouble:
                raise UserError(f"Test {i} is no question of {task.name}: {said.trouble}. Mend it, or draw its output.")
        tests.append((question, answer))
    return Drawing(drawing.train, tuple(tests), drawing.family)


def open_tests(drawing: Drawing) -> list[int]:
    """Numbers, from 1, of the tests to which nobody knows the answer."""
    return [i for i, (_, answer) in enumerate(drawing.test, 1) if answer is None]


def text(puzzle: Mapping[str, Any]) -> str:
    """A puzzle as the file holds it, the same text for the same puzzle."""
    return json.dumps(puzzle, separators=(",", ":"), sort_keys=True) + "\n"


def file_of(drawing: Drawing) -> Path:
    """Where the drawing is kept, or would be."""
    digest = hashlib.sha256(text(drawing.as_json()).encode()).hexdigest()[:16]
    return store.runs_root() / "drawn" / f"{digest}.json"


def keep(drawing: Drawing) -> str:
    """Write a finished drawing's file, if it is not there, and return the name of its task: "arc:runs/drawn/<hash>.json"."""
    file = file_of(drawing)
    if not file.is_file():
        store.write_text(file, text(drawing.as_json()))
    return tasks.get(f"arc:{file}").name
