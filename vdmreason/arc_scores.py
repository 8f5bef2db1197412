"""The scoring rules in use for ARC, named and never mixed, and the files that others score.

    strict@k     a puzzle counts if every test input is solved within k attempts; mean over puzzles.
                 ARC-AGI-1's own rule with k = 3; the paper's (arXiv 2510.24448) with k = 2
    fraction@2   a puzzle counts by the share of its test inputs solved within 2; mean over puzzles. ARC Prize's leaderboard
    output@2     a test input counts if solved within 2; mean over test inputs. Kaggle
    concept@3    ConceptARC: a test input counts if solved within 3; mean by concept, then over concepts

The mean is over all puzzles of the split: one that is missing is wrong. (The leaderboard's own program divides by the
puzzles that were handed in.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tasks
from tasks.base import Grid, UserError, as_grid, suggest
from vdmreason import store

Attempts = Mapping[str, Sequence[Sequence[Grid | None]]]
"""Puzzle id -> for each of its test inputs the attempts, best first; None is an attempt that could not be read."""
Truth = Mapping[str, Sequence[Grid]]
"""Puzzle id -> the right answer of each test input."""
FILLER = [
    [0, 0],
    [0, 0],
]  # stands for an attempt that could not be read; the answer of no puzzle ([[0]] is that of eight)


def truth_of(names: Iterable[str]) -> dict[str, list[Grid]]:
    """The answers of puzzles by full name, such as all of `tasks.variants("arc1/evaluation")`; ids are the last part. An answer
    that nobody knows is `UNKNOWN` and counts nowhere; a puzzle with none but such is left out. Raises UserError for what is no
    ARC puzzle, and for two puzzles with one id."""
    found: dict[str, list[Grid]] = {}
    known: dict[str, str] = {}
    for name in names:
        id_ = _register(name, known)
        answers = [example.answer for example in tasks.get(name).stock("test") or ()]
        if any(answer.size for answer in answers):
            found[id_] = answers
    return found


def _register(name: str, known: dict[str, str]) -> str:
    """A puzzle's id, noted in `known` (id -> full name). Raises UserError where it is no ARC puzzle, or another one has its id:
    ARC-AGI-1 and -2 share 773, of which some have other tests."""
    if not tasks.is_arc(name):
        raise UserError(f"{name} is no ARC puzzle")
    id_ = id_of(name)
    if (other := known.setdefault(id_, name)) != name:
        raise UserError(f"{other} and {name} have the same id, {id_}: take one set of puzzles at a time.")
    return id_


def id_of(name: str) -> str:
    """ "arc1/evaluation/00576224" and "arc:corpus/Center/Center1.json" -> "00576224" and "Center1"."""
    return name.rpartition("/")[2].removesuffix(".json")


def attempts_at(puzzles: str) -> int:
    """How many attempts are published for a set of puzzles: three for ConceptARC, else two."""
    return 3 if puzzles.startswith("conceptarc") else 2


def solved(attempts: Attempts, truth: Truth, k: int) -> dict[str, list[bool]]:
    """For each puzzle, whether each test input with a known answer is solved in its first k attempts. What is missing is not."""
    result = {}
    for id_, answers in truth.items():
        tried = attempts.get(id_, ())
        result[id_] = [
            any(a is not None and np.array_equal(a, answer) for a in (tried[i][:k] if i < len(tried) else ()))
            for i, answer in enumerate(answers)
            if answer.size
        ]
    return result


def strict(attempts: Attempts, truth: Truth, k: int) -> float:
    return _mean([all(found) for found in solved(attempts, truth, k).values()])


def fraction(attempts: Attempts, truth: Truth, k: int = 2) -> float:
    return _mean([_mean(found) for found in solved(attempts, truth, k).values()])


def output(attempts: Attempts, truth: Truth, k: int = 2) -> float:
    return _mean([one for found in solved(attempts, truth, k).values() for one in found])


def concept(attempts: Attempts, truth: Truth, k: int = 3) -> float:
    """ConceptARC's ids are a concept and a number: "Center1" to "Center10"."""
    return _mean([*by_concept(attempts, truth, k).values()])


def by_concept(attempts: Attempts, truth: Truth, k: int = 3) -> dict[str, float]:
    """Each concept's share of solved test inputs."""
    groups: dict[str, list[bool]] = {}
    for id_, found in solved(attempts, truth, k).items():
        groups.setdefault(id_.rstrip("0123456789"), []).extend(found)
    return {name: _mean(found) for name, found in sorted(groups.items())}


RULES: dict[str, Callable[[Attempts, Truth], float]] = {
    "strict@1": lambda attempts, truth: strict(attempts, truth, 1),
    "strict@2": lambda attempts, truth: strict(attempts, truth, 2),
    "strict@3": lambda attempts, truth: strict(attempts, truth, 3),
    "fraction@2": fraction,
    "output@2": output,
    "concept@3": concept,
}


def score(attempts: Attempts, truth: Truth, rule: str) -> float:
    """The score by a named rule, 0..1. Raises UserError for a rule that is not in use."""
    if rule not in RULES:
        raise UserError(f"--rule {rule}: unknown.{suggest(rule, RULES)} One of {', '.join(RULES)}.")
    return RULES[rule](attempts, truth)


def _mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Files


def most_of(attempts: Attempts) -> int:
    """The most attempts at a test input."""
    return max((len(tried) for inputs in attempts.values() for tried in inputs), default=0)


def write_submission(attempts: Attempts, path: str | Path, most: int = 2) -> None:
    """Kaggle's submission.json: {id: [{"attempt_1": grid, "attempt_2": grid}, one a test input]}. One attempt stands twice;
    one that could not be read is `FILLER`, for the format wants a grid. With `most` 3, for ConceptARC, a third one goes along."""
    content: dict[str, list[dict[str, list[list[int]]]]] = {}
    for id_, inputs in attempts.items():
        content[id_] = []
        for tried in inputs:
            first, second, *rest = [*tried, None, None]
            told = (
                first,
                first if second is None else second,
                *(grid for grid in rest[: most - 2] if grid is not None),
            )
            content[id_].append(
                {f"attempt_{n}": FILLER if grid is None else grid.tolist() for n, grid in enumerate(told, 1)}
            )
    store.write_json(path, content)


def read_submission(path: str | Path) -> dict[str, list[list[Grid | None]]]:
    """The inverse of `write_submission`. An attempt that is null or [] is one that could not be read. Raises UserError, one line
    naming file and place."""
    content = _json(Path(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: a submission is an object of puzzle ids, not a {type(content).__name__}")
    found: dict[str, list[list[Grid | None]]] = {}
    for id_, inputs in content.items():
        if not isinstance(inputs, list) or not all(isinstance(tried, dict) for tried in inputs):
            raise UserError(f"{path}: {id_}: a list with an object of attempts for each test input was expected")
        found[id_] = [_attempts(tried, f"{path}: {id_}, test {i}") for i, tried in enumerate(inputs)]
    return found


def write_benchmarking(attempts: Attempts, folder: str | Path, model: str, most: int = 2) -> None:
    """A folder for arc-agi-benchmarking: <id>.json with a list of pairs of attempts, each with its answer and metadata. The
    answer of one that could not be read is [], which its scorer takes for wrong."""
    for id_, inputs in attempts.items():
        content = []
        for i, tried in enumerate(inputs):
            content.append(
                {
                    f"attempt_{n}": {
                        "answer": [] if grid is None else grid.tolist(),
                        "metadata": {"model": model, "task_id": id_, "pair_index": i},
                    }
                    for n, grid in enumerate(tried[:most], 1)
                }
            )
        store.write_json(Path(folder) / f"{id_}.json", content)


def read_benchmarking(folder: str | Path) -> dict[str, list[list[Grid | None]]]:
    """The inverse of `write_benchmarking`. Raises UserError, one line naming file and place."""
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise UserError(f"{folder}: holds no <puzzle id>.json")
    found: dict[str, list[list[Grid | None]]] = {}
    for path in files:
        content = _json(path)
        if not isinstance(content, list) or not all(isinstance(tried, dict | None) for tried in content):
            raise UserError(f"{path}: a list with an object of attempts for each test input was expected")
        found[path.stem] = []
        for i, tried in enumerate(content):
            where = f"{path}: test {i}"
            answers = {key: _answer(given, f"{where}, {key}") for key, given in (tried or {}).items()}
            found[path.stem].append(_attempts(answers, where))
    return found


def _answer(given: Any, where: str) -> Any:
    if given is not None and not (isinstance(given, dict) and "answer" in given):
        raise UserError(f"{where}: an object with an 'answer' was expected; a submission.json has the grids alone")
    return given and given["answer"]


def _attempts(tried: Mapping[str, Any], where: str) -> list[Grid | None]:
    """{"attempt_1": rows, ...} in the order of their numbers; None for one that is missing, null or []. Raises UserError."""
    numbered: dict[int, Any] = {}
    for key, grid in tried.items():
        match = re.fullmatch(r"attempt_([1-9][0-9]?)", key)
        if match is None:
            raise UserError(f"{where}: {key[:40]!r} is no attempt; they are called attempt_1, attempt_2")
        numbered[int(match[1])] = None if grid is None or grid == [] else as_grid(grid, f"{where}, {key}")
    return [numbered.get(n) for n in range(1, max(numbered, default=0) + 1)]


def from_runs(folders: Sequence[str | Path]) -> dict[str, list[list[Grid | None]]]:
    """The recorded answers of runs on ARC puzzles as attempts, in the order of the folders."""
    runs = [(store.read_config(folder).tested, Path(folder)) for folder in folders]
    return from_records((name, store.read_lines(folder / "predictions.jsonl")) for name, folder in runs)


def from_records(runs: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> dict[str, list[list[Grid | None]]]:
    """Answers, (puzzle's full name, lines of predictions.jsonl) a run, as attempts: several runs on one puzzle are its attempts
    in order, and a run with votes gives its grids by their votes. Raises UserError for what is no ARC puzzle, and for puzzles of
    two sets that share an id."""
    found: dict[str, list[list[Grid | None]]] = {}
    known: dict[str, str] = {}
    for name, records in runs:
        id_, count = _register(name, known), tasks.count(name, "test") or 0
        inputs = found.setdefault(id_, [[] for _ in range(count)])
        for record in records:
            if not 0 <= record["i"] < count:
                raise UserError(f"{name} has {count} test inputs, and an answer is to number {record['i'] + 1}")
            grids = [vote["grid"] for vote in record.get("votes", ())] or [record["proposed"]]
            inputs[record["i"]] += [None if grid is None else np.asarray(grid, np.int8) for grid in grids]
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
