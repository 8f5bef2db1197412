"""The pages that are made from the code say what the code says."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tasks

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import task_pages  # noqa: E402


@pytest.mark.parametrize("family", tasks.families())
def test_every_family_has_its_page_and_picture(family):
    written = (task_pages.PAGES / f"{family}.md").read_text(encoding="utf-8")
    assert written == task_pages.page(family), "run python scripts/task_pages.py"
    assert f"({family}.md)" in task_pages.index()
    if family in task_pages.BORROWED:
        return
    with Image.open(task_pages.PAGES / f"{family}.png") as picture:
        assert np.array_equal(picture.convert("RGB"), task_pages.drawing(family).convert("RGB"))


def test_the_index_is_whole():
    assert (task_pages.PAGES / "README.md").read_text(encoding="utf-8") == task_pages.index()


@pytest.mark.parametrize(
    ("page", "title", "sweep", "least"),
    [
        ("README.md", "The first answer", "structured-tuned", 14),
        ("docs/pretraining.md", "The exam", "structured-small", 12),
    ],
)
def test_a_page_s_table_is_the_report_s(page: str, title: str, sweep: str, least: int) -> None:
    """Every row stands, letter by letter, in the report that it leads to."""
    text = (ROOT / page).read_text(encoding="utf-8")
    report = (ROOT / "docs" / sweep / "report.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in text.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"]
    assert len(rows) >= least and set(rows) <= set(report)
