"""Put a backbone that was pretrained here among those that ship.

    python scripts/ship.py runs/pretrain/nextvid nextvid       # to pretrain/zoo/nextvid

The weights, their configuration, the card and the record go along as they are; of the numbers of every update means over
windows, so that its curves can be looked at. Checkpoints and the optimiser stay.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vdmreason import store  # noqa: E402

ZOO = ROOT / "pretrain" / "zoo"
FILES = ("README.md", "config.json", "pretrain.json", "model.safetensors")
WINDOWS = 200


def thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over so many updates that about `WINDOWS` remain, each at its last update; the last line as it was."""
    size = -(-len(lines) // WINDOWS)
    *before, last = lines
    windows = [before[k : k + size] for k in range(0, len(before), size)]
    return [*map(mean_of, windows), last]


def mean_of(window: list[dict[str, Any]]) -> dict[str, Any]:
    seen = {name: [line[name] for line in window if name in line] for line in window for name in line}
    numbers = {name: values for name, values in seen.items() if isinstance(values[0], int | float)}
    return {name: round(fmean(values), 5) for name, values in numbers.items()} | {"step": window[-1]["step"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", help="of the folder in pretrain/zoo")
    given = parser.parse_args()
    if missing := [name for name in FILES if not (given.folder / name).is_file()]:
        parser.error(f"{given.folder} has no {missing[0]}: its training has not ended")
    to = ZOO / given.name
    to.mkdir(parents=True, exist_ok=True)
    beside = [file.name for file in given.folder.glob("*.safetensors")]  # an LVMAE has its tokenizer there
    for name in dict.fromkeys((*FILES, *beside)):
        shutil.copyfile(given.folder / name, to / name)
    for file in (given.folder / "work").glob("**/metrics.jsonl"):
        lines = store.read_lines(file)
        stage = "" if file.parent.name == "work" else f".{file.parent.name}"
        short = to / f"curve{stage}.jsonl"
        store.write_lines(short, thinned(lines))
        print(f"{short.relative_to(ZOO.parent)}: {len(lines)} updates in {WINDOWS} windows")


if __name__ == "__main__":
    main()
