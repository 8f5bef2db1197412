"""The Backbones tab: what it reads from files, what it starts, what it refuses, and its films under a browser's keys."""

from __future__ import annotations

import html
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import begun
import gradio as gr
import numpy as np
import psutil
import pytest
from test_cli import call, refused
from visit import Visit, chromium, needs_browser, served

from pretrain import nextvid
from tasks.base import UserError
from vdmreason import backbones, jobs, store
from vdmreason.ui import backbone_files as files
from vdmreason.ui import backbones_tab as tab
from vdmreason.ui import scrubber
from vdmreason.ui.backbone_files import RECIPES, View

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import ship

CHECKOUT = pytest.mark.skipif(not files.RESULTS.exists(), reason="the exam's first table is in a checkout alone")
SCORE = {"value": 0.4, "low": 0.35, "high": 0.45, "seeds": 3}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    return tmp_path


def tiny(folder: Path) -> Path:
    """A NExT-Vid of the tiny size that was never trained, as a recipe leaves one."""
    nextvid.save(folder, nextvid.NextVid(nextvid.FLAVOURS["tiny"]))
    log = {"step": 6, "loss": 0.5, "updates": 6, "seconds": 12.0}
    store.write_json(
        folder / "pretrain.json", {"command": "vdmreason pretrain nextvid", "size": "tiny", "seed": 0, "log": log}
    )
    return folder


def running(folder: Path, updates: int = 20) -> Path:
    """A pretraining at work in this very process."""
    me = psutil.Process(os.getpid())
    argv = ["python", "-m", "vdmreason", "pretrain", "image-teacher", "--size", "tiny", "--budget", "40u"]
    job = {"kind": "pretrain", "argv": argv, "started": 1.0, "pid": me.pid, "created": me.create_time()}
    store.write_json(folder / jobs.JOB, job)
    store.write_state(folder, state="running", pid=me.pid, created=me.create_time(), error="")
    lines = [{"step": i + 1, "lr": 1e-3, "norm": 1.0, "loss": 2.0 / (i + 1), "shapes": 0.5} for i in range(updates)]
    store.write_lines(folder / "work" / "metrics.jsonl", lines)
    store.write_json(folder / "work" / "checkpoint" / "loop.json", {"step": 10, "seconds": 30.0})
    return folder


def probed(root: Path, sha: str) -> None:
    rows = [
        {"features": name, "accuracy": {"shape, linear": SCORE, "motion, linear": {**SCORE, "value": value}}}
        for name, value in (("ours", 0.42), ("never trained", 0.36), ("pixels", 0.36))
    ]
    store.write_json(
        root / "probe" / sha / "nextvid-linear-250-3" / "probe.json", {"labels": 250, "seeds": 3, "rows": rows}
    )


def pictures(root: Path, recipe: str, sha: str) -> Path:
    """Eight frames as `pretrain show` leaves them, for the first clip as it was learnt."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    seen, drawn = clip.copy(), clip.copy()
    seen[:, :8, :8] = 128
    drawn[4:] = 255 - drawn[4:]
    folder = root / "show" / sha / f"{recipe}-clip0-seed0"
    folder.mkdir(parents=True)
    films = {"the clip": clip, "mask: seen": seen, "mask: drawn": drawn}
    backbones.strips(films, folder / "sheet.png", SimpleNamespace(patch=4))
    return folder


def built() -> tab.Tab:
    with gr.Blocks() as page:
        frame = SimpleNamespace(page=page, clock=lambda *_: gr.Timer(active=False), opens=lambda *_: None)
        return tab.Tab(frame)  # type: ignore[arg-type]


# What is on disk


@pytest.mark.parametrize("name", [*RECIPES])
def test_sizes_are_the_recipes_own(name: str) -> None:
    module = importlib.import_module(f"pretrain.{name}")
    assert set(RECIPES[name].sizes) == set(getattr(module, "SIZES", None) or module.FLAVOURS)
    assert set(RECIPES[name].published) <= set(RECIPES[name].sizes)
    assert RECIPES[name].shown == (name in backbones.SHOWN) and RECIPES[name].probed == (name in backbones.RECIPES)


def test_masks_are_lvmae_s() -> None:
    assert tab.MASKS == importlib.import_module("pretrain.lvmae").MASKS


def test_what_ships_is_told_from_its_files(root: Path) -> None:
    found = {b.key: b for b in files.found()}
    assert next(iter(found)) == "zoo/nextvid"
    ours = found["zoo/nextvid"]
    assert ours.state == "ships" and ours.size == "small" and ours.updates == 3000 and ours.whole
    assert ours.weights == json.loads((files.ZOO / "nextvid" / "pretrain.json").read_text())["weights"]
    assert 3.6e6 < sum(ours.parameters.values()) < 3.7e6
    assert "loss 0.380" in tab.last_words(ours) and "arxiv.org/abs/2512.21004" in tab.headline(ours)
    assert found["zoo/causal_lm"].data == "plain text" and found["zoo/causal_lm"].minutes
    cells = {c["label"]: c["text"] for c in tab.shelf([*found.values()], "")["rows"][0]["cells"]}
    assert cells["Updates"] == "3,000" and cells["Weights"] == "017a9193" and cells["Time"] == "2.5 h"
    assert "#### A NExT-Vid" in tab.card(ours)
    for name in ("nextvid", "internvideo_next"):  # differences beside the paper's, in the study's own words
        told = json.loads((files.RESULTS / f"{name}_effects.json").read_text())
        shown = tab.study(found[f"zoo/{name}"])
        assert all(html.escape(row["paper"]) in shown for row in told["effects"].values())
        assert all(html.escape(name) in shown for name in (*told["rows"], *told["effects"]))
    assert tab.study(found["zoo/causal_lm"]) == ""
    two = found["zoo/internvideo_next"]  # in two stages, and the table says what they come to
    assert two.updates == sum(lines[-1]["step"] for lines in files.numbers(two).values()) == 3000


@CHECKOUT
def test_a_curve_that_ships_ends_where_its_record_does(root: Path) -> None:
    found = {b.key: b for b in files.found()}
    for name in ("tokenizer", "image_teacher"):
        ours = found[f"zoo/{name}"]
        (lines,) = files.numbers(ours).values()
        record = json.loads((files.ZOO / name / "pretrain.json").read_text())["log"]
        assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
        assert lines[-1]["step"] == ours.updates and lines[-1]["loss"] == record["loss"]
        assert len(lines) <= 202 and len(tab.curve(ours, "|loss")) > 100
    assert files.progress(ours) is None or not files.progress(ours).left


def test_a_short_curve_keeps_the_means(tmp_path: Path) -> None:
    lines = [{"step": k + 1, "loss": float(k), **({"rank": k} if k % 50 == 0 else {})} for k in range(1001)]
    short = ship.thinned(lines)
    assert [line["step"] for line in short[:2]] == [6, 12] and short[0]["loss"] == 2.5 and short[-1] == lines[-1]
    assert [line["rank"] for line in short if "rank" in line] == [k for k in range(0, 1001, 50)]
    assert len(ship.thinned(lines[:5])) == 5 and len(ship.thinned(lines[:1])) == 1


@CHECKOUT
def test_weights_are_named_as_the_exam_names_them(root: Path) -> None:
    known = {sha for sha, _ in files.exams()}
    assert known <= {b.weights[:8] for b in files.found()}


def test_what_is_made_here_is_found_and_followed(root: Path) -> None:
    tiny(root / "pretrain" / "mine")
    running(root / "pretrain" / "now")
    (root / "a-run").mkdir()
    (root / "a-run" / "config.yaml").write_text("task: maze/7x7")
    found = {b.key: b for b in files.found() if b.state != "ships"}
    assert set(found) == {"pretrain/mine", "pretrain/now"}
    mine, now = found["pretrain/mine"], found["pretrain/now"]
    assert (mine.recipe, mine.state, mine.updates, mine.whole) == ("nextvid", "done", 6, True)
    assert (now.recipe, now.state, now.whole, now.size) == ("image_teacher", "running", False, "tiny")
    assert files.progress(now) == files.Progress(20, 40, 0.1, 60.0)
    assert "update 20 of 40" in tab.headline(now) and "about 60 s left" in tab.headline(now)
    assert tab.curve_choices(now)[0] == ("loss", "|loss")
    table = tab.curve(now, "|loss")
    assert set(table["curve"]) == {"raw", "smoothed"} and table["value"].iloc[0] == 2.0
    with pytest.raises(UserError, match="not on this machine"):
        files.by_key("../mine")


def test_a_damaged_folder_does_not_take_the_tab_along(root: Path) -> None:
    folder = tiny(root / "pretrain" / "torn")
    (folder / "pretrain.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0no header")
    torn = files.by_key("pretrain/torn")
    assert torn.recipe == "nextvid" and not torn.parameters
    assert tab.headline(torn) and tab.shelf([torn], torn.key)["rows"]


def test_a_pretraining_stops_when_asked_and_goes_on_as_if_it_had_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Stop and save" in the strip: the file is heard after an update, and the weights are those of one that went through."""
    from pretrain import loop

    def asked(folder: Path, step: int) -> Any:
        write = loop.json.dumps

        def dumps(value: Any, **how: Any) -> str:
            if isinstance(value, dict) and value.get("step") == step and "loss" in value:
                (folder / jobs.STOP).write_text("")
            return write(value, **how)

        return dumps

    command = ("pretrain", "image-teacher", "--size", "tiny", "--budget", "4u", "--out")
    call(*command, str(root / "through"))
    with monkeypatch.context() as patch:
        patch.setattr(
            loop,
            "json",
            SimpleNamespace(dumps=asked(root / "stopped", 2), loads=json.loads, JSONDecodeError=ValueError),
        )
        assert "stopped after update 2" in call(*command, str(root / "stopped"), code=2).output
    assert store.read_state(root / "stopped")["state"] == "stopped" and not (root / "stopped" / jobs.STOP).exists()
    assert files.by_key("stopped").state == "stopped" and loop.stop_wanted is loop.never
    begun.mark(root / "stopped")
    call(*command, str(root / "stopped"))
    assert begun.went_on(root / "stopped")
    assert files.weights(root / "stopped") == files.weights(root / "through") != ""


# Probe against exam


@CHECKOUT
def test_probe_and_exam_stand_beside_each_other(root: Path) -> None:
    shelf = files.found()
    assert "has been probed on this machine" in tab.so_what(shelf, None)
    probed(root, files.by_key("zoo/nextvid").weights[:8])
    points = files.points(shelf, "motion, linear")
    assert {(p.init, p.probe[0]) for p in points} == {("pretrained", 0.42), ("random", 0.36)}
    assert len({p.task for p in points}) == 3 and all(p.exam[1] <= p.exam[0] <= p.exam[2] for p in points)
    said = tab.so_what(shelf, "motion, linear")
    assert "a correlation is not said before 5" in said and "<svg" in said and "never trained" in said
    table = tab.probe_table(files.by_key("zoo/nextvid"))
    assert "42.0" in table and "12.5" in table and "probe.json" in table  # of eight motions one is guessed


def test_a_rank_correlation_and_its_interval() -> None:
    rho, low, high = files.spearman([(x, x**3) for x in range(8)])
    assert rho == pytest.approx(1) and low == pytest.approx(1) and high == pytest.approx(1)
    rho, low, high = files.spearman([(1, 5), (2, 1), (3, 4), (4, 2), (5, 3)])
    assert low < rho < high and rho == pytest.approx(-0.3)


# Pictures


def test_show_leaves_frames_for_a_page(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tiny(root / "mine"), root / "show" / "x" / "sheet.png"
    monkeypatch.setenv(jobs.IN_JOB, str(out.parent))
    call("pretrain", "show", str(folder), "--blocks", "4x0.1,2x0.3", "--out", str(out))
    assert store.read_state(out.parent)["state"] == "done"
    facts = json.loads(out.with_suffix(".json").read_text())
    named = {film["name"]: film for film in facts["films"]}
    assert {"the clip", "4 blocks of 10%: seen", "2 blocks of 30%: drawn", "rollout from frame 4"} <= set(named)
    hidden = named["4 blocks of 10%: seen"]["hidden"]
    assert len(hidden) == facts["frames"] == 8 and len(hidden[0]) == (facts["width"] // facts["patch"]) ** 2
    assert "1" in hidden[0] and "0" in hidden[0] and "error" not in named["the clip"]
    value = scrubber.films(files.drawn(out.parent) or {})
    assert value["sprite"].startswith("data:image/webp;base64,") and value["films"][0] == {
        "name": "the clip",
        "frames": 8,
    }
    assert "2 masks like" in refused("pretrain", "show", str(folder), "--blocks", "8x0.1")
    assert "no such setting" in refused("pretrain", "show", str(folder), "--hidden", "0.5")


def test_what_the_controls_ask_for(root: Path) -> None:
    ours = files.by_key("zoo/nextvid")
    assert tab.view_of(ours, 3, 1, 0.15, 0.7, 0.5, "adaptive") == View(3, 1)
    other = tab.view_of(ours, 0, 0, 0.15, 0.5, 0.5, "random")
    assert other == View(0, 0, (0.15, 0.5))
    folder = files.show_folder(ours, other)
    assert folder.parent == root / "show" / "017a9193" and folder != files.show_folder(ours, View())
    assert "8x0.15,2x0.50" in files.show_command(ours, other, folder)
    for wrong in (
        ("3; rm", 0, 0.1, 0.1),
        (-1, 0, 0.1, 0.1),
        (0, 10**9, 0.1, 0.1),
        (0, 0, 5, 0.1),
        (0, 0, None, 0.1),
        (0.5, 0, 0.1, 0.1),
    ):
        with pytest.raises(UserError):
            tab.view_of(ours, *wrong, 0.5, "adaptive")


def test_pictures_and_probes_are_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, list[str], Path]] = []
    monkeypatch.setattr(jobs, "start", lambda kind, argv, folder: begun.append((kind, argv[3:], Path(folder))))
    page = built()
    controls = ("zoo/nextvid", 0, 0, 0.15, 0.7, 0.5, "adaptive", "linear", 250, 3, None, None, {})
    assert page.ask_pictures(*controls)[page.problem] == ""
    assert page.ask_probe(*controls)[page.problem] == ""
    assert page.pretrain("lvmae", "tiny", 5, "updates", 1, "mine")[page.new_problem]  # the folder is no backbone's yet
    (show, said, where), (probe, words, _), (kind, command, folder) = begun
    assert (show, probe, kind) == ("show", "probe", "pretrain")
    assert said[:2] == ["pretrain", "show"] and where == root / "show" / "017a9193" / "nextvid-clip0-seed0"
    assert words[0] == "probe" and words[words.index("--labels") + 1] == "250"
    assert command == [
        "pretrain",
        "lvmae",
        "--size",
        "tiny",
        "--budget",
        "5u",
        "--seed",
        "1",
        "--out",
        str(root / "pretrain" / "mine"),
    ]
    assert folder == root / "pretrain" / "mine"
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    assert "off on this public page" in page.ask_pictures(*controls)[page.problem]
    assert "off on this public page" in page.ask_probe(*controls)[page.problem]
    assert "off on this public page" in page.pretrain("lvmae", "tiny", 5, "updates", 1, "mine")[page.new_problem]
    assert len(begun) == 3


@pytest.mark.parametrize(
    "given",
    [
        ("nextvid", "huge", 5, "updates", 0, "x"), ("none", "tiny", 5, "updates", 0, "x"),
        ("nextvid", "tiny", 0, "updates", 0, "x"), ("nextvid", "tiny", 5, "years", 0, "x"),
        ("nextvid", "tiny", 5, "hours", -1, "x"), ("nextvid", "tiny", 5, "hours", 0, "../x"),
        ("nextvid", "tiny", 5, "hours", 0, ""), ("nextvid", "tiny", 5, "hours", 0, ["x"]),
    ],
)  # fmt: skip
def test_a_pretraining_that_cannot_be(given: tuple[Any, ...], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "start", lambda *_: pytest.fail("it was started"))
    page = built()
    assert "problem" in page.named(*given)[page.new_problem] and "problem" in page.pretrain(*given)[page.new_problem]


def test_a_new_one_is_foretold(root: Path) -> None:
    page = built()
    said = page.foresee("nextvid", "small", 100, "updates", 2)
    assert said[page.new_name] == "nextvid-small-s2"
    assert said[page.command].startswith("vdmreason pretrain nextvid --size small --budget 100u --seed 2 --out ")
    assert "About 5 min: nextvid took 2.96 s an update" in said[page.forecast]
    assert "needs a GPU" in page.foresee("nextvid", "vit-l", 1, "hours", 0)[page.forecast]


def test_nothing_is_sent_where_nothing_changed(root: Path) -> None:
    pictures(root, "nextvid", "017a9193")
    page = built()
    first = page.choose("zoo/nextvid")
    assert first[page.films]["films"][1]["hidden"][0] == "1100110000000000"
    controls = ("zoo/nextvid", 0, 0, 0.15, 0.7, 0.5, "adaptive", "linear", 250, 3, None, None)
    assert set(page.tick(*controls, first[page.seen])) == {page.seen}
    running(root / "pretrain" / "now")
    again = page.tick(*controls, first[page.seen])
    assert page.shelf in again and page.films not in again and page.head not in again
    assert page.choose("pretrain/now")[page.films] is None


# In a browser


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    root = tmp_path_factory.mktemp("runs")
    sha = files.weights(files.ZOO / "nextvid")[:8]
    pictures(root, "nextvid", sha)
    probed(root, sha)
    tiny(root / "pretrain" / "mine")
    with served(root) as (url, _), chromium() as browser:
        visit = Visit(browser, url)
        visit.page.goto(url)
        visit.tab("Backbones")
        yield visit
        visit.close()


COUNT = "() => document.querySelector('#films .count')?.textContent"
PIXELS = "() => [...document.querySelectorAll('#films canvas')].map(c => c.toDataURL()).join()"


@needs_browser
def test_films_move_together_under_the_keys(visit: Visit) -> None:
    visit.until(f"() => ({COUNT})() === '5 / 8'")
    assert visit.page.locator("#films figcaption").all_text_contents() == ["the clip", "mask: seen", "mask: drawn"]
    visit.page.locator("#films input[type=range]").focus()
    for key, count in (("Home", "1 / 8"), ("ArrowRight", "2 / 8"), ("End", "8 / 8"), ("ArrowLeft", "7 / 8")):
        visit.page.keyboard.press(key)
        assert visit.page.evaluate(COUNT) == count
    assert "off by" in visit.page.locator("#films .error").nth(2).text_content()
    for key, button in (("h", ".hatch"), ("d", ".difference"), ("s", ".strips")):
        before, pressed = (
            visit.page.evaluate(PIXELS),
            visit.page.locator(f"#films {button}").get_attribute("aria-pressed"),
        )
        visit.page.keyboard.press(key)
        assert visit.page.evaluate(PIXELS) != before
        assert visit.page.locator(f"#films {button}").get_attribute("aria-pressed") != pressed
        visit.page.keyboard.press(key)
    visit.page.keyboard.press("Home")
    visit.page.keyboard.press("Space")
    visit.until(f"() => ({COUNT})() === '8 / 8'", 8)


@needs_browser
def test_probe_and_exam_are_seen(visit: Visit) -> None:
    visit.page.locator("#probe-scores").get_by_text("never trained").wait_for()
    visit.page.locator("#so-what svg[role=img]").wait_for()
    assert "vdmreason pretrain nextvid" in visit.page.locator("#new-command textarea").input_value()


@needs_browser
def test_one_s_own_is_chosen_drawn_and_there_after_a_reload(visit: Visit) -> None:
    visit.page.get_by_role("button", name="pretrain/mine").click()
    visit.page.locator("#backbone-head").get_by_text("pretrain/mine").wait_for()
    visit.page.get_by_text("Not drawn yet with these settings.").wait_for()
    visit.page.locator("#look-draw").click()
    visit.until(
        "() => [...document.querySelectorAll('#films figcaption')].some(n => n.textContent.startsWith('rollout'))", 60
    )
    visit.go(visit.page.url)
    visit.tab("Backbones")
    visit.page.get_by_role("button", name="pretrain/mine").click()
    visit.until(
        "() => [...document.querySelectorAll('#films figcaption')].some(n => n.textContent.startsWith('rollout'))"
    )


@needs_browser
def test_a_phone_has_no_sideways_scroll(visit: Visit) -> None:
    visit.page.get_by_role("button", name="nextvid", exact=True).click()
    visit.page.set_viewport_size({"width": 390, "height": 844})
    visit.page.locator("#probe-scores").get_by_text("never trained").wait_for()
    visit.until("() => document.documentElement.scrollWidth <= 390 && document.querySelector('#films canvas')")
    visit.page.set_viewport_size({"width": 1280, "height": 900})
