"""In what order the files run: those that take longest first, so that two processes end at about the same time. And what the
tests of the page share; a file that needs other runs has a `root` of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile(
    "busy", deadline=None
)  # a machine may be busy with something else; pytest-timeout ends what hangs
settings.load_profile("busy")

LONGEST = (
    "test_browser", "test_promises", "test_train_tab", "test_train", "test_library_tab", "test_api", "test_draw",
    "test_sweeps_tab", "test_backbones_tab", "test_trash", "test_recipes", "test_speed", "test_sweep", "test_library",
    "test_internvideo_next", "test_lvmae", "test_cogvideox", "test_ltx", "test_wan", "test_pretrain_video", "test_nextvid",
    "test_ui",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))  # a stable sort: as they were within a file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for a file's tests of the page."""
    from visit import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two arms on one task, made without a model."""
    from fixture_runs import make_runs

    root = tmp_path_factory.mktemp("runs")
    make_runs(root)
    return root


@pytest.fixture(scope="module")
def served_page(root: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The page over `root`: its address and its process."""
    from visit import served

    with served(root) as (url, process):
        yield url, process


@pytest.fixture(scope="module")
def server(served_page: tuple[str, subprocess.Popen[bytes]]) -> str:
    """The page's address."""
    return served_page[0]
