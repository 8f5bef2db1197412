"""The Sweeps tab: files that are planned and kept, where a sweep stands, its report; and all of it in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import yaml
from fixture_sweep import SHEET, make_sweep, vouch
from visit import Visit, chromium, expect, needs_browser, served

from tasks.base import UserError
from vdmreason import jobs, store, sweep
from vdmreason.ui import matrix, public, sweeps_tab
from vdmreason.ui.frame import Frame
from vdmreason.ui.matrix import Shelf, Watched

ONE = {"tasks": ["life/B3S23"], "n": [10, 30], "seeds": [0, 1], "set": {"test": 3, "optim": {"updates": 4}}}


def slack(seconds: float) -> float:
    return seconds * float(os.environ.get("VDMREASON_TEST_SLACK", "4"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs' root with one sweep: life, two arms, n 10 and 30, two seeds; 8 trials, of which 5 are done and one failed."""
    root = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.setattr(store, "code", lambda: ("0" * 40, False))  # asks git
    patch.setattr(store, "_sync", lambda path: None)  # waits for the disk
    make_sweep(root, undone=3, **ONE)
    patch.undo()
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change, as the runs' root."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    monkeypatch.setattr(store, "_sync", lambda path: None)
    sweeps_tab.read.cache_clear()
    return tmp_path


def written(name: str = "mine", **changes: Any) -> str:
    return yaml.safe_dump({**SHEET, **ONE, "name": name, **changes}, sort_keys=False)


# ---------------------------------------------------------------------------------------------------------------------
# Define


def test_files_to_start_from(root: Path) -> None:
    found = sweeps_tab.sheets()
    assert found["protocol structured"].shipped and found["protocol structured"].path.is_file()
    assert found["sweep sweeps/mazes"].folder == root / "sweeps" / "mazes"
    (root / "sweeps" / "mine.yaml").write_text(written())
    assert sweeps_tab.sheets()["own mine"].path == root / "sweeps" / "mine.yaml"
    for key in ("protocol ../../etc/passwd", "own nothing", 3, ["protocol structured"]):
        with pytest.raises(UserError, match="not here any more"):
            sweeps_tab.sheet(key)


def test_a_file_may_be_written_from_nothing(root: Path) -> None:
    found, file, folder, _ = sweeps_tab.plan(None, written("ranks"), "", 1)
    assert (file, folder) == (root / "sweeps" / "ranks.yaml", root / "sweeps" / "ranks") and found.trials
    store.write_text(file, written("ranks", n=[10]))
    with pytest.raises(UserError, match="ranks is taken"):
        sweeps_tab.plan(None, written("ranks"), "", 1)


def test_a_plan_is_what_the_command_line_says(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (sweeps_tab.PROTOCOLS / "vlm.yaml").read_text()
    found, file, folder, workers = sweeps_tab.plan("protocol vlm", text, "small", 2)
    assert (file, folder, workers) == (sweeps_tab.PROTOCOLS / "vlm.yaml", root / "sweeps" / "vlm-small", 2)
    shown = sweeps_tab.described(found, file, folder, workers)
    sweep.run_sweep(sweep.read(file, "small"), folder, lambda driver: None, 2, dry_run=True)  # type: ignore[arg-type, return-value]
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("vlm-small: 3 trials") and len(told) > 6
    lines = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", shown)
    for line in told[1:-1]:  # the last one says how much disk is free, which changes
        assert any(" ".join(line.split()) == f"{key} {text}" for key, text in lines), line
    assert not folder.exists(), "a plan writes nothing"


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"taks": ["maze/7x7"]}, "taks: unknown key. Did you mean 'tasks'"),
        ({"arms": {"a": {"famly": "x"}}}, "arms.a.famly: unknown key. Did you mean 'family'"),
        ({"set": {"tets": 3}}, "set.tets: unknown key. Did you mean 'test'"),
        ({"name": "///"}, "name: '///' names no folder"),
        ({"name": "structured"}, "name: structured is a protocol that ships. Give your version its own"),
        ({"name": "taken"}, "name: taken is taken by another file of yours"),
    ],
)
def test_a_fault_is_one_line_that_names_the_key(root: Path, changes: dict[str, Any], complaint: str) -> None:
    (root / "sweeps" / "taken.yaml").write_text(written("taken", n=[5]))
    with pytest.raises(UserError) as caught:
        sweeps_tab.plan("protocol vlm", written(**changes), "", 1)
    assert str(caught.value).startswith(complaint) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "empty"), (3, "empty"), ("", "empty"), ("  ", "empty"), ("name: [", "is not YAML"), ("- a list", "no keys"),
        (yaml.safe_dump(SHEET) + "#" * 70_000, "at most are read here"),
    ],
)  # fmt: skip
def test_what_is_no_sheet_is_refused(root: Path, text: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        sweeps_tab.plan("protocol vlm", text, "", 1)
    assert "/tmp" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 1e9, 1.5, "2", True, [1], float("inf")])
def test_what_is_no_number_of_workers_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="Workers"):
        sweeps_tab.workers_of(value)


def test_an_edited_file_is_kept_under_its_own_name(root: Path) -> None:
    found, file, folder, _ = sweeps_tab.plan("protocol vlm", written("ranks"), "", 1)
    assert file == root / "sweeps" / "ranks.yaml" and folder == root / "sweeps" / "ranks"
    assert not file.exists() and "will be kept as" in sweeps_tab.described(found, file, folder, 1)
    store.write_text(file, found.text)
    changed = sweeps_tab.plan("own ranks", written("ranks", n=[10]), "", 1)
    assert changed[1] == file and "will be changed" in sweeps_tab.described(changed[0], file, folder, 1)
    for path in ("../../x", "..", "/etc/x"):  # a name is never a way
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweeps_tab, "PROTOCOLS", root)
            if path == "..":
                with pytest.raises(UserError):
                    sweeps_tab.own_file(path)
                continue
            assert sweeps_tab.own_file(path).resolve().parent == (root / "sweeps").resolve()


def test_a_sweep_is_amended_from_its_own_sheet(root: Path) -> None:
    text = (root / "sweeps" / "mazes" / sweep.SHEET).read_text()
    _, file, folder, _ = sweeps_tab.plan("sweep sweeps/mazes", text, "", 1)
    assert file == root / "sweeps" / "mazes" / sweep.SHEET and folder == root / "sweeps" / "mazes"
    more = yaml.safe_dump({**yaml.safe_load(text), "seeds": [0, 1, 2]})
    found, file, folder, _ = sweeps_tab.plan("sweep sweeps/mazes", more, "", 1)
    assert file == root / "sweeps" / "mazes.yaml" and folder.resolve() == (root / "sweeps" / "mazes").resolve()
    assert "done 5" in sweeps_tab.described(found, file, folder, 1)


def test_a_command_outlives_the_page_and_its_folder_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is done already: the driver starts, finds nothing to do, and its folder says done."""
    folder = root / "sweeps" / "mazes"
    plan = store.read_json(folder / sweep.PLAN)
    plan["trials"] = [e for e in plan["trials"] if (folder / e["folder"] / sweep.DONE).exists()]
    sheet = yaml.safe_load((folder / sweep.SHEET).read_text())
    sheet |= {"arms": {"language": sheet["arms"]["language"]}, "n": [10]}
    (folder / sweep.SHEET).write_text(yaml.safe_dump(sheet))
    status = sweeps_tab.go_on(folder, 1)
    assert status.active and status.kind == "sweep"
    with pytest.raises(UserError, match="already running"):
        sweeps_tab.go_on(folder, 1)
    deadline = time.monotonic() + slack(15)
    while jobs.status(folder).active:
        assert time.monotonic() < deadline, jobs.log_tail(folder)
        time.sleep(0.1)
    status = jobs.status(folder)
    assert (status.state, status.error) == ("done", ""), jobs.log_tail(folder)
    assert "all 2 trials are done" in jobs.log_tail(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Watch


def test_a_matrix_counts_what_is_there(root: Path) -> None:
    folder = root / "sweeps" / "mazes"
    look = Shelf().watched("sweeps/mazes").look()
    drawn = matrix.matrix(look)
    assert drawn["rows"] == [["life/B3S23", "video", "video"], ["life/B3S23", "language", "language"]]
    assert drawn["columns"] == ["10", "30"]
    assert look.counts == {"done": 5, "failed": 1, "running": 1, "waiting": 1}
    for (row, column), trials in look.cells.items():
        done = [t for t in trials if t.state == "done"]
        scores = [store.read_json(folder / t.entry["folder"] / "result.json")["scores"]["exact"]["value"] for t in done]
        shown = drawn["cells"][drawn["rows"].index(list(row))][drawn["columns"].index(column)]
        assert shown[:2] == [len(done), 2]
        assert shown[2] == (round(sum(scores) / len(scores), 4) if scores else None)
    json.dumps(drawn)


def test_a_cell_tells_of_its_trials(root: Path) -> None:
    look = Shelf().watched("sweeps/mazes").look()
    cells = [matrix.cell(look, row, column) for row, column in look.cells]
    trials = [trial for cell in cells if cell for trial in cell["trials"]]
    assert len(trials) == 8
    (failed,) = [t for t in trials if t["state"] == "failed"]
    assert failed["note"] == "RuntimeError: the loss is <not> finite" and "loss <nan>" in failed["log"]
    (running,) = [t for t in trials if t["state"] == "running"]
    assert running["note"].startswith("update 3 of 4, on ")
    assert {t["commit"] for t in trials if t["state"] == "done"} == {"c0ffee000"}
    assert matrix.cell(look, ["no", "such", "row"], "10") is None and matrix.cell(look, None, {}) is None


def test_a_look_is_new_only_when_something_changed(root: Path) -> None:
    watched = Shelf().watched("sweeps/mazes")
    first = watched.look()
    assert watched.look(fresh=True).stamp == first.stamp
    (failed,) = [t for t in first.trials if t.state == "failed"]
    place = watched.folder / failed.entry["folder"]
    done = next(watched.folder / t.entry["folder"] for t in first.trials if t.state == "done")
    for name in ("predictions.jsonl", "result.json"):
        shutil.copy(done / name, place / name)
    vouch(place)
    second = watched.look(fresh=True)
    assert second.stamp != first.stamp and second.results != first.results and second.counts["done"] == 6
    (place / "result.json").write_text("{}")  # no longer what done.json vouches for
    third = watched.look(fresh=True)
    assert third.counts["damaged"] == 1 and third.stamp != second.stamp
    (watched.folder / jobs.STOP).write_text("")
    assert watched.look(fresh=True).stamp != third.stamp


@pytest.mark.parametrize("name", ["../outside", "", None, 3, "sweeps/none", "sweeps/mazes/../../../etc", "a\0b"])
def test_a_folder_elsewhere_is_no_sweep(root: Path, name: Any) -> None:
    outside = root.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / sweep.PLAN).write_text("{}")
    with pytest.raises(UserError, match="no sweep of this page"):
        Shelf().watched(name)


def test_puzzles_with_a_handful_of_examples_share_a_row(tmp_path: Path) -> None:
    sheet = {**SHEET, "tasks": [{"sample": 6, "of": "arc1/evaluation"}], "n": ["all"], "set": {"optim": {"updates": 1}}}
    file = tmp_path / "sheet.yaml"
    file.write_text(yaml.safe_dump(sheet))
    sweep.write_plan(tmp_path / "arc", sweep.read(file))
    look = Watched(tmp_path / "arc").look()
    drawn = matrix.matrix(look)
    assert drawn["columns"] == ["all"] and [row[0] for row in drawn["rows"]] == ["arc1/evaluation"] * 2
    assert [cell[0][1] for cell in drawn["cells"]] == [18, 18]
    told = matrix.cell(look, drawn["rows"][0], "all")
    assert told and told["many"] and len({trial["task"] for trial in told["trials"]}) == 6


def test_three_hundred_trials_are_shown_within_a_second(root: Path) -> None:
    """And a poll that finds nothing new costs next to nothing."""
    folder = root / "sweeps" / "large"
    file = root / "sheets" / "large.yaml"
    tasks_ = ["maze/7x7", "life/B3S23", "eca/110", "sudoku/4x4", "shortest_path/15x15"]
    file.write_text(written("large", tasks=tasks_, n=[3, 10, 30, 100, 300, 1000], seeds=[*range(5)]))
    plan = sweep.write_plan(folder, sweep.read(file))
    assert len(plan["trials"]) == 300
    done = next(place for place in (root / "sweeps/mazes/trials").iterdir() if (place / sweep.DONE).exists())
    for entry in plan["trials"][:240]:
        place = folder / entry["folder"]
        place.mkdir(parents=True)
        for name in (*sweep.VOUCHED, sweep.DONE):
            shutil.copy(done / name, place / name)
    watched = Watched(folder)
    began = time.process_time()
    look = watched.look()
    matrix.matrix(look)
    assert time.process_time() - began < slack(1) and look.counts["done"] == 240
    began = time.process_time()
    for _ in range(5):
        assert watched.look(fresh=True).stamp == look.stamp
    assert (time.process_time() - began) / 5 < slack(0.05)
    began = time.process_time()
    for _ in range(100):
        watched.look()
    assert time.process_time() - began < slack(0.1), "one look serves all who ask within half a second"


def test_buttons_and_facts_say_where_it_stands(root: Path) -> None:
    watched = Shelf().watched("sweeps/mazes")
    told = sweeps_tab.headline(watched.look())
    for text in (
        "5 of 8",
        "<dt>failed</dt><dd>1</dd>",
        "<dt>running</dt><dd>1</dd>",
        "this page did not start",
        "an hour",
    ):
        assert text in told
    stop, resume, retry = (button["interactive"] for button in sweeps_tab.buttons(watched.look()))
    assert stop and resume and retry
    sweep.cancel(watched.folder)
    look = watched.look(fresh=True)
    assert not sweeps_tab.buttons(look)[0][
        "interactive"
    ] and "each worker ends after its update" in sweeps_tab.headline(look)


def test_time_left_counts_shared_trainings_once_and_says_what_it_does_not_know(root: Path) -> None:
    folder, file = root / "sweeps" / "twins", root / "sheets" / "twins.yaml"
    file.write_text(written("twins", axes={"votes": [1, 2]}))
    sweep.write_plan(folder, sweep.read(file))
    assert "known after the first trial" in sweeps_tab.headline(Watched(folder).look())
    done = next(place for place in (root / "sweeps/mazes/trials").iterdir() if (place / sweep.DONE).exists())
    entries = sweep.read_plan(folder)["trials"]
    first = next(e for e in entries if e["config"]["votes"] == 1)
    place = folder / first["folder"]
    (place / "adapter").mkdir(parents=True)  # to be lent
    for name in sweep.VOUCHED:
        shutil.copy(done / name, place / name)
    spent = {"training": 100.0, "answering": 0.0, "seconds": 100.0, "sha256": sweep.hashes(place)}
    store.write_json(place / sweep.DONE, {**store.read_json(done / sweep.DONE), **spent})
    look = Watched(folder).look()
    trainings = len({e["training"] for e in entries}) - 1
    assert look.left == pytest.approx(100 * trainings) and trainings == len(entries) / 2 - 1
    told = sweeps_tab.headline(look)
    assert "of work for one worker" in told
    assert look.unknown and all(f"{kind}" in told for kind in look.unknown)
    # half of one is done already
    begun = next(e for e in entries if e["training"] != first["training"])
    place = folder / begun["folder"]
    assert sweep.claim(place)
    store.write_state(
        place,
        state="running",
        step=begun["config"]["optim"]["updates"] // 2,
        updates=begun["config"]["optim"]["updates"],
    )
    assert Watched(folder).look().left == pytest.approx(100 * (trainings - 0.5))


# ---------------------------------------------------------------------------------------------------------------------
# Report, and a page that strangers use


def test_a_report_is_made_beside_the_page(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports, look = sweeps_tab.Reports(), Shelf().watched("sweeps/mazes").look()
    monkeypatch.setattr(sweeps_tab.Reports, "PAUSE", 0.0)
    began = time.monotonic()
    made, busy = reports.newest(look)
    assert made is None and busy and time.monotonic() - began < slack(0.2), "who polls does not wait"
    deadline = time.monotonic() + slack(30)
    while reports.newest(look)[1]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    made, busy = reports.newest(look)
    assert made and not made.problem and not busy, "nothing new, nothing made"
    shown = sweeps_tab.shown_report("sweeps/mazes", look, made, busy)
    assert shown and shown["badge"] == "unfinished: 5 of 8 trials"
    assert "Who needs fewer examples" in shown["main"] and "<h1" not in shown["main"] and "<script" not in shown["main"]
    assert "<svg" in shown["main"]
    assert not (look.folder / "report").exists()
    ran: list[list[str]] = []
    monkeypatch.setattr(sweeps_tab.subprocess, "run", lambda words, **how: ran.append(words) or _Done())
    reports.write(look)
    while reports.writing(look.folder):
        time.sleep(0.01)
    assert ran == [[sys.executable, "-m", "vdmreason", "sweep", "report", str(look.folder)]]


def test_the_report_of_a_finished_sweep_is_made_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short ago there was one of its last trials but one."""
    look = Shelf().watched("sweeps/mazes").look()
    for done, begun in ((look.trials, False), ([t for t in look.trials if t.state == "done"], True)):
        reports, part = sweeps_tab.Reports(), replace(look, trials=tuple(done))
        reports._made[look.folder] = sweeps_tab.Made(part.results - 1, time.monotonic(), 1.0)
        ran: list[Path] = []
        monkeypatch.setattr(reports, "_begin", lambda look, out, ran=ran: ran.append(look.folder))
        reports.newest(part)
        assert bool(ran) == begun


class _Done:
    returncode, stderr = 0, ""


def test_strangers_look_and_start_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    look = Shelf().watched("sweeps/mazes").look()
    assert not any(button["interactive"] for button in sweeps_tab.buttons(look))
    told = json.dumps([matrix.cell(look, row, column) for row, column in look.cells])
    assert f'"{socket.gethostname()}' not in told and "loss <nan>" not in told and "the loss is <not> finite" in told
    with pytest.raises(UserError, match="off on this public page"):
        sweeps_tab.plan("protocol vlm", written(), "", 1)
    text = (sweeps_tab.PROTOCOLS / "vlm.yaml").read_text()
    found, file, folder, _ = sweeps_tab.plan("protocol vlm", text, "small", 1)
    assert str(root) not in sweeps_tab.described(found, file, folder, 1)
    assert "/" not in sweeps_tab.shown(["vdmreason", str(root / "x" / "y.yaml")])
    assert public.place(look.folder) == "mazes"


# ---------------------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def server(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    root = Path(shutil.copytree(made, tmp_path_factory.mktemp("served") / "runs"))
    with served(root) as (url, _):
        yield url, root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    expect.set_options(timeout=slack(10_000))  # a busy machine may be slow; nothing here waits longer than it must
    with chromium() as browser:
        yield browser
    expect.set_options(timeout=5_000)


@pytest.fixture
def visit(browser: Any, server: tuple[str, Path]) -> Iterator[Visit]:
    visit = Visit(browser, server[0])
    visit.page.goto(server[0])
    visit.tab("Sweeps")
    expect(visit.page.locator("#sweep-matrix .matrix-box button")).to_have_count(4)
    yield visit
    visit.close()


@needs_browser
def test_a_protocol_is_planned_edited_and_refused_in_its_place(visit: Visit) -> None:
    page = visit.page
    page.locator("#sweep-source input").click()
    page.get_by_role("option", name="vlm (ships)").click()
    expect(page.locator("#sweep-plan")).to_contain_text("3 trials, in")
    expect(page.locator("#sweep-command textarea")).to_have_value(
        "vdmreason sweep run protocols/vlm.yaml --scale small --workers 1"
    )
    page.locator("#sweep-file button").first.click()
    editor = page.locator("#sweep-code .cm-content")
    expect(editor).to_contain_text("name: vlm")
    editor.click()
    page.keyboard.press("Control+End")
    page.keyboard.insert_text("\ntaks: [maze/7x7]\n")
    expect(page.get_by_text("The file has changed.")).to_be_visible()
    page.locator("#plan-sweep").click()
    expect(page.locator("#sweep-problem [role=alert]")).to_contain_text("taks: unknown key. Did you mean 'tasks'?")
    expect(page.locator("#sweep-command")).to_be_hidden()


@needs_browser
def test_a_sheet_is_written_from_nothing(visit: Visit) -> None:
    page = visit.page
    page.locator("#sweep-file button").first.click()
    page.locator("#plan-sweep").click()
    expect(page.locator("#sweep-problem [role=alert]")).to_contain_text("Choose a protocol, or write one.")
    page.locator("#sweep-code .cm-content").click()
    page.keyboard.insert_text(written("from nothing"))
    page.locator("#plan-sweep").click()
    expect(page.locator("#sweep-plan")).to_contain_text("sweeps/from-nothing.yaml")
    expect(page.locator("#sweep-problem [role=alert]")).to_have_count(0)


@needs_browser
def test_a_cell_leads_to_its_trials_and_a_trial_to_compare(visit: Visit, server: tuple[str, Path]) -> None:
    page = visit.page
    first = page.locator("#sweep-matrix .matrix-box button").first
    expect(first).to_have_attribute(
        "aria-label", "life/B3S23, video, n 10: 2 of 2 trials done, mean exact match 33.3 %"
    )
    first.focus()
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    trials = page.locator("#sweep-matrix .trials")
    expect(trials).to_contain_text("life/B3S23 · language · n 30")
    page.locator("#sweep-matrix .matrix-box button").nth(1).click()
    expect(trials).to_contain_text("update 3 of 4")
    page.locator("#sweep-matrix .matrix-box button.failed").click()
    expect(trials).to_contain_text("RuntimeError: the loss is <not> finite")
    trials.locator("summary").click()
    expect(trials.locator("pre")).to_contain_text("loss <nan>")
    first.click()
    expect(first).to_have_attribute("aria-current", "true")
    trials.get_by_role("button", name="Open seed 1 of life/B3S23 in Compare").click()
    visit.until("() => document.querySelector('#stage .title').textContent.startsWith('life/B3S23, test example 0')")
    expect(page.locator("#seed input")).to_have_value("1")


@needs_browser
def test_what_is_done_appears_by_itself_and_is_reported(visit: Visit, server: tuple[str, Path]) -> None:
    page, folder = visit.page, server[1] / "sweeps" / "mazes"
    expect(page.locator("#sweep-headline")).to_contain_text("5 of 8")
    page.locator("#show-report").click()
    expect(page.locator("#sweep-report .badge")).to_have_text("unfinished: 5 of 8 trials")
    expect(page.locator("#sweep-report svg").first).to_be_visible()
    heads = page.locator("#sweep-report th button", has_text="arm")
    heads.first.click()
    expect(page.locator("#sweep-report th[aria-sort=ascending]")).to_have_count(1)
    for kind, start in (("html", b"<!doctype"), ("md", b"# Sweep report"), ("csv", b"id,task")):
        with page.expect_download() as waiting:
            page.locator(f"#sweep-report [data-keep={kind}]").click()
        assert waiting.value.suggested_filename == f"mazes-report.{kind}"
        assert Path(waiting.value.path()).read_bytes().startswith(start)
    entries = store.read_json(folder / sweep.PLAN)["trials"]
    done = [e for e in entries if (folder / e["folder"] / sweep.DONE).exists()]
    waiting_ = next(e for e in entries if not (folder / e["folder"]).exists())
    shutil.copytree(folder / done[-1]["folder"], folder / waiting_["folder"])
    expect(page.locator("#sweep-headline")).to_contain_text("6 of 8")
    shutil.rmtree(folder / waiting_["folder"])
    expect(page.locator("#sweep-headline")).to_contain_text("5 of 8")


@needs_browser
def test_stop_is_heard_and_a_phone_needs_no_sideways_scroll(browser: Any, server: tuple[str, Path]) -> None:
    visit = Visit(browser, server[0], width=390, height=844)
    visit.page.goto(server[0] + "?__theme=dark")
    visit.tab("Sweeps")
    expect(visit.page.locator("#sweep-matrix .matrix-box button")).to_have_count(4)
    visit.page.locator("#stop-sweep").click()
    expect(visit.page.locator("#sweep-headline")).to_contain_text("each worker ends after its update")
    expect(visit.page.locator("#stop-sweep")).to_be_disabled()
    assert (server[1] / "sweeps" / "mazes" / jobs.STOP).exists()
    assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    (server[1] / "sweeps" / "mazes" / jobs.STOP).unlink()
    visit.close()


def test_the_tab_fits_into_a_page(root: Path) -> None:
    """Its first view, as a reload gets it: the sweep that changed last."""
    tab = built()
    view = tab.opened()
    assert view[tab.chosen]["value"] == "sweeps/mazes" and view[tab.matrix]["matrix"]["name"] == "mazes"
    seen = view[tab.seen]
    assert tab.tick("sweeps/mazes", None, seen) == {tab.seen: gr.skip()}
    shutil.copytree(root / "sweeps" / "mazes", root / "sweeps" / "second")
    shown = tab.tick("sweeps/mazes", None, seen)
    assert sorted(shown[tab.chosen]["choices"]) == [("mazes", "sweeps/mazes"), ("second", "sweeps/second")]
    assert tab.tick("sweeps/mazes", None, shown[tab.seen]) == {tab.seen: gr.skip()}
    assert tab._start("protocol vlm", "name: [", "", 1)[tab.problem].count("role=") == 1


def test_who_has_no_sweep_may_look_at_the_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, without a training: what the README reports, trial by trial."""
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    tab = built()
    assert tab.opened()[tab.bring]["visible"]
    view = tab._bring()
    assert view[tab.chosen]["value"] == "sweeps/structured-tuned" and "144" in view[tab.headline]
    assert not view[tab.bring]["visible"] and not view[tab.empty]["visible"] and view[tab.matrix]["matrix"]
    look = tab.shelf.watched("sweeps/structured-tuned").look()
    assert look.counts["done"] == 144
    monkeypatch.setattr(sweeps_tab, "FINISHED", tmp_path / "none.tar.xz")  # an installed copy has none
    assert not tab.follow("", None)[tab.bring]["visible"]
    assert "none.tar.xz" in tab._bring()[tab.watch_problem]


def test_without_a_sweep_the_tab_says_what_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path / "none"))
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    tab = built()
    view = tab.opened()
    assert view[tab.empty]["visible"] and not view[tab.chosen]["visible"] and view[tab.matrix] is None
    assert not view[tab.bring]["visible"] and "Unpacking a sweep" in tab._bring()[tab.watch_problem]
    assert not tab.start.interactive and "off on this public page" in tab.start.value
    assert tab.tick("", None, view[tab.seen]) == {tab.seen: gr.skip()}
    assert "off on this public page" in tab._start("protocol vlm", "name: x", "", 1)[tab.problem]
    for act in (tab._stop, tab._resume, tab._retry):
        assert "off on this public page" in act("sweeps/mazes", 1, None)[tab.watch_problem]


def test_a_start_while_it_runs_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of a sweep that is at work is not another file's before its driver has ended."""
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    folder = make_sweep(tmp_path, running=False)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    store.write_state(folder, state="running", pid=os.getpid(), created=jobs._created(os.getpid()))
    tab = built()
    text = (folder / sweep.SHEET).read_text().replace("- 100", "- 300")
    view = tab._start("sweep sweeps/mazes", text, "", 1)
    assert "already running" in view[tab.problem]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("text", ["name: 2024-13-45", "[" * 3000])
def test_text_that_is_no_yaml_is_a_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    tab = built()
    assert 'class="problem"' in tab._plan("", text, "", 1)[tab.problem]


def built() -> sweeps_tab.Tab:
    with gr.Blocks() as page, gr.Tabs() as tabs, gr.Tab("Sweeps"):
        return sweeps_tab.Tab(Frame(page, tabs, _Compare()))  # type: ignore[arg-type]


class _Compare:
    """What the tab needs of the Compare tab to be built."""

    def __init__(self) -> None:
        self.shown = gr.State(None)
        self.outputs: list[Any] = []
