"""One puzzle, two model families: adapt both arms on the same examples, let both answer, print them side by side.

    runs/compare/<name>/cogvideox-<id>/      a run's folder
                        causal_lm-<id>/      a run's folder
                        compare.json         who answered what, on which data

An arm that is already adapted (the same run id) is not adapted again. The arms work one after the other, so that the
memory of one is free before the next one loads.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import adapters
import tasks
from tasks.base import Grid, UserError
from tasks.render import ansi
from vdmreason import config, jobs, store
from vdmreason.config import Run

#: Enough test examples for any `index` a person is likely to ask for, so that the index does not change the run.
TEST = 16


def plan(
    task: str,
    n: int | None = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    flavours: Mapping[str, str] | None = None,
    index: int = 0,
    overrides: Sequence[str] = (),
) -> list[Run]:
    """The runs of a comparison, the video arm first. They differ in the family, and in nothing that decides fairness.

    `families`: default, one of each kind. `flavours`: a flavour by family, where it is not "small". `overrides`:
    "optim.updates=100" for all arms, "cogvideox:options.steps=20" for one.
    """
    families = [name.replace("-", "_") for name in families or one_of_each()]
    for text in overrides:
        arm, colon, _ = text.partition("=")[0].partition(":")
        if colon and arm.replace("-", "_") not in families:
            raise UserError(f"--set {text}: {arm!r} is not compared. Compared are {', '.join(families)}.")
    flavours = {arm.replace("-", "_"): name for arm, name in (flavours or {}).items()}
    for arm, name in flavours.items():
        if arm not in families:
            raise UserError(f"--flavour {arm}={name}: {arm!r} is not compared. Compared are {', '.join(families)}.")
    runs = []
    for family in families:
        given: dict[str, Any] = {"task": task, "n": n, "seed": seed, "family": family}
        if family in flavours:
            given["flavour"] = flavours[family]
        run = config.resolve(given, _meant_for(family, overrides))
        if tasks.count(run.tested, "test") is None:
            run = config.resolve({**given, "test": max(TEST, index + 1)}, _meant_for(family, overrides))
        runs.append(run)
    first, *others = map(config.budget, runs)
    for other in others:
        for key in [key for key in config.BUDGET if other[key] != first[key]]:
            raise UserError(
                f"{key}: the arms would get {first[key]} and {other[key]}, which is no comparison. Set it for both with --set."
            )
    return runs


def compare(
    task: str,
    n: int | None = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    flavours: Mapping[str, str] | None = None,
    index: int = 0,
    overrides: Sequence[str] = (),
    folder: str | Path | None = None,
    again: bool = False,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Adapt, answer, and write compare.json; returns it. See `plan` for the arguments.

    A finite task (an ARC puzzle) has all its test inputs answered, another one the test example `index`. `again` adapts
    anew where a finished run is there. Stopped, it keeps what it has and the next call goes on.
    """
    runs = plan(task, n, seed, families, flavours, index, overrides)
    finite = tasks.count(runs[0].tested, "test")
    if finite is not None and index >= finite:
        raise UserError(f"--index {index}: {runs[0].task} has {finite} test examples, counted from 0.")
    indices = list(range(finite)) if finite is not None else [index]
    root = Path(folder) if folder else store.runs_root() / "compare" / name_of(runs)
    if again and not jobs.is_this(root):
        jobs.refuse_active(root)
    with jobs.working(root, updates=sum(run.optim.updates for run in runs), step=0) as pen:
        wanted = _any_of(pen.stop_wanted, stop)
        arms = []
        for number, run in enumerate(runs):
            arms.append(_one_arm(run, root / f"{run.family}-{run.id[:6]}", indices, again, pen, wanted, number, runs))
        result = {"task": runs[0].task, "n": runs[0].n, "seed": seed, "indices": indices, "arms": arms}
        store.write_json(root / "compare.json", result)
    return {**result, "folder": str(root)}


def name_of(runs: Sequence[Run]) -> str:
    """ "maze-7x7--n30--s0": one folder for all comparisons on the same examples."""
    return "--".join([config.slug(runs[0].task), f"n{runs[0].n}", f"s{runs[0].seed}"])


def _one_arm(
    run: Run,
    folder: Path,
    indices: Sequence[int],
    again: bool,
    pen: jobs.Working,
    stop: Callable[[], bool],
    number: int,
    runs: Sequence[Run],
) -> dict[str, Any]:
    from vdmreason import predict, train  # torch, only now

    if again and folder.exists():
        with store.lock(folder):
            store.clear(folder, but={".lock"})
    before, total = sum(r.optim.updates for r in runs[:number]), sum(r.optim.updates for r in runs)

    def follow(record: Mapping[str, Any]) -> None:
        later = (total - before - record["step"]) * record["seconds"]  # the other arm may be faster or slower
        pen.beat(before + record["step"], total, later)

    arm = train.train(run, folder, stop=stop, on_step=follow)
    if stop() or store.read_state(folder).get("state") != "done":
        raise jobs.Stopped
    records = predict.predict(folder, arm=arm, indices=indices, stop=stop)
    result = store.read_json(folder / "result.json")
    del arm
    gc.collect()
    keys = ("i", "exact", "right", "cells", "reason", "proposed", "question", "answer", "raw", "seconds")
    return {
        "family": run.family,
        "kind": adapters.family(run.family).ARM,
        "flavour": run.flavour,
        "folder": folder.name,
        "id": run.id,
        "data": result["provenance"]["data"],
        "codec": result["codec"]["exact"]["value"] if result.get("codec") else None,
        "answers": [{key: record[key] for key in keys} for record in records],
    }


def one_of_each() -> list[str]:
    """The first family of each kind, video before language."""
    kinds: dict[str, str] = {}
    for name in adapters.families():
        kinds.setdefault(adapters.family(name).ARM, name)
    return [kinds[kind] for kind in ("video", "language") if kind in kinds]


def _meant_for(family: str, overrides: Sequence[str]) -> list[str]:
    """The overrides of one arm: those for all, and those that carry its name, such as "causal_lm:optim.lr=1e-4"."""
    chosen = []
    for text in overrides:
        path, equals, value = text.partition("=")
        arm, colon, key = path.partition(":")
        if not colon:
            chosen.append(text)
        elif arm.replace("-", "_") == family:
            chosen.append(f"{key}{equals}{value}")
    return chosen


def _any_of(*asked: Callable[[], bool] | None) -> Callable[[], bool]:
    return lambda: any(ask() for ask in asked if ask)


# ---------------------------------------------------------------------------------------------------------------------
# For a terminal


def report(result: Mapping[str, Any], colour: bool | None = None) -> str:
    """The comparison as text: for each test example the input, the truth and every arm's grid, with verdicts below.

    Wrong cells are marked by a sign as well as by colour.
    """
    lines = [f"{result['task']}   n {result['n']}   seed {result['seed']}   same examples: {_same_data(result)}", ""]
    for position, i in enumerate(result["indices"]):
        answers = [(arm, arm["answers"][position]) for arm in result["arms"]]
        first = answers[0][1]
        truth = np.asarray(first["answer"], dtype=np.int8) if first["answer"] else None
        blocks = [("input", _paint(first["question"], None, colour))]
        blocks += [("truth", _paint(truth, None, colour))] if truth is not None else []
        blocks += [(arm["family"], _paint(record["proposed"], truth, colour)) for arm, record in answers]
        lines += [f"test {i}", side_by_side(blocks), ""]
        for arm, record in answers:
            verdict = "EXACT" if record["exact"] else "right by the rules" if record["right"] else "wrong"
            reason = f"   {record['reason']}" if record["reason"] else ""
            if truth is None and not record["right"]:
                verdict = "no grid" if record["proposed"] is None else "nobody knows"
            cells = f"{100 * record['cells']:5.1f} % of cells   " if truth is not None else ""
            reason = reason if truth is not None or record["proposed"] is None else ""
            lines.append(f"  {arm['family']:<12} {verdict:<18} {cells}{record['seconds']:.2f} s{reason}")
        lines.append("")
    for arm in result["arms"]:
        ceiling = f"codec ceiling {100 * arm['codec']:.0f} %   " if arm["codec"] is not None else ""
        lines.append(f"  {arm['family']:<12} {ceiling}backbone {arm['flavour']}")
    return "\n".join(lines)


def side_by_side(blocks: Sequence[tuple[str, list[str]]], gap: int = 3) -> str:
    """Titled blocks of lines next to each other. Escape codes have no width."""
    from rich.text import Text

    height = max(len(lines) for _, lines in blocks)
    widths = [max(Text.from_ansi(line).cell_len for line in [title, *lines]) for title, lines in blocks]
    rows = [[title for title, _ in blocks]] + [
        [lines[row] if row < len(lines) else "" for _, lines in blocks] for row in range(height)
    ]
    padded = [
        [cell + " " * (width - Text.from_ansi(cell).cell_len + gap) for cell, width in zip(row, widths, strict=True)]
        for row in rows
    ]
    return "\n".join("".join(row).rstrip() for row in padded)


def _paint(grid: Any, truth: Grid | None, colour: bool | None) -> list[str]:
    if grid is None:
        return ["(no grid)"]
    cells = np.asarray(grid, dtype=np.int8)
    wrong = cells != truth if truth is not None and cells.shape == truth.shape else None
    return ansi(cells, wrong, colour).splitlines()


def _same_data(result: Mapping[str, Any]) -> str:
    hashes = {arm["data"] for arm in result["arms"]}
    return f"yes ({next(iter(hashes))[:8]})" if len(hashes) == 1 else "NO"
