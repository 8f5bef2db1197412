"""The Draw tab: a drawn puzzle checked, judged, sent and kept; and the editor in a real browser."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from visit import Visit, expect, needs_browser

import tasks
from tasks import hanoi
from tasks.base import UserError
from vdmreason import drawn
from vdmreason.ui import draw_tab

SMALL = {
    "train": [{"input": [[0, 1], [2, 0]], "output": [[1, 0], [0, 2]]}, {"input": [[3, 0]], "output": [[0, 3]]}],
    "test": [{"input": [[0, 5], [0, 0]], "output": [[5, 0], [0, 0]]}],
}


def large() -> dict[str, Any]:
    """The largest puzzle that the speed is promised for: eight pairs of 30 x 30."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 10, (18, 30, 30)).tolist()
    pairs = [{"input": grids[2 * i], "output": grids[2 * i + 1]} for i in range(9)]
    return {"train": pairs[:8], "test": pairs[8:]}


def bad(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(SMALL)) | changes


# ---------------------------------------------------------------------------------------------------------------------
# Without a browser


@pytest.mark.parametrize("what, said", [
    (None, "lists 'train' and 'test'"),
    ([], "lists 'train' and 'test'"),
    (bad(train=[]), "'train' is not a list"),
    (bad(test={}), "'test' is not a list"),
    (bad(train=SMALL["train"] * 6), "holds 12 pairs; the page takes at most 10"),
    (bad(test=SMALL["test"] * 5), "at most 4"),
    (bad(train=[{"input": [[1]]}]), "train pair 1 has no 'output'"),
    (bad(test=["x"]), "test 1 is not an object"),
    (bad(train=[{"input": [[0] * 31], "output": [[0]]}]), "train pair 1, input: row 1 has 31 values"),
    (bad(train=[{"input": [[0]] * 31, "output": [[0]]}]), "31 rows"),
    (bad(train=[{"input": [[10]], "output": [[0]]}]), "values are 0 to 9"),
    (bad(train=[{"input": [[1.5]], "output": [[0]]}]), "not a whole number"),
    (bad(train=[{"input": [[True]], "output": [[0]]}]), "not a whole number"),
    (bad(train=[{"input": [[1], [1, 2]], "output": [[0]]}]), "equally long"),
    (bad(train=[{"input": "<script>", "output": [[0]]}]), "a grid is a list of rows"),
])  # fmt: skip
def test_what_is_no_puzzle_is_refused_in_one_line(what: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        drawn.checked(what)
    assert "\n" not in str(error.value) and len(str(error.value)) < 160


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "Not JSON"), ("{", "Not JSON"), ("nonsense", "Not JSON"), ("[" * 100_000, "nested too deep"),
        ('{"train": 1' + "0" * 6000 + "}", "too long"), (b"\xff\xfe", "not UTF-8"),
        (json.dumps(SMALL) + " " * (2 << 20), "larger than 1 MB"),
    ],
)  # fmt: skip
def test_text_that_is_no_puzzle_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        drawn.parse(text)


def test_a_puzzle_is_arc_json_and_comes_back_from_a_link() -> None:
    drawing = drawn.parse(json.dumps(SMALL))
    assert drawing.as_json() == SMALL
    assert drawn.decode(drawn.encode(drawing)).as_json() == SMALL
    maze = drawn.begin("maze/7x7")
    assert drawn.decode(drawn.encode(maze)).family == "maze/7x7"
    assert len(drawn.encode(maze)) < 400
    assert "family" not in maze.as_json()  # the file is ARC JSON and nothing else


@pytest.mark.parametrize("link", ["", "!", "AAAA", "é" * 10, drawn.encode(drawn.blank())[:-9]])
def test_a_broken_link_says_so(link: str) -> None:
    with pytest.raises(UserError, match="link holds no puzzle"):
        drawn.decode(link)


def test_a_small_link_does_not_become_a_huge_text() -> None:
    import base64
    import zlib

    bomb = base64.urlsafe_b64encode(zlib.compress(b" " * (64 << 20))).decode()
    with pytest.raises(UserError, match="link holds no puzzle"):
        drawn.decode(bomb)


@pytest.mark.parametrize("name", [n for n in draw_tab.STARTS if not n.startswith(("arc", "concept"))])
def test_the_rules_find_a_familys_own_pairs_right_and_a_damaged_one_wrong(name: str) -> None:
    drawing = drawn.begin(name)
    task = drawn.rules(drawing.family)
    for question, answer in drawing.train:
        truth = drawn.judged(task, question, answer)
        assert truth.trouble == "" and truth.fault == ""
        damaged = answer.copy()
        damaged[0, 0] = (damaged[0, 0] + 1) % 10
        assert drawn.judged(task, question, damaged).fault
        if truth.answer is not None:
            assert drawn.judged(task, question, truth.answer).fault == ""
    whole = drawn.finished(drawing)
    assert not drawn.open_tests(whole)
    assert "All 3 pairs are right by the rules" in draw_tab.said(drawing)


@pytest.mark.parametrize("name", [n for n in draw_tab.STARTS if not n.startswith(("arc", "concept"))])
def test_rules_are_not_asked_about_grids_they_were_not_written_for(name: str) -> None:
    """Compiled rules read beyond their tables on values and shapes of other families."""
    task = drawn.rules(drawn.begin(name).family)
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 30), (30, 1), (7, 7), (8, 8), (8, 16), (30, 30)):
        for most in (1, 3, 10):
            question = rng.integers(0, most, shape).astype(np.int8)
            truth = drawn.judged(task, question, question)
            assert truth.answer is None or (truth.answer.min() >= 0 and truth.answer.max() <= 9)
    assert drawn.judged(task, np.full((5, 5), 9, np.int8), None).trouble or "colour" in name


def test_a_maze_needs_a_start_and_an_end() -> None:
    drawing = drawn.begin("maze/7x7")
    task, question = drawn.rules("maze/7x7"), drawing.test[0][0].copy()
    question[question == 3] = 1
    assert "0 cells “start” (3)" in drawn.judged(task, question, None).trouble
    with pytest.raises(UserError, match="Test 1 is no question of maze/7x7"):
        drawn.finished(drawn.Drawing(drawing.train, ((question, None),), "maze/7x7"))


def test_towers_that_cannot_stand_so_have_no_truth() -> None:
    drawing = drawn.begin("hanoi/4-step")
    task = drawn.rules(drawing.family)
    floating, twice, unmarked = (drawing.train[0][0].copy() for _ in range(3))
    (row, *_), (column, *_) = np.nonzero(floating[:-1])
    floating[0, 0], twice[row, column + 8 if column < 8 else column - 8] = 1, twice[row, column]
    unmarked[unmarked == hanoi.GOAL] = hanoi.BASE
    done = hanoi.draw((1, 1, 1, 1), 1)
    for question in (floating, twice, unmarked, done):
        truth = drawn.judged(task, question, None)
        assert "each disk lies once" in truth.trouble and truth.answer is None
    for state in itertools.product(range(3), repeat=4):
        for goal in range(3):
            assert bool(drawn.trouble(task, hanoi.draw(state, goal))) == (set(state) == {goal})


def test_a_drawing_begins_with_all_tests_of_a_puzzle() -> None:
    most = max(tasks.count(name, "test") or 0 for part in ("arc1", "arc2") for name in tasks.variants(part))
    assert most == drawn.TESTS == len(drawn.begin("arc2/training/8dab14c2").test)


def test_without_a_rule_nothing_is_said_to_be_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    drawing = drawn.checked(bad(test=[{"input": [[1, 2]]}]))
    text = draw_tab.said(drawing)
    assert draw_tab.FREE in text and "Test 1: open" in text and "✓" not in text and "✗" not in text
    whole = drawn.finished(drawing)
    assert drawn.open_tests(whole) == [1] and tasks.examples(drawn.keep(whole), "test", 1, 0)[0].open
    unknown = {
        "exact": False,
        "proposed": [[2, 1]],
        "question": [[1, 2]],
        "answer": [],
        "reason": "nobody knows the answer",
    }
    assert draw_tab.verdict_of(unknown, "") == (None, "nobody knows", "")
    assert draw_tab.verdict_of({**unknown, "proposed": None, "reason": "no grid"}, "") == (False, "wrong", "no grid")


def test_a_wrong_truth_and_an_answer_that_can_be_looked_up_are_refused() -> None:
    maze = drawn.begin("maze/7x7")
    question = maze.test[0][0]
    with pytest.raises(UserError, match="Your answer to test 1 is not right by the rules"):
        drawn.finished(drawn.Drawing(maze.train, ((question, question.copy()),), "maze/7x7"))
    with pytest.raises(UserError, match="can be looked up"):
        drawn.finished(drawn.Drawing(maze.train, (maze.train[0],), "maze/7x7"))


FILES = [
    "arc:/etc/passwd", "/etc/passwd", "../x", "~/x.json", "x.json", "", "  ", "nothing/here", "chess/mate-in-1", "a\0b",
    "a" * 300,
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_browser_names_puzzles_and_no_files(name: str) -> None:
    with pytest.raises(UserError):
        drawn.begin(name)


def test_a_kept_drawing_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    drawing = drawn.finished(drawn.checked(SMALL))
    name = drawn.keep(drawing)
    assert drawn.keep(drawing) == name and len(list((tmp_path / "drawn").iterdir())) == 1
    assert tasks.count(name, "train") == 2 and tasks.count(name, "test") == 1
    assert draw_tab.status_of(name) is None and draw_tab.answers(draw_tab.Kept(name)) == ""
    for run in draw_tab.plan(name, "tiny", 3):
        assert run.tested == name and run.optim.updates == 3


WRONG = [("../x", 3), ("small", 0), ("small", -1), ("small", 10**9), ("small", "x"), (None, 3)]


@pytest.mark.parametrize("flavour, updates", WRONG)
def test_the_forms_values_are_checked(flavour: Any, updates: Any) -> None:
    with pytest.raises(UserError):
        draw_tab.updates_of(flavour, updates)


def test_answers_are_judged_by_the_rules_where_there_are_some() -> None:
    question = drawn.begin("shortest_path/15x15").train[0][0]
    way = drawn.judged(drawn.rules("shortest_path/15x15"), question, None).answer
    record = {
        "exact": False,
        "question": question.tolist(),
        "proposed": way.tolist(),
        "answer": question.tolist(),
        "reason": "3 of 225 cells are wrong",
    }
    assert draw_tab.verdict_of(record, "shortest_path/15x15") == (True, "right by the rules", "")
    assert draw_tab.verdict_of(record, "") == (False, "wrong", "3 of 225 cells are wrong")
    assert draw_tab.verdict_of({**record, "proposed": None, "reason": "no grid"}, "maze/7x7") == (
        False,
        "wrong",
        "no grid",
    )


# ---------------------------------------------------------------------------------------------------------------------
# In a browser

CANVAS = "#editor .dw-well canvas"
KEPT = "() => JSON.parse(localStorage.getItem('vdmreason-drawing'))"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Visit]:
    visit = Visit(browser, server, permissions=["clipboard-read", "clipboard-write"])
    visit.page.goto(server)
    visit.shown()
    opened(visit)
    yield visit
    visit.close()


def opened(visit: Visit) -> None:
    visit.tab("Draw")
    visit.until("() => document.querySelector('#draw-said h3')")


def paste(visit: Visit, puzzle: dict[str, Any]) -> None:
    box = visit.page.locator("#draw-paste textarea")
    if not box.is_visible():
        visit.page.locator("#draw-paste > button").click()
    box.fill(json.dumps(puzzle))
    visit.page.locator("#draw-paste-open").click()


def grid(visit: Visit, part: str = "train", i: int = 0, side: str = "input") -> list[list[int]]:
    found: list[list[int]] = visit.page.evaluate(KEPT)[part][i][side]
    return found


def cell(visit: Visit, r: int, c: int, rows: int, cols: int) -> tuple[float, float]:
    box = visit.page.locator(CANVAS).bounding_box()
    return box["x"] + (c + 0.5) * box["width"] / cols, box["y"] + (r + 0.5) * box["height"] / rows


@needs_browser
def test_the_pointer_and_the_keys_draw_and_a_reload_loses_nothing(visit: Visit) -> None:
    page = visit.page
    page.mouse.move(*cell(visit, 0, 0, 5, 5))
    page.mouse.down()
    page.mouse.move(*cell(visit, 0, 4, 5, 5))  # one jump: the cells between are painted too
    page.mouse.up()
    assert grid(visit)[0] == [1] * 5
    for key in ("ArrowDown", "3", "ArrowLeft", "7", "Space"):
        page.keyboard.press(key)
    assert grid(visit)[1] == [0, 0, 0, 7, 3]
    page.keyboard.press("f")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert grid(visit)[4] == [7] * 5
    for _ in range(2):
        page.keyboard.press("Control+z")
    assert grid(visit)[1] == [0, 0, 0, 0, 3] and grid(visit)[4] == [0] * 5
    page.keyboard.press("Control+Shift+z")
    assert grid(visit)[1] == [0, 0, 0, 7, 3]
    size = page.locator("#editor .dw-size input")
    size.fill("3X7")
    size.press("Enter")
    assert grid(visit) == [[1] * 5 + [0, 0], [0, 0, 0, 7, 3, 0, 0], [0] * 7]
    size.fill("99")
    size.press("Enter")
    expect(page.locator("#editor .dw-note")).to_contain_text("A size is rows x columns")
    visit.go(page.url)
    opened(visit)
    assert grid(visit)[1] == [0, 0, 0, 7, 3, 0, 0]
    expect(page.locator("#editor .dw-title")).to_have_text("Pair 1, input")
    expect(page.locator("#draw-said")).to_contain_text("No rule is known")
    expect(page.locator("#draw-said")).to_contain_text("Test 1: open. The arms will answer")
    expect(page.locator("#draw-adapt-both")).to_be_enabled()


@needs_browser
def test_select_move_paste_turn_and_rearrange(visit: Visit) -> None:
    page = visit.page
    paste(visit, SMALL)
    expect(page.locator("#editor .dw-train > li")).to_have_count(2)
    page.locator("#editor [data-turn=right]").evaluate("(b) => b.closest('details').open = true")
    page.locator("#editor [data-turn=right]").click()
    assert grid(visit) == [[2, 0], [0, 1]]
    page.locator("#editor .dw-scope").select_option("all")
    page.locator("#editor [data-turn=flip-h]").click()
    assert grid(visit) == [[0, 2], [1, 0]] and grid(visit, side="output") == [[0, 1], [2, 0]]
    assert grid(visit, "test", 0, "output") == [[0, 5], [0, 0]]
    page.locator(CANVAS).focus()
    for key in ("ArrowUp", "ArrowLeft", "Shift+ArrowRight", "Control+c", "]", "ArrowDown", "ArrowLeft", "Control+v"):
        page.keyboard.press(key)
    assert grid(visit, side="output") == [[0, 1], [0, 2]]
    page.get_by_label("Duplicate pair 1").click()
    page.get_by_label("Move down pair 2").click()
    assert grid(visit, i=0) == grid(visit, i=2) == [[0, 2], [1, 0]]
    page.get_by_label("Delete pair 3").click()
    expect(page.locator("#editor .dw-train > li")).to_have_count(2)
    page.locator("#editor .dw-note button").click()
    expect(page.locator("#editor .dw-train > li")).to_have_count(3)


@needs_browser
def test_a_familys_rules_judge_what_is_drawn(visit: Visit) -> None:
    page = visit.page
    page.locator("#draw-begin").click()
    said = page.locator("#draw-said")
    expect(said).to_contain_text("All 3 pairs are right by the rules")
    expect(said).to_contain_text("Test 1: open. The rules know the answer")
    page.get_by_label(re.compile("Test 1, output")).click()
    page.get_by_role("button", name="Draw the answer").click()
    expect(said).to_contain_text("Test 1: your answer is not right")
    expect(page.locator("#draw-about")).to_contain_text("Mend it")
    page.locator("#draw-fill").click()
    expect(said).to_contain_text("Test 1: your answer is right by the rules")
    expect(page.locator("#draw-adapt-both")).to_be_enabled()


@needs_browser
def test_eight_pairs_of_thirty_are_drawn_within_half_a_second(visit: Visit) -> None:
    paste(visit, large())
    visit.until("() => document.querySelector('#editor [data-drawn], #editor[data-drawn]')")
    milliseconds = float(visit.page.locator("[data-drawn]").first.get_attribute("data-drawn"))
    assert milliseconds < 500
    box = visit.page.locator(CANVAS).bounding_box()
    assert box["width"] > 400
    expect(visit.page.locator("#editor .dw-train > li")).to_have_count(8)


@needs_browser
def test_a_link_carries_the_puzzle_and_a_bad_one_says_so(visit: Visit, browser: Any, server: str) -> None:
    page = visit.page
    paste(visit, SMALL)
    expect(page.locator("#editor .dw-train > li")).to_have_count(2)
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#editor .dw-note")).to_contain_text("link is copied")
    link = page.evaluate("() => navigator.clipboard.readText()")
    assert drawn.decode(link.partition("#puzzle=")[2]).as_json() == SMALL  # the browser and Python pack alike
    other = Visit(browser, server)
    other.page.goto(server + "#puzzle=" + drawn.encode(drawn.begin("life/B3S23")))
    expect(other.page.locator("#draw-said")).to_contain_text(
        "By the rules of life/B3S23", timeout=20_000
    )  # tab and all
    expect(other.page.locator("#editor .dw-colour")).to_have_text("1 alive")
    assert "#" not in other.page.url
    other.page.evaluate("() => { location.hash = 'puzzle=broken'; }")
    expect(other.page.locator("#editor .dw-note")).to_contain_text("This link holds no puzzle")
    other.close()


@needs_browser
def test_wrong_imports_say_why(visit: Visit) -> None:
    page = visit.page
    before = page.evaluate(KEPT)
    for puzzle, line in (
        (bad(train=[{"input": [[10]], "output": [[0]]}]), "values are 0 to 9"),
        (bad(test=[]), "'test' is not a list"),
    ):
        paste(visit, puzzle)
        expect(page.locator("#draw-problem [role=alert]")).to_contain_text(line)
    with page.expect_file_chooser() as chooser:
        page.locator("#draw-upload").click()
    chooser.value.set_files({"name": "p.json", "mimeType": "application/json", "buffer": b'{"train": [}'})
    expect(page.locator("#draw-problem [role=alert]")).to_contain_text("Not JSON")
    assert page.evaluate(KEPT) == before


@needs_browser
def test_on_a_phone_nothing_scrolls_sideways_and_touch_draws(browser: Any, server: str) -> None:
    visit = Visit(browser, server, width=390, height=844, has_touch=True)
    visit.page.goto(server)
    visit.shown()
    opened(visit)
    assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    visit.page.locator(CANVAS).scroll_into_view_if_needed()
    visit.page.touchscreen.tap(*cell(visit, 1, 1, 5, 5))
    visit.until(f"{KEPT}.train[0].input[1][1] === 1")
    visit.close()
