"""The Library tab: what it sends and when, what a browser may not do, and a visit: look up, compare, remove, undo, import."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from fixture_runs import make_run, make_runs
from visit import CHROMIUM, Visit, expect, served

from vdmreason import jobs, library, store, trash
from vdmreason.ui import compare, library_tab, shelf
from vdmreason.ui.frame import Frame
from vdmreason.worker import Worker

ZOO = Path(__file__).resolve().parent.parent / "adapters" / "zoo"
SHIPPED = ZOO / "maze-7x7--causal_lm--n300"
pytestmark = pytest.mark.skipif(not SHIPPED.is_dir(), reason="the shipped adapters are not in this checkout")


def tab_of() -> library_tab.Tab:
    with gr.Blocks() as page, gr.Tabs() as row:
        with gr.Tab("Compare", id="compare"):
            comparing = compare.Tab(Worker())
        with gr.Tab("Library", id="library"):
            return library_tab.Tab(Frame(page, row, comparing))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "runs"
    monkeypatch.setenv("VDMREASON_RUNS", str(root))
    monkeypatch.setenv("VDMREASON_ZOO", str(tmp_path / "no-zoo"))
    monkeypatch.delenv("VDMREASON_PUBLIC", raising=False)
    root.mkdir()
    return root


def event(**data: Any) -> Any:
    return SimpleNamespace(_data=data)


START = ("", "", [], "", {})


def test_an_idle_page_sends_nothing(runs: Path) -> None:
    shutil.copytree(SHIPPED, runs / "mine")
    tab = tab_of()
    first = tab.refresh(*START)
    assert first[tab.picked] == "runs/mine" and "maze/7x7" in first[tab.card]
    again = tab.refresh("runs/mine", "", [], "", first[tab.seen])
    assert list(again) == [tab.seen] and again[tab.seen] == gr.skip()
    store.write_state(runs / "mine", state="failed", error="the disk is full")
    third = tab.refresh("runs/mine", "", [], "", first[tab.seen])
    assert tab.runs in third and tab.adapters not in third and tab.card not in third
    assert tab.picked not in third  # a clock's turn never takes a choice back


def test_an_empty_library_says_what_to_do(runs: Path) -> None:
    tab = tab_of()
    first = tab.refresh(*START)
    assert "Train one" in first[tab.adapters]["empty"] and "Nothing has run" in first[tab.runs]["empty"]
    assert first[tab.card_box]["visible"] is False


def test_a_browser_chooses_only_what_is_listed(runs: Path) -> None:
    make_runs(runs)
    tab = tab_of()
    for forged in ({"id": "runs/../../etc"}, {"id": "x" * 10_000}, {"id": 7}, {"id": None}, {}):
        assert "/etc" not in str(tab._pick_run(event(**forged), *START).get(tab.log, ""))
        tab._pick(event(**forged), *START)
    for ids in ("all", [1, None], [{"a": 1}], None, ["runs/../x"] * 100):
        found = tab._tick(event(ids=ids), *START)
        assert len(found[tab.ticked]) == 0 or found.get(tab.compared, "") == ""
    for forged in ({"id": "..", "how": "delete"}, {"id": "x"}, {"how": "restore"}, {"id": "x", "how": "chmod"}):
        assert "problem" in tab._trash_act(event(**forged), *START)[tab.trash_line]
    assert "problem" in tab._away({}, "runs/../x", tab.problem, START)[tab.problem]
    assert len(store.find_runs(runs)) == 4


def test_removed_undone_and_never_what_works(runs: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, runs / "mine"))
    tab = tab_of()
    gone = tab._remove("runs/mine", "", [], "", {})
    assert not folder.exists() and "mine" in gone[tab.removed] and gone[tab.undo_row]["visible"]
    assert "(1)" in gone[tab.trash_box]["label"]
    back = tab._undo(gone[tab.undone], *START)
    assert folder.is_dir() and back[tab.undo_row]["visible"] is False
    job = jobs.start("train", ["sleep", "60"], folder)
    try:
        refused = tab._remove_run("", "runs/mine", [], "", {})
        assert "Stop it first" in refused[tab.run_problem] and job.folder.is_dir()
    finally:
        jobs.stop(folder, grace=0.1)


def test_a_pull_without_a_network_is_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    tab = tab_of()
    started = tab._pull("me/maze-lora@main", "", "", "", "")
    key = started[tab.errand]
    jobs._wait_for_end(runs / shelf.PLACE / key, 60)
    assert "the hub cannot be reached" in shelf.errand_text(key)
    assert [row["cells"]["kind"] for row in shelf.runs_here()[1]] == ["pull"] and not store.find_runs(runs)


def test_a_public_page_changes_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(SHIPPED, runs / "mine")
    entry = trash.remove(make_run(runs, "maze/7x7", "causal_lm", [True], n=3))
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    tab = tab_of()
    for button in (tab.remove, tab.run_remove, tab.pushing, tab.import_, tab.pull):
        assert button.interactive is False
    said = [
        tab._remove("runs/mine", *START[1:])[tab.problem],
        tab._remove_run("", "runs/mine", [], "", {})[tab.run_problem],
        tab._undo(entry.name, *START)[tab.problem],
        tab._trash_act(event(id=entry.name, how="delete"), *START)[tab.trash_line],
        tab._open_push("runs/mine", "me/x", False)[tab.problem],
        tab._push("runs/mine", "me/x", False, True)[tab.push_line],
        tab._import(["x.zip"], "", "", "", "", *START)[tab.in_line],
        tab._pull("me/x", "", "", "", "")[tab.in_line],
    ]
    assert all("is off on this public page" in line for line in said)
    assert (runs / "mine").is_dir() and trash.listing() == [entry]


# ---------------------------------------------------------------------------------------------------------------------
# In a browser

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder)
    for name in ("maze-7x7--causal_lm--n300", "life-B3S23--causal_lm--n300"):
        shutil.copytree(ZOO / name, folder / f"my-{name}")
    return folder


@pytest.fixture(scope="module")
def visit(browser: Any, root: Path) -> Iterator[Visit]:
    with served(root) as (url, _):
        visit = Visit(browser, url, accept_downloads=True)
        visit.page.set_default_timeout(60_000)
        visit.go(url)
        visit.tab("Library")
        yield visit
        visit.close()


def row(visit: Visit, table: str, name: str) -> Any:
    return visit.page.locator(f"#{table} tbody tr", has_text=name)


@needs_browser
def test_looked_up_and_led_to_compare(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#library-adapters tbody tr")).to_have_count(2, timeout=60_000)
    page.locator("#library-adapters input[type=search]").fill("life causal")
    expect(page.locator("#library-adapters tbody tr:visible")).to_have_count(1)
    expect(page.locator("#library-adapters .count")).to_have_text("1 of 2")
    page.locator("#library-adapters input[type=search]").fill("")
    page.locator("#library-adapters").get_by_role("button", name="my-maze-7x7--causal_lm--n300", exact=True).press(
        "Enter"
    )
    expect(page.locator("#library-card h3")).to_have_text("my-maze-7x7--causal_lm--n300", timeout=30_000)
    expect(page.locator("#library-card svg").first).to_have_attribute("aria-label", re.compile("400 updates"))
    expect(row(visit, "library-adapters", "my-maze")).to_have_class("picked")
    page.locator("#library-use").click()
    expect(page.get_by_role("tab", name="Compare", exact=True)).to_have_attribute("aria-selected", "true")
    visit.until("() => document.querySelector('#stage .title').textContent.startsWith('maze/7x7')")
    visit.tab("Library")


@needs_browser
def test_runs_side_by_side(visit: Visit) -> None:
    page = visit.page
    for name in ("my-maze", "my-life"):
        row(visit, "library-runs", name).get_by_role("checkbox").check()
    table = page.locator("#library-compared table").first
    expect(table).to_be_visible(timeout=30_000)
    expect(table).to_contain_text("task")
    expect(page.locator("#library-compared .plot li")).to_have_count(2)
    row(visit, "library-runs", "my-maze").get_by_role("checkbox").uncheck()
    row(visit, "library-runs", "my-life").get_by_role("checkbox").uncheck()
    expect(table).to_be_hidden(timeout=30_000)


@needs_browser
def test_out_away_back_and_in(visit: Visit, root: Path, tmp_path: Path) -> None:
    page = visit.page
    page.get_by_role("button", name="my-maze-7x7--causal_lm--n300", exact=True).first.click()
    expect(page.locator("#library-card h3")).to_have_text("my-maze-7x7--causal_lm--n300", timeout=30_000)
    page.locator("#library-export").click()
    expect(page.locator("#library-download")).to_contain_text("my-maze-7x7", timeout=30_000)
    with page.expect_download() as waiting:
        page.locator("#library-download").click()
    out = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(out)
    assert out.suffix == ".zip" and library.missing(out)[1] == []

    page.locator("#library-remove").click()
    expect(page.locator("#library-removed")).to_contain_text("Removed my-maze", timeout=30_000)
    assert not (root / "my-maze-7x7--causal_lm--n300").exists()
    expect(row(visit, "library-runs", "my-maze")).to_have_count(0)
    page.locator("#library-undo").click()
    expect(row(visit, "library-adapters", "my-maze")).to_have_count(1, timeout=30_000)
    assert (root / "my-maze-7x7--causal_lm--n300" / "adapter").is_dir()

    page.locator("#library-in button").first.click()
    page.locator("#library-files input[type=file]").set_input_files(str(out))
    expect(page.locator("#library-files")).to_contain_text(".zip", timeout=30_000)
    page.locator("#library-import").click()
    expect(page.locator("#library-in-line")).to_contain_text("Imported as maze-7x7", timeout=30_000)
    expect(page.locator("#library-adapters tr.picked")).to_contain_text("imported")

    row(visit, "library-runs", "life-B3S23--cogvideox").locator(".name").click()
    page.locator("#library-run-remove").click()
    page.locator("#library-trash-box button").first.click()
    entry = row(visit, "library-trash", "life-B3S23--cogvideox")
    expect(entry).to_be_visible(timeout=30_000)
    entry.get_by_role("button", name=re.compile("^Delete for good")).click()
    entry.get_by_role("button", name=re.compile("^Really delete")).click()
    expect(page.locator("#library-trash-line")).to_contain_text("Deleted for good", timeout=30_000)
    expect(entry).to_have_count(0)
    assert not list((root / trash.TRASH).iterdir())


@needs_browser
def test_on_a_phone(browser: Any, visit: Visit) -> None:
    phone = Visit(browser, visit.page.url, width=390, height=844)
    phone.page.set_default_timeout(60_000)
    phone.page.goto(visit.page.url.split("?")[0])
    phone.tab("Library")
    expect(phone.page.locator("#library-card .facts")).to_be_visible(timeout=60_000)
    assert phone.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    inside = (
        "() => { const f = document.querySelector('#library-adapters .frame'); return f.scrollWidth <= f.clientWidth; }"
    )
    assert phone.page.evaluate(inside)
    phone.context.close()
