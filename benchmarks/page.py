"""What the page promises in seconds, measured in a real browser on this machine.

    python benchmarks/page.py                    # results/page.json, page.md

Each figure is the median of `--times` tries, the worst behind it. Nothing else should be running. `--only adapter` measures the
slow one alone, from the press of the button on three drawn pairs to both arms' answers, and keeps the other rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from effects import commit  # noqa: E402
from visit import TABS, Visit, chromium, served  # noqa: E402

from vdmreason import store  # noqa: E402

PROMISES = {
    "page up after the command": 6.0,
    "first comparison after the page's load": 2.0,
    "another example": 0.3,
    **{f"tab {tab}": 1.0 for tab in TABS[1:]},
    "a 30 x 30 puzzle with eight pairs drawn": 0.5,
    "cancel of a live answer": 1.0,
    "adapter from three drawn pairs": 120.0,
}
ZOO = str(ROOT / "adapters" / "zoo")
NEXT = """async () => { const title = document.querySelector('#stage .title'), before = title.textContent;
  const began = performance.now(); document.querySelector('#next-example').click();
  while (title.textContent === before) await new Promise(requestAnimationFrame); return (performance.now() - began) / 1000; }"""


def measured(times: int, told: Callable[[str, float], None]) -> None:
    for _ in range(times):
        with tempfile.TemporaryDirectory() as root, chromium() as browser:
            began = time.monotonic()
            with served(Path(root), VDMREASON_ZOO=ZOO) as (url, _):
                told("page up after the command", time.monotonic() - began)
                visit = Visit(browser, url)
                began = time.monotonic()
                visit.page.goto(url)
                visit.shown()
                told("first comparison after the page's load", time.monotonic() - began)
                for _ in range(5):
                    told("another example", visit.page.evaluate(NEXT))
                    visit.page.wait_for_timeout(200)
                for tab in TABS[1:]:
                    began = time.monotonic()
                    visit.tab(tab)
                    visit.page.locator("[role=tabpanel]:visible").first.wait_for()
                    told(f"tab {tab}", time.monotonic() - began)
                told("a 30 x 30 puzzle with eight pairs drawn", puzzle(visit))
                visit.tab("Compare")
                told("cancel of a live answer", cancelled(visit))
                visit.close()


def puzzle(visit: Visit) -> float:
    """Seconds that the editor needed to draw a puzzle that had arrived, as it says itself in its `data-drawn`."""
    visit.tab("Draw")
    rows = [[(r * c) % 10 for c in range(30)] for r in range(30)]
    pair = {"input": rows, "output": rows}
    visit.page.locator("#draw-paste button").first.click()
    visit.page.locator("#draw-paste textarea").fill(json.dumps({"train": [pair] * 8, "test": [pair]}))
    visit.page.locator("#draw-paste-open").click()
    visit.until("() => document.querySelectorAll('#editor .dw-train > li').length === 8")
    return float(visit.page.locator("[data-drawn]").first.get_attribute("data-drawn") or "nan") / 1000


def adapted(times: int, told: Callable[[str, float], None]) -> None:
    for seed in range(times):
        with (
            tempfile.TemporaryDirectory() as root,
            chromium() as browser,
            served(Path(root), VDMREASON_ZOO=ZOO) as (url, _),
        ):
            visit = Visit(browser, url)
            visit.page.goto(url)
            visit.shown()
            told("adapter from three drawn pairs", three_pairs(visit, seed))
            visit.close()


def three_pairs(visit: Visit, seed: int) -> float:
    """Seconds from the press of the button to both arms' answers: pictures of 8 x 8 cells and their mirror images, as the page
    offers it (the backbones that ship, its number of updates)."""
    draw = random.Random(seed)
    grids = [[[draw.randrange(10) for _ in range(8)] for _ in range(8)] for _ in range(4)]
    pairs = [{"input": grid, "output": [row[::-1] for row in grid]} for grid in grids]
    visit.tab("Draw")
    visit.page.locator("#draw-paste button").first.click()
    visit.page.locator("#draw-paste textarea").fill(json.dumps({"train": pairs[:3], "test": pairs[3:]}))
    visit.page.locator("#draw-paste-open").click()
    visit.page.get_by_role("button", name="Adapt both arms on my 3 pairs").click()
    began = time.monotonic()
    visit.page.locator("#draw-see").wait_for(state="visible", timeout=600_000)
    return time.monotonic() - began


def cancelled(visit: Visit) -> float:
    """Seconds from the click on Cancel to its going."""
    page = visit.page
    page.locator("#run-live").click()
    page.locator("#cancel-live").wait_for(state="visible")
    began = time.monotonic()
    page.locator("#cancel-live").click()
    page.locator("#cancel-live").wait_for(state="hidden")
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--only", choices=["adapter"], help="measure this alone")
    given = parser.parse_args()
    found: dict[str, list[float]] = {}

    def told(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)
        print(f"{name}: {seconds:.2f} s", flush=True)

    if not given.only:
        measured(given.times, told)
    adapted(1, told)
    out = ROOT / "benchmarks" / "results" / "page"
    ran = f"python benchmarks/page.py --times {given.times}" + (f" --only {given.only}" if given.only else "")
    made = {
        "command": ran, "commit": commit(), "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    }  # fmt: skip
    rows: dict[str, Any] = store.read_json(out.with_suffix(".json"))["seconds"] if given.only else {}
    for name, some in found.items():
        rows[name] = {
            "median": statistics.median(some), "worst": max(some), "tries": len(some), "promised": PROMISES[name],
            **made,
        }  # fmt: skip
    store.write_json(out.with_suffix(".json"), {"seconds": rows})
    lines = [
        "Seconds in a browser: median and worst of the tries.",
        "", "| | promised | median | worst | tries | command | commit | machine |", "|---|---|---|---|---|---|---|---|",
        *(f"| {n} | {r['promised']:g} | {r['median']:.2f} | {r['worst']:.2f} | {r['tries']} | `{r['command']}` | "
          f"{r['commit'][:12]} | {r['machine']} |" for n, r in rows.items()),
    ]  # fmt: skip
    store.write_text(out.with_suffix(".md"), "\n".join(lines) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
