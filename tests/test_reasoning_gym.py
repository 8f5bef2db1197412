"""The bridge, on a stand-in with the library's contract; and on the library itself where it is installed."""

import random
import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks
from tasks import reasoning_gym as bridge
from tasks.base import UserError

WORDS = "Write the mirror image of this grid:\n\n{}\n\nRespond with the grid only."


def lines(grid, blank=""):
    return "\n".join(" ".join(blank if blank and not v else str(v) for v in row) for row in grid)


def entry(kind, rng, turns=1):
    side = 40 if kind == "wide" else rng.randint(2, 4)
    grid = [[rng.randrange(4) for _ in range(side)] for _ in range(4)]
    answer = [row[::-1] for row in grid]
    if kind == "words":
        return {"question": "What is 2 + 3?", "answer": "5"}
    if kind == "turns":
        quarters = rng.randint(1, turns)
        turned = np.rot90(grid, -quarters).tolist()
        return {"question": f"Rotate by {90 * quarters} degrees:\n{lines(grid)}", "answer": lines(turned)}
    if kind == "large":
        return {"question": WORDS.format(lines([[v * 30 for v in row] for row in grid])), "answer": lines(answer)}
    if kind == "json":
        return {"question": WORDS.format(str(grid)), "answer": str(answer)}
    if kind == "signs":
        drawn = ["\n".join("".join("❌✅❔🟦"[v] for v in row) for row in side) for side in (grid, answer)]
        return {"question": WORDS.format(drawn[0]), "answer": drawn[1]}
    return {"question": WORDS.format(lines(grid, "_")), "answer": lines(answer, "_")}


class Dataset:
    def __init__(self, kind, seed, size, **settings):
        self.kind, self.seed, self.size, self.settings = kind, seed, size, settings
        if bad := settings.keys() - {"turns"}:
            raise TypeError(f"unexpected setting {bad.pop()!r}")

    def __getitem__(self, i):
        assert 0 <= i < self.size
        return entry(self.kind, random.Random(f"{self.seed}/{i}"), **self.settings)


@pytest.fixture
def library(monkeypatch):
    stand_in = types.ModuleType("reasoning_gym")
    stand_in.__spec__ = ModuleSpec("reasoning_gym", None)
    stand_in.factory = types.SimpleNamespace(
        DATASETS=dict.fromkeys(("blanks", "words", "turns", "large", "json", "signs", "wide"))
    )
    stand_in.create_dataset = Dataset
    monkeypatch.setitem(sys.modules, "reasoning_gym", stand_in)
    bridge._reader.cache_clear()
    yield stand_in
    bridge._reader.cache_clear()


@pytest.mark.parametrize("kind", ["blanks", "json", "signs", "turns:turns=1"])
def test_a_data_set_becomes_a_task(library, kind):
    task = tasks.get(f"reasoning_gym/{kind}")
    train, test = tasks.examples(task, "train", 30), tasks.examples(task, "test", 10)
    assert not {e.key for e in train} & {e.key for e in test}
    for example in train:
        wanted = np.rot90(example.question, -1) if kind.startswith("turns") else example.question[:, ::-1]
        assert np.array_equal(example.answer, wanted) and task.check(wanted, example).right
        assert not task.check(example.question, example).right or np.array_equal(example.question, wanted)
    assert [e.key for e in tasks.examples(tasks.get(task.name), "train", 30)] == [e.key for e in train]
    first = "❌" if kind == "signs" else "_" if kind == "blanks" else "0"
    assert task.colours[0] == first or kind == "signs"
    assert {e.canvas for e in train + test} == {(4, 4)} and len({e.question.shape for e in train}) == 3
    assert tasks.get(task.name) == task and task.about.endswith(".")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("words", "reasoning_gym/words: its questions hold no grids"),
        ("turns:turns=3", "questions say more than their grids"),
        ("large", "numbers above 15"),
        ("wide", "grids of 4x40 cells; here they have at most 30"),
        ("blank", "no data set 'blank'. Did you mean 'blanks'?"),
        ("turns:corners=3", "unexpected setting 'corners'"),
        ("turns:turns", "turns= is not like min_rotations=1"),
    ],
)
def test_what_does_not_fit_says_why(library, name, says):
    with pytest.raises(UserError) as caught:
        tasks.get(f"reasoning_gym/{name}")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(bridge.importlib.util, "find_spec", lambda name: None)
    bridge._reader.cache_clear()
    assert bridge.variants() == []
    for name in ("reasoning_gym/sudoku", "reasoning_gym"):
        with pytest.raises(UserError, match="pip install --no-deps reasoning-gym"):
            tasks.get(name)


@given(st.integers(1, 9), st.integers(2, 9), st.integers(0, 2**32 - 1), st.sampled_from(["lines", "json", "glued"]))
def test_a_grid_is_found_in_any_text(rows, cols, seed, how):
    grid = np.random.default_rng(seed).integers(0, 10, (rows, cols)).tolist()
    symbols = [[str(v) for v in row] for row in grid]
    text = {
        "lines": lines(grid),
        "json": str(grid),
        "glued": "\n".join("".join("abcdefghij"[v] for v in r) for r in grid),
    }[how]
    if how == "glued":  # letters without spaces are words
        assert bridge.grid_of(text) == []
        return
    assert bridge.grid_of(text) == symbols
    if rows > 1:
        assert bridge.found(f"Solve this puzzle, please.\n{text}\nWrite the grid only.")[0] == symbols


@pytest.mark.parametrize("variant", bridge.FITTING)
def test_the_library_itself(variant):
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: its pins contradict ours")
    task = tasks.get(f"reasoning_gym/{variant}")
    for example in tasks.examples(task, "train", 20):
        assert task.check(example.answer, example).right
