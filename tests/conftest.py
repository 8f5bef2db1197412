"""In what order the files run: those that take longest first, so that two processes end at about the same time."""

from __future__ import annotations

import pytest

LONGEST = (
    "test_train", "test_recipes", "test_speed", "test_sweep", "test_library", "test_internvideo_next", "test_lvmae",
    "test_cogvideox", "test_ltx", "test_wan", "test_browser", "test_pretrain_video", "test_nextvid", "test_ui",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))  # a stable sort: as they were within a file
