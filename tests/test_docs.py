"""The pages that are made from the code say what the code says."""

import sys
from pathlib import Path

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
    name = task_pages.variants(family)[0]
    drawn = task_pages.picture(tasks.get(name), tasks.examples(name, "train", 2))
    with Image.open(task_pages.PAGES / f"{family}.png") as picture:
        assert picture.width >= drawn.width and picture.height >= 60


def test_the_index_is_whole():
    assert (task_pages.PAGES / "README.md").read_text(encoding="utf-8") == task_pages.index()


def test_the_readme_s_table_is_the_report_s() -> None:
    """Every row of "The first answer" stands, letter by letter, in the report that it leads to."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    report = (ROOT / "docs/structured-small/report.md").read_text(encoding="utf-8").splitlines()
    rows = [
        line
        for line in readme.partition("## The first answer")[2].partition("\n## ")[0].splitlines()
        if line[:1] == "|"
    ]
    assert len(rows) > 20 and set(rows) <= set(report)
