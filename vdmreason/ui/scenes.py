"""What the Compare tab can show and what it shows: the runs there are, the choice among them, the scene, the table."""

from __future__ import annotations

import html
import os
import random
import threading
import time
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
FRESH = 1.0  # seconds for which a poll may use the list of adapters that another has made
MORE = 2  # adapters that may stand beside the two main ones


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
    def name(self) -> str:
        """What an address and the API call it: its folder's place under the runs or the zoo, the same on every machine
        that holds it."""
        for root in (ZOO, store.runs_root()):
            if self.folder.is_relative_to(root):
                return self.folder.relative_to(root).as_posix()
        return self.folder.name

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


_known: dict[Path, tuple[tuple[store.Stamp, ...], Adapter]] = {}
_listed: tuple[float, list[Adapter]] = (0.0, [])
WEIGHTS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


def catalogue(age: float = 0.0) -> list[Adapter]:
    """Every adapter under the runs' root and in the zoo, newest first. Folders that cannot be read are passed over.

    A list that is at most `age` seconds old will do: what polls for many visitors need not walk the disk for each.
    """
    global _listed
    if age and time.monotonic() - _listed[0] < age:
        return _listed[1]
    found = [a for folder in store.find_runs(store.runs_root(), ZOO) if (a := _look(folder))]
    _listed = time.monotonic(), found
    return found


def _look(folder: Path) -> Adapter | None:
    """What is in a run's folder, read again only when a file of it has changed; None where there is nothing to show."""
    files = [
        folder / name
        for name in ("config.yaml", "predictions.jsonl", "result.json", *(f"adapter/{w}" for w in WEIGHTS))
    ]
    stamp = tuple(store.stamp(file) for file in files)
    if not stamp[0] or not (stamp[1] or any(stamp[3:])):
        return None
    if _known.get(folder, (None,))[0] != stamp:
        try:
            _known[folder] = (stamp, _read(folder, any(stamp[3:])))
        except (UserError, OSError, KeyError):
            return None
    return _known[folder][1]


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
    """The adapter in a run's folder, which must be one of this page's: under the runs' root or in the zoo."""
    if not folder or "\0" in folder:
        return None
    path = Path(folder)
    inside = any(path.resolve().is_relative_to(root.resolve()) for root in (store.runs_root(), ZOO))
    return _look(path) if inside else None


def twin(adapter: Adapter) -> Adapter | None:
    """The other arm's adapter from the same examples that lies beside this one: a sweep's, a comparison's."""
    same = ("task", "n", "seed", "init", "test_task", "far_from")
    beside = [a for folder in store.find_runs(adapter.folder.parent) if (a := _look(folder)) and a.arm != adapter.arm]
    alike = [a for a in beside if all(getattr(a.run, k) == getattr(adapter.run, k) for k in same)]
    budget = ("optim", "lora", "flavour")
    return max(alike, key=lambda a: [getattr(a.run, k) == getattr(adapter.run, k) for k in budget], default=None)


def by_name(name: str) -> Adapter | None:
    """An adapter by what an address calls it; the newest where a run and a shipped adapter share a name."""
    return next((a for a in catalogue() if a.name == name), None) if name else None


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
    more: tuple[str, ...] = ()  # further run folders of either arm, at most MORE

    def adapter(self, arm: str) -> Adapter | None:
        return by_folder(self.video if arm == "video" else self.language)

    def slots(self) -> dict[str, Adapter | None]:
        """What stands side by side, in order: "video", "language", then "more0" and so on."""
        further = {f"more{k}": by_folder(folder) for k, folder in enumerate(self.more)}
        return {arm: self.adapter(arm) for arm in ARMS} | {slot: a for slot, a in further.items() if a}

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
            more=(),
        )

    def answered(self) -> list[Adapter]:
        """The chosen adapters whose recorded answers are to this task's test examples under this seed."""
        finite = tasks.count(self.task, "test") is not None  # a finite task has the same test examples under every seed
        chosen = [a for a in self.slots().values() if a and a.run.tested == self.task]
        chosen = [a for a in chosen if finite or a.run.seed == self.seed]
        return [a for a in chosen if a.run.far_from == chosen[0].run.far_from]  # other distances, other examples


def recorded(choice: Choice) -> list[int]:
    """Indices of the examples with recorded answers that pass the filter, in order. The filter asks the two main arms."""
    flags: dict[int, dict[str, bool]] = {}
    main = [choice.video, choice.language]
    for adapter in choice.answered():
        for record in adapter.records.values():
            row = flags.setdefault(record["i"], {})
            if str(adapter.folder) in main and record["answer"]:
                row[adapter.arm] = bool(record["right"])
    wanted = {
        "video only right": (True, False), "language only right": (False, True),
        "both": (True, True), "none": (False, False),
    }.get(choice.filter)  # fmt: skip
    if wanted is None:
        return sorted(flags)
    return sorted(i for i, right in flags.items() if (right.get("video"), right.get("language")) == wanted)


def example_row(choice: Choice) -> dict[str, Any]:
    """The value of the row of examples: every recorded one that passes the filter, with what each main arm made of it."""
    rows: dict[int, dict[str, Any]] = {}
    for adapter in choice.answered():
        main = {choice.video: "video", choice.language: "language"}.get(str(adapter.folder))
        for record in adapter.records.values():
            row = rows.setdefault(record["i"], {"i": record["i"], "question": pictures.cells(record["question"])})
            if main:
                row[main] = bool(record["right"]) if record["answer"] else None
    return {"palette": pictures.palette(), "items": [rows[i] for i in recorded(choice)], "current": choice.index}


def opening() -> Choice:
    """The first view: a recorded example of a pair of adapters, one where the arms differ if there is one.

    Of the two ways to differ the commoner one is shown, so that the first picture is not the exception to its own table.
    """
    known = [a for a in catalogue() if a.records]
    best: tuple[tuple[bool, int], Choice] | None = None  # (do the arms differ, how often it is so), what to show
    for task in dict.fromkeys(a.run.tested for a in known):
        try:
            tasks.get(task)
        except UserError:  # a puzzle's file that was moved or broken since
            known = [a for a in known if a.run.tested != task]
            continue
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


def limit(task: str) -> int:
    """How many test examples of the task can be asked for by number."""
    return tasks.count(task, "test") or tasks.get(task).within_reach


def step(choice: Choice, by: int | str) -> Choice:
    """The next, previous or a random example: among the recorded ones that pass the filter, else by number."""
    places = recorded(choice)
    end = limit(choice.task)
    if by == "random":
        others = [i for i in places if i != choice.index] or [i for i in range(end) if i != choice.index]
        return replace(choice, index=random.choice(others)) if others else choice
    assert isinstance(by, int)
    if places:
        ahead = [i for i in places if (i > choice.index if by > 0 else i < choice.index)]
        wrapped = places[0] if by > 0 else places[-1]
        index = (ahead[0] if by > 0 else ahead[-1]) if ahead else wrapped
    else:
        index = choice.index + by
        index = index % end if tasks.count(choice.task, "test") else min(max(0, index), end - 1)
    return replace(choice, index=index)


def example(choice: Choice) -> Example:
    """The chosen example: from a recorded answer where there is one, else made anew."""
    for adapter in choice.answered():
        if record := adapter.record_at(choice.index):
            return evaluate.example_of(record)
    end = limit(choice.task)
    if not 0 <= choice.index < end:
        raise UserError(f"{choice.task} has test examples 0 to {end - 1} here, not {choice.index}.")
    return tasks.examples(choice.task, "test", choice.index + 1, choice.seed)[choice.index]


# ---------------------------------------------------------------------------------------------------------------------
# From a choice to what is shown


class Turn:
    """A lock that is copied as a new one: each browser tab has its own copy of what gradio keeps for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: Any) -> Turn:
        return Turn()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()


@dataclass
class Shown:
    """What this browser tab has: its live answers, so that going back and forth does not lose them, and what it chose last.

    gradio hands a listener the choice as it was when the event came. Of two quick clicks the second would not know of the first,
    so that listeners take turns and begin from `newest`.
    """

    live: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # (folder, example key) -> answer
    newest: Choice | None = None
    turn: Turn = field(default_factory=Turn)


def scene(choice: Choice, shown: Shown, forming: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The value of the `Stage`. `forming` holds the answers that are being made right now, by slot."""
    task, puzzle = tasks.get(choice.task), example(choice)
    demos, label = demonstrations(task, choice)
    slots = choice.slots()
    parts = {
        slot: (forming or {}).get(slot) or answer(adapter, adapter.arm if adapter else slot, task, puzzle, shown)
        for slot, adapter in slots.items()
    }
    names = {slot: adapter.name for slot, adapter in slots.items() if adapter}
    return {
        "id": "/".join([choice.task, str(choice.seed), str(choice.index), *names.values()]),
        "address": {
            "task": choice.task,
            "index": choice.index,
            "seed": choice.seed,
            **{arm: names.get(arm, NONE) for arm in ARMS},
            "more": ",".join(names[s] for s in slots if s not in ARMS),
        },
        "task": choice.task,
        "index": choice.index,
        "seed": choice.seed,
        "title": f"{choice.task}, test example {choice.index}" + (f" of seed {choice.seed}" if choice.seed else ""),
        "about": task.about,
        "palette": pictures.palette(),
        "names": {str(value): name for value, name in task.colours.items()},
        "canvas": list(puzzle.canvas),
        "question": pictures.cells(puzzle.question),
        "answer": None if puzzle.open else pictures.cells(puzzle.answer),
        "demos": demos,
        "demos_label": label,
        **{arm: parts[arm] for arm in ARMS},
        "more": [{**parts[slot], "arm": a.arm} for slot, a in slots.items() if a and slot not in ARMS],
    }


def demonstrations(task: Task, choice: Choice) -> tuple[list[dict[str, Any]], str]:
    """A few of the training examples, and the line that says what they are."""
    finite = tasks.count(task, "train")
    runs = [a.run for a in choice.slots().values() if a and a.run.tested == task.name]
    seed = runs[0].seed if runs else 0
    count = min(DEMOS, finite or DEMOS)
    pairs = [
        {"question": pictures.cells(e.question), "answer": pictures.cells(e.answer)}
        for e in tasks.examples(task, "train", count, 0 if finite else seed)
    ]
    if finite:
        return pairs, f"The puzzle's {finite} demonstrations" + (f", {count} shown" if finite > count else "")
    sizes = {run.n for run in runs}
    if len(runs) >= 2 and len(sizes) == 1:
        return pairs, f"{'Both' if len(runs) == 2 else 'All'} learnt from the same {sizes.pop()} examples, such as"
    return pairs, "Examples of the task"


def answer(adapter: Adapter | None, arm: str, task: Task, puzzle: Example, shown: Shown) -> dict[str, Any]:
    """One arm's part of the scene: the live answer if there is one, else the recorded one, else why there is none."""
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
        "open": puzzle.open and not verdict.right,
    }  # fmt: skip
    return part | drawn(adapter, puzzle, raw, final=True)


def drawn(adapter: Adapter, puzzle: Example, raw: Any, final: bool = False) -> dict[str, Any]:
    """What the arm drew or wrote, finished or not."""
    if isinstance(raw, str):
        return {"text": raw, "error": parse_error(raw) if final else None}
    return {} if raw is None else {"film": pictures.film(raw, truth_picture(adapter, puzzle, raw))}


def truth_picture(adapter: Adapter, puzzle: Example, clip: np.ndarray) -> np.ndarray | None:
    """The true answer as the arm would have to draw it, in the clip's size; None where it cannot be painted so."""
    if puzzle.open:
        return None
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
    """The metrics of all arms as an HTML table: this example first, then the run it belongs to."""
    chosen = choice.slots()
    parts = {**view, **{f"more{k}": part for k, part in enumerate(view["more"])}}
    if not any(chosen.values()):
        return ""
    rows = [
        ("this answer is", lambda a, s: s.get("badge") or "–"),
        ("exact match", lambda a, s: _yes(s, "exact")),
        ("right by the rules", lambda a, s: _yes(s, "right")),
        (
            "cells right",
            lambda a, s: f"{100 * s['cells']:.1f} %" if s.get("state") == "answer" and not s["open"] else "–",
        ),
        ("seconds", lambda a, s: f"{s['seconds']:.2f}" if s.get("state") == "answer" else "–"),
        ("exact match, all its test examples", lambda a, s: _rate(a, "exact")),
        ("right by the rules, all its test examples", lambda a, s: _rate(a, "right")),
        ("codec ceiling", lambda a, s: _ceiling(a)),
        ("copying the input", lambda a, s: _baseline(a, "copy")),
        ("the nearest training example", lambda a, s: _baseline(a, "nearest")),
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
            f"<td>{html.escape(cell(adapter, parts.get(slot) or {}) if adapter else '–')}</td>"
            for slot, adapter in chosen.items()
        )
        body.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    titles = [f"{(adapter.arm if adapter else slot).capitalize()} model" for slot, adapter in chosen.items()]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return f'<div class="scores"><table><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _yes(part: Mapping[str, Any], key: str) -> str:
    if part.get("state") != "answer":
        return "–"
    return "nobody knows" if part.get("open") else "✓ yes" if part[key] else "✗ no"


def _rate(adapter: Adapter, name: str) -> str:
    result = adapter.result.get("scores") or (
        evaluate.score_records(known) if (known := evaluate.scorable([*adapter.records.values()])) else None
    )
    if not result:
        return "not measured yet"
    rate = result[name]
    return f"{100 * rate['value']:.0f} % [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}] of {result['n']}"


def _ceiling(adapter: Adapter) -> str:
    ceiling = adapter.result.get("codec")
    return f"{100 * ceiling['exact']['value']:.0f} %" if ceiling else "not measured yet"


def _baseline(adapter: Adapter, name: str) -> str:
    """What needs no model would score on the same test examples."""
    found = (adapter.result.get("baselines") or {}).get(name)
    return f"{100 * found['exact']['value']:.0f} %" if found else "not measured yet"


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
