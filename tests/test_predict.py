"""Test examples to predictions, and the comparison of two arms on one puzzle."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_family
import numpy as np
import pytest

import adapters
import tasks
from adapters.base import Answer
from tasks import augment, paths
from tasks.augment import View
from tasks.base import UNKNOWN, UserError
from vdmreason import compare, config, evaluate, jobs, predict, store, train

KEYS = {
    "i",
    "key",
    "question",
    "answer",
    "canvas",
    "proposed",
    "certainty",
    "raw",
    "problem",
    "seconds",
    "exact",
    "right",
}
KEYS |= {"valid", "cells", "measures", "reason"}


@pytest.fixture(autouse=True, scope="module")
def _families():
    with fake_family.installed():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder each of a language and a video fake, adapted well enough to answer most of Life's cells."""
    folders = {}
    for family in ("fake", "fake_video"):
        given = {
            "task": "life/B3S23",
            "n": 60,
            "family": family,
            "test": 10,
            "lora": {"rank": 8},
            "optim": {"updates": 120},
        }
        folders[family] = tmp_path_factory.mktemp("runs") / family
        train.train(config.resolve(given), folders[family])
    return folders


@pytest.fixture
def folder(trained, tmp_path):
    return Path(shutil.copytree(trained["fake"], tmp_path / "run"))


def test_a_line_a_test_example_with_all_it_takes_to_score_again(folder) -> None:
    records = predict.predict(folder)
    assert store.read_lines(folder / "predictions.jsonl") == records and [r["i"] for r in records] == list(range(10))
    examples = tasks.examples("life/B3S23", "test", 10, 0)
    for record, example in zip(records, examples, strict=True):
        assert set(record) == KEYS and record["key"] == example.key and json.loads(json.dumps(record)) == record
        proposed = np.asarray(record["proposed"], np.int8)
        verdict = tasks.get("life/B3S23").check(proposed, example)
        assert (record["exact"], record["right"]) == (verdict.exact, verdict.right)
        assert np.asarray(record["certainty"]).shape == proposed.shape
    result = store.read_json(folder / "result.json")
    assert result["scores"]["cells"]["value"] > 0.6 and result["codec"]["exact"]["value"] == 1.0
    assert result["complete"] and result["scores"]["n"] == 10 and result["provenance"]["run"] == result["id"]


def test_interrupted_and_taken_up_again_gives_the_same(folder, monkeypatch) -> None:
    whole = predict.predict(folder, batch=4)
    lines = (folder / "predictions.jsonl").read_bytes().split(b"\n")
    (folder / "predictions.jsonl").write_bytes(b"\n".join(lines[:6]) + b"\n" + lines[6][:20])  # killed while writing
    asked = []
    original = fake_family.Fake.predict
    monkeypatch.setattr(
        fake_family.Fake, "predict", lambda self, g, s, **k: (asked.append(len(g)), original(self, g, s, **k))[1]
    )
    assert predict.predict(folder, batch=4) == whole
    assert asked == [4, 2]  # the batch of 0..3 is there; those of 4..7 and 8..9 are asked again, whole
    assert predict.predict(folder, batch=4) == whole and asked == [4, 2]


def test_an_answer_does_not_depend_on_what_else_is_asked(folder) -> None:
    some = predict.predict(folder, indices=[7, 2])
    assert [r["i"] for r in some] == [2, 7] and store.read_json(folder / "result.json")["complete"] is False
    every = predict.predict(folder)
    assert [every[2], every[7]] == some and len(every) == 10


def test_stop_keeps_what_is_answered(folder) -> None:
    asked = iter([False, True])
    with pytest.raises(jobs.Stopped):
        predict.predict(folder, batch=4, stop=lambda: next(asked))
    assert [r["i"] for r in store.read_lines(folder / "predictions.jsonl")] == [0, 1, 2, 3]


def test_the_arm_is_handed_the_question_only(folder, monkeypatch) -> None:
    handed = []
    original = fake_family.Fake.predict
    monkeypatch.setattr(
        fake_family.Fake, "predict", lambda self, g, s, **k: (handed.extend(g), original(self, g, s, **k))[1]
    )
    predict.predict(folder)
    questions = [e.question for e in tasks.examples("life/B3S23", "test", 10, 0)]
    assert all(np.array_equal(a, b) for a, b in zip(handed, questions, strict=True))


def test_a_video_answer_keeps_its_clip(trained) -> None:
    folder = trained["fake_video"]
    for record in predict.predict(folder, indices=[0, 1]):
        assert record["raw"] == f"clips/{record['i']:04d}.webp"
        clip = store.read_clip(folder / record["raw"])
        assert clip.shape == (2, 8, 8, 3) and np.array_equal(clip[1, ..., 0], np.asarray(record["proposed"]) * 10)


def test_no_adapter_and_other_examples_are_one_line(folder, tmp_path) -> None:
    with pytest.raises(UserError, match="not a run's folder"):
        predict.predict(tmp_path)
    predict.predict(folder, indices=[0])
    lines = store.read_lines(folder / "predictions.jsonl")
    store.write_lines(folder / "predictions.jsonl", [{**lines[0], "key": "0" * 16}])
    with pytest.raises(UserError, match="answers other examples"):
        predict.predict(folder)
    store.write_config(tmp_path / "new", store.read_config(folder))
    with pytest.raises(UserError, match="no adapter yet"):
        predict.predict(tmp_path / "new")


def test_an_arm_that_was_stopped_half_way_may_not_answer(tmp_path) -> None:
    given = {"task": "life/B3S23", "n": 6, "family": "fake", "test": 4, "optim": {"updates": 9}}
    arm = train.train(config.resolve(given), tmp_path, stop=lambda: True)
    assert store.read_state(tmp_path)["state"] == "stopped"
    with pytest.raises(UserError, match="no adapter yet"):
        predict.predict(tmp_path, arm)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_answers_under_several_views_vote(trained, tmp_path) -> None:
    """The same adapter, asked under all eight turns of Life; votes, rank and oracle follow from the lines by hand."""
    run = config.resolve({**config.to_dict(store.read_config(trained["fake"])), "votes": 8})
    arm = predict.load_adapted(store.read_config(trained["fake"]), trained["fake"])
    shutil.copytree(trained["fake"] / "adapter", tmp_path / "adapter")
    store.write_config(tmp_path, run)
    records = predict.predict(tmp_path, arm)
    assert len(records) == 10
    for record in records:
        counts = [vote["count"] for vote in record["votes"]]
        assert sum(counts) == 8 and counts == sorted(counts, reverse=True)
        assert record["proposed"] == record["votes"][0]["grid"]
        assert record["views"] == 8
        right = [vote["grid"] == record["answer"] for vote in record["votes"]]
        assert record["rank"] == (right.index(True) + 1 if any(right) else None)
        assert record["exact"] == right[0]
    votes = store.read_json(tmp_path / "result.json")["votes"]
    assert votes["oracle"]["value"] == sum(r["rank"] is not None for r in records) / 10
    assert votes["within_2"]["value"] == sum((r["rank"] or 9) <= 2 for r in records) / 10
    shutil.copytree(trained["fake"], tmp_path / "alone")
    for one, record in zip(predict.predict(tmp_path / "alone", arm), records, strict=True):
        assert one["raw"] == record["raw"]  # the plain view is asked as if it were alone


def test_one_adapter_asked_otherwise(folder, tmp_path) -> None:
    """The same weights in a folder of their own; what belongs to the training can't change."""
    predict.predict(folder)
    voting = predict.asked_otherwise(folder, ["votes=4", "test=5"], tmp_path / "voting")
    records = predict.predict(voting)
    assert len(records) == 5 and all(sum(v["count"] for v in r["votes"]) == 4 for r in records)
    old, new = (store.read_json(f / "result.json")["provenance"] for f in (folder, voting))
    assert new["adapter_of"] == old["run"] != new["run"] and new["data"] == old["data"]
    assert predict.asked_otherwise(folder, ["votes=4", "test=5"], voting) == voting
    with pytest.raises(UserError, match=r"lora\.rank, n: belongs to the training"):
        predict.asked_otherwise(folder, ["n=7", "lora.rank=2"], tmp_path / "no")
    with pytest.raises(UserError, match="holds another run"):
        predict.asked_otherwise(folder, ["votes=2"], voting)
    store.write_config(voting, config.resolve(config.to_dict(store.read_config(voting)), ["votes=2"]))
    with pytest.raises(UserError, match="answers other examples"):  # four views are not two
        predict.predict(voting)


def test_asked_otherwise_in_a_folder_of_somebodys_own(folder, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.md and no run. Name a new folder with --out"):
        predict.asked_otherwise(folder, ["votes=4"], tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.md"]


@pytest.mark.parametrize("family", ["cogvideox", "causal_lm"])
def test_how_a_backbone_answers_may_change_after_training(tmp_path, family: str) -> None:
    """As if it had been trained so: the training has no part in it. What it was trained with stays."""
    changes = {"cogvideox": "options.steps=2", "causal_lm": "options.max_new_tokens=9"}
    flavour = {"cogvideox": "tiny", "causal_lm": "tiny"}[family]
    least = {"task": "life/B3S23", "n": 4, "family": family, "flavour": flavour, "test": 2}
    run = config.resolve({**least, "optim": {"updates": 2, "batch": 2}})
    train.train(run, tmp_path / "trained")
    asked = predict.asked_otherwise(tmp_path / "trained", [changes[family]], tmp_path / "asked")
    other = config.resolve(config.to_dict(run), [changes[family]])
    train.train(other, tmp_path / "so")
    here, there = predict.predict(asked), predict.predict(tmp_path / "so")
    plain = predict.predict(tmp_path / "trained")

    def said(folder: Path, record: dict) -> Any:
        """All of an answer: a tiny backbone's is no grid."""
        clip = folder / str(record["raw"])
        return store.read_clip(clip).tobytes() if clip.suffix == ".webp" else record["raw"]

    for one, two, other_way in zip(here, there, plain, strict=True):
        assert said(asked, one) == said(tmp_path / "so", two) and one["problem"] == two["problem"]
        assert said(asked, one) != said(tmp_path / "trained", other_way)
    fixed = {"cogvideox": "options.shift=2.0", "causal_lm": "options.prompt=plain"}[family]
    with pytest.raises(UserError, match=r"belongs to the training.*options\.batch"):
        predict.asked_otherwise(tmp_path / "trained", [fixed], tmp_path / "no")


def test_every_familys_options_of_asking_are_options() -> None:
    import adapters

    for name in set(adapters.families()) - set(fake_family.NAMES):
        options = adapters.family(name).Options
        assert {"batch", *options.asked} <= set(options.__dataclass_fields__), name


def test_a_vote_ranks_every_right_answer(tmp_path) -> None:
    """A shortest way counts wherever it is not the stored one."""
    task = tasks.get("shortest_path/15x15")
    turn = View(1)
    for example in tasks.examples(task, "train", 20):
        other = turn.undo(turn.example(example).answer.copy())
        turned = turn.apply(example.question)
        way = paths.along(turned, paths.shortest(turned))[-1]  # another tie-break, once turned back
        answers = [Answer(way, ""), Answer(None, "", problem="no")]
        best, agreed, voted = predict.elect(task, [turn, View()], answers, example)
        assert np.array_equal(other, example.answer) and task.check(best, example).right
        assert voted["rank"] == 1 and agreed.max() == 0.5


def test_small_to_learn_from_and_large_to_be_tested_on(tmp_path) -> None:
    run = config.resolve({"task": "life/B3S23-4x4", "test_task": "life/B3S23-6x5", "n": 4, "family": "fake", "test": 3,
                          "optim": {"updates": 2}})  # fmt: skip
    arm = train.train(run, tmp_path)
    records = predict.predict(tmp_path, arm)
    assert {np.shape(record["question"]) for record in records} == {(6, 5)}
    task = tasks.get("life/B3S23-6x5")
    for record in records:
        assert task.check(np.array(record["answer"], np.int8), evaluate.example_of(record)).right
    assert store.read_json(tmp_path / "result.json")["scores"]["n"] == 3


def test_an_unreadable_answer_is_wrong_and_says_why(folder, monkeypatch) -> None:
    from adapters.base import Answer

    monkeypatch.setattr(
        fake_family.Fake, "predict", lambda self, g, s: [Answer(None, "[[0,", problem="no bracket")] * len(g)
    )
    record = predict.predict(folder, indices=[0])[0]
    assert (
        record["proposed"] is None and not record["exact"] and record["cells"] == 0 and record["reason"] == "no bracket"
    )
    assert store.read_json(folder / "result.json")["scores"]["unreadable"]["value"] == 1.0


# ---------------------------------------------------------------------------------------------------------------------
# compare

ARMS = ["fake_video", "fake"]
SHORT = ("optim.updates=5", "optim.batch=4")


def test_two_arms_on_the_same_examples(tmp_path) -> None:
    seen: list = []
    original = train.train

    def spy(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train", spy)
        result = compare.compare("life/B3S23", 6, families=ARMS, index=3, overrides=SHORT, folder=tmp_path)
    assert seen[0].seen == seen[1].seen and len(seen[0].seen) == 20
    assert [arm["family"] for arm in result["arms"]] == ARMS and result["indices"] == [3]
    assert result["arms"][0]["data"] == result["arms"][1]["data"]
    truth = tasks.examples("life/B3S23", "test", 4, 0)[3]
    assert all(arm["answers"][0]["answer"] == truth.answer.tolist() for arm in result["arms"])
    assert store.read_json(tmp_path / "compare.json") == {k: v for k, v in result.items() if k != "folder"}
    assert jobs.status(tmp_path).state == "done"
    assert len(store.find_runs(tmp_path)) == 2


@pytest.mark.parametrize("known", [0, 1])
def test_an_open_puzzle_is_answered_and_never_scored(tmp_path, known: int) -> None:
    """A test without an output, as in the files of a competition: asked as any other, counted nowhere."""
    puzzle = {
        "train": [
            {"input": [[1, 2], [3, 4]], "output": [[2, 1], [4, 3]]},
            {"input": [[5, 6], [1, 1]], "output": [[6, 5], [1, 1]]},
        ],
        "test": [*[{"input": [[7, 8], [1, 2]], "output": [[8, 7], [2, 1]]}][:known], {"input": [[3, 1], [2, 2]]}],
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(puzzle), encoding="utf-8")
    overrides = (*SHORT, "votes=2", "preview_every=5")
    result = compare.compare(f"arc:{path}", families=ARMS, overrides=overrides, folder=tmp_path / "out")
    text = compare.report(result, colour=False)
    for arm in result["arms"]:
        answer = arm["answers"][-1]
        assert answer["question"] == [[3, 1], [2, 2]] and answer["answer"] == [] and not answer["right"]
        assert (arm["codec"] is None) == (not known)
        scored = evaluate.evaluate(tmp_path / "out" / arm["folder"])
        assert (
            scored["complete"]
            and scored["scores"].get("n", 0) == scored["baselines"].get("copy", {}).get("n", 0) == known
        )
        assert scored.get("votes", {"n": 0})["n"] == known
        card = (tmp_path / "out" / arm["folder"] / "README.md").read_text(encoding="utf-8")
        assert ("1 test examples" in card) if known else ("Not scored yet" in card)
    assert ("truth" in text) == bool(known) and ("nobody knows" in text or "no grid" in text)
    (asked,) = tasks.examples(f"arc:{path}", "test", known + 1, 0)[known:]
    assert asked.open and not tasks.get(f"arc:{path}").check(asked.question, asked).right


@pytest.mark.parametrize("family", [f for f in adapters.families() if not f.startswith("fake")])
def test_every_family_asks_an_open_puzzle_as_any_other(family: str) -> None:
    known = tasks.examples("arc1/evaluation/00576224", "test", 1, 0)[0]
    run = config.resolve({"task": "arc1/evaluation/00576224", "family": family, "flavour": "tiny"})
    frame, options = adapters.family(family).frame, run.arm_options()
    asked, answered = frame(replace(known, answer=UNKNOWN), options), frame(known, options)
    np.testing.assert_equal(vars(asked.given), vars(answered.given))
    assert asked.key != answered.key and not isinstance(asked.wanted, np.ndarray)


def test_what_is_adapted_is_not_adapted_again(tmp_path) -> None:
    def run(**more):
        return compare.compare("life/B3S23", 6, families=ARMS, overrides=SHORT, folder=tmp_path, **more)

    def times():
        return [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("*/adapter/*.safetensors"))]

    first, made = run(), times()
    run(index=5)
    assert times() == made  # another test example, the same adapters
    second = run(again=True)
    assert times() != made
    for a, b in zip(first["arms"], second["arms"], strict=True):
        assert a["answers"][0]["proposed"] == b["answers"][0]["proposed"]


def test_stopped_and_taken_up_again(tmp_path) -> None:
    calls = iter([False] * 3)
    with pytest.raises(jobs.Stopped):
        compare.compare(
            "life/B3S23", 6, families=ARMS, overrides=SHORT, folder=tmp_path, stop=lambda: next(calls, True)
        )
    assert jobs.status(tmp_path).state == "stopped" and not (tmp_path / "compare.json").exists()
    compare.compare("life/B3S23", 6, families=ARMS, overrides=SHORT, folder=tmp_path)
    assert jobs.status(tmp_path).state == "done"


def test_overrides_for_one_arm() -> None:
    runs = compare.plan("life/B3S23", 6, families=ARMS, overrides=["optim.updates=7", "fake:options.width=9"])
    assert [r.optim.updates for r in runs] == [7, 7] and [r.options["width"] for r in runs] == [24, 9]
    assert runs[0].test == compare.TEST and compare.plan("life/B3S23", 6, families=ARMS, index=40)[0].test == 41
    with pytest.raises(UserError, match=r"optim\.updates: the arms would get .* which is no comparison"):
        compare.plan("life/B3S23", 6, families=ARMS, overrides=["fake:optim.updates=9"])
    for key, value in (("lora.rank", 3), ("votes", 2), ("augment", 2), ("n", 5)):
        with pytest.raises(UserError, match=rf"{key}: the arms would get"):
            compare.plan("life/B3S23", 6, families=ARMS, overrides=[f"fake:{key}={value}"])
    with pytest.raises(UserError, match="not compared"):
        compare.plan("life/B3S23", 6, families=ARMS, overrides=["wan:optim.lr=9"])
    with pytest.raises(UserError, match="n: is missing"):
        compare.plan("life/B3S23", families=ARMS)
    with pytest.raises(UserError, match="has 1 test examples, counted from 0"):
        compare.compare("arc1/evaluation/00576224", families=ARMS, index=1)


def test_default_is_one_of_each_kind_video_first() -> None:
    import adapters

    runs = compare.plan("arc1/evaluation/00576224", flavours={"cogvideox": "tiny"})
    assert [adapters.family(run.family).ARM for run in runs] == ["video", "language"]
    assert {run.n for run in runs} == {2} and {run.test for run in runs} == {1} and runs[0].flavour == "tiny"


def test_a_flavour_of_what_is_not_compared_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"--flavour cogvidex=tiny: 'cogvidex' is not compared. Compared are cogvideox, causal"
    ):
        compare.plan("maze/7x7", 3, flavours={"cogvidex": "tiny"})
    (_, language) = compare.plan("maze/7x7", 3, flavours={"causal-lm": "tiny"})
    assert language.flavour == "tiny"


def test_again_removes_nothing_under_a_process(tmp_path) -> None:
    result = compare.compare("life/B3S23", 6, families=ARMS, overrides=SHORT, folder=tmp_path)
    arm = tmp_path / result["arms"][0]["folder"]
    before = (arm / "predictions.jsonl").read_bytes()
    with store.lock(arm), pytest.raises(store.Held):
        compare.compare("life/B3S23", 6, families=ARMS, overrides=SHORT, folder=tmp_path, again=True)
    store.write_state(tmp_path, state="running", pid=os.getpid(), created=None)
    with pytest.raises(UserError, match="is already running"):
        compare.compare("life/B3S23", 6, families=ARMS, overrides=SHORT, folder=tmp_path, again=True)
    assert (arm / "predictions.jsonl").read_bytes() == before
    store.write_state(tmp_path, state="done")
    asked = (arm / "state.json").stat().st_mtime_ns
    compare.compare("life/B3S23", 6, families=ARMS, overrides=SHORT, folder=tmp_path, again=True)
    assert (arm / "state.json").stat().st_mtime_ns != asked and (arm / "predictions.jsonl").is_file()


def test_report_marks_wrong_cells_without_colour(tmp_path) -> None:
    result = compare.compare("life/B3S23", 6, families=ARMS, overrides=SHORT, folder=tmp_path)
    record = result["arms"][1]["answers"][0]
    record["proposed"] = [row[:] for row in record["answer"]]
    record["proposed"][0][0] ^= 1
    record.update(exact=False, right=False, cells=63 / 64, reason="1 of 64 cells is wrong")
    result["arms"][0]["answers"][0]["proposed"] = None
    text = compare.report(result, colour=False)
    assert f"{record['proposed'][0][0]}!" in text and "(no grid)" in text and "1 of 64 cells is wrong" in text
    assert "same examples: yes" in text and "\x1b" not in text and "\x1b" in compare.report(result, colour=True)
    result["arms"][0]["data"] = "other"
    assert "same examples: NO" in compare.report(result)


def test_side_by_side_ignores_escape_codes() -> None:
    text = compare.side_by_side([("a", ["\x1b[31mxx\x1b[0m", "yy"]), ("b", ["zz"])])
    assert text.splitlines() == ["a    b", "\x1b[31mxx\x1b[0m   zz", "yy"]


OBLONG = {"task": "arc1/training/a416b8f3", "test": 1}  # on a canvas of 5 x 8 cells


@pytest.mark.parametrize("asked", [{"votes": 8}, {"test_task": "arc1/training/a85d4709"}])
def test_how_it_is_asked_has_no_part_in_what_is_learned(asked: dict[str, Any]) -> None:
    """Runs that share a training are shown the same examples on the same canvas."""
    plain, otherwise = (config.resolve({**OBLONG, "family": "fake", **more}) for more in ({}, asked))
    assert plain.training_id == otherwise.training_id and plain.id != otherwise.id
    seen = [[(example.key, example.canvas) for example in config.learned_examples(run)] for run in (plain, otherwise)]
    assert seen[0] == seen[1] and {canvas for _, canvas in seen[0]} == {(5, 8)}


@pytest.mark.parametrize("family", ["cogvideox", "causal_lm"])
def test_views_of_an_oblong_canvas_are_answered_canvas_by_canvas(family: str) -> None:
    """Each view's answer is the one that it has when it is asked alone."""
    options = {"steps": 1} if family == "cogvideox" else {}
    run = config.resolve({**OBLONG, "family": family, "flavour": "tiny", "votes": 4, "options": options})
    arm = train.load_arm(run, "cpu")
    (example,) = config.test_examples(run)
    turned = [view.example(example) for view in augment.views(tasks.get(run.task), run.votes, run.seed)]
    assert len({one.canvas for one in turned}) == 2
    seeds = list(range(len(turned)))
    together = predict._by_canvas(arm, turned, seeds)
    for one, seed, found in zip(turned, seeds, together, strict=True):
        (alone,) = predict._by_canvas(arm, [one], [seed])
        assert (alone.grid is None) == (found.grid is None)
        if isinstance(alone.raw, str):
            assert alone.raw == found.raw
        else:
            assert alone.raw.shape == found.raw.shape
            assert np.abs(alone.raw.astype(int) - found.raw.astype(int)).max() <= 1
