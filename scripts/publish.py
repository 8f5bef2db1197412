#!/usr/bin/env python
"""Put a sweep's report into the docs: python scripts/publish.py runs/sweeps/structured-small docs/structured-small [--readme]

What a reader on the web can use is kept: report.md, results.csv and the figures that report.md shows. The page, the Parquet and
JSON files are made again by `vdmreason sweep report` from the sweep, which is checked in packed. With --readme the table "At a
glance" is put in the place of the README's own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="a sweep's folder")
    parser.add_argument("docs", type=Path, help="a folder under docs/, made anew")
    parser.add_argument("--readme", action="store_true", help="the README's table too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        command = [sys.executable, "-m", "vdmreason", "sweep", "report", given.sweep, "--out", str(made)]
        subprocess.run(command, check=True, cwd=ROOT)
        text = (made / "report.md").read_text(encoding="utf-8")
        text = re.sub(r"\n## Files\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL).rstrip() + "\n"
        shutil.rmtree(given.docs, ignore_errors=True)
        for name in {"results.csv", *re.findall(r"\]\((figures/[^)]+)\)", text)}:
            (given.docs / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made / name, given.docs / name)
        (given.docs / "report.md").write_text(text, encoding="utf-8")
    if given.readme:
        table = text.partition("## At a glance\n")[2]
        (ROOT / "README.md").write_text(
            with_table((ROOT / "README.md").read_text(encoding="utf-8"), table), encoding="utf-8"
        )


def with_table(readme: str, report: str) -> str:
    """The README with the first table of `report`, the arms of the question alone, in the place of its own table of arms."""
    rows = re.compile(r"^\| task \| arm \|.*\n(?:\|.*\n)+", re.MULTILINE)
    found = rows.search(report)
    assert found is not None, "the report has no table of arms"
    head, rule, *body = found[0].splitlines(keepends=True)
    two = [line for line in body if line.split("|")[2].strip() in ("video", "video, 1 step", "language")]
    return rows.sub(lambda _: "".join([head, rule, *two]), readme, count=1)


if __name__ == "__main__":
    main()
