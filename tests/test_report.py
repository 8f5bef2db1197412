"""Reports of synthetic sweeps: every number from the answers on disk, what is missing said, halves merged, one page."""

from __future__ import annotations

import csv
import html
import html.parser
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tasks
from tasks.base import UserError
from vdmreason import config, evaluate, report, report_answers, report_figures, store
from vdmreason import sweep as sweeps

TESTS = 12
ARMS = {"video": "cogvideox", "language": "causal_lm"}
PUZZLES = (
    "arc1/evaluation/00576224",
    "arc1/evaluation/009d5c81",
    "arc1/evaluation/12997ef3",
)  # the last asks two questions


def add_trial(sweep: Path, arm: str, n: int, seed: int, rate: float, task="life/B3S23", init="pretrained", **changes):
    """One trial of a sweep that is done, as the engine leaves it; its entry in the plan."""
    count = tasks.count(task, "test") or TESTS
    keys = {"task": task, "n": n, "seed": seed, "family": ARMS[arm], "flavour": "tiny", "init": init, "test": count}
    run = config.resolve({**keys, **changes})
    folder = sweep / "trials" / run.name
    store.write_config(folder, run)
    puzzle, rng = tasks.get(run.tested), np.random.default_rng(int(run.id, 16))
    records = []
    for i, example in enumerate(config.test_examples(run)):
        proposed = example.answer.copy()
        if rng.random() > rate:
            proposed[0, 0] = (proposed[0, 0] + 1) % 2
        answer = None if i == 0 and rate < 0.5 else proposed
        problem = "no bracket" if answer is None else ""
        record = {"i": i, "key": example.key, "question": example.question, "answer": example.answer, "seconds": 0.1}
        record |= {"canvas": list(example.canvas), "proposed": answer, "certainty": None, "raw": "", "problem": problem}
        records.append(record | evaluate.as_record(puzzle.check(answer, example), problem))
    store.write_lines(folder / "predictions.jsonl", records)
    origin = {"commit": "c" * 40, "dirty": False, "device": "cpu", "platform": "Linux", "python": "3.11", "seed": seed}
    origin |= {"libraries": {"numpy": "2.0"}, "data": store.data_hash(config.train_examples(run)), "date": "2026-11-25"}
    origin |= {"backbone": f"{arm}{seed}"}
    store.write_json(folder / "result.json", {"codec": evaluate.score_records(records), "provenance": origin})
    evaluate.evaluate(folder)
    finish(folder)
    settings = {key: value for key, value in changes.items() if key not in ("test_task", "lora")}
    return {
        "id": run.id, "folder": f"trials/{run.name}", "task": task, "arm": arm, "n": n, "seed": seed, "set": settings,
        "control": "random" if init == "random" else "", "config": config.to_dict(run),
    }  # fmt: skip


def finish(folder: Path) -> None:
    """done.json over what lies there now."""
    store.write_json(folder / sweeps.DONE, {"sha256": sweeps.hashes(folder)})


def plan(sweep: Path, entries: list[dict], dropped=()) -> Path:
    content = {"name": sweep.name, "created": 0, "commit": "c", "trials": entries, "dropped": list(dropped)}
    store.write_json(sweep / "plan.json", content)
    return sweep


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two tasks and three ARC puzzles, two arms, one control, n 10, 30 and 100, two seeds."""
    sweep = tmp_path_factory.mktemp("sweeps") / "whole"
    entries = []
    for task, arm, (n, rate), seed in itertools.product(
        ("life/B3S23", "shortest_path/15x15"), ARMS, ((10, 0.2), (30, 0.5), (100, 0.95)), (0, 1)
    ):
        entries.append(add_trial(sweep, arm, n, seed, rate if arm == "video" else rate / 2, task))
    entries += [add_trial(sweep, "video", n, s, 0.1, init="random") for n in (10, 100) for s in (0, 1)]
    for puzzle, arm, seed in itertools.product(PUZZLES, ARMS, (0, 1)):
        entries.append(add_trial(sweep, arm, tasks.count(puzzle, "train"), seed, 0.6, puzzle))
    return plan(sweep, entries)


@pytest.fixture(scope="module")
def page(made) -> Path:
    return report.report_sweep(made)


@pytest.fixture
def sweep(made, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "whole", ignore=shutil.ignore_patterns("report")))


def entries_of(sweep: Path) -> list[dict]:
    return store.read_json(sweep / "plan.json")["trials"]


def rows_of(path: Path, title: str) -> list[dict[str, str]]:
    """A table of report.md."""
    section = path.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_every_accuracy_can_be_computed_again_from_the_answers(made, page) -> None:
    """From predictions.jsonl and the plan alone, with nothing of ours but the reader of JSON lines."""
    groups: dict[tuple[str, ...], list[list[dict]]] = {}
    for entry in entries_of(made):
        name = entry["arm"] + (", random init" if entry["control"] else "")
        answers = store.read_lines(made / entry["folder"] / "predictions.jsonl")
        groups.setdefault((entry["task"], name, str(entry["n"])), []).append(answers)
    table = rows_of(page.parent / "report.md", "Accuracy")
    assert len(table) == 14  # 2 tasks x 2 arms x 3 n, and the control's two
    for row in table:
        seeds = groups[row["task"], row["arm"], row["n"]]
        same = [[np.array_equal(a["proposed"] or [[]], a["answer"]) for a in seed] for seed in seeds]
        exact = 100 * float(np.mean([np.mean(seed) for seed in same]))
        assert row["exact"].split(" [")[0] == f"{exact:.1f}"
        low, high = map(float, re.findall(r"\[(.*), (.*)\]", row["exact"])[0])
        assert low - 0.1 <= exact <= high + 0.1
        assert row["unread"] == f"{100 * np.mean([a['proposed'] is None for seed in seeds for a in seed]):.1f}"
        copied = np.mean([a["question"] == a["answer"] for seed in seeds for a in seed])
        assert row["copy"] == f"{100 * copied:.1f}"
        assert (row["seeds"], row["tests"]) == ("2", str(2 * TESTS))
    for row in rows_of(page.parent / "report.md", "Paths"):
        answers = [a for seed in groups[row["task"], row["arm"], row["n"]] for a in seed]
        connects = np.mean([a["measures"].get("path_success", 0) for a in answers])
        assert row["PSR"].split(" [")[0] == f"{100 * connects:.1f}"


def test_the_glance_is_the_accuracies_turned(page) -> None:
    """Every cell of the first table stands in the long one, and nothing of that is missing."""
    glance = rows_of(page.parent / "report.md", "At a glance")
    long = {(r["task"], r["arm"], r["n"]): r for r in rows_of(page.parent / "report.md", "Accuracy")}
    cells = {
        (r["task"], r["arm"], k.removeprefix("n = ")): v for r in glance for k, v in r.items() if k.startswith("n = ")
    }
    assert {key for key, value in cells.items() if value != "–"} == set(long)
    most = max(int(r["seeds"]) for r in long.values())
    for key, row in long.items():
        assert cells[key] == row["exact"] + "*" * (int(row["seeds"]) < most)


def test_tests_and_overlap_can_be_computed_again(made, page) -> None:
    right = {}
    for entry in entries_of(made):
        answers = store.read_lines(made / entry["folder"] / "predictions.jsonl")
        hits = [np.array_equal(a["proposed"] or [[]], a["answer"]) for a in answers]
        right[entry["task"], entry["arm"], entry["control"], entry["n"], entry["seed"]] = np.array(hits)
    table = rows_of(page.parent / "report.md", "Two arms on the same test examples")
    assert {(row["first"], row["second"]) for row in table} == {("video", "language"), ("video", "video, random init")}
    for row in table:
        arm, control = row["second"].partition(",")[0], "random" if "random" in row["second"] else ""
        pairs = [
            (right[row["task"], "video", "", int(row["n"]), s], right[row["task"], arm, control, int(row["n"]), s])
            for s in (0, 1)
        ]
        difference = 100 * np.mean([a.mean() - b.mean() for a, b in pairs])
        assert row["difference"].split(" [")[0] == f"{difference:+.1f}"
        counted = [f"{(a & ~b).sum()}:{(b & ~a).sum()}" for a, b in pairs]
        assert re.findall(r"\d+:\d+", row["McNemar by seed"]) == counted
    found = {row["attempts"]: row for row in rows_of(page.parent / "report.md", "Who solved which ARC puzzle")}
    for attempts in (1, 2):
        solved = {
            arm: [
                np.logical_or.reduce([right[p, arm, "", tasks.count(p, "train"), s] for s in range(attempts)]).all()
                for p in PUZZLES
            ]
            for arm in ARMS
        }
        both = sum(a and b for a, b in zip(solved["video"], solved["language"], strict=True))
        only = sum(a and not b for a, b in zip(solved["video"], solved["language"], strict=True))
        assert (found[str(attempts)]["both"], found[str(attempts)]["video only"]) == (str(both), str(only))


def test_how_near_answers_are_can_be_computed_again(made, page) -> None:
    """From the grids on disk: shares of cells and sizes, and of the puzzles' means over seeds the difference and every flip."""
    cells, sizes, unread = {}, {}, {}
    for entry in entries_of(made):
        if entry["task"] in PUZZLES:
            answers = store.read_lines(made / entry["folder"] / "predictions.jsonl")
            given = [None if a["proposed"] is None else np.array(a["proposed"]) for a in answers]
            right = [np.array(a["answer"]) for a in answers]
            alike = [g is not None and g.shape == r.shape for g, r in zip(given, right, strict=True)]
            shares = [(g == r).mean() if ok else 0 for g, r, ok in zip(given, right, alike, strict=True)]
            cells.setdefault((entry["arm"], entry["task"]), []).append(np.mean(shares))
            sizes.setdefault(entry["arm"], []).extend(alike)
            unread.setdefault(entry["arm"], []).extend(g is None for g in given)
    table = {row["arm"]: row for row in rows_of(page.parent / "report.md", "How near the ARC answers are")}
    assert list(table) == ["language", "video"]
    for arm, row in table.items():
        value = np.mean([cells[arm, puzzle] for puzzle in PUZZLES])
        assert row["tried"] == "3" and row["cells"].split(" [")[0] == f"{100 * value:.1f}"
        assert row["right size"] == f"{100 * np.mean(sizes[arm]):.1f}"
        assert row["unread"] == f"{100 * np.mean(unread[arm]):.1f}"
        assert row["copy, cells"] != "–" and row["nearest, cells"] != "–"
    (pair,) = rows_of(page.parent / "report.md", "Which arm's ARC answers are nearer")
    apart = np.array([np.mean(cells["video", p]) - np.mean(cells["language", p]) for p in PUZZLES])
    assert pair["difference"].split(" [")[0] == f"{100 * apart.mean():+.1f}" and pair["tried by both"] == "3"
    flipped = [abs(np.dot(signs, apart)) >= abs(apart.sum()) - 1e-9 for signs in itertools.product((1, -1), repeat=3)]
    assert abs(float(pair["p"]) - np.mean(flipped)) < 0.02  # 10,000 draws of what has eight values
    assert "2 attempts: of 3 that both tried video solved" in (page.parent / "report.md").read_text()


def test_an_arm_that_has_nothing_right_has_doubt_all_the_same(tmp_path) -> None:
    """No interval of width zero, neither from one puzzle nor from answers that are all of another size."""
    sweep, puzzle = tmp_path / "one", PUZZLES[0]
    entry = add_trial(sweep, "video", tasks.count(puzzle, "train"), 0, 1.0, puzzle)
    change(sweep / entry["folder"], lambda record: record | {"proposed": [[0]]})
    near = report.findings(report.gather([plan(sweep, [entry])]))["arc"]["arc1/evaluation"]["near"]
    (row,) = near["arms"]
    assert (row["cells"].value, row["size"], near["pairs"]) == (0, 0, []) and row["cells"].high > 0.5


def change(folder: Path, to) -> None:
    """Other answers, as if the trial had given them."""
    records = [to(record) for record in store.read_lines(folder / "predictions.jsonl")]
    store.write_lines(folder / "predictions.jsonl", records)
    finish(folder)


def test_answers_are_shown_by_a_rule_and_not_by_result(made, page) -> None:
    """Of a task the first test example of the seed that most have, as every arm answered it after every n that it has."""
    gathered = report.gather([made])
    sheets = report.look(gathered)
    assert [sheet.name for sheet in sheets] == ["life/B3S23", "shortest_path/15x15", "arc1/evaluation"]
    marks = Counter()
    for sheet in sheets[:2]:
        trials = {(t.series.name, t.run.n): t for t in gathered.trials if t.task == sheet.name and t.run.seed == 0}
        first = next(iter(trials.values())).records[0]
        assert sheet.heads == ("question", "right answer", "n = 10", "n = 30", "n = 100")
        given = [p.grid.tolist() for p in sheet.rows[0][1][:2] if p]
        assert given == [first["question"], first["answer"]]
        assert [name for name, _ in sheet.rows] == list(dict.fromkeys(name for name, _ in trials))
        for (name, pictures), n in itertools.product(sheet.rows, (10, 30, 100)):
            shown, trial = dict(zip(sheet.heads, pictures, strict=True))[f"n = {n}"], trials.get((name, n))
            marks[shown and shown.note[:5]] += 1
            if trial is None:
                assert shown is None
            elif trial.records[0]["proposed"] is None:
                assert shown.grid is None and shown.note == "not readable" and not shown.right
            else:
                assert shown.grid.tolist() == trial.records[0]["proposed"]
                assert shown.right == (trial.records[0]["exact"] or trial.records[0]["right"])
                assert shown.right == ("right" in shown.note)
    assert {None, "not r"} <= set(marks) and len(marks) > 2
    text = (page.parent / "report.md").read_text()
    for sheet in sheets:
        (file,) = re.findall(rf"!\[{re.escape(sheet.about)}\]\((.+?)\)", text)
        assert (page.parent / file).is_file() and sheet.about in html.unescape(page.read_text())


def test_another_way_is_right_and_another_question_is_not_this_one(tmp_path) -> None:
    record = {"proposed": [[1, 2]], "answer": [[2, 2]], "right": True}
    shown = report_answers._answer(record)
    assert (shown.note, shown.right, shown.cells) == ("right, another way", True, 0.5)
    assert report_answers._answer(record | {"right": False}).note == "50.0 % of cells"
    sweep = tmp_path / "swapped"
    entries = [add_trial(sweep, arm, n, 0, 1.0) for arm, n in (("video", 10), ("video", 30), ("language", 10))]
    folder = sweep / entries[2]["folder"]
    records = store.read_lines(folder / "predictions.jsonl")
    records[0], records[1] = records[1] | {"i": 0}, records[0] | {"i": 1}
    store.write_lines(folder / "predictions.jsonl", records)
    finish(folder)
    (sheet,) = report.look(report.gather([plan(sweep, entries)]))
    notes = {name: [p and p.note for p in pictures[2:]] for name, pictures in sheet.rows}
    assert sorted(notes.items()) in (
        [("language", ["another question", None]), ("video", ["right", "right"])],
        [("language", ["right", None]), ("video", ["another question"] * 2)],
    )


def test_solved_means_what_the_table_says(made, tmp_path) -> None:
    """Within the attempts of all seeds, every test input; solved puzzles first, and green where one attempt is right."""
    sweep = Path(shutil.copytree(made, tmp_path / "votes"))
    (two,) = [p for p in PUZZLES if tasks.count(p, "test") == 2]
    by_votes, by_seeds = [p for p in PUZZLES if p != two]

    def wrong(record) -> list:
        return ((np.array(record["answer"]) + 1) % 10).tolist()

    for entry in entries_of(made):
        folder, task, seed = sweep / entry["folder"], entry["task"], entry["seed"]
        if task not in PUZZLES:
            continue
        if entry["arm"] == "language":
            change(folder, lambda record: record | {"proposed": wrong(record)[:-1]})
        elif (
            task == by_votes
        ):  # the second vote of the first seed; what seed 1 gives is a third attempt, and none is allowed
            votes = lambda r: [{"grid": g, "count": 1} for g in (wrong(r), r["answer"])]  # noqa: E731
            change(folder, lambda r, votes=votes: r | {"proposed": wrong(r), "votes": votes(r)})
        elif task == by_seeds:
            change(folder, lambda r, seed=seed: r | {"proposed": r["answer"] if seed else wrong(r)})
        else:  # only the first of two inputs
            change(folder, lambda r: r | {"proposed": wrong(r) if r["i"] else r["answer"]})
    gathered = report.gather([sweep])
    sheet = report.look(gathered)[-1]
    scores = report.findings(gathered)["arc"]["arc1/evaluation"]["overlap"]
    assert [row["video only"] for row in scores if row["attempts"] == 2] == [2]
    shown = {name: dict(zip(sheet.heads, pictures, strict=True)) for name, pictures in sheet.rows}
    id_of = {name.rpartition("/")[2]: name for name in PUZZLES}
    assert [id_of[name[:8]] for name in shown] == [*sorted((by_votes, by_seeds)), two]
    words = {id_of[name[:8]]: name[8:] for name in shown}
    assert words == {
        by_votes: "\nsolved by video",
        by_seeds: "\nsolved by video",
        two: "\ninput 1 of 2\nsolved by none",
    }
    marks = {id_of[n[:8]]: [p.note for p in row.values() if p and p.note] for n, row in shown.items()}
    near = ["another size", "another size", "0.0 % of cells", "right"]
    assert marks == {by_votes: near, by_seeds: near, two: [*near[:2], "right", "right"]}


def spoilt(answer: list) -> list:
    return [[(answer[0][0] + 1) % 10, *answer[0][1:]], *answer[1:]]


def test_of_many_puzzles_some_of_each_kind_are_shown(tmp_path) -> None:
    """Eight that were solved, those of one arm alone first, and the four nearest misses; counted in words."""
    sweep, names = tmp_path / "many", tasks.variants("arc1/training")[:24]
    entries, alone = [], set(names[9:12])
    for arm, (k, puzzle) in itertools.product(ARMS, enumerate(names)):
        right = k < 12 and (arm == "video" or puzzle not in alone)
        entries.append(add_trial(sweep, arm, tasks.count(puzzle, "train"), 0, 1.0, puzzle, votes=2))
        if not right:  # by one cell
            change(sweep / entries[-1]["folder"], lambda record: record | {"proposed": spoilt(record["answer"])})
    (sheet,) = report.look(report.gather([plan(sweep, entries)]))
    ids = [name.rpartition("/")[2] for name in names]
    first = [name.split("\n")[0].split(",")[0] for name, _ in sheet.rows]
    assert first[:8] == [*ids[9:12], *ids[:5]] and set(first[8:]) <= set(ids[12:]) and len(first) == 12
    best = {id_: 1 - 1 / tasks.get(name).stock("test")[0].answer.size for id_, name in zip(ids, names, strict=True)}
    assert first[8:] == sorted(ids[12:], key=lambda id_: (-best[id_], id_))[:4]
    assert "8 of the 12 puzzles that an arm solved" in sheet.about and "4 of the 12 others" in sheet.about


def test_questions_that_nobody_can_answer_do_not_count(sweep) -> None:
    """A drawn puzzle may lack its truth: no answer to it is wrong."""
    entry = entries_of(sweep)[0]
    records = store.read_lines(sweep / entry["folder"] / "predictions.jsonl")
    records[0]["answer"] = []
    store.write_lines(sweep / entry["folder"] / "predictions.jsonl", records)
    finish(sweep / entry["folder"])
    gathered = report.gather([sweep])
    (gap,) = gathered.missing
    assert (gap["id"], gap["state"]) == (entry["id"], "open") and f"1 of its {TESTS} questions" in gap["why"]
    assert gathered.finished and len(gathered.trials) == gathered.planned - 1
    assert "1 asks what nobody knows the answer to" in report.report([sweep], sweep / "report").read_text()


def test_tables_for_others(made, page) -> None:
    with open(page.parent / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == {entry["id"] for entry in entries_of(made)}
    assert all(row["commit"] == "c" * 40 and row["published"] == "False" for row in rows)
    parquet = pytest.importorskip("pyarrow.parquet").read_table(page.parent / "results.parquet").to_pylist()
    assert [row["id"] for row in parquet] == [row["id"] for row in rows]
    assert [row["exact"] for row in parquet] == [float(row["exact"]) for row in rows]
    json.loads((page.parent / "report.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity


def test_the_same_folder_gives_the_same_report(made, page, tmp_path) -> None:
    other = report.report_sweep(made, tmp_path / "again").parent
    for name in ("report.md", "index.html", "results.csv", "report.json", "figures/accuracy.svg"):
        assert (other / name).read_bytes() == (page.parent / name).read_bytes(), name


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; keeps what would be loaded and all ids."""

    VOID = ("meta", "link", "br", "img", "input", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href") and value and not value.startswith("#")]
        self.ids += [value for key, value in attrs if key == "id"]
        self.references += [value[1:] for key, value in attrs if key == "href" and value.startswith("#")]

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_by_itself(page) -> None:
    text = page.read_text()
    reader = Page()
    reader.feed(text)
    pictures = [link for link in reader.loads if link.startswith("data:image/png;base64,")]
    assert not reader.open and reader.loads == ["data:,", *pictures]
    drawn = [p for sheet in report.look(report.gather([page.parent.parent])) for _, row in sheet.rows for p in row]
    assert len(pictures) == sum(p is not None and p.grid is not None for p in drawn) > 20
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert len(reader.ids) == len(set(reader.ids)) and set(reader.references) <= set(reader.ids)
    assert text.count("<svg") == 3 + 3  # curves of two tasks, one overlap; answers of both tasks and of the puzzles
    for word in (
        "prefers-color-scheme: dark",
        'name="viewport"',
        "currentColor",
        "published, other models, other test sizes",
    ):
        assert word in text


def test_the_caveat_is_on_page_and_tables(page) -> None:
    text, markdown = page.read_text(), (page.parent / "report.md").read_text()
    assert report.CAVEAT in text and report.CAVEAT in markdown
    assert text.index(report.CAVEAT) < text.index("<table")
    tables = len(re.findall("<table", text)) + 1  # and the pictures of answers
    assert text.count("Small backbones: see the caveat on top.") == tables == markdown.count("Small backbones: see")


def test_published_backbones_need_no_caveat(tmp_path) -> None:
    sweep = tmp_path / "large"
    entry = add_trial(sweep, "language", 10, 0, 0.5, flavour="Qwen/Qwen3-8B")
    page = report.report_sweep(plan(sweep, [entry]))
    assert report.CAVEAT not in page.read_text()


def test_what_is_not_whole_is_named_and_not_counted(sweep) -> None:
    first, second, third, fourth, fifth, *_ = entries_of(sweep)
    (sweep / first["folder"] / "done.json").unlink()
    with open(sweep / second["folder"] / "predictions.jsonl", "a") as file:
        file.write("\n")
    (sweep / third["folder"] / "result.json").unlink()
    (sweep / fourth["folder"] / "done.json").unlink()
    store.write_json(sweep / fourth["folder"] / "failed.json", {"error": "out of\nmemory"})
    shutil.rmtree(sweep / fifth["folder"])
    text = report.report_sweep(sweep).read_text()
    total = len(entries_of(sweep))
    assert f"{total - 5} of {total} trials. This sweep is not finished: 2 waiting, 2 damaged, 1 failed" in text
    rows = {r["id"]: r for r in rows_of(sweep / "report" / "report.md", "Trials that do not count")}
    states = [rows[entry["id"]]["state"] for entry in (first, second, third, fourth, fifth)]
    assert states == ["waiting", "damaged", "damaged", "failed", "waiting"]
    assert (
        rows[fourth["id"]]["why"] == "out of memory" and "not what done.json vouches for" in rows[second["id"]]["why"]
    )
    with open(sweep / "report" / "results.csv", newline="") as file:
        counted = {row["id"] for row in csv.DictReader(file)}
    assert counted == {e["id"] for e in entries_of(sweep)} - set(rows)
    table = {(r["task"], r["arm"], r["n"]): r for r in rows_of(sweep / "report" / "report.md", "Accuracy")}
    assert ("life/B3S23", "video", "10") not in table  # both seeds are missing: no row, and no zero
    assert ("life/B3S23", "video", "30") not in table and table["life/B3S23", "video", "100"]["seeds"] == "1"


def test_a_sweep_of_which_nothing_is_done_has_a_report(sweep) -> None:
    shutil.rmtree(sweep / "trials")
    text = report.report_sweep(sweep).read_text()
    assert f"0 of {len(entries_of(sweep))} trials" in text and "waiting" in text


def test_dropped_trials_are_no_part_of_it(sweep) -> None:
    gone, *kept = entries_of(sweep)
    plan(sweep, [gone, *kept], dropped=[gone["id"]])
    gathered = report.gather([sweep])
    assert gathered.planned == len(kept) == len(gathered.trials)


def test_two_halves_are_the_whole(made, page, tmp_path) -> None:
    """Half of the trials on each machine, both with the whole plan; some on both."""
    halves = [Path(shutil.copytree(made, tmp_path / name / "whole")) for name in ("here", "there")]
    for i, entry in enumerate(entries_of(made)):
        if i % 5:  # every fifth is on both
            shutil.rmtree(halves[i % 2] / entry["folder"])
    both = report.report(halves, tmp_path / "both").parent
    for name in ("report.json", "figures/accuracy.svg"):
        assert (both / name).read_bytes() == (page.parent / name).read_bytes()
    numbers = [(p / "report.md").read_text().split("## Files")[0] for p in (both, page.parent)]
    assert numbers[0] == numbers[1]


def test_two_results_for_one_trial_are_one_line(made, sweep, tmp_path) -> None:
    entry = entries_of(sweep)[4]
    answers = store.read_lines(sweep / entry["folder"] / "predictions.jsonl")
    answers[3]["proposed"] = [[7]]
    answers[3]["seconds"] = 9.0
    store.write_lines(sweep / entry["folder"] / "predictions.jsonl", answers)
    finish(sweep / entry["folder"])
    with pytest.raises(UserError, match="hold different answers") as caught:
        report.report([made, sweep], tmp_path / "out")
    assert "\n" not in str(caught.value) and entry["id"] in str(caught.value)


def test_other_origins_are_called_out(sweep) -> None:
    def change(entry: dict, **origin) -> None:
        folder = sweep / entry["folder"]
        result = store.read_json(folder / "result.json")
        result["provenance"] |= origin
        store.write_json(folder / "result.json", result)
        finish(folder)

    first, second, third, lent, *_ = entries_of(sweep)
    assert all("each family's own" in note for note in report.gather([sweep]).notes)
    done = store.read_json(sweep / lent["folder"] / sweeps.DONE)
    store.write_json(sweep / lent["folder"] / sweeps.DONE, {**done, "commit": "f" * 40})  # lent: trained by other code
    assert any("2 code commits" in note and "fffffffff (1)" in note for note in report.gather([sweep]).notes)
    store.write_json(sweep / lent["folder"] / sweeps.DONE, done)
    change(first, commit="d" * 40, dirty=True)
    change(second, data="e" * 64)
    change(third, backbone="another", libraries={"numpy": "2.1"})
    notes = "\n".join(report.gather([sweep]).notes)
    for words in (
        "2 code commits",
        "not committed",
        "different data hashes",
        "different fingerprints",
        "versions of numpy",
    ):
        assert words in notes


def test_answers_are_scored_by_the_rules_of_today(sweep) -> None:
    """A stored verdict is not believed."""
    entry = entries_of(sweep)[0]
    path = sweep / entry["folder"] / "predictions.jsonl"
    store.write_lines(path, [{**a, "exact": True, "right": True} for a in store.read_lines(path)])
    finish(sweep / entry["folder"])
    trial = next(t for t in report.gather([sweep]).trials if t.id == entry["id"])
    assert trial.values("exact").mean() < 1


def test_configs_that_differ_are_not_averaged(tmp_path) -> None:
    sweep = tmp_path / "ranks"
    entries = [add_trial(sweep, "video", 10, s, 0.5, lora={"rank": r}) for r in (4, 8) for s in (0, 1)]
    found = report.findings(report.gather([plan(sweep, entries)]))
    assert {(row["series"], tuple(row["seeds"])) for row in found["accuracy"]} >= {("video (rank 4)", (0, 1))}
    assert len(found["accuracy"]) == 2
    assert [(t["first"], t["second"]) for t in found["tests"]] == [("video (rank 4)", "video (rank 8)")]


def test_configs_that_differ_over_n_are_not_one_curve(tmp_path) -> None:
    """300 updates at 10 examples and 800 at 30 are no learning curve, and each is compared with a rival of its own."""
    sweep = tmp_path / "mixed"
    entries = [
        add_trial(sweep, arm, n, s, 0.5, **({"lora": {"rank": rank}} if arm == "video" or n == 30 else {"lora": {"rank": 4}}))
        for arm in ARMS for n, rank in ((10, 4), (30, 8)) for s in (0, 1)
    ]  # fmt: skip
    for entry in entries:  # the language arm has rank 4 at 10 and rank 8 at 30 as the video arm has
        assert entry["config"]["lora"]["rank"] == (4 if entry["n"] == 10 else 8)
    found = report.findings(report.gather([plan(sweep, entries)]))
    assert {(row["series"], tuple(row["n"])) for row in found["needed"]} == {
        (f"{arm} (rank {rank})", (n,)) for arm in ARMS for n, rank in ((10, 4), (30, 8))
    }
    assert {(row["video"], row["language"]) for row in found["ratio"]} == {
        (f"video (rank {rank})", f"language (rank {rank})") for rank in (4, 8)
    }


def test_a_setting_may_be_nothing_in_one_run(tmp_path) -> None:
    """ "options.max_new_tokens" is none by itself, and a number where somebody asked for fewer."""
    sweep = tmp_path / "mixed"
    entries = [
        {**add_trial(sweep, "language", 10, s, 0.5, options={"max_new_tokens": most}), "set": {"options.max_new_tokens": most}}
        for most in (200, None, 64) for s in (0, 1)
    ]  # fmt: skip
    found = report.findings(report.gather([plan(sweep, entries)]))
    assert [row["series"] for row in found["needed"]] == [f"language (max_new_tokens {m})" for m in (64, 200, None)]


def test_an_arm_that_reads_nothing_connects_nothing(tmp_path) -> None:
    """Its share of ways that connect is 0 %, and not left out."""
    sweep, task = tmp_path / "ways", "shortest_path/15x15"
    entries = [add_trial(sweep, arm, 10, 0, 0.9, task) for arm in ARMS]
    place = sweep / entries[1]["folder"]
    records = store.read_lines(place / "predictions.jsonl")
    for record in records:
        record |= {"proposed": None, "problem": "no bracket"}
    store.write_lines(place / "predictions.jsonl", records)
    finish(place)
    page = report.report_sweep(plan(sweep, entries))
    shares = {r["arm"]: float(r["PSR"].split()[0]) for r in rows_of(page.parent / "report.md", "Paths")}
    assert shares["language"] == 0.0 < shares["video"]


def test_a_difference_of_accuracies_stays_one(tmp_path) -> None:
    """Few tasks that disagree leave a wide interval, and none wider than there are points."""
    sweep = tmp_path / "wide"
    entries = [
        add_trial(sweep, arm, 10, 0, 1.0 if (arm == "video") == (task == "eca/110") else 0.0, task)
        for task in ("life/B3S23", "eca/110", "eca/30") for arm in ARMS
    ]  # fmt: skip
    (pool,) = report.findings(report.gather([plan(sweep, entries)]))["pooled"]
    assert -1 <= pool["area"].low < pool["area"].high <= 1


def test_every_sitting_counts_and_a_folder_s_backbone_is_small_everywhere(sweep) -> None:
    place = sweep / entries_of(sweep)[0]["folder"]
    result = store.read_json(place / "result.json")
    made = dict(result["provenance"])
    sittings = [made | {"commit": "d" * 40, "dirty": True}, made]
    result["provenance"] = made | {"sittings": sittings, "dirty": True, "published": True}
    result["answered"] = [made | {"commit": "e" * 40, "device": "H200", "dirty": False}]
    store.write_json(place / "result.json", result)
    finish(place)
    gathered = report.gather([sweep])
    notes = "\n".join(gathered.notes)
    assert "3 code commits" in notes and "ddddddddd (1)" in notes and "eeeeeeeee (1)" in notes
    assert "2 devices" in notes and "1 trials ran on code with changes" in notes
    (row,) = [row for row in report.rows(gathered) if len(row["commit"].split()) > 1]
    assert len(row["commit"].split()) == 3 and row["dirty"] and row["published"]


def test_a_setting_is_chosen_over_the_tasks_that_all_have(tmp_path) -> None:
    """The mean over tasks can be computed again; a task that one rate has not met is not in it."""
    sweep, rates = tmp_path / "rates", {0.001: 0.3, 0.01: 0.9}
    entries = [
        {**add_trial(sweep, "video", 10, 0, right, task, optim={"lr": lr}), "set": {"optim.lr": lr}}
        for lr, right in rates.items() for task in ("life/B3S23", "eca/110")
    ]  # fmt: skip
    entries += [{**add_trial(sweep, "video", 10, 0, 1.0, "maze/7x7", optim={"lr": 0.001}), "set": {"optim.lr": 0.001}}]
    entries += [add_trial(sweep, "language", 10, 0, 0.5)]
    page = report.report_sweep(plan(sweep, entries))
    low, high = rows_of(page.parent / "report.md", "Which setting")
    assert (low["arm"], high["arm"]) == ("video (lr 0.001)", "video (lr 0.01)") and low["tasks"] == high["tasks"] == "2"
    assert high["mean accuracy, %"].endswith("*") and not low["mean accuracy, %"].endswith("*")
    exact = {
        (r["task"], r["arm"]): float(r["exact"].split()[0]) for r in rows_of(page.parent / "report.md", "Accuracy")
    }
    for row in (low, high):
        mean = sum(exact[task, row["arm"]] for task in ("life/B3S23", "eca/110")) / 2
        assert float(row["mean accuracy, %"].split()[0]) == pytest.approx(mean, abs=0.06)


def test_drawn_answers_are_called_out(tmp_path) -> None:
    entries = [add_trial(tmp_path / "hot", arm, 10, 0, 0.5, **more) for arm, more in (
        ("video", {}), ("language", {"options": {"temperature": 0.7}}))]  # fmt: skip
    (line,) = [note for note in report.gather([plan(tmp_path / "hot", entries)]).notes if "drawn" in note]
    assert line.startswith("Answers of causal_lm tiny are drawn, one a view of a question, at temperature 0.7.")
    assert "options.shift is each family's own: none (causal_lm tiny), 8.0 (cogvideox tiny)." in (
        notes := report.gather([tmp_path / "hot"]).notes
    ), notes


def test_an_axis_of_one_sweep_is_a_setting_of_another(tmp_path) -> None:
    """Merged, arms of one batch are compared with arms of that batch, though one of the sweeps has no such axis."""
    plain = plan(tmp_path / "plain", [add_trial(tmp_path / "plain", arm, 10, s, 0.5) for arm in ARMS for s in (0, 1)])
    batches = [
        add_trial(tmp_path / "batches", arm, 10, s, 0.5, **{"optim": {"batch": batch}})
        | {"set": {"optim.batch": batch}}
        for arm in ARMS
        for s in (0, 1)
        for batch in (2, 4)
    ]
    together = report.gather([plain, plan(tmp_path / "batches", batches)])
    own = together.trials[0].run.optim.batch
    found = report.findings(together)
    names = {(row["video"], row["language"]) for row in found["ratio"]}
    assert names == {(f"video (batch {b})", f"language (batch {b})") for b in (2, 4, own)}


def test_a_rate_that_yaml_takes_for_a_text_is_a_rate(tmp_path) -> None:
    """An axis of [1e-3] and a run that has .001 are one setting."""
    sweep = tmp_path / "s"
    entries = [add_trial(sweep, arm, 10, s, 0.5, optim={"lr": 1e-3}) for arm in ARMS for s in (0, 1)]
    named = [entry | {"set": {"optim.lr": "1e-3" if entry["seed"] else 0.001}} for entry in entries]
    found = report.findings(report.gather([plan(sweep, named)]))
    assert [row["seeds"] for row in found["ratio"]] == [[2]] and found["ratio"][0]["video"] == "video (lr 0.001)"


def test_seeds_that_one_arm_lacks_are_compared_with_nothing(tmp_path) -> None:
    entries = [add_trial(tmp_path / "s", arm, n, s, 0.5) for arm in ARMS for n in (10, 30) for s in (0, 1, 2)]
    whole = report.findings(report.gather([plan(tmp_path / "s", entries)]))
    few = [e for e in entries if not (e["arm"] == "video" and e["seed"] == 2)]
    same = [e for e in entries if e["seed"] != 2]
    found, wanted = (report.findings(report.gather([plan(tmp_path / "s", some)])) for some in (few, same))
    assert found["ratio"] == wanted["ratio"] != whole["ratio"] and found["pooled"] == wanted["pooled"]
    assert found["ratio"][0]["seeds"] == [2, 2]
    other = tmp_path / "s" / entries[0]["folder"] / "result.json"  # it learned from other examples
    result = store.read_json(other)
    store.write_json(other, result | {"provenance": result["provenance"] | {"data": "another"}})
    finish(other.parent)
    apart = report.findings(report.gather([plan(tmp_path / "s", entries)]))
    assert apart["ratio"][0]["seeds"] == [2, 3] and [len(t["seeds"]) for t in apart["tests"]] == [2, 3]


def test_one_seed_makes_nothing_clear(tmp_path) -> None:
    entries = [add_trial(tmp_path / "s", arm, 10, 0, float(arm == "video")) for arm in ARMS]
    (row,) = report.findings(report.gather([plan(tmp_path / "s", entries)]))["tests"]
    assert row["p_holm"] < 0.01 and row["difference"].low > 0 and not row["clear"]
    text = report.report_sweep(tmp_path / "s").parent.joinpath("report.md").read_text()
    assert "of one seed none is called clear" in text


def test_unequal_budgets_are_called_out(tmp_path) -> None:
    sweep = tmp_path / "unequal"
    same = [add_trial(sweep, arm, 10, 0, 0.5) for arm in ARMS]
    own, _ = report.gather(
        [plan(sweep, same)]
    ).notes  # and the time shift, which only one has: the budget is equal; rates are each family's own, and said
    rates = {entry["arm"]: entry["config"]["optim"]["lr"] for entry in same}
    assert rates["video"] != rates["language"] and own.startswith("optim.lr is each family's own: ")
    assert all(f"{rate} (" in own for rate in rates.values())
    other = add_trial(sweep, "language", 10, 0, 0.5, "eca/110", optim={"updates": 7})
    other["set"] = {}
    video = add_trial(sweep, "video", 10, 0, 0.5, "eca/110", lora={"targets": ["attention"]})
    notes = report.gather([plan(sweep, [*same, other, video])]).notes
    assert [n for n in notes if "optim.updates" in n and "7 (language)" in n]
    assert [n for n in notes if "lora.targets" in n and "attention (video)" in n and "attention + mlp (language)" in n]
    assert len(notes) == 4 and own in notes


def test_clear_is_clear_for_other_seeds_too(tmp_path) -> None:
    """One lucky seed of three makes the answers differ beyond doubt; an arm's other seeds need not."""
    sweep = tmp_path / "lucky"
    entries = [add_trial(sweep, "video", 10, s, rate, test=200) for s, rate in enumerate((1.0, 0.52, 0.52))]
    entries += [add_trial(sweep, "language", 10, s, 0.5, test=200) for s in range(3)]
    (row,) = report.findings(report.gather([plan(sweep, entries)]))["tests"]
    assert row["p_holm"] < 0.01 and row["difference"].low < 0 and not row["clear"]
    every = tmp_path / "every"
    entries = [add_trial(every, "video", 10, s, 0.9, test=200) for s in range(3)]
    entries += [add_trial(every, "language", 10, s, 0.3, test=200) for s in range(3)]
    (row,) = report.findings(report.gather([plan(every, entries)]))["tests"]
    assert row["clear"]


def test_arms_with_other_n_are_compared_where_both_have_it(tmp_path) -> None:
    sweep = tmp_path / "n"
    entries = [add_trial(sweep, "video", n, 0, 0.5) for n in (10, 30, 100)]
    entries += [add_trial(sweep, "language", n, 0, 0.5) for n in (30, 100)]
    page = report.report_sweep(plan(sweep, entries))
    (row,) = rows_of(page.parent / "report.md", "Who needs fewer examples")
    assert row["n"] == "30, 100"
    assert {r["arm"]: r["n"] for r in rows_of(page.parent / "report.md", "How many examples an accuracy takes")} == {
        "video": "10, 30, 100", "language": "30, 100",
    }  # fmt: skip


def test_arc_with_fewer_demonstrations_is_a_row_of_its_own(tmp_path) -> None:
    """One demonstration and all of them are two experiments, not two attempts of one."""
    sweep, puzzle = tmp_path / "arc", PUZZLES[0]
    entries = [
        add_trial(sweep, "video", n, 0, rate, puzzle) for n, rate in ((1, 0.0), (tasks.count(puzzle, "train"), 1.0))
    ]
    scores = report.findings(report.gather([plan(sweep, entries)]))["arc"]["arc1/evaluation"]["scores"]
    assert {(s["series"], s["rule"], s["score"].value) for s in scores} == {
        ("video", "strict@1", 1.0), ("video (n 1)", "strict@1", 0.0),
    }  # fmt: skip


def test_a_folder_of_runs(made, tmp_path) -> None:
    runs = Path(shutil.copytree(made / "trials", tmp_path / "runs"))
    for folder in runs.glob("*causal_lm*"):
        (folder / "done.json").unlink()  # ordinary runs have none
    gathered = report.gather([runs])
    assert gathered.finished and {t.arm for t in gathered.trials} == set(ARMS.values())
    assert {t.control for t in gathered.trials} == {"", "random"}
    first = next(iter(runs.iterdir()))
    (first / "predictions.jsonl").write_text("")
    assert len(report.gather([runs]).missing) == 1
    with pytest.raises(UserError, match="neither a sweep"):
        report.gather([tmp_path / "nothing"])


def test_without_matplotlib_the_report_still_comes(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = report.report_sweep(made, tmp_path / "bare")
    assert (
        report_figures.MISSING in page.read_text()
        and "pip install matplotlib" in (page.parent / "report.md").read_text()
    )
    assert "<svg" not in page.read_text() and (page.parent / "results.csv").exists()


def test_without_pyarrow_it_says_so(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = report.report_sweep(made, tmp_path / "bare")
    assert "pip install pyarrow" in page.read_text() and not (page.parent / "results.parquet").exists()


def test_published_curves_belong_to_tasks_that_exist() -> None:
    names = [name for name in tasks.variants() if not name.startswith(("arc", "concept"))]
    known = {name for name in names if report.published(name)}
    assert {"life/B3S23", "sudoku/9x9", "langton/10", "shortest_path/15x15", "chess/mate-in-1"} <= known
    assert {name for name in names if name.startswith("eca/")} <= known and "maze/7x7" not in known
    assert len(known) == 5 + 2 + 5 + 4 + 16  # games, routes, life, Langton, rules: all but the generalisation below
    for name in [*known, "maze/13x13 → maze/21x21"]:
        for points in report.published(name).values():
            assert points and all(n > 0 and 0 <= value <= 1 for n, value in points)


def test_report_needs_no_torch(made, tmp_path) -> None:
    code = (
        "import sys; from pathlib import Path; import vdmreason.report as r; "
        "assert 'matplotlib' not in sys.modules; r.report_sweep(Path(sys.argv[1]), Path(sys.argv[2])); "
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'gradio'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(made), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_two_arms_of_a_sweep_look_alike() -> None:
    """All families and one of them asked otherwise; the arms named after their kind have the published curves' colours."""
    arms = [
        ("video", "internvideo_next"),
        ("video", "lvmae"),
        ("video", "nextvid"),
        ("video", "video"),
        ("video", "wan"),
    ]
    rows = [
        {"kind": kind, "arm": arm, "settings": {}}
        for kind, arm in [*arms, ("language", "language"), ("language", "vlm")]
    ]
    rows.append({"kind": "video", "arm": "video", "settings": {"steps": 1}})
    colours = report_figures._colours(rows)
    assert len(set(colours.values())) == len(rows)
    for kind in ("video", "language"):
        assert colours[kind, "{}"] == report_figures.PALETTES[kind][0]
