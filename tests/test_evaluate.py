"""Scores, intervals and baselines, against numbers known by hand or by simulation."""

from __future__ import annotations

import math
import subprocess
import sys

import fake_family
import numpy as np
import pytest

import tasks
from tasks.base import Example, UserError, Verdict
from vdmreason import config, evaluate, statistics, store


@pytest.fixture(autouse=True, scope="module")
def _families():
    with fake_family.installed():
        yield


@pytest.mark.parametrize(
    # Newcombe, Two-sided confidence intervals for the single proportion, Stat. Med. 17 (1998), table I, method 3
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_the_published_table(hits: int, n: int, low: float, high: float) -> None:
    assert statistics.wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert statistics.wilson(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_of_nothing() -> None:
    assert statistics.wilson(0, 0) == (0.0, 1.0)


def test_the_mean_of_one_run_has_the_normal_interval() -> None:
    values = np.random.default_rng(1).random(400)
    found = evaluate.mean_of({0: values})
    half = 1.96 * values.std() / math.sqrt(400)
    assert (found["low"], found["high"]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)
    assert evaluate.mean_of({0: values}) == found  # same numbers, same interval
    assert evaluate.mean_of({0: []}) == {"value": 0.0, "low": 0.0, "high": 1.0}


def test_a_mean_sees_the_spread_between_seeds() -> None:
    alike = evaluate.mean_of(dict.fromkeys(range(3), [0.5] * 50))
    assert alike["value"] == 0.5 and (alike["low"], alike["high"]) == pytest.approx(statistics.wilson(75, 150))
    found = evaluate.mean_of({seed: [seed / 2] * 50 for seed in range(3)})
    assert found["low"] == 0 and found["high"] == 1  # examples alone would give no spread at all


def test_intervals_of_three_seeds_cover_the_truth() -> None:
    """Of 95 % intervals over 3 seeds x 40 answers; a bootstrap over seeds covers 85 %."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        rates = np.clip(0.5 + 0.1 * rng.standard_normal(3), 0, 1)
        found = evaluate.mean_of({seed: (rng.random(40) < rate).astype(float) for seed, rate in enumerate(rates)})
        hits += found["low"] <= 0.5 <= found["high"]
    assert hits >= 184


def test_score_counts() -> None:
    longer = Verdict(False, True, False, 0.5, "longer", {"relative_length": 1.5})
    verdicts = [Verdict(True, True, True, 1.0, "", {"relative_length": 1.0}), Verdict(False, True, True, 0.5, "")]
    verdicts += [longer, Verdict(False, False, False, 0.0, "x")]
    result = evaluate.score(verdicts, unreadable=1)
    assert result["n"] == 4 and result["unreadable"]["value"] == 0.25
    assert [result[k]["value"] for k in ("exact", "valid", "right", "cells")] == [0.25, 0.75, 0.5, 0.5]
    assert result["relative_length"]["value"] == 1.25 and result["relative_length"]["n"] == 2
    for name in ("exact", "valid", "right", "cells", "unreadable", "relative_length"):
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"]


def example(question: list, answer: list) -> Example:
    question, answer = np.array(question, np.int8), np.array(answer, np.int8)
    return Example(question, answer, (max(len(question), len(answer)), max(question.shape[1], answer.shape[1])))


def test_nearest_and_copy() -> None:
    train = [example([[0, 0], [0, 0]], [[1]]), example([[1, 1], [1, 0]], [[2]]), example([[1, 1, 1]], [[3]])]
    assert evaluate.nearest(train, np.array([[1, 1], [1, 1]], np.int8)).tolist() == [[2]]
    assert evaluate.nearest(train, np.array([[1, 1, 0]], np.int8)).tolist() == [[3]]
    assert evaluate.nearest(train, np.array([[0, 1], [0, 0]], np.int8)).tolist() == [[1]]
    assert evaluate.copy_input(train, train[1].question) is train[1].question


def folder_with(tmp_path, seed: int = 0, wrong: int = 0, unreadable: int = 0, n: int = 6):
    """A run's folder whose predictions are right but for some, as text on the disk."""
    run = config.resolve({"task": "life/B3S23", "n": 4, "family": "fake", "seed": seed, "test": n})
    folder = tmp_path / run.name
    store.write_config(folder, run)
    records = []
    for i, e in enumerate(tasks.examples(run.task, "test", n, seed)):
        proposed = e.answer.copy()
        if i < wrong:
            proposed[0, 0] ^= 1
        record = {"i": i, "key": e.key, "question": e.question, "answer": e.answer, "canvas": e.canvas}
        none = wrong <= i < wrong + unreadable
        record |= {"proposed": None if none else proposed, "certainty": None, "raw": "", "seconds": 0.5}
        record |= {"problem": "no bracket" if none else "", "exact": True, "right": True, "cells": 1.0, "reason": ""}
        records.append(record)
    store.write_lines(folder / "predictions.jsonl", records)
    return folder


def test_evaluate_scores_again_from_what_is_stored(tmp_path) -> None:
    """The stored verdicts claim all is right; the stored grids say otherwise, and they decide."""
    folder = folder_with(tmp_path, wrong=2, unreadable=1)
    store.write_json(folder / "result.json", {"codec": {"kept": True}})
    result = evaluate.evaluate(folder)
    assert result["scores"]["exact"]["value"] == 0.5 and result["scores"]["n"] == 6
    assert result["scores"]["unreadable"]["value"] == pytest.approx(1 / 6)
    assert result["codec"] == {"kept": True} and result["complete"] is True
    assert result["baselines"]["copy"]["n"] == 6 and result["baselines"]["nearest"]["exact"]["value"] == 0.0
    assert store.read_json(folder / "result.json") == result


def test_no_predictions_is_one_line(tmp_path) -> None:
    folder = folder_with(tmp_path)
    (folder / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match="no predictions yet"):
        evaluate.evaluate(folder)


def test_seeds_are_averaged_and_other_differences_are_not(tmp_path) -> None:
    folders = [folder_with(tmp_path, seed, wrong=seed) for seed in range(3)]
    for folder in folders:
        evaluate.evaluate(folder)
    other = folder_with(tmp_path / "other", n=5)
    evaluate.evaluate(other)
    rows = evaluate.over_seeds([*folders, other])
    assert [row["seeds"] for row in rows] == [[0, 1, 2], [0]]
    # 0, 1 and 2 of 6 wrong; the verdicts stored in predictions.jsonl are not believed
    assert rows[0]["exact"]["value"] == pytest.approx(1 - 3 / 18) and rows[0]["n_test"] == 18
    assert rows[0]["exact"]["low"] < rows[0]["exact"]["value"] < rows[0]["exact"]["high"]
    assert rows[1]["exact"]["low"] == pytest.approx(statistics.wilson(5, 5)[0])


def test_seeds_that_all_agree_are_not_beyond_doubt(tmp_path) -> None:
    """18 of 18 right: resampling says [1, 1], which no 18 answers can show."""
    folders = [folder_with(tmp_path, seed, wrong=0) for seed in range(3)]
    for folder in folders:
        evaluate.evaluate(folder)
    (row,) = evaluate.over_seeds(folders)
    assert row["exact"] == {"value": 1.0, "low": pytest.approx(statistics.wilson(18, 18)[0]), "high": 1.0}
    assert row["baselines"]["copy"] == 0.0


def test_scoring_needs_no_torch(tmp_path) -> None:
    run = config.resolve({"task": "life/B3S23", "n": 4, "family": "causal_lm", "test": 2})
    folder = folder_with(tmp_path, n=2)
    store.write_config(folder, run)
    code = (
        "import sys; from vdmreason import evaluate; r = evaluate.evaluate(sys.argv[1]); "
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'gradio'} & set(sys.modules); "
        "assert not heavy, heavy; print(r['scores']['exact']['value'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout.strip() == "1.0", done.stderr
