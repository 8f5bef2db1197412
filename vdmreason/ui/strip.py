"""The rows of the strip under every tab: what runs, waits, or has just ended."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from tasks.base import UserError
from vdmreason import jobs, store
from vdmreason.ui import public

FINISHED = 4  # jobs that have ended and still stand in the strip
RECENT = 6 * 3600  # seconds after which they leave it


_last: tuple[float, Path, list[dict[str, Any]]] = (0.0, Path(), [])


def strip(age: float = 0.0) -> list[dict[str, Any]]:
    """The rows of the strip: all jobs that run or wait, then the few that ended last. A list that is at most `age` seconds
    old will do: what polls for many visitors need not walk the disk for each."""
    global _last
    root = store.runs_root()
    if age and time.monotonic() - _last[0] < age and _last[1] == root:
        return _last[2]
    found = [s for s in jobs.find(root, within=False) if s.state]
    now = max((s.beat or 0 for s in found), default=0)
    ended = [s for s in found if not s.active and s.kind and now - (s.beat or 0) < RECENT][:FINISHED]
    rows = [row(s) for s in [*(s for s in found if s.active), *ended]]
    _last = time.monotonic(), root, rows
    return rows


def row(status: jobs.Status) -> dict[str, Any]:
    """A job as the strip shows it."""
    parts = []
    if status.updates:
        parts.append(f"{'trial' if status.kind == 'sweep' else 'update'} {status.step} of {status.updates}")
    if status.active and status.eta:
        parts.append(f"{status.eta:.0f} s left" if status.eta < 90 else f"{status.eta / 60:.0f} min left")
    if (line := last_metrics(status.folder)) and status.active:
        parts.append(f"loss {line['loss']:.3f}")
    if status.error:
        parts.append(public.clean(status.error))
    share = status.step / status.updates if status.updates and status.active else None
    name = str(status.folder.resolve().relative_to(store.runs_root().resolve()))
    return {"name": name, "title": title(status), "state": status.state, "numbers": " · ".join(parts), "share": share}


def title(status: jobs.Status) -> str:
    with contextlib.suppress(UserError, OSError):
        run = store.read_config(status.folder)
        return f"{status.kind or 'train'} {run.task} · n {run.n} · {run.family} {run.flavour.rpartition('/')[2]}"
    return f"{status.kind} {status.folder.name}"


def last_metrics(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(UserError, KeyError):
        lines = store.read_lines(folder / "metrics.jsonl")
        return lines[-1] if lines else None
    return None
