"""Scoring rules on small cases counted by hand, on all of ARC, and the files there and back."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixture_runs import make_run
from typer.testing import CliRunner

import tasks
from tasks.base import UserError
from vdmreason import __main__ as cli
from vdmreason import arc_scores as scores

ONE, TWO, BAD = (np.full((2, 3), v, np.int8) for v in (1, 2, 9))
TRUTH = {"a": [ONE, TWO], "b": [ONE], "c": [TWO], "d": [ONE, ONE]}
TRIES = {"a": [[ONE], [BAD, TWO]], "b": [[BAD, BAD, ONE]], "c": [[None, TWO]]}  # d is missing


@pytest.mark.parametrize(
    ("rule", "value"),
    [("strict@1", 0), ("strict@2", 2 / 4), ("strict@3", 3 / 4), ("fraction@2", 2 / 4), ("output@2", 3 / 6)],
)
def test_rules_by_hand(rule, value):
    assert scores.score(TRIES, TRUTH, rule) == value


def test_the_rules_differ_where_half_a_puzzle_is_solved():
    half = {"a": [[ONE], [BAD]], "b": [[ONE]]}
    truth = {key: TRUTH[key] for key in half}
    values = [scores.score(half, truth, rule) for rule in ("strict@2", "fraction@2", "output@2")]
    assert values == [1 / 2, 3 / 4, 2 / 3]


def test_concepts_weigh_the_same_whatever_their_size():
    truth = {"Center1": [ONE], "Center2": [ONE, ONE], "Copy1": [TWO]}
    tries = {"Center1": [[BAD, BAD, ONE]], "Center2": [[ONE], [BAD] * 3 + [ONE]], "Copy1": [[BAD]]}
    assert scores.by_concept(tries, truth) == {"Center": 2 / 3, "Copy": 0}
    assert scores.score(tries, truth, "concept@3") == pytest.approx(1 / 3)


def test_an_unknown_rule_is_answered_with_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'strict@2'"):
        scores.score({}, TRUTH, "strikt@2")


@pytest.mark.parametrize(("part", "puzzles"), [("arc1/evaluation", 400), ("arc2/evaluation", 120)])
def test_perfect_and_copying_solvers(part, puzzles):
    names = tasks.variants(part)
    truth = scores.truth_of(names)
    assert len(truth) == puzzles
    perfect = {id_: [[answer] for answer in answers] for id_, answers in truth.items()}
    copying = {scores.id_of(n): [[e.question] for e in tasks.get(n).stock("test")] for n in names}
    for rule in ("strict@2", "fraction@2", "output@2"):
        assert scores.score(perfect, truth, rule) == 1
        assert scores.score(copying, truth, rule) == 0  # no puzzle asks for its own input
        assert scores.score({}, truth, rule) == 0
        first = dict([*perfect.items()][:40])
        assert scores.score(first, truth, rule) == pytest.approx(40 / puzzles, abs=0.04)  # missing ones are wrong


def test_perfect_and_copying_solvers_on_conceptarc():
    """Here copying is right now and then; the published files, read by hand, say how often."""
    names = tasks.variants("conceptarc")
    truth = scores.truth_of(names)
    perfect = {id_: [[BAD, BAD, answer] for answer in answers] for id_, answers in truth.items()}
    copying = {scores.id_of(n): [[e.question] for e in tasks.get(n).stock("test")] for n in names}
    assert scores.score(perfect, truth, "concept@3") == 1 and scores.score(perfect, truth, "strict@2") == 0
    published = json.loads((Path(tasks.__file__).parent / "data" / "conceptarc.json").read_text())
    same = [p["input"] == p["output"] for ids in published.values() for puzzle in ids.values() for p in puzzle["test"]]
    assert len(same) == 480
    assert scores.score(copying, truth, "concept@3") == pytest.approx(sum(same) / 480)
    assert len(scores.by_concept(perfect, truth)) == 16


def test_submission_there_and_back(tmp_path):
    path = tmp_path / "submission.json"
    scores.write_submission(TRIES, path)
    content = json.loads(path.read_text())
    assert content["a"][0] == {"attempt_1": ONE.tolist(), "attempt_2": ONE.tolist()}  # a single attempt stands twice
    again = scores.read_submission(path)
    for rule in ("strict@1", "strict@2", "fraction@2", "output@2"):
        assert scores.score(again, TRUTH, rule) == scores.score(TRIES, TRUTH, rule)


def test_three_attempts_stay_three_where_three_are_scored(tmp_path):
    """ConceptARC is scored by three; the third grid alone is right."""
    right, wrong = np.array([[1]], np.int8), np.array([[0]], np.int8)
    attempts, truth = {"Center1": [[wrong, wrong, right]]}, {"Center1": [right]}
    for most, value in ((2, 0.0), (3, 1.0)):
        scores.write_submission(attempts, tmp_path / "a.json", most)
        scores.write_benchmarking(attempts, tmp_path / f"folder{most}", "model", most)
        for read in (scores.read_submission(tmp_path / "a.json"), scores.read_benchmarking(tmp_path / f"folder{most}")):
            assert scores.score(read, truth, "concept@3") == value and scores.most_of(read) == most


def test_benchmarking_folder_there_and_back(tmp_path):
    scores.write_benchmarking(TRIES, tmp_path, "small")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content[1]["attempt_2"]["answer"] == TWO.tolist() and content[1]["attempt_2"]["metadata"]["pair_index"] == 1
    again = scores.read_benchmarking(tmp_path)
    for rule in ("strict@1", "strict@2", "fraction@2"):
        assert scores.score(again, TRUTH, rule) == scores.score(TRIES, TRUTH, rule)


def test_an_attempt_that_could_not_be_read_is_never_right(tmp_path):
    """Whatever stands for it in a file is the answer of no puzzle: [[0]] would be that of eight."""
    for puzzles in ("arc1/training", "arc1/evaluation", "arc2/training", "arc2/evaluation", "conceptarc"):
        truth = scores.truth_of(tasks.variants(puzzles))
        unread = {id_: [[None, None, None] for _ in answers] for id_, answers in truth.items()}
        scores.write_submission(unread, tmp_path / "a.json", 3)
        again = scores.read_submission(tmp_path / "a.json")
        assert again.keys() == truth.keys() and not any(map(any, scores.solved(again, truth, 3).values()))


def test_an_attempt_that_could_not_be_read_keeps_its_place(tmp_path):
    """The third of three attempts is right: strict@2 does not see it, on whichever way it came."""
    tries = {"b": [[None, BAD, ONE]]}
    scores.write_benchmarking(tries, tmp_path / "folder", "small", 3)
    scores.write_submission(tries, tmp_path / "a.json", 3)
    (tmp_path / "b.json").write_text(
        json.dumps({"b": [{"attempt_10": ONE.tolist(), "attempt_2": BAD.tolist(), "attempt_1": []}]})
    )
    readings = [scores.read_benchmarking(tmp_path / "folder"), scores.read_submission(tmp_path / "a.json")]
    for read in (*readings, scores.read_submission(tmp_path / "b.json")):
        assert not scores.solved(read, {"b": [ONE]}, 2)["b"][0]
    assert all(scores.solved(read, {"b": [ONE]}, 3)["b"][0] for read in readings)


def test_tests_without_a_known_answer_count_nowhere(tmp_path):
    pair, other = {"input": [[1]], "output": [[2]]}, {"input": [[3]], "output": [[4]]}
    for name, tests in {"some": [other, {"input": [[5]]}], "none": [{"input": [[5]]}]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"train": [pair], "test": tests}))
    truth = scores.truth_of(tasks.variants(f"arc:{tmp_path}"))
    assert [*truth] == ["some"] and scores.score({"some": [[np.array([[4]])], [BAD]]}, truth, "strict@2") == 1
    assert scores.score({"some": [[np.array([[4]])], [BAD]]}, truth, "output@2") == 1


def test_a_submission_may_answer_what_nobody_knows(tmp_path):
    pair, other = {"input": [[1]], "output": [[2]]}, {"input": [[3]], "output": [[4]]}
    for name, tests in {"some": [other], "none": [{"input": [[5]]}]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"train": [pair], "test": tests}))
    answers = tmp_path / "answers"
    scores.write_benchmarking({name: [[np.array([[4]], np.int8)]] for name in ("some", "none")}, answers, "small")
    said = call("arc", "score", answers, f"arc:{tmp_path / 'some.json'}", code=2)
    assert "has no puzzle 'none'" in said
    for path in answers.iterdir():  # beside the puzzles they would be taken for some
        path.rename(path.with_suffix(".kept"))
    puzzles = f"arc:{tmp_path}"
    (tmp_path / "all.json.kept").write_text(json.dumps({n: [{"attempt_1": [[4]]}] for n in ("some", "none")}))
    said = call("arc", "score", tmp_path / "all.json.kept", puzzles)
    assert "1 of 1 puzzles answered" in said and "1 test input without a known answer left out" in said
    assert "strict@1    100.00 %" in said
    (tmp_path / "some.json").unlink()
    (tmp_path / "one.kept").write_text(json.dumps({"none": [{"attempt_1": [[4]]}]}))
    assert "no puzzle's answer is known" in call("arc", "score", tmp_path / "one.kept", puzzles, code=2)


def test_what_is_no_set_of_puzzles_is_not_scored(tmp_path):
    with pytest.raises(UserError, match="maze/7x7 is no ARC puzzle"):
        scores.truth_of(["maze/7x7"])
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.json").write_text(json.dumps({"train": [PAIR], "test": [PAIR]}))
    with pytest.raises(UserError, match="have the same id, 1: take one set"):
        scores.truth_of(tasks.variants(f"arc:{tmp_path}"))
    records = [{"i": 0, "proposed": [[1]]}]
    with pytest.raises(UserError, match="have the same id, 00576224"):
        scores.from_records((f"{data}/00576224", records) for data in ("arc1/evaluation", "arc2/training"))
    with pytest.raises(UserError, match="has 1 test inputs, and an answer is to number 2"):
        scores.from_records([("arc1/evaluation/00576224", [{"i": 1, "proposed": [[1]]}])])


PAIR = {"input": [[1]], "output": [[2]]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[3]", "test 0|an object of attempts"),
        ('["x"]', "an object of attempts"),
        ('[{"attempt_1": [[1]]}]', "test 0, attempt_1: an object with an 'answer'"),
        ('[{"attempt_1": "x"}]', "test 0, attempt_1: an object with an 'answer'"),
        ('[[{"answer": [[1]]}]]', "an object of attempts"),
        ('[{"Attempt_1": {"answer": [[1]]}}]', "'Attempt_1' is no attempt"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_damaged_folder_says_where(tmp_path, text, says):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        scores.read_benchmarking(tmp_path)
    assert "a.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "an object of puzzle ids"),
        ('{"a": {}}', "a: a list"),
        ('{"a": [{"attempt1": [[1]]}]}', "a, test 0: 'attempt1' is no attempt"),
        ('{"a": [{"attempt_1": [[1, 2], [3]]}]}', "a, test 0, attempt_1: row 2"),
        ('{"a": [{"attempt_1": [[99]]}]}', "column 1 is 99"),
    ],
)
def test_damaged_submissions_say_where(tmp_path, text, says):
    path = tmp_path / "submission.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        scores.read_submission(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def call(*words, code=0):
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def test_from_runs_to_a_score(tmp_path):
    """Answers of two runs on one puzzle, handed in and scored: the second run's right answer is the second attempt."""
    puzzle, out = "arc1/evaluation/00576224", tmp_path / "submission.json"
    runs = [make_run(tmp_path, puzzle, f, [r], n=2) for f, r in (("causal_lm", False), ("cogvideox", True))]
    call("arc", "submission", *runs, "--out", out)
    said = call("arc", "score", out, "arc1/evaluation")
    assert "1 of 400 puzzles answered" in said
    assert "strict@1      0.00 %" in said and "strict@2      0.25 %" in said and "concept" not in said
    call("arc", "submission", *runs, "--out", tmp_path / "folder")
    assert "0.25 %" in call("arc", "score", tmp_path / "folder", "arc1/evaluation", "--rule", "strict@2")
    assert "has no puzzle '00576224'" in call("arc", "score", out, "arc2/evaluation", code=2)
    life = make_run(tmp_path, "life/B3S23", "causal_lm", [True], n=2)
    assert "is no ARC puzzle" in call("arc", "submission", life, "--out", out, code=2)
