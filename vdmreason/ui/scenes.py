"""What the Compare tab can show and what it shows: the runs there are, the choice among them, the scene, the table."""

from __future__ import annotations

import html
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import adapters
import tasks
from tasks import text
from tasks.base import Example, Task, UserError
from tasks.render import STYLES, paint
from tasks.text import ParseError
from vdmreason import evaluate, store
from vdmreason.config import Run
from vdmreason.ui import pictures

ARMS = ("video", "language")
# The adapters that ship; another folder of runs may stand in for them.
ZOO = Path(os.environ.get("VDMREASON_ZOO", Path(adapters.__file__).parent / "zoo"))
FILTERS = ["all", "video only right", "language only right", "both", "none"]
NONE = ""  # the choice "no adapter"
DEMOS = 4  # examples shown above a puzzle


# ---------------------------------------------------------------------------------------------------------------------
# What there is: runs with answers or adapters


@dataclass(frozen=True)
class Adapter:
    """A run that can be shown: it has recorded answers, or an adapter that can answer live, or both."""

    folder: Path
    run: Run
    arm: str
    live: bool  # there are weights to answer with
    records: Mapping[str, dict[str, Any]]  # example key -> its line of predictions.jsonl
    result: Mapping[str, Any]

    @property
    def label(self) -> str:
        """One line for a menu."""
        parts = [self.run.task, f"n {self.run.n}", self.run.flavour.rpartition("/")[2], f"seed {self.run.seed}"]
        if self.run.test_task:
            parts.append(f"asked {self.run.test_task}")
        if self.run.votes > 1:
            parts.append(f"{self.run.votes} votes")
        if self.run.init == "random":
            parts.append("random init")
        if self.run.optim.updates:
            parts.append(f"{self.run.optim.updates} updates")
        where = "shipped" if ZOO in self.folder.parents else self.folder.name.rpartition("--")[2]
        return " · ".join([*parts, where])

    def record_at(self, index: int) -> dict[str, Any] | None:
        return next((r for r in self.records.values() if r["i"] == index), None)


_known: dict[Path, tuple[tuple[float, ...], Adapter]] = {}


def catalogue() -> list[Adapter]:
    """Every adapter under the runs' root and in the zoo, newest first. Folders that cannot be read are passed over."""
    found = []
    for folder in store.find_runs(store.runs_root(), ZOO):
        adapter_files = [
            folder / "adapter" / f for f in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
        ]
        parts = [folder / "config.yaml", folder / "predictions.jsonl", folder / "result.json", *adapter_files]
        stamp = tuple(part.stat().st_mtime if part.exists() else 0.0 for part in parts)
        if not stamp[1] and not any(stamp[3:]):
            continue  # nothing to show yet
        if _known.get(folder, (None,))[0] != stamp:
            try:
                _known[folder] = (stamp, _read(folder, any(stamp[3:])))
            except (UserError, OSError, KeyError):
                continue
        found.append(_known[folder][1])
    return found


def _read(folder: Path, live: bool) -> Adapter:
    run = store.read_config(folder)
    records = {r["key"]: r for r in sorted(store.read_lines(folder / "predictions.jsonl"), key=lambda r: r["i"])}
    result = store.read_json(folder / "result.json") or {}
    return Adapter(folder, run, adapters.family(run.family).ARM, live, records, result)


def fitting(known: list[Adapter], arm: str, task: str) -> list[Adapter]:
    """An arm's adapters, the best match for a task first: same task, same family, asked plainly, pretrained, most examples."""
    family = task.partition("/")[0]

    def rank(adapter: Adapter) -> tuple[bool, bool, bool, bool, bool, int]:
        run = adapter.run
        same, plain = run.tested == task, not (run.test_task or run.far_from or run.votes > 1)
        return same, run.task.partition("/")[0] == family, plain, run.init == "pretrained", adapter.live, run.n

    return sorted((a for a in known if a.arm == arm), key=rank, reverse=True)


def by_folder(folder: str) -> Adapter | None:
    return next((a for a in catalogue() if str(a.folder) == folder), None) if folder else None


# ---------------------------------------------------------------------------------------------------------------------
# What is chosen


@dataclass(frozen=True)
class Choice:
    """What the tab shows. A value: every control makes a new one."""

    task: str = ""
    index: int = 0
    seed: int = 0
    filter: str = "all"
    video: str = NONE  # run folder
    language: str = NONE

    def adapter(self, arm: str) -> Adapter | None:
        return by_folder(self.video if arm == "video" else self.language)

    def with_task(self, task: str) -> Choice:
        """The first example of another puzzle, with each arm's adapter that fits it best, or none where none was made.

        The language arm's is one with the video arm's n and seed if there is one, so that both learnt from, and are
        tested on, the same examples.
        """
        known = [a for a in catalogue() if a.run.tested == task]
        video = fitting(known, "video", task)[:1]
        language = fitting(known, "language", task)
        if video:
            want = video[0].run
            language.sort(
                key=lambda a: (
                    (a.run.seed, a.run.far_from) == (want.seed, want.far_from), a.run.n == want.n, a.run.init == want.init
                ),
                reverse=True,
            )  # fmt: skip
        chosen = [*video, *language[:1]]
        folders = {a.arm: str(a.folder) for a in chosen}
        seed = chosen[0].run.seed if chosen else 0
        return replace(
            self,
            task=task,
            index=0,
            seed=seed,
            video=folders.get("video", NONE),
            language=folders.get("language", NONE),
        )

    def answered(self) -> list[Adapter]:
        """The chosen adapters whose recorded answers are to this task's test examples under this seed."""
        finite = limit(self.task) is not None  # a finite task has the same test examples under every seed
        chosen = [a for a in map(self.adapter, ARMS) if a and a.run.tested == self.task]
        chosen = [a for a in chosen if finite or a.run.seed == self.seed]
        return [a for a in chosen if a.run.far_from == chosen[0].run.far_from]  # other distances, other examples


def recorded(choice: Choice) -> list[int]:
    """Indices of the examples with recorded answers that pass the filter, in order."""
    flags: dict[int, dict[str, bool]] = {}
    for adapter in choice.answered():
        for record in adapter.records.values():
            flags.setdefault(record["i"], {})[adapter.arm] = bool(record["right"])
    wanted = {
        "video only right": (True, False), "language only right": (False, True),
        "both": (True, True), "none": (False, False),
    }.get(choice.filter)  # fmt: skip
    if wanted is None:
        return sorted(flags)
    return sorted(i for i, right in flags.items() if (right.get("video"), right.get("language")) == wanted)


def opening() -> Choice:
    """The first view: a recorded example of a pair of adapters, one where the arms differ if there is one.

    Of the two ways to differ the commoner one is shown, so that the first picture is not the exception to its own table.
    """
    known = [a for a in catalogue() if a.records]
    best: tuple[tuple[bool, int], Choice] | None = None  # (do the arms differ, how often it is so), what to show
    for task in dict.fromkeys(a.run.tested for a in known):
        choice = Choice().with_task(task)
        for filter_ in ("video only right", "language only right", "both", "none"):
            hits = recorded(replace(choice, filter=filter_))
            rank = ("only" in filter_, len(hits))
            if hits and (best is None or rank > best[0]):
                best = rank, replace(choice, index=hits[0])
    if best:
        return best[1]
    if known:
        choice = Choice().with_task(known[0].run.tested)
        return replace(choice, index=(recorded(choice) or [0])[0])
    return Choice().with_task(tasks.variants("maze")[0])


def limit(task: str) -> int | None:
    """How many test examples the task has; None for as many as one likes."""
    return tasks.count(task, "test")


def step(choice: Choice, by: int | str) -> Choice:
    """The next, previous or a random example: among the recorded ones that pass the filter, else by number."""
    places = recorded(choice)
    end = limit(choice.task)
    if by == "random":
        others = [i for i in places if i != choice.index] or [i for i in range(end or 1000) if i != choice.index]
        return replace(choice, index=random.choice(others)) if others else choice
    assert isinstance(by, int)
    if places:
        ahead = [i for i in places if (i > choice.index if by > 0 else i < choice.index)]
        wrapped = places[0] if by > 0 else places[-1]
        index = (ahead[0] if by > 0 else ahead[-1]) if ahead else wrapped
    else:
        index = choice.index + by
        index = index % end if end else max(0, index)
    return replace(choice, index=index)


def example(choice: Choice) -> Example:
    """The chosen example: from a recorded answer where there is one, else made anew."""
    for adapter in choice.answered():
        if record := adapter.record_at(choice.index):
            return evaluate.example_of(record)
    end = limit(choice.task)
    if choice.index < 0 or (end is not None and choice.index >= end):
        raise UserError(f"{choice.task} has test examples 0 to {(end or 1) - 1}, not {choice.index}.")
    return tasks.examples(choice.task, "test", choice.index + 1, choice.seed)[choice.index]


# ---------------------------------------------------------------------------------------------------------------------
# From a choice to what is shown


@dataclass
class Shown:
    """Live answers of this browser tab, kept so that going back and forth does not lose them."""

    live: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # (folder, example key) -> answer


def scene(choice: Choice, shown: Shown, forming: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The value of the `Stage`. `forming` holds the answers that are being made right now, by arm."""
    task, puzzle = tasks.get(choice.task), example(choice)
    demos, label = demonstrations(task, choice)
    return {
        "id": f"{choice.task}/{choice.seed}/{choice.index}/{choice.video}/{choice.language}",
        "task": choice.task,
        "index": choice.index,
        "seed": choice.seed,
        "title": f"{choice.task}, test example {choice.index}" + (f" of seed {choice.seed}" if choice.seed else ""),
        "about": task.about,
        "palette": pictures.palette(),
        "names": {str(value): name for value, name in task.colours.items()},
        "canvas": list(puzzle.canvas),
        "question": pictures.cells(puzzle.question),
        "answer": pictures.cells(puzzle.answer),
        "demos": demos,
        "demos_label": label,
        **{arm: (forming or {}).get(arm) or answer(choice, arm, task, puzzle, shown) for arm in ARMS},
    }


def demonstrations(task: Task, choice: Choice) -> tuple[list[dict[str, Any]], str]:
    """A few of the training examples, and the line that says what they are."""
    finite = tasks.count(task, "train")
    runs = [a.run for a in map(choice.adapter, ARMS) if a and a.run.tested == task.name]
    seed = runs[0].seed if runs else 0
    count = min(DEMOS, finite or DEMOS)
    pairs = [
        {"question": pictures.cells(e.question), "answer": pictures.cells(e.answer)}
        for e in tasks.examples(task, "train", count, 0 if finite else seed)
    ]
    if finite:
        return pairs, f"The puzzle's {finite} demonstrations" + (f", {count} shown" if finite > count else "")
    sizes = {run.n for run in runs}
    if len(runs) == 2 and len(sizes) == 1:
        return pairs, f"Both learnt from the same {sizes.pop()} examples, such as"
    return pairs, "Examples of the task"


def answer(choice: Choice, arm: str, task: Task, puzzle: Example, shown: Shown) -> dict[str, Any]:
    """One arm's part of the scene: the live answer if there is one, else the recorded one, else why there is none."""
    adapter = choice.adapter(arm)
    if adapter is None:
        return {"state": "none", "note": f"No {arm} adapter has been made for this puzzle yet."}
    label = {"run": adapter.label.removeprefix(f"{task.name} · ")}
    live = shown.live.get((str(adapter.folder), puzzle.key))
    if live:
        return {"state": "answer", "badge": "live", **label, **live}
    record = adapter.records.get(puzzle.key)
    if record:
        return {"state": "answer", "badge": "recorded", **label, **from_record(record, adapter, task, puzzle)}
    hint = "Press Run live to see one." if adapter.live else "This run has no weights to answer with."
    return {"state": "none", **label, "note": f"No recorded answer to this example. {hint}"}


def from_record(record: Mapping[str, Any], adapter: Adapter, task: Task, puzzle: Example) -> dict[str, Any]:
    """A line of predictions.jsonl as the stage wants it."""
    raw: Any = record["raw"]
    if adapter.arm == "video":
        try:
            raw = store.read_clip(adapter.folder / str(raw)) if raw else None
        except UserError:
            raw = None
    return as_shown(
        adapter,
        task,
        puzzle,
        raw,
        record["proposed"],
        record.get("certainty"),
        record.get("problem", ""),
        record["seconds"],
    )


def as_shown(
    adapter: Adapter, task: Task, puzzle: Example, raw: Any, grid: Any, certainty: Any, problem: str, seconds: float
) -> dict[str, Any]:
    """A finished answer, scored by the task's own rules. `raw` is the text or the clip."""
    proposed = None if grid is None else np.asarray(grid, np.int8)
    verdict = task.check(proposed, puzzle)
    part = {
        "grid": pictures.cells(proposed), "certainty": certainty, "problem": problem, "seconds": seconds,
        "exact": verdict.exact, "right": verdict.right, "cells": verdict.cells, "reason": verdict.reason,
    }  # fmt: skip
    return part | drawn(adapter, puzzle, raw, final=True)


def drawn(adapter: Adapter, puzzle: Example, raw: Any, final: bool = False) -> dict[str, Any]:
    """What the arm drew or wrote, finished or not."""
    if isinstance(raw, str):
        return {"text": raw, "error": parse_error(raw) if final else None}
    return {} if raw is None else {"film": pictures.film(raw, truth_picture(adapter, puzzle, raw))}


def truth_picture(adapter: Adapter, puzzle: Example, clip: np.ndarray) -> np.ndarray | None:
    """The true answer as the arm would have to draw it, in the clip's size; None where it cannot be painted so."""
    options = adapter.run.arm_options()
    canvas = tuple(getattr(options, "canvas", None) or puzzle.canvas)
    try:
        picture = paint(puzzle.answer, STYLES[options.style], canvas)
    except (UserError, KeyError):
        return None
    factor = clip.shape[1] // picture.shape[0]
    return picture.repeat(factor, 0).repeat(factor, 1) if factor >= 1 else None


def parse_error(written: str) -> dict[str, Any] | None:
    """Where the text stops being a grid, or None where it is one."""
    try:
        text.parse(written)
        return None
    except ParseError as error:
        return {"position": error.position, "message": str(error)}
    except UserError as error:
        return {"position": len(written), "message": str(error)}


# ---------------------------------------------------------------------------------------------------------------------
# The table


def scores(choice: Choice, view: Mapping[str, Any]) -> str:
    """The metrics of both arms as an HTML table: this example first, then the run it belongs to."""
    chosen = {arm: choice.adapter(arm) for arm in ARMS}
    if not any(chosen.values()):
        return ""
    rows = [
        ("this answer is", lambda a, s: s.get("badge") or "–"),
        ("exact match", lambda a, s: _yes(s, "exact")),
        ("right by the rules", lambda a, s: _yes(s, "right")),
        ("cells right", lambda a, s: f"{100 * s['cells']:.1f} %" if s.get("state") == "answer" else "–"),
        ("seconds", lambda a, s: f"{s['seconds']:.2f}" if s.get("state") == "answer" else "–"),
        ("exact match, all its test examples", lambda a, s: _rate(a, "exact")),
        ("right by the rules, all its test examples", lambda a, s: _rate(a, "right")),
        ("codec ceiling", lambda a, s: _ceiling(a)),
        ("training examples n", lambda a, s: str(a.run.n)),
        ("seed", lambda a, s: str(a.run.seed)),
        ("updates × batch", lambda a, s: f"{a.run.optim.updates} × {a.run.optim.batch}"),
        ("LoRA rank", lambda a, s: str(a.run.lora.rank)),
        ("backbone", lambda a, s: _backbone(a)),
        ("device", lambda a, s: s.get("device") or _provenance(a, "device")),
        ("data", lambda a, s: _provenance(a, "data")[:12]),
    ]
    body = []
    for name, cell in rows:
        cells = "".join(
            f"<td>{html.escape(cell(adapter, view.get(arm) or {}) if adapter else '–')}</td>"
            for arm, adapter in chosen.items()
        )
        body.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    head = '<tr><td></td><th scope="col">Video model</th><th scope="col">Language model</th></tr>'
    return f'<div class="scores"><table><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'


def _yes(part: Mapping[str, Any], key: str) -> str:
    return ("✓ yes" if part[key] else "✗ no") if part.get("state") == "answer" else "–"


def _rate(adapter: Adapter, name: str) -> str:
    result = adapter.result.get("scores") or (
        evaluate.score_records([*adapter.records.values()]) if adapter.records else None
    )
    if not result:
        return "not measured yet"
    rate = result[name]
    return f"{100 * rate['value']:.0f} % [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}] of {result['n']}"


def _ceiling(adapter: Adapter) -> str:
    ceiling = adapter.result.get("codec")
    return f"{100 * ceiling['exact']['value']:.0f} %" if ceiling else "not measured yet"


def _backbone(adapter: Adapter) -> str:
    family = adapters.family(adapter.run.family)
    flavour = family.FLAVOURS.get(adapter.run.flavour)
    size = f", {millions(flavour.parameters)}" if flavour and flavour.parameters else ""
    control = ", random weights (control)" if adapter.run.init == "random" else ""
    return f"{adapter.run.family} {adapter.run.flavour}{size}{control}"


def millions(parameters: int) -> str:
    """3500000 -> "3.5 M parameters"."""
    big = parameters >= 1e9
    return f"{parameters / (1e9 if big else 1e6):.1f} {'G' if big else 'M'} parameters"


def _provenance(adapter: Adapter, key: str) -> str:
    return str((adapter.result.get("provenance") or {}).get(key) or "–")
