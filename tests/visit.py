"""What the browser tests of the page share: a served page, a browser without a network, a visit that keeps a record."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from vdmreason import jobs

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
expect = sync_api.expect

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-domain-reliability", "--no-pings", "--disable-default-apps",
]  # fmt: skip
HARMLESS = ("Slow network", "preload", "was preloaded")
TABS = ["Compare", "Draw", "Train", "Sweeps", "Backbones", "Library"]


@contextmanager
def served(
    root: Path, output: Any = None, tidy: bool = True, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The page as `vdmreason app` serves it, over the runs in `root`: its address and its process. Its words go to the file
    `output`. Jobs that still work under `root` at the end are stopped, unless `tidy` is off."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    surroundings = {
        **os.environ, "VDMREASON_RUNS": str(root), "VDMREASON_ZOO": str(root / "no-zoo"), "OMP_NUM_THREADS": "1", **environment,
    }  # fmt: skip
    command = [sys.executable, "-m", "vdmreason", "app", "--port", str(port)]
    process = subprocess.Popen(command, env=surroundings, start_new_session=True, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + 60
    try:
        while True:
            try:
                urlopen(url, timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, "the page ended before it answered"
                assert time.monotonic() < deadline, "the page did not answer within a minute"
                time.sleep(0.2)
        yield url, process
    finally:
        for status in jobs.find(root) if tidy else ():
            if status.active:
                jobs.stop(status.folder, grace=0.5)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


class Visit:
    """An open page and what it did: requests to other hosts, complaints on the console."""

    def __init__(self, browser: Any, url: str, width: int = 1280, height: int = 900, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.page = self.context.new_page()
        self.strangers: list[str] = []
        self.complaints: list[str] = []
        self.page.on(
            "request", lambda r: self.strangers.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None
        )
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.set_default_timeout(20_000)

    def go(self, url: str) -> None:
        """Leave for another address. The page that is left complains that its streams end; that is forgotten."""
        self.page.goto(url)
        self.shown()
        self.complaints.clear()

    def tab(self, name: str) -> None:
        """Turn to a tab by its name."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def stage(self) -> dict[str, Any]:
        """What the stage says, in words."""
        found: dict[str, Any] = self.page.evaluate(
            """() => { const t = (s) => document.querySelector('#stage ' + s)?.textContent ?? '';
            return { title: t('.title'), video: t('.video .verdict'), language: t('.language .verdict'),
                     badge: t('.video .badge'), text: t('.text'), fault: t('.fault'), count: t('.count') }; }"""
        )
        return found

    def until(self, condition: str, seconds: float = 20) -> None:
        """Wait until a JavaScript condition holds."""
        self.page.wait_for_function(condition, timeout=1000 * seconds)

    def shown(self, seconds: float = 20) -> None:
        """Wait for the stage and for the controls that stand over it: what is typed before they have their values is lost."""
        self.until(
            """() => { const title = document.querySelector('#stage .title')?.textContent;
            const task = document.querySelector('#task input')?.value; return title && task && title.startsWith(task); }""",
            seconds,
        )

    def settled(self) -> None:
        """Wait until colours have stopped moving: half way from light to dark, no contrast is right."""
        self.page.evaluate(
            """async () => { await new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)));
            const moving = document.getAnimations().filter((a) => a instanceof CSSTransition);
            await Promise.allSettled(moving.map((a) => a.finished)); }"""
        )

    def close(self) -> None:
        """End the visit. Raises AssertionError where the page asked other hosts or complained."""
        self.context.close()
        assert not self.strangers, f"the page asked other hosts: {self.strangers[:3]}"
        assert not [c for c in self.complaints if not any(h in c for h in HARMLESS)]
