"""What the page promises its visitors: it is there soon, it loses nothing when things are killed, everybody can use it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import begun
import psutil
import pytest
from fixture_sweep import make_sweep
from visit import TABS, Visit, expect, needs_browser, served

from vdmreason import jobs, store
from vdmreason.ui import training

pytestmark = needs_browser
SLACK = float(os.environ.get("VDMREASON_TEST_SLACK", "4"))  # how much slower than promised a busy machine may be


def test_up_in_six_seconds_and_a_comparison_two_seconds_later(root: Path, browser: Any) -> None:
    began = time.monotonic()
    with served(root) as (url, process):
        up = time.monotonic() - began
        visit = Visit(browser, url)
        began = time.monotonic()
        visit.page.goto(url)
        visit.shown()
        shown = time.monotonic() - began
        visit.close()
        maps = {Path(m.path).name for m in psutil.Process(process.pid).memory_maps() if m.path}
        assert not any(name.startswith("libtorch") for name in maps), "the page has loaded torch"
    assert up < 6 * SLACK and shown < 2 * SLACK, f"up after {up:.1f} s, a comparison {shown:.1f} s later"


# What is on a tab once it is whole.
CONTENT = {
    "Compare": "#stage .title",
    "Draw": "#editor",
    "Train": "#train-command",
    "Sweeps": "#sweep-matrix .matrix-box button",
    "Backbones": "#backbone-card",
    "Library": "#library-adapters",
}


@pytest.mark.timeout(600)
def test_axe_finds_no_serious_violation(browser: Any, root: Path, server: str) -> None:
    """On no tab, light or dark."""
    make_sweep(root, running=False)
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visit = Visit(browser, server)
    visit.page.goto(f"{server}?__theme=light")
    visit.shown()
    serious = []
    for tab in TABS:
        visit.tab(tab)
        expect(visit.page.get_by_role("tab", name=tab, exact=True)).to_have_attribute("aria-selected", "true")
        expect(visit.page.locator(CONTENT[tab]).first).to_be_visible(timeout=60_000)
        for theme in ("light", "dark"):
            visit.settled()
            # What a theme changes is colours; all else was looked at in the first.
            rules = {"runOnly": ["color-contrast"]} if theme == "dark" else {}
            found = axe.run(visit.page, options={"resultTypes": ["violations"], **rules}).response["violations"]
            bad = [v for v in found if v["impact"] in ("serious", "critical")]
            serious += [f"{tab}, {theme}: {v['id']}: {v['nodes'][0]['html'][:200]}" for v in bad]
            visit.page.locator(".masthead .theme").click()
    visit.close()
    assert not serious, "\n".join(serious)


def test_the_keyboard_alone_reaches_every_tab(browser: Any, server: str) -> None:
    visit = Visit(browser, server)
    visit.page.goto(server)
    visit.shown()
    visit.page.get_by_role("tab", name="Compare", exact=True).focus()
    reached = set()
    for _ in range(len(TABS)):
        reached.add(visit.page.evaluate("() => document.activeElement.textContent.trim()"))
        visit.page.keyboard.press("Enter")
        visit.page.keyboard.press("Tab")
    visit.close()
    assert reached == set(TABS)


@pytest.mark.timeout(600)
def test_what_is_killed_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Any) -> None:
    """kill -9 of the page, then of the trainer, then of both: the strip of the next page says what is true, and the run
    goes on from its checkpoint to its end."""
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    keys = {"video": "cogvideox/tiny", "language": "causal_lm/tiny"}
    (run,) = training.plan("maze/7x7", 3, 0, ["language"], keys, 320, 2)
    training.start([run], together=True)
    folder = training.folder_of(run)

    def strip_says(url: str, state: str, press: str = "", seconds: int = 60) -> None:
        visit = Visit(browser, url)
        visit.page.goto(url)
        job = visit.page.locator("#jobs li", has_text="maze/7x7")
        expect(job.locator(".job-state")).to_have_text(state, timeout=1000 * seconds)
        if press:
            job.get_by_role("button", name=press).click()
        visit.context.close()

    def killed(number: int | None) -> None:
        assert number
        for process in (*psutil.Process(number).children(recursive=True), psutil.Process(number)):
            with contextlib.suppress(psutil.NoSuchProcess):  # a child of the first, gone with it
                process.send_signal(signal.SIGKILL)

    def reached(step: int) -> None:
        deadline = time.monotonic() + 120
        while not (
            (status := jobs.status(folder)).active and status.step >= step
        ):  # resumed, its process may not be there yet
            assert time.monotonic() < deadline and status.state not in ("done", "failed"), jobs.log_tail(folder)
            time.sleep(0.1)

    with served(tmp_path, tidy=False) as (url, page):
        reached(105)  # past the first checkpoint
        os.killpg(page.pid, signal.SIGKILL)  # the page
        page.wait()
        before = jobs.status(folder)
        assert before.active
    with served(tmp_path, tidy=False) as (url, page):
        assert jobs.status(folder).pid == before.pid or jobs.status(folder).state == "done"
        strip_says(url, "running")
        killed(store.read_json(folder / jobs.JOB)["pid"])  # the trainer
        begun.mark(folder)
        strip_says(url, "lost", press="Resume")
        reached(205)
        killed(store.read_json(folder / jobs.JOB)["pid"])  # both
        os.killpg(page.pid, signal.SIGKILL)
        page.wait()
    with served(tmp_path, tidy=False) as (url, page):
        strip_says(url, "lost", press="Resume")
        strip_says(url, "done", seconds=240)
    steps = [line["step"] for line in store.read_lines(folder / "metrics.jsonl")]
    assert steps == [*range(1, 321)], "every step is there once"
    assert begun.went_on(folder)


def test_a_tab_has_an_address_and_back_leads_to_the_one_before(browser: Any, server: str) -> None:
    visit = Visit(browser, server)
    visit.page.goto(server)
    visit.shown()

    def looked_at(name: str) -> None:
        expect(visit.page.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")

    for name in ("Draw", "Library"):
        visit.tab(name)
        visit.until(f"() => new URLSearchParams(location.search).get('tab') === '{name.lower()}'")
    visit.page.go_back()
    looked_at("Draw")
    visit.page.go_back()
    looked_at("Compare")
    assert "tab=" not in visit.page.url and "task=" in visit.page.url
    visit.page.goto(f"{server}?tab=backbones")
    looked_at("Backbones")
    visit.complaints.clear()  # a page that is left complains that its streams end
    visit.close()
