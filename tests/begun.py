"""Whether a training went on: one that begins anew ends with the same weights, for every draw is a function of the step."""

from __future__ import annotations

import json
import os
from pathlib import Path


def mark(folder: Path) -> None:
    """Mark the first line of the metrics in and below a folder. Who goes on keeps it; who begins anew writes another."""
    files = metrics(folder)
    assert files, f"{folder}: nothing was done that could be gone on from"
    for file in files:
        first, *more = file.read_text().splitlines(keepends=True)
        file.write_text("".join([json.dumps({**json.loads(first), "before": True}) + "\n", *more]))


def went_on(folder: Path) -> bool:
    """Whether every one of these lines is still there."""
    files = metrics(folder)
    return bool(files) and all("before" in json.loads(file.read_text().splitlines()[0]) for file in files)


def metrics(folder: Path) -> list[Path]:
    """The metrics in and below a folder. Not by `rglob`, which fails on a folder that a running training takes away."""
    return [Path(at) / "metrics.jsonl" for at, _, names in os.walk(folder) if "metrics.jsonl" in names]
