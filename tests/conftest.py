"""In what order the files run: those that take longest first, so that two processes end at about the same time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

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
