"""What the Library shows and does, without a page: the adapters that are here, a card, curves, runs and how two differ, what
comes in and goes out.

Every number comes from the folders; what was read is kept and read again when a file has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import adapters
import tasks
from tasks.base import UserError
from vdmreason import config, jobs, library, store, trash
from vdmreason.config import Run
from vdmreason.ui import pictures, public, training
from vdmreason.ui.compare import problem
from vdmreason.ui.table import table

MOST = 2000  # runs in the table, the latest first
COMPARED = 4  # runs side by side
ANSWERS = 4  # recorded answers on a card
UPLOAD = 20 << 20  # bytes, as the page's server takes them
CARD = 200_000  # characters of a card that are drawn
PLACE = "hub"  # under the runs' root: the folders of the jobs that push and pull
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # never an option of a command

# ---------------------------------------------------------------------------------------------------------------------
# What is here


@dataclass(frozen=True)
class Kept:
    """A run's folder as the Library knows it. Read again only when a file of it has changed."""

    folder: Path
    run: Run
    result: Mapping[str, Any]
    weights: Path | None  # the adapter's first file; None: there is no adapter (yet)
    bytes: int  # of all its files
    sha: str  # sha256 of the first, "" without

    @property
    def arm(self) -> str:
        return str(adapters.family(self.run.family).ARM)

    @property
    def shipped(self) -> bool:
        return self.folder.resolve().is_relative_to(library.zoo().resolve())

    @property
    def made(self) -> Mapping[str, Any]:
        """Where its numbers come from."""
        return self.result.get("provenance") or {}

    @property
    def source(self) -> str:
        if self.shipped:
            return "shipped"
        if "@" in str(self.made.get("origin", "")):
            return "pulled"
        return "imported" if self.made.get("imported") else "trained here"

    @property
    def date(self) -> float:
        """Seconds since 1970: when it was trained, as its result says, else when its folder was made."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return time.mktime(time.strptime(self.made["date"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
        with contextlib.suppress(OSError):
            return (self.folder / "config.yaml").stat().st_mtime
        return 0.0


_kept: dict[Path, tuple[tuple[Any, ...], Kept]] = {}


def look(folder: Path) -> Kept:
    """What is in a run's folder. Raises UserError where it is none or is damaged."""
    inside = [folder / part for part in ("config.yaml", "result.json")]
    weights = next(
        (path for base in (folder / "adapter", folder) for n in library.PREFIX if (path := base / n).is_file()), None
    )
    now = tuple(store.stamp(path) for path in [*inside, *([weights] if weights else [])])
    if folder not in _kept or _kept[folder][0] != now:
        result = store.read_json(inside[1]) or {}
        if not isinstance(result, dict):
            raise UserError(f"{folder.name}: its result.json does not hold what it should. Delete it.")
        size = sum(part.stat().st_size for part in library.parts_of(weights)) if weights else 0
        sha = library.sha256(weights) if weights else ""
        _kept[folder] = (now, Kept(folder, store.read_config(folder), result, weights, size, sha))
    return _kept[folder][1]


def adapters_here() -> tuple[dict[str, Kept], list[str]]:
    """Every adapter by its id, the newest first, and a line for each folder that cannot be read.

    The id is "shipped/<name>" or "runs/<place under the runs' root>".
    """
    found, faults = [], []
    for folder in store.find_runs(store.runs_root(), library.zoo()):
        try:
            kept = look(folder)
            _ = kept.arm, exact(kept.result)
        except (UserError, OSError, KeyError, TypeError, ValueError) as error:
            faults.append(f"{folder.name}: {public.clean(error).replace(f'{folder}{os.sep}', '')}")
            continue
        if kept.weights:
            found.append(kept)
    return {id_of(kept.folder): kept for kept in sorted(found, key=lambda k: -k.date)}, faults


def id_of(folder: Path) -> str:
    folder = folder.resolve()
    for name, root in (("shipped", library.zoo().resolve()), ("runs", store.runs_root().resolve())):
        if folder.is_relative_to(root):
            return f"{name}/{folder.relative_to(root).as_posix()}"
    return folder.name


def exact(result: Mapping[str, Any]) -> tuple[float, float, float, int] | None:
    """Exact match in percent with its 95 % interval, and of how many tests; None: not scored yet."""
    scores = result.get("scores")
    if not scores:
        return None
    value, low, high = (100 * float(scores["exact"][key]) for key in ("value", "low", "high"))
    return value, low, high, int(scores["n"])


def _percent(result: Mapping[str, Any]) -> str:
    found = exact(result)
    return f"{found[0]:.0f} % [{found[1]:.0f}, {found[2]:.0f}]" if found else "not scored yet"


def backbone(run: Run) -> str:
    return Path(run.flavour).name + (" (random)" if run.init == "random" else "")


def day(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def adapters_table(known: Mapping[str, Kept], picked: str | None) -> dict[str, Any]:
    rows = []
    for key, kept in known.items():
        run, score = kept.run, exact(kept.result)
        task = run.task + (f", asked {run.test_task}" if run.test_task else "")
        cells = {
            "name": key.partition("/")[2], "family": run.family, "backbone": backbone(run), "task": task, "n": str(run.n),
            "seed": str(run.seed), "exact match": _percent(kept.result), "mb": f"{kept.bytes / 1e6:.2f}",
            "sha": kept.sha[:8], "source": kept.source, "date": day(kept.date)[:10],
        }  # fmt: skip
        order = {
            "n": run.n, "seed": run.seed, "exact match": score[0] if score else None, "mb": kept.bytes, "date": kept.date
        }  # fmt: skip
        titles = {
            "sha": kept.sha,
            "date": day(kept.date),
            "exact match": f"of {score[3]} test examples" if score else "",
        }
        rows.append({"id": key, "cells": cells, "order": order, "titles": titles})
    return table(
        ["Name", "Family", "Backbone", "Task", "#n", "#Seed", "#Exact match", "#MB", "SHA", "Source", "Date"], rows,
        "No adapter is here yet. Train one in the Train tab, or bring one in below.",
        picked=picked, filters=["Family", "Source"],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# One adapter


def card(kept: Kept) -> str:
    """The panel of one adapter: its facts, its curve, what it answered, its card."""
    run, made = kept.run, kept.made
    score = exact(kept.result)
    said = "not scored yet"
    if score:
        said = f"{score[0]:.1f} % [{score[1]:.1f}, {score[2]:.1f}], {score[3]} tests of {run.tested}"
    command = made.get("command")
    if public.on() and command and not re.fullmatch(r"[^/~]*", str(command)):
        command = None  # names a place on its maker's disk
    libraries = made.get("libraries") or {}
    origin = made.get("origin")
    facts = {
        "exact match": said,
        "source": kept.source + (f", {origin}" if origin and origin != library.ELSEWHERE else ""),
        "run": run.id,
        "trained on": f"{run.task}, n {run.n}, seed {run.seed}",
        "training data": made.get("data"),
        "LoRA": f"rank {run.lora.rank}, alpha {run.lora.alpha}, {', '.join(run.lora.targets)}; {run.optim.updates} updates",
        "adapter, sha256": kept.sha,
        "backbone": f"{run.family} {backbone(run)}" + (f", weights {made['backbone']}" if made.get("backbone") else ""),
        "command": command,
        "commit": made.get("commit") and f"{made['commit']}{' with changes' if made.get('dirty') else ''}",
        "versions": ", ".join(f"{k} {v}" for k, v in libraries.items()),
        "device": made.get("device"),
        "date": day(kept.date),
        "folder": public.place(kept.folder),
    }  # fmt: skip
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items() if value
    )
    lines = _metrics(kept.folder)
    curve = plot([Series("loss", lines)]) if lines else '<p class="note">No loss was recorded with it.</p>'
    return (
        f'<div class="lib-card"><div><h3>{html.escape(kept.folder.name)}</h3><dl class="facts">{listed}</dl></div>'
        f"<div><h4>Loss</h4>{curve}<h4>Recorded answers</h4>{answers(kept.folder)}</div>"
        f'<details class="readme"><summary>Its card (README.md)</summary>{readme(kept.folder)}</details></div>'
    )


def readme(folder: Path) -> str:
    """A folder's README.md as HTML. What it says is nobody's word: HTML in it is shown as text, pictures are links, and links
    lead only to http, https and mail."""
    from markdown_it import MarkdownIt

    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:CARD]
    except OSError:
        return '<p class="note">It has no README.md. Write it with: vdmreason adapters card FOLDER --write</p>'
    text = re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL)  # what is meant for the hub
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    reader.validateLink = lambda url: bool(re.match(r"(https?://|mailto:|#)", url.strip().lower()))  # type: ignore[method-assign]
    drawn = str(reader.render(text))
    return drawn.replace("<a href=", '<a target="_blank" rel="noopener noreferrer nofollow" href=')


def answers(folder: Path) -> str:
    """The first recorded answers, or those given during training: input, truth, answer."""
    with contextlib.suppress(UserError, OSError, KeyError, TypeError, ValueError):
        if stages := training.previews([folder]):
            return f'<div class="lib-answers">{stages}</div>'
        return _answers(folder, store.stamp(folder / "predictions.jsonl"))
    return '<p class="note">What it answered cannot be read.</p>'


@lru_cache(maxsize=64)
def _answers(folder: Path, written: store.Stamp) -> str:
    records = store.read_lines(folder / "predictions.jsonl")
    if not records:
        place = html.escape(public.place(folder))
        return f'<p class="note">No answers were recorded. Make them with: vdmreason predict {place}</p>'
    rows = []
    for record in records[:ANSWERS]:
        mark = "? nobody knows" if not record["answer"] else "✓ right" if record["right"] else "✗ wrong"
        rows.append(
            f'<div class="preview-row">{pictures.thumb(record["question"], "input")}{pictures.thumb(record["answer"], "truth")}'
            f"{pictures.thumb(record['proposed'], mark)}</div>"
        )
    count = f"The first {len(rows)} of {len(records)} test examples."
    return f'<div class="lib-answers">{"".join(rows)}</div><p class="note">{count}</p>'


# ---------------------------------------------------------------------------------------------------------------------
# Curves


@dataclass(frozen=True)
class Series:
    """A loss curve: its name and the lines of its metrics.jsonl."""

    name: str
    lines: Sequence[Mapping[str, Any]]


def _metrics(folder: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(UserError, OSError):
        lines = store.read_lines(folder / "metrics.jsonl")
        return [line for line in lines if _number(line.get("step")) and _number(line.get("loss"))]
    return []


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


WIDE, HIGH, LEFT, BELOW, ABOVE, RIGHT = 560, 232, 44, 42, 10, 16


def plot(series: Sequence[Series]) -> str:
    """Loss by update, drawn: raw values pale, their smooth mean on top; each run with a dash of its own, named below.

    Runs whose losses are far apart are drawn on a logarithmic axis, and it says so.
    """
    raw = [training.thin([line["step"] for line in s.lines], [line["loss"] for line in s.lines]) for s in series]
    values = [line["loss"] for s in series for line in s.lines]
    smooth = [
        training.thin([line["step"] for line in s.lines], training.smooth([line["loss"] for line in s.lines]))
        for s in series
    ]
    steps = max(line["step"] for s in series for line in s.lines)
    log = min(values) > 0 and np.quantile(values, 0.98) > 30 * np.quantile(values, 0.02)
    scale: Callable[[float], float] = (lambda y: float(np.log10(max(y, 1e-12)))) if log else float
    low, high = scale(float(np.quantile(values, 0.005))), scale(float(np.quantile(values, 0.995)))
    if not log and 0 <= low < high / 3:
        low = 0.0
    ticks = _ticks(low, high if high > low else low + 1)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(step: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * step / max(1, steps)

    def y(loss: float) -> float:
        share = (scale(loss) - low) / (high - low)
        return HIGH - BELOW - (HIGH - BELOW - ABOVE) * min(1.02, max(-0.02, share))

    def path(points: Iterable[tuple[float, float]], kind: str, k: int) -> str:
        line = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)
        return f'<path class="{kind} s{k}" d="{line}"/>'

    grid = []
    for tick in ticks:
        at = HIGH - BELOW - (HIGH - BELOW - ABOVE) * (tick - low) / (high - low)
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        text = f"{10**tick:.2g}" if log else f"{tick:g}"
        grid.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in [t for t in _ticks(0, steps) if 0 <= t <= steps]:
        grid.append(f'<text x="{x(tick):.1f}" y="{HIGH - BELOW + 18}" text-anchor="middle">{tick:g}</text>')
    grid.append(f'<text x="{WIDE - RIGHT}" y="{HIGH - 4}" text-anchor="end">update</text>')
    said = "; ".join(
        f"{s.name}: from {s.lines[0]['loss']:.3g} to {m[-1][1]:.3g} in {len(s.lines)} updates"
        for s, m in zip(series, smooth, strict=True)
    )
    lines = [path(points, "raw", k) for k, points in enumerate(raw) if len(series) < 3]
    lines += [path(points, "mean", k) for k, points in enumerate(smooth)]
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true"><path class="mean s{k}" d="M0 4L28 4"/></svg>'
        f"{html.escape(s.name)} <span>ends at {m[-1][1]:.3g}</span></li>"
        for k, (s, m) in enumerate(zip(series, smooth, strict=True))
    )
    return (
        f'<figure class="plot"><svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{html.escape(f"Loss by update. {said}")}">'
        f"{''.join(grid)}{''.join(lines)}</svg><figcaption><ul>{legend}</ul>"
        f"{'<small>logarithmic axis</small>' if log else ''}</figcaption></figure>"
    )


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from about `low` to about `high`."""
    raw = (high - low) / wanted
    power = 10 ** float(np.floor(np.log10(raw)))
    width = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
    first = int(np.floor(low / width + 1e-9))
    last = int(np.ceil(high / width - 1e-9))
    return [round(k * width, 12) for k in range(first, last + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def folders() -> list[Path]:
    """Every run's and job's folder under the runs' root. Hidden folders are passed over, and what lies inside a run."""
    found = []
    for parent, inner, files in os.walk(store.runs_root()):
        inner[:] = sorted(f for f in inner if not f.startswith("."))
        if "config.yaml" in files or "state.json" in files:
            found.append(Path(parent))
        if "config.yaml" in files:
            inner.clear()
    return found


def runs_here() -> tuple[dict[str, Path], list[dict[str, Any]], int]:
    """Runs by their id, their rows in the table, the latest first, and how many more there are."""
    rows = []
    for folder in folders():
        row = run_row(folder)
        if row:
            rows.append((row.pop("when"), folder, row))
    rows.sort(key=lambda item: -item[0])
    shown = rows[:MOST]
    return {row["id"]: folder for _, folder, row in shown}, [row for _, _, row in shown], len(rows) - len(shown)


QUIET = ("done", "recorded", "unfinished")  # states that need no word on how far, or why


def jobless(folder: Path) -> str:
    """The state of a run without a job of its own, as a sweep's trial is: until its adapter or result is there a worker is at it,
    or was."""
    return "recorded" if any((folder / n).exists() for n in ("result.json", "adapter")) else "unfinished"


def run_row(folder: Path) -> dict[str, Any] | None:
    """A row of the table of runs, with "when" (seconds since 1970) to sort by; None where the folder has just gone."""
    key = id_of(folder)
    state, kind, error, started, beat, progress = "damaged", "", "", None, None, ""
    with contextlib.suppress(ValueError):  # neither is there any more
        beat = max(found[0] for n in ("state.json", "config.yaml") if (found := store.stamp(folder / n))) / 1e9
    try:
        status = jobs.status(folder)
        state, kind, error = status.state or jobless(folder), status.kind, status.error
        started, beat = status.started, status.beat or beat
        if status.updates and state not in QUIET:
            progress = f"{'trial' if kind == 'sweep' else 'update'} {status.step} of {status.updates}"
    except UserError as fault:
        error = str(fault)
    except (OSError, AttributeError, TypeError):
        error = "its state.json does not hold what it should"
    result = progress
    try:
        kept = look(folder) if (folder / "config.yaml").is_file() else None
        if kept:
            kind = kind or ("import" if kept.made.get("imported") else "run")
            score = exact(kept.result)
            if score:
                result = f"{score[0]:.0f} % [{score[1]:.0f}, {score[2]:.0f}] of {score[3]}"
    except (UserError, OSError, KeyError, TypeError, ValueError) as fault:
        error = error or str(fault)
    if error and state not in (*QUIET, "running", "starting", "queued"):
        result = " · ".join(part for part in (progress, public.clean(error)[:200]) if part)
    took = None
    if started and beat:
        took = (time.time() if state in jobs.ACTIVE else beat) - started
    cells = {
        "name": key.partition("/")[2], "state": state, "kind": kind or "job", "started": day(started or beat),
        "took": _span(took) if took and took > 0 else "", "result": result,
    }  # fmt: skip
    order = {"started": started or beat, "took": took}
    return {"id": key, "cells": cells, "order": order, "state": state, "when": beat or started or 0.0}


def _span(seconds: float) -> str:
    """A length of time; one that still grows is not told to the second for long, so that a quiet page sends little."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def runs_table(rows: list[dict[str, Any]], more: int, picked: str | None) -> dict[str, Any]:
    shown = [
        {**row, "order": {k: v for k, v in row["order"].items() if k != "took" or row["state"] not in jobs.ACTIVE}}
        for row in rows
    ]
    return table(
        ["Name", "State", "Kind", "Started", "#Took", "Result"], shown,
        "Nothing has run here yet. A training, a sweep or a command line's run is listed as soon as it starts.",
        picked=picked, filters=["State", "Kind"], ticks=COMPARED, more=more,
    )  # fmt: skip


def flat(tree: Mapping[str, Any]) -> dict[str, str]:
    """{"optim": {"lr": 1}} -> {"optim.lr": "1"}."""
    return {name: json.dumps(value, default=str) for name, value in config.flat(tree).items()}


def settings(folder: Path) -> dict[str, str]:
    """A run's resolved config with dotted keys; of what is no run, its config.yaml as it stands; else {}."""
    try:
        return flat(config.to_dict(store.read_config(folder)))
    except UserError:
        with contextlib.suppress(UserError):
            return flat(config.read_yaml(folder / "config.yaml", "", "")[1])
    return {}


def side_by_side(found: Mapping[str, Path]) -> str:
    """Two to four runs compared: where their settings differ, their scores, their losses on one plot."""
    names = _short([key.partition("/")[2] for key in found])
    trees = [settings(folder) for folder in found.values()]
    keys = sorted({key for tree in trees for key in tree})
    differing = [key for key in keys if len({tree.get(key) for tree in trees}) > 1]
    rows = [(key, [tree.get(key, "–").strip('"') or '""' for tree in trees]) for key in differing]
    parts = [_grid("Where their settings differ", names, rows)] if rows else []
    if not rows:
        said = "Their settings are the same." if any(trees) else "None of them has settings to compare."
        parts = [f'<p class="note">{said}</p>']
    parts.append(_grid("Scores, 95 % intervals", names, _score_rows(list(found.values()))))
    series = [
        Series(name, lines) for name, folder in zip(names, found.values(), strict=True) if (lines := _metrics(folder))
    ]
    lacking = [name for name, folder in zip(names, found.values(), strict=True) if not _metrics(folder)]
    parts.append("<h4>Loss</h4>")
    if series:
        parts.append(plot(series))
    if lacking:
        parts.append(f'<p class="note">No loss was recorded by {html.escape(", ".join(lacking))}.</p>')
    return f'<div class="lib-compare">{"".join(parts)}</div>'


def _short(names: list[str]) -> list[str]:
    """Names without what all begin with, up to a "/" or a "--"; so long as they stay apart."""
    cut = 0
    for at in (m.end() for m in re.finditer(r"/|--", names[0])):
        if all(name.startswith(names[0][:at]) for name in names):
            cut = at
    return [name[cut:] or name for name in names]


def _grid(caption: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{html.escape(key)}</th>{"".join(f"<td>{html.escape(v)}</td>" for v in values)}</tr>'
        for key, values in rows
    )
    return (
        f'<div class="scores" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _score_rows(places: Sequence[Path]) -> list[tuple[str, list[str]]]:
    results = []
    for folder in places:
        with contextlib.suppress(UserError, OSError):
            results.append(look(folder).result)
            continue
        results.append({})

    def rate(result: Mapping[str, Any], *way: str) -> str:
        try:
            found: Any = result
            for part in way:
                found = found[part]
            return f"{100 * found['value']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
        except (KeyError, TypeError, ValueError):
            return "–"

    def plain(result: Mapping[str, Any], *way: str) -> str:
        try:
            found: Any = result
            for part in way:
                found = found[part]
            return f"{found:.3g}" if isinstance(found, float) else str(found)
        except (KeyError, TypeError):
            return "–"

    rows = [("test examples", [plain(r, "scores", "n") for r in results])]
    rows += [(title, [rate(r, "scores", key) for r in results]) for key, title in (
        ("exact", "exact match"), ("right", "right by the rules"), ("cells", "cells right"), ("unreadable", "unreadable"),
    )]  # fmt: skip
    rows.append(("codec ceiling", [rate(r, "codec", "exact") for r in results]))
    rows.append(("seconds an answer", [plain(r, "seconds_per_answer") for r in results]))
    rows.append(("training data", [plain(r, "provenance", "data")[:12] for r in results]))
    return [(title, values) for title, values in rows if any(value != "–" for value in values)]


# ---------------------------------------------------------------------------------------------------------------------
# In and out


def given(family: Any, flavour: Any, task: Any, n: Any) -> dict[str, Any]:
    """The fields of a bare LoRA, checked; empty ones are left out. Raises UserError."""
    fields: dict[str, Any] = {}
    if family:
        if family not in adapters.families():
            raise UserError("Family: choose one of the list.")
        fields["family"] = family
    if flavour := str(flavour or "").strip()[:200]:
        known = adapters.family(str(fields["family"])).FLAVOURS if "family" in fields else {}
        if flavour not in known and not HUB_ID.fullmatch(flavour):
            raise UserError(
                f"Backbone: {flavour[:60]!r} is none of this family's, and no name on the hub (owner/name). A folder of this "
                "machine is named on the command line: vdmreason adapters import"
            )
        fields["flavour"] = flavour
    if task := str(task or "").strip()[:200]:
        fields["task"] = tasks.get(task).name
    if n := str(n or "").strip():
        if not re.fullmatch(r"[1-9]\d{0,6}", n):
            raise UserError("n: a whole number from 1 on.")
        fields["n"] = int(n)
    return fields


def bring_in(files: Any, fields: Mapping[str, Any]) -> Path:
    """Import what was uploaded: a zip, or a LoRA's .safetensors with its adapter_config.json. Returns the new run's folder.

    Raises UserError with one line that says what is missing or wrong; then nothing is left behind.
    """
    paths = [Path(str(file)) for file in (files if isinstance(files, list) else [files] if files else [])]
    if not paths:
        raise UserError("Choose a file first: a .zip that was exported, or a LoRA's .safetensors.")
    if len(paths) > 2:
        raise UserError("Give one .zip, or one .safetensors and the adapter_config.json beside it.")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for path in paths:
                if path.stat().st_size > UPLOAD:
                    raise UserError(f"{path.name}: is larger than {UPLOAD >> 20} MB. Use: vdmreason adapters import")
                shutil.copyfile(path, Path(scratch) / path.name)
            main = [p for p in paths if p.suffix != ".json"]
            if len(main) != 1:
                raise UserError("Give one .zip, or one .safetensors and the adapter_config.json beside it.")
            source = Path(scratch) / main[0].name
            for path in paths:
                if path.suffix == ".json" and path.name != "adapter_config.json":
                    (Path(scratch) / path.name).rename(Path(scratch) / "adapter_config.json")
            _, lacking = library.missing(source)
            wanted = {key: value for key, value in fields.items() if key in lacking}
            if lacking := [key for key in lacking if key not in wanted]:
                words = {
                    "family": "the family",
                    "flavour": "the backbone",
                    "task": "the task",
                    "n": "n, the number of examples",
                }
                raise UserError(
                    f"{source.name}: does not say what it is for. Fill in {', '.join(words[k] for k in lacking)}."
                )
            return library.import_(source, given=wanted)
        except UserError as error:
            raise UserError(_here(error, scratch)) from None
        except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"{paths[0].name}: cannot be imported ({_here(error, scratch)[:200]}).") from None


def _here(error: object, scratch: str) -> str:
    """An error's line with the file's own name, not its place on this machine's disk."""
    text = " ".join(str(error).split())
    for place in {scratch, str(Path(scratch).resolve()), tempfile.gettempdir()}:
        text = re.sub(rf"{re.escape(place)}/([^/\s:]*/)*", "", text)
    return text.replace(
        "Take another --out.", "Remove that run first, or use: vdmreason adapters import --out"
    ).replace("Delete it.", "")


def start_pull(repo: Any, fields: Mapping[str, Any]) -> jobs.Status:
    """The job that fetches an adapter: `vdmreason adapters pull`. Raises UserError for what is no name on the hub."""
    repo = str(repo or "").strip()
    name, _, revision = repo.partition("@")
    if len(repo) > 300 or not HUB_ID.fullmatch(name) or (revision and not re.fullmatch(r"\w[\w./-]*", revision)):
        raise UserError("Give the name of a repository on the hub as owner/name, or owner/name@revision.")
    command = [sys.executable, "-m", "vdmreason", "adapters", "pull", repo]
    for key, value in fields.items():
        command += [f"--{key}", str(value)]
    return jobs.start("pull", command, _errand("pull", repo))


def start_push(folder: Path, repo: Any, private: bool, with_answers: bool) -> jobs.Status:
    """The job that puts an adapter on the hub: `vdmreason adapters push`. Raises UserError, also without a login."""
    repo = str(repo or "").strip()
    if len(repo) > 200 or not HUB_ID.fullmatch(repo):
        raise UserError("Give the name that it shall have on the hub as owner/name.")
    if not library.logged_in():
        raise UserError(LOGIN)
    command = [sys.executable, "-m", "vdmreason", "adapters", "push", str(folder.resolve()), repo]
    command += ["--private"] * bool(private) + ["--with-answers"] * bool(with_answers)
    return jobs.start("push", command, _errand("push", repo))


LOGIN = (
    "Nobody is logged in to the hub here. In a terminal on this machine: hf auth login. Then press the button again."
)


def _errand(kind: str, repo: str) -> Path:
    return store.runs_root() / PLACE / f"{kind}-{re.sub(r'[^A-Za-z0-9._-]', '-', repo.replace('/', '--'))}"


def errand_text(key: str) -> str:
    """Where a push or pull stands, as one line of HTML."""
    folder = store.runs_root() / PLACE / key
    if not key or not (folder / jobs.JOB).is_file():
        return ""
    status = jobs.status(folder)
    if status.active:
        return f'<p class="note" role="status">{status.kind.capitalize()} {html.escape(_repo(folder))}: {status.state} …</p>'
    if status.state == "done":
        said = jobs.log_tail(folder, 2).splitlines()
        where = public.clean(said[0]) if said else ""
        return f'<p class="good-line" role="status">✓ {status.kind.capitalize()} done: {html.escape(where)}</p>'
    return problem(public.clean(status.error or status.state))


def _repo(folder: Path) -> str:
    argv = (store.read_json(folder / jobs.JOB) or {}).get("argv") or []
    return next(
        (str(word) for word in argv[4:] if HUB_ID.match(str(word)) and not str(word).startswith("/")), folder.name
    )


_packed = tempfile.TemporaryDirectory(
    prefix="vdmreason-export-"
)  # zips to download, one an adapter; gone with the page


def pack(kept: Kept, with_answers: bool) -> Path:
    """The zip of `library.export`, made once for a state of the adapter's files."""
    state = f"{kept.folder}{store.stamp(kept.folder / 'result.json')}{kept.sha}{with_answers}"
    place = Path(_packed.name) / hashlib.sha256(state.encode()).hexdigest()[:16]
    out = place / f"{config.slug(kept.folder.name)}.zip"
    return out if out.is_file() else library.export(kept.folder, out, answers=with_answers)


def parcel(kept: Kept, repo: str, with_answers: bool) -> str:
    """What a push would put on the hub: its files with their sizes, and the card."""
    with tempfile.TemporaryDirectory() as scratch:
        made = library.export(kept.folder, Path(scratch) / config.slug(kept.folder.name), with_answers, hub=repo)
        files = sorted(path for path in made.rglob("*") if path.is_file())
        shown = [path for path in files if path.parent.name != "clips"]
        clips = [path for path in files if path.parent.name == "clips"]
        rows = [(path.relative_to(made).as_posix(), path.stat().st_size) for path in shown]
        if clips:
            rows.append((f"clips/, {len(clips)} recorded films", sum(path.stat().st_size for path in clips)))
        listed = "".join(f"<li><code>{html.escape(name)}</code> {size_of(size)}</li>" for name, size in rows)
        about = (made / "README.md").read_text(encoding="utf-8")
        drawn = readme(made)
    licence = re.search(r"^license: (.+)$", about, flags=re.MULTILINE)
    return (
        f'<div class="parcel"><p><b>These {len(files)} files go to {html.escape(repo or "the hub")}.</b> Training examples are '
        f"never among them. Licence: {html.escape(licence[1] if licence else 'none said')}.</p><ul>{listed}</ul>"
        f'<details class="readme" open><summary>The card</summary>{drawn}</details></div>'
    )


def size_of(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1000))} kB"


# ---------------------------------------------------------------------------------------------------------------------
# The trash


def trash_table() -> dict[str, Any]:
    rows = []
    for removed in trash.listing():
        cells = {"name": removed.was, "removed": day(removed.when), "kept until": day(removed.until)}
        rows.append(
            {"id": removed.name, "cells": cells, "order": {"removed": removed.when, "kept until": removed.until}}
        )
    return table(
        ["Name", "Removed", "Kept until"], rows, "The trash is empty. What is removed stays here for seven days.",
        picks=False, off=public.on(),
        actions=[["restore", "Restore", ""], ["delete", "Delete for good", "Really delete?"]],
    )  # fmt: skip
