"""What programs may ask of the page, by `gradio_client` or as MCP tools: a few questions, each answered in plain JSON.

    from gradio_client import Client
    page = Client("http://127.0.0.1:7860")
    page.predict("life", api_name="/list_tasks")
    puzzle = page.predict("maze/7x7", 0, 0, api_name="/get_example")
    known = page.predict("maze/7x7", api_name="/list_adapters")
    answer = page.predict(known[0]["name"], "maze/7x7", 0, 0, api_name="/solve")
    page.predict("maze/7x7", puzzle["question"], answer["grid"], api_name="/score")

Everything that comes in is checked; what is wrong comes back as one line. The docstrings are what MCP tells a model.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

import tasks
from tasks.base import Example, Grid, Task, UserError, as_grid
from vdmreason import drawn, jobs, store
from vdmreason.ui import inputs, public, scenes
from vdmreason.ui.compare import visitor
from vdmreason.ui.inputs import text, whole_number
from vdmreason.ui.strip import row
from vdmreason.worker import Worker

LISTED = 500  # rows of an answer


def list_tasks(family: str = "") -> list[dict[str, Any]]:
    """The puzzles there are.

    Args:
        family: One family ("maze", "life", "arc1/evaluation", ...), or nothing for one line a family.
    """
    family = inputs.task(family)
    if not family:
        return [
            {"family": name, "tasks": len(found := tasks.variants(name)), "first": found[0]} for name in _families()
        ]
    names = tasks.variants(family)
    return [_told(tasks.get(name)) if len(names) <= 20 else {"name": name} for name in names[:LISTED]]


def get_example(task: str, index: int = 0, seed: int = 0, split: str = "test") -> dict[str, Any]:
    """One example of a puzzle: its question, its answer, and what the values mean.

    Args:
        task: A puzzle's name, such as "maze/7x7" or "arc1/evaluation/00576224".
        index: Which example, from 0 on.
        seed: Whose examples; a finite puzzle has the same under every seed.
        split: "test" or "train".
    """
    puzzle, example = _example(task, index, seed, split)
    return {
        **_told(puzzle), "index": index, "seed": seed, "split": split, "key": example.key,
        "question": example.question.tolist(), "answer": None if example.open else example.answer.tolist(),
        "canvas": [*example.canvas],
    }  # fmt: skip


def solve(
    adapter: str, task: str, index: int = 0, seed: int = 0, question: str = "", request: gr.Request | None = None
) -> dict[str, Any]:
    """An adapter's answer to an example of a puzzle, or to a question of one's own, made now; and whether it is right.

    Args:
        adapter: A name that list_adapters gives.
        task: The puzzle's name.
        index: Which test example, from 0 on. Not used with a question of one's own.
        seed: Whose test examples.
        question: A grid of one's own as JSON, such as "[[0,1],[2,3]]"; scored where the puzzle's rules can.
    """
    found = scenes.by_name(text(adapter))
    if found is None or not found.live:
        raise UserError(f"{text(adapter)!r} is no adapter that can answer here; list_adapters names those that can.")
    own = as_grid(_json(question), "question") if question else None
    puzzle, example = _example(task, index, seed, "test")
    if own is not None:
        _refuse_strange(puzzle, own)
    if request is not None:
        public.QUOTA.take(visitor(request))
    answer = {}
    owner = f"api {request.session_hash if request else ''}"
    for message in _worker.predict(found.folder, puzzle.name, whole_number(index), whole_number(seed), owner, own):
        answer = message
    grid = None if answer["grid"] is None else np.asarray(answer["grid"], np.int8)
    verdict = _verdict(puzzle, example, grid) if own is None else _by_the_rules(puzzle, own, grid)
    kept = {key: answer.get(key) for key in ("grid", "certainty", "text", "problem", "seconds", "device")}
    return {"adapter": found.name, "arm": found.arm, **kept, **verdict}


def score(task: str, question: str, proposed: str, index: int = -1, seed: int = 0) -> dict[str, Any]:
    """Whether a proposed answer is right by the puzzle's own rules, and what is wrong with it.

    Args:
        task: The puzzle's name.
        question: The question as JSON, such as "[[0,1],[2,3]]", or "" where index says which example is meant.
        proposed: The proposed answer as JSON.
        index: Which test example is meant, from 0 on; -1 for a question of one's own.
        seed: Whose test examples.
    """
    grid = as_grid(_json(proposed), "proposed")
    if index != -1 or not question:
        puzzle, example = _example(task, 0 if index == -1 else index, seed, "test")
        return _verdict(puzzle, example, grid)
    puzzle, asked = tasks.get(inputs.task(task)), as_grid(_json(question), "question")
    _refuse_strange(puzzle, asked)
    return _by_the_rules(puzzle, asked, grid)


def list_adapters(task: str = "") -> list[dict[str, Any]]:
    """The adapters that are here, those that fit a puzzle first.

    Args:
        task: A puzzle's name, or nothing for all adapters.
    """
    known = scenes.catalogue(scenes.FRESH)
    if task:
        name = tasks.get(inputs.task(task)).name
        known = [a for arm in scenes.ARMS for a in scenes.fitting(known, arm, name)]
    return [_adapter(a) for a in known[:LISTED]]


def job_status(name: str = "") -> list[dict[str, Any]]:
    """What is being trained, predicted or pretrained here, and what has ended: state, progress, seconds left.

    Args:
        name: A job's name, or nothing for all of them.
    """
    found = jobs.find(store.runs_root())
    rows = [{**row(s), "step": s.step, "updates": s.updates, "seconds_left": s.eta} for s in found if s.state]
    if not text(name):
        return rows[:LISTED]
    named = [r for r in rows if r["name"] == text(name)]
    if not named:
        raise UserError(f"{text(name)!r} is no job of this page; job_status without a name lists them.")
    return named


ENDPOINTS = (list_tasks, get_example, solve, score, list_adapters, job_status)
_worker: Worker


def publish(worker: Worker) -> None:
    """Add the endpoints to the page that is being built."""
    global _worker
    _worker = worker
    for endpoint in ENDPOINTS:
        # An answer waits for the one worker: only some do so in a thread each, which clicks need, too; the rest are in a queue.
        waits = 4 if endpoint is solve else None
        gr.api(_in_words(endpoint), api_name=endpoint.__name__, concurrency_limit=waits)


def _in_words(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, with every mistake of the caller's as one line that gradio hands on."""

    @functools.wraps(endpoint)
    def checked(*given: Any, **named: Any) -> Any:
        try:
            return endpoint(*given, **named)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return checked


# ---------------------------------------------------------------------------------------------------------------------
# What comes in, checked


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value  # a client may hand the rows over as they are
    try:
        return json.loads(value[:20_000])
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"That is no JSON grid such as [[0,1],[2,3]]: {str(error)[:100]}") from None


def _example(task: Any, index: Any, seed: Any, split: Any) -> tuple[Task, Example]:
    puzzle = tasks.get(inputs.task(task))
    if split not in ("train", "test"):
        raise UserError(f"split: {str(split)[:40]!r} is neither 'train' nor 'test'.")
    number = whole_number(index)
    end = tasks.count(puzzle, split) or puzzle.within_reach
    if number >= end:
        raise UserError(f"{puzzle.name} is asked for by numbers 0 to {end - 1} here, not {number}.")
    return puzzle, tasks.examples(puzzle, split, number + 1, whole_number(seed))[number]


def _refuse_strange(task: Task, question: Grid) -> None:
    """Rules are asked only what their own family could ask: some are compiled without bounds checks."""
    if drawn.has_rules(task) and not task.name.startswith("reasoning_gym/") and (why := drawn.trouble(task, question)):
        raise UserError(f"question: {why}.")


# ---------------------------------------------------------------------------------------------------------------------
# What goes out


def _families() -> list[str]:
    return [name for name in tasks.families() if name != "reasoning_gym"]  # its names are typed in


def _told(task: Task) -> dict[str, Any]:
    return {"name": task.name, "about": task.about, "values": {str(v): name for v, name in task.colours.items()}}


def _verdict(task: Task, example: Example, grid: Any) -> dict[str, Any]:
    if example.open:
        return _by_the_rules(task, example.question, grid)
    verdict = task.check(grid, example)
    return {
        "exact": verdict.exact, "right": verdict.right, "valid": verdict.valid, "cells": verdict.cells,
        "reason": verdict.reason, "measures": dict(verdict.measures),
    }  # fmt: skip


def _by_the_rules(task: Task, question: Any, grid: Any) -> dict[str, Any]:
    """The verdict without a stored answer: by the one answer where the rules give it, by the rules where they can tell,
    else None: nobody knows."""
    answer = task.solve(question)
    if answer is not None:
        return _verdict(task, Example(question, answer, question.shape), grid)
    if grid is None:
        return {"right": False, "reason": "no grid could be read"}
    fault = task.fault(grid, question)
    if fault is None:
        return {
            "right": None,
            "reason": "This puzzle's rule is told by its answer alone, and nobody knows that.",
        }
    right = not fault and task.optimal(grid, question)
    return {"right": right, "valid": not fault, "reason": fault or ("" if right else "there is a better answer")}


def _adapter(adapter: scenes.Adapter) -> dict[str, Any]:
    run, scores = adapter.run, adapter.result.get("scores") or {}
    return {
        "name": adapter.name, "arm": adapter.arm, "family": run.family, "flavour": run.flavour, "task": run.task,
        "n": run.n, "seed": run.seed, "init": run.init, "live": adapter.live, "recorded": len(adapter.records),
        "exact": scores.get("exact"), "ships": scenes.ZOO in adapter.folder.parents,
    }  # fmt: skip
