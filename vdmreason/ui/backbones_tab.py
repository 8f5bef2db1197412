"""The Backbones tab: how our own small backbones were made, what they see and draw, what a probe reads of them, and whether
that says anything about the exam. Everything shown is read from files; what takes long is a job (`backbone_files.start`)."""

from __future__ import annotations

import functools
import hashlib
import html
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from pretrain.scenes import CLASSES
from tasks.base import UserError
from vdmreason import jobs, store
from vdmreason.ui import backbone_files as files
from vdmreason.ui import public, scrubber
from vdmreason.ui.backbone_files import RECIPES, Backbone, View
from vdmreason.ui.compare import HONESTY, problem, quiet
from vdmreason.ui.frame import Frame
from vdmreason.ui.inputs import said, whole
from vdmreason.ui.scenes import millions
from vdmreason.ui.training import smooth, span, thin

COLUMNS = ("Backbone", "Follows", "Parameters", "Learnt from", "Updates", "Time", "Machine", "Weights")
KINDS = {"Linear": "linear", "Linear, attentive": "both", "Also depth and tracks": "all"}
MASKS = (
    "adaptive",
    "random",
    "uniform",
    "flow",
    "everest",
    "difference",
    "none",
)  # LVMAE's, as `pretrain/lvmae.py` has them
UNITS = {"minutes": "m", "hours": "h", "updates": "u"}
BOOKKEEPING = ("step", "updates", "seconds", "minutes", "lr", "norm", "skipped", "seed", "parameters", "tokens")
ENOUGH = 5  # backbones before a rank correlation is said
OFF = "Off on this public page."
SHAPES = ("circle", "square", "triangle", "diamond", "cross")


# ---------------------------------------------------------------------------------------------------------------------
# What is said of a backbone


def shelf(backbones: Sequence[Backbone], current: str) -> dict[str, Any]:
    """The table's rows: texts alone, which the script writes as text."""
    rows = []
    for b in backbones:
        step = files.progress(b) if b.state in jobs.ACTIVE else None
        updates = f"{step.step:,}" + (f" of {step.updates:,}" if step.updates else "") if step else count(b.updates)
        follows = f"arXiv {RECIPES[b.recipe].arxiv}" if b.recipe else ""
        cells = [
            (b.name, " · ".join(part for part in (b.state, b.size) if part)),
            (b.title, follows),
            (
                millions(sum(b.parameters.values())).removesuffix(" parameters") if b.parameters else "–",
                "its VAE among them" if "vae" in b.parameters else "",
            ),
            (b.data, ""),
            (updates, ""),
            (span(60 * b.minutes) if b.minutes else "–", ""),
            (_machine(b.machine), ""),
            (b.weights[:8] or "none yet", ""),
        ]
        named = [{"label": c, "text": t, "note": n} for c, (t, n) in zip(COLUMNS, cells, strict=True)]
        rows.append({"key": b.key, "state": b.state, "cells": named})
    return {"rows": rows, "current": current}


def _machine(text: str) -> str:
    """ "one core of a shared two-core x86-64 machine, no GPU, torch 2.13 CPU" -> its first part; the card has all of it."""
    return re.sub(r"\(s\)|s$", "", text.partition(",")[0].replace("one core of a shared", "one core of a")) or "–"


def count(number: int) -> str:
    return f"{number:,}" if number else "–"


def where(file: Path) -> str:
    """A file as the page may name it: from the runs or the checkout on, or its name alone in public."""
    for root in (store.runs_root().resolve().parent, files.ZOO.parent.parent, files.RESULTS.parent.parent):
        if file.resolve().is_relative_to(root) and not public.on():
            return str(file.resolve().relative_to(root))
    return file.name


def headline(b: Backbone) -> str:
    """Name, state and where the job stands, in words."""
    parts = [f'<h2 class="step">{html.escape(b.title)} <small>{html.escape(b.name)}</small></h2>']
    lines = []
    if b.state in jobs.ACTIVE:
        step = files.progress(b)
        said = ["is being pretrained" if b.state == "running" else b.state]
        if step:
            said.append(f"update {step.step:,}" + (f" of {step.updates:,}" if step.updates else ""))
            said += [f"loss {step.loss:.3f}"] if isinstance(step.loss, int | float) else []
            said += [f"about {span(step.left)} left"] if step.left else []
        else:
            said.append("getting ready: no update yet")
        lines.append(" · ".join(said))
    elif b.state in ("failed", "lost", "stopped"):
        again = "" if public.on() else " The strip below can resume it; it goes on from its newest checkpoint."
        lines.append(f"Its pretraining is {b.state}. {html.escape(b.error)}{again}")
    if b.recipe:
        about = RECIPES[b.recipe]
        paper = f'<a href="https://arxiv.org/abs/{about.arxiv}" rel="noreferrer">arXiv {about.arxiv}</a>'
        lines.append(f"After {paper}: {html.escape(about.about)}.")
    split = [f"{html.escape(part)} {number / 1e6:.2f} M" for part, number in b.parameters.items() if number >= 5000]
    if split:
        lines.append(f"Parameters, counted in its files: {', '.join(split)}.")
    lines += [last_words(b)]
    return "".join(parts) + "".join(f'<p class="note">{line}</p>' for line in lines if line)


def last_words(b: Backbone) -> str:
    """How its training ended, from pretrain.json."""
    said = []
    for stage, log in b.log.items():
        values = [f"{k.replace('_', ' ')} {v:.3f}" for k, v in log.items() if k not in BOOKKEEPING]
        took = f"{log.get('updates', 0):,.0f} updates" + (f" in {span(log['seconds'])}" if "seconds" in log else "")
        name = f"{html.escape(stage.replace('_', ' '))}: " if stage else ""
        said.append(f"{name}{took}, at the end {html.escape(', '.join(values))}")
    return f"{'; '.join(said)} (pretrain.json)." if said else ""


@functools.lru_cache(maxsize=32)
def _card(file: Path, stamp: int) -> str:
    text = file.read_text(encoding="utf-8", errors="replace")[:20_000]
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)  # the front matter is for hubs
    text = text.replace("![", "[")  # no picture is fetched from anywhere
    return re.sub(r"^#+ ", "#### ", text, flags=re.M)


def card(b: Backbone) -> str:
    """The model card, or why there is none yet."""
    file = b.folder / "README.md"
    if file.is_file():
        return _card(file, file.stat().st_mtime_ns)
    return "No card yet: it is written when the pretraining ends."


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def curve_choices(b: Backbone) -> list[tuple[str, str]]:
    """The numbers that were written down, as (label, "stage|name"); the loss of the last stage first."""
    found = []
    for stage, lines in reversed(files.numbers(b).items()):
        names = [k for k, v in lines[-1].items() if k not in ("step", "skipped") and isinstance(v, int | float)]
        names += [k for k in ("deviation", "rank") if k not in names and any(k in line for line in lines)]
        names.sort(key=lambda name: name != "loss")
        found += [(f"{stage}: {name}" if stage else name, f"{stage}|{name}") for name in names]
    return found


def curve(b: Backbone, choice: str | None) -> Any:
    """A table for the plot: raw values and smoothed ones; None where there is nothing."""
    import pandas as pd

    stage, _, name = (choice or "").partition("|")
    lines = [x for x in files.numbers(b).get(stage, []) if isinstance(x.get(name), int | float)]
    if not lines:
        return None
    steps, values = [x["step"] for x in lines], [float(x[name]) for x in lines]
    rows = [(s, y, "raw") for s, y in thin(steps, values)]
    rows += [(s, y, "smoothed") for s, y in thin(steps, smooth(values))]
    return pd.DataFrame(rows, columns=["update", "value", "curve"])


# ---------------------------------------------------------------------------------------------------------------------
# Probes, and what they are good for


def chance(column: str) -> float | None:
    """What guessing gets, as a share."""
    label = column.partition(",")[0]
    return 0.5 if label == "depth pairs" else 1 / CLASSES[label] if label in CLASSES else None


def probe_table(b: Backbone) -> str:
    """The scores of a backbone beside an encoder that was never trained and the pixels, with their intervals."""
    stored = files.probes(b)
    if not stored:
        return (
            '<p class="note">No probe has read these weights on this machine yet.</p>'
            if b.recipe and RECIPES[b.recipe].probed
            else '<p class="note">Probes read video encoders: NExT-Vid, InternVideo-Next and LVMAE.</p>'
        )
    file, content = stored[0]
    rows = content["rows"]
    names = ["this backbone", *(str(row["features"]) for row in rows[1:])]
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    lines = []
    for column in rows[0]["accuracy"]:
        cells = "".join(f"<td>{_score(row['accuracy'].get(column))}</td>" for row in rows)
        guess = chance(column)
        lines.append(
            f'<tr><th scope="row">{html.escape(column)}</th>{cells}<td>{f"{100 * guess:.1f}" if guess else "–"}</td></tr>'
        )
    seeds, labels = int(content.get("seeds", 1)), int(content.get("labels", 0))
    caption = (
        f"Accuracy in % [95 % interval over {seeds} probe seed{'s' * (seeds > 1)}], {labels:,} labelled clips, tested on "
        f"1,000 others. From {html.escape(where(file))}."
    )
    return (
        f'<div class="scores"><table><caption>{caption}</caption><thead><tr><th scope="col">what is read</th>{head}'
        f'<th scope="col">chance</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _score(score: Any, sign: str = "") -> str:
    """In %; with `sign` "+" a difference."""
    if not isinstance(score, dict):
        return "–"
    value, low, high = (100 * float(score[k]) for k in ("value", "low", "high"))
    shown = format(value, f"{sign}.1f")
    return f"{shown} <small>[{low:.0f}, {high:.0f}]</small>" if high > low else shown


def study(b: Backbone) -> str:
    """What each part of the recipe is good for, where it has a study: smaller encoders, as far as it has come. First the
    differences beside the paper's, then what each variant has."""
    file = files.RESULTS / f"{b.recipe}_effects.json"
    found = store.read_json(file)
    if not found:
        return ""
    columns = [c for c in next(iter(found["rows"].values())) if "," in c]
    done = f"{found['trials']} of {found['of']} trials are done"
    told = f"{found['updates']:,} updates each: {done}. From {html.escape(where(file))}."
    return _study_table(
        "what for what", found["effects"], columns,
        f"Differences in points, paired by seed [95 %], of smaller encoders with one part changed; {told}",
    ) + _study_table("variant", found["rows"], columns, f"Accuracy in % of each variant; {told}")  # fmt: skip


def _study_table(first: str, rows: Mapping[str, Any], columns: Sequence[str], caption: str) -> str:
    """A row each. Differences have what the paper found behind them."""
    papers = any("paper" in row for row in rows.values())
    heads = [first, "seeds", *columns, *(["the paper's"] if papers else [])]
    lines = []
    for name, row in rows.items():
        seeds = max((int(v.get("seeds", 0)) for v in row.values() if isinstance(v, dict)), default=0)
        scores = [_score(row.get(c), "+" if papers else "") for c in columns]
        cells = [str(seeds), *scores, *([html.escape(row.get("paper", ""))] if papers else [])]
        lines.append(
            f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        )
    head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in heads)
    return (
        f'<div class="scores"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def probe_columns(backbones: Sequence[Backbone]) -> list[str]:
    """What any stored probe has read, the first-named first."""
    rows = [content["rows"][0]["accuracy"] for b in backbones for _, content in files.probes(b)]
    return [*dict.fromkeys(column for row in rows for column in row)]


def so_what(backbones: Sequence[Backbone], column: str | None) -> str:
    """Probe score against the exam, for backbones that have both: a drawing, its table, and what may be said of it."""
    exams = files.exams()
    if not exams:
        return (
            '<p class="note">The exam\'s first table (benchmarks/results/first_table.json) is not here: an installed copy '
            "comes without it, a checkout has it.</p>"
        )
    found = files.points(backbones, column or "")
    if not found:
        known = [b.title for b in backbones if (b.weights[:8], "pretrained") in exams]
        return (
            f'<p class="note">Of the backbones here {", ".join(dict.fromkeys(known)) or "none"} sat the exam with '
            f"n = {files.EXAM_N}. None of them has been probed on this machine: probe NExT-Vid here, and its scores "
            "stand beside its exam.</p>"
        )
    tasks_ = [*dict.fromkeys(p.task for p in found)]
    trained = {p.name for p in found if p.init == "pretrained"}
    means = {
        (p.name, p.init): [(q.probe[0], q.exam[0]) for q in found if (q.name, q.init) == (p.name, p.init)]
        for p in found
    }
    averaged = [(rows[0][0], sum(y for _, y in rows) / len(rows)) for rows in means.values()]
    if len(trained) >= ENOUGH:
        rho, low, high = files.spearman(averaged)
        said = f"Rank correlation over {len(averaged)} encoders: {rho:.2f} [{low:.2f}, {high:.2f}] (bootstrap, mean over tasks)."
    else:
        said = (
            f"{len(trained)} pretrained backbone{'s have' if len(trained) > 1 else ' has'} both a probe score and the exam; "
            f"a correlation is not said before {ENOUGH} have."
        )
    others = dict.fromkeys(
        b.title for b in backbones if (b.weights[:8], "pretrained") in exams and b.title not in trained
    )
    if others:
        said += f" {' and '.join(others)} sat the exam too, but no probe has read them."
    encoders = {(p.name, p.init): p.probe for p in found}
    exam = {(p.name, p.init, p.task): p.exam for p in found}
    head = "".join(f'<th scope="col">{html.escape(task)}</th>' for task in tasks_)
    rows = ""
    for (name, init), score in encoders.items():
        cells = "".join(f"<td>{_triple(exam.get((name, init, task)))}</td>" for task in tasks_)
        kind = "pretrained" if init == "pretrained" else "never trained"
        rows += f'<tr><th scope="row">{html.escape(name)}, {kind}</th><td>{_triple(score)}</td>{cells}</tr>'
    return (
        f'<div class="sowhat">{scatter(found, tasks_, column or "")}<p class="note">{said}</p><div class="scores">'
        f"<table><caption>Exam: exact match in % with n = {files.EXAM_N}, from benchmarks/results/first_table.json. Probe: "
        f'read on this machine.</caption><thead><tr><th scope="col">encoder</th><th scope="col">probe: '
        f"{html.escape(column or '')}</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _triple(values: tuple[float, float, float] | None) -> str:
    return _score(dict(zip(("value", "low", "high"), values, strict=True)) if values else None)


def scatter(found: Sequence[files.Point], tasks_: Sequence[str], column: str) -> str:
    """The points as an SVG in the page's colours: a shape for a task, filled where pretrained, with both intervals."""
    left, top, side = 44, 12, 250
    middle, foot = top + side / 2, f"probe accuracy, % ({html.escape(column)})"

    def x(share: float) -> float:
        return left + side * min(1.0, max(0.0, share))

    def y(share: float) -> float:
        return top + side * (1 - min(1.0, max(0.0, share)))

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{left}" x2="{left + side}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>')
        parts.append(f'<text x="{x(tick):.1f}" y="{top + side + 16}" text-anchor="middle">{100 * tick:.0f}</text>')
    if guess := chance(column):
        parts.append(f'<line class="chance" x1="{x(guess):.1f}" x2="{x(guess):.1f}" y1="{top}" y2="{top + side}"/>')
        parts.append(f'<text x="{x(guess) + 4:.1f}" y="{top + 11}">chance</text>')
    for p in found:
        shape = SHAPES[tasks_.index(p.task) % len(SHAPES)]
        at = (x(p.probe[0]), y(p.exam[0]))
        parts.append(
            f'<line class="bar" x1="{x(p.probe[1]):.1f}" x2="{x(p.probe[2]):.1f}" y1="{at[1]:.1f}" y2="{at[1]:.1f}"/>'
        )
        parts.append(
            f'<line class="bar" x1="{at[0]:.1f}" x2="{at[0]:.1f}" y1="{y(p.exam[1]):.1f}" y2="{y(p.exam[2]):.1f}"/>'
        )
        parts.append(_mark(shape, *at, "full" if p.init == "pretrained" else "hollow"))
    parts.append(f'<text x="{left + side / 2}" y="{top + side + 34}" text-anchor="middle">{foot}</text>')
    parts.append(
        f'<text transform="rotate(-90 12 {middle})" x="12" y="{middle}" text-anchor="middle">exam, exact match in %</text>'
    )
    keys = "".join(
        f'<span><svg width="14" height="14" aria-hidden="true">{_mark(SHAPES[i % len(SHAPES)], 7, 7, "full")}</svg>'
        f"{html.escape(task)}</span>"
        for i, task in enumerate(tasks_)
    )
    return (
        f'<figure class="scatter"><svg viewBox="0 0 {left + side + 12} {top + side + 42}" role="img" '
        f'aria-label="Probe accuracy against exam; the table has the same numbers">{"".join(parts)}</svg>'
        f"<figcaption>{keys}<span>filled: pretrained, hollow: never trained</span></figcaption></figure>"
    )


def _mark(shape: str, x: float, y: float, kind: str) -> str:
    drawn = {
        "circle": f"M{x - 5:.1f} {y:.1f}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
        "square": f"M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9Z",
        "triangle": f"M{x:.1f} {y - 5.5:.1f}l5.5 10h-11Z",
        "diamond": f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6Z",
        "cross": f"M{x - 5:.1f} {y - 2:.1f}h3v-3h4v3h3v4h-3v3h-4v-3h-3Z",
    }
    return f'<path class="{kind}" d="{drawn[shape]}"/>'


# ---------------------------------------------------------------------------------------------------------------------
# What a browser asks for, checked


def share(value: Any, name: str, low: float = 0.02, high: float = 0.8) -> float:
    """A share in a range, to two places. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(f"{name}: give a share from {low:g} to {high:g}.")
    return round(float(value), 2)


def view_of(b: Backbone, clip: Any, seed: Any, first: Any, second: Any, hidden: Any, mask: Any) -> View:
    """The view that the controls ask for; what stands as it was learnt is left out. Raises UserError."""
    learnt = files.blocks_of(b)
    blocks = tuple(share(value, "Blocks") for value in (first, second)[: len(learnt)])
    other = blocks if blocks != tuple(round(s, 2) for _, s in learnt) else ()
    usual = files.hidden_of(b)
    part = share(hidden, "Hidden", 0.05, 0.95) if usual is not None else None
    masked = str(mask) if b.recipe == "lvmae" and mask in MASKS else ""
    return View(
        whole(clip, "Clip", 0, 10**6), whole(seed, "Seed", 0, 10**6), other,
        part if part is not None and abs(part - (usual or 0)) > 0.005 else None, masked if masked != "adaptive" else "",
    )  # fmt: skip


def budget_of(amount: Any, unit: Any) -> str:
    """ "30m" of 30 and "minutes". Raises UserError."""
    if unit not in UNITS:
        raise UserError("Budget: minutes, hours or updates.")
    most = {"minutes": 60 * 24 * 30, "hours": 24 * 30, "updates": 10**7}[unit]
    return f"{whole(amount, 'Budget', 1, most)}{UNITS[unit]}"


def new_folder(name: Any) -> Path:
    """A new backbone's folder under the runs. Raises UserError for a name that leads elsewhere."""
    text = str(name or "").strip()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise UserError("Name: letters, digits, dot, dash and underscore, up to 64 of them, such as nextvid-small-s1.")
    return store.runs_root() / "pretrain" / text


class Tab:
    """The tab's components and listeners."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        off = public.on()
        self.key, self.seen = gr.State(""), gr.State({})
        gr.HTML(f'<p class="note">{html.escape(HONESTY)}</p>')
        self.shelf = scrubber.Shelf(COLUMNS, elem_id="backbone-shelf")
        self.problem = gr.HTML(elem_id="backbone-problem")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                self.head = gr.HTML(elem_id="backbone-head", container=False)
                with gr.Accordion("Its card"):
                    self.card = gr.Markdown(elem_id="backbone-card", sanitize_html=True)
                self.number = gr.Dropdown([], label="Curve", elem_id="backbone-number", visible=False)
                self.curve = gr.LinePlot(
                    x="update", y="value", color="curve", height=250, elem_id="backbone-curve", visible=False,
                    color_map={"raw": "#c26a1455", "smoothed": "#c26a14"}, title="Pale: raw, strong: smoothed",
                )  # fmt: skip
                self.no_curve = gr.HTML(elem_id="no-curve", container=False)
            with gr.Column(scale=7, min_width=300, elem_id="look-inside"):
                gr.HTML('<h2 class="step">Look inside</h2>', container=False)
                with gr.Row(elem_classes=["look"]) as self.look_box:
                    self.clip = gr.Number(0, label="Clip", precision=0, minimum=0, min_width=90, elem_id="look-clip")
                    self.draw = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90, elem_id="look-seed")
                    self.mask = gr.Dropdown(
                        [*MASKS],
                        value="adaptive",
                        label="Decoded by",
                        visible=False,
                        min_width=130,
                        elem_id="look-mask",
                    )
                    self.ask = gr.Button("Draw it", elem_id="look-draw", interactive=not off, min_width=150)
                with gr.Row(elem_classes=["look"]):
                    self.first, self.second, self.hidden = (
                        gr.Slider(low, high, step=0.01, label=label, visible=False, min_width=220, elem_id=f"look-{name}")
                        for name, low, high, label in (
                            ("first", 0.02, 0.8, "Blocks"), ("second", 0.02, 0.8, "Blocks"), ("hidden", 0.05, 0.95, "Hidden"),
                        )
                    )  # fmt: skip
                self.looking = gr.HTML(elem_id="looking", container=False)
                self.films = scrubber.Scrubber(elem_id="films")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                gr.HTML('<h2 class="step">What a probe reads of it</h2>', container=False)
                with gr.Row(elem_classes=["look"]) as self.probe_box:
                    self.kind = gr.Dropdown(
                        [*KINDS.items()], value="both", label="Probes", min_width=210, elem_id="probe-kind"
                    )
                    self.labels = gr.Number(
                        250, label="Labelled clips", precision=0, minimum=20, elem_id="probe-labels"
                    )
                    self.seeds = gr.Number(
                        3, label="Probe seeds", precision=0, minimum=1, min_width=100, elem_id="probe-seeds"
                    )
                    self.probe = gr.Button("Probe it", elem_id="probe-start", interactive=not off, min_width=150)
                self.probing = gr.HTML(elem_id="probing", container=False)
                self.scores = gr.HTML(elem_id="probe-scores", container=False)
            with gr.Column(scale=1, min_width=300):
                gr.HTML('<h2 class="step">So what? Probe against exam</h2>', container=False)
                self.column = gr.Dropdown([], label="Probe score", elem_id="so-what-column", visible=False)
                self.so_what = gr.HTML(elem_id="so-what", container=False)
        with gr.Accordion("What each part of the recipe is good for", open=False, visible=False) as self.study_box:
            self.study = gr.HTML(container=False, elem_id="recipe-study")
        gr.HTML('<h2 class="step">Pretrain a new one</h2>', container=False)
        with gr.Row(elem_classes=["look"]):
            self.recipe = gr.Dropdown(
                [(r.title, name) for name, r in RECIPES.items()], value="nextvid", label="Recipe",
                elem_id="new-recipe",
            )  # fmt: skip
            self.size = gr.Dropdown(
                [*RECIPES["nextvid"].sizes], value="small", label="Size", min_width=100, elem_id="new-size"
            )
            self.amount = gr.Number(30, label="Budget", precision=0, minimum=1, min_width=90, elem_id="new-amount")
            self.unit = gr.Dropdown([*UNITS], value="minutes", label="Unit", min_width=100, elem_id="new-unit")
            self.new_seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80, elem_id="new-seed")
            self.new_name = gr.Textbox("nextvid-small-s0", label="Name", max_lines=1, min_width=150, elem_id="new-name")
        self.forecast = gr.HTML(elem_id="new-forecast", container=False)
        self.command = gr.Textbox(
            label="The same from a shell", lines=1, max_lines=3, interactive=False, buttons=["copy"],
            elem_classes=["command"], elem_id="new-command",
        )  # fmt: skip
        self.start = gr.Button(
            "Start pretraining (off on this public page)" if off else "Start pretraining", variant="primary",
            elem_id="new-start", interactive=not off,
        )  # fmt: skip
        self.new_problem = gr.HTML(elem_id="new-problem")

        self.controls = [self.clip, self.draw, self.first, self.second, self.hidden, self.mask]
        self.asked = [self.kind, self.labels, self.seeds]
        self.outputs = [
            self.key, self.seen, self.shelf, self.problem, self.head, self.card, self.number, self.curve, self.no_curve,
            *self.controls, self.ask, self.looking, self.films, self.probe, self.probing, self.scores, self.study_box,
            self.study, self.column, self.so_what, self.look_box, self.probe_box,
        ]  # fmt: skip
        self._listen()

    def _listen(self) -> None:
        state = [self.key, *self.controls, *self.asked, self.number, self.column]
        everything = {"inputs": [*state, self.seen], "outputs": self.outputs}
        self.shelf.pick(**quiet(self.pick), inputs=self.asked, outputs=self.outputs)
        for control in (*self.controls, *self.asked, self.number, self.column):
            said = control.release if isinstance(control, gr.Slider) else control.input
            said(**quiet(self.tick), **everything)
        self.ask.click(**quiet(self.ask_pictures), **everything)
        self.probe.click(**quiet(self.ask_probe), **everything)
        form = [self.recipe, self.size, self.amount, self.unit, self.new_seed]
        foreseen = [self.size, self.new_name, self.forecast, self.command, self.new_problem, self.start]
        for field in form:
            field.input(**quiet(self.foresee), inputs=form, outputs=foreseen)
        self.new_name.input(**quiet(self.named), inputs=[*form, self.new_name], outputs=foreseen)
        self.start.click(
            **quiet(self.pretrain), inputs=[*form, self.new_name], outputs=[*self.outputs, self.new_problem],
        )  # fmt: skip
        self.frame.opens("backbones", self.opened, [], self.outputs)
        self.frame.opens("backbones", self.foresee, form, foreseen)
        self.frame.clock("backbones").tick(**quiet(self.tick), **everything)

    # Choosing

    def opened(self) -> dict[Any, Any]:
        """The pretraining that runs, else the first that can be looked into."""
        backbones = files.found()
        running = [b for b in backbones if b.state in jobs.ACTIVE]
        first = (running or [b for b in backbones if b.recipe and RECIPES[b.recipe].shown] or backbones)[:1]
        return self.choose(first[0].key) if first else {self.head: '<p class="note">No backbone is here.</p>'}

    def pick(self, kind: Any, labels: Any, seeds: Any, event: gr.EventData) -> dict[Any, Any]:
        data = said(event)
        try:
            return self.choose(str(data.get("key")), kind, labels, seeds)
        except UserError as error:
            return {self.problem: problem(error)}

    def choose(self, key: str, *probing: Any) -> dict[Any, Any]:
        """Another backbone, with its masks as it learnt them. Raises UserError where it is gone."""
        b = files.by_key(key)
        blocks = [*files.blocks_of(b), (0, 0.15), (0, 0.15)][:2]
        hidden = files.hidden_of(b)
        sliders = [
            gr.update(value=value, visible=bool(n), label=f"{n} block{'s' * (n != 1)}, each covers")
            for n, value in blocks
        ]
        first = {
            self.clip: 0, self.draw: 0, self.first: sliders[0], self.second: sliders[1],
            self.hidden: gr.update(value=hidden or 0.5, visible=hidden is not None),
            self.mask: gr.update(value="adaptive", visible=b.recipe == "lvmae"),
            self.look_box: gr.update(visible=bool(b.recipe) and RECIPES[b.recipe].shown),
            self.probe_box: gr.update(visible=bool(b.recipe) and RECIPES[b.recipe].probed),
        }  # fmt: skip
        options = curve_choices(b)
        controls = (0, 0, blocks[0][1], blocks[1][1], hidden or 0.5, "adaptive")
        shown = self.tick(key, *controls, *(probing or ("both", 250, 3)), options[0][1] if options else None, None, {})
        return {**shown, **first}

    # Following

    def tick(self, key: str, *rest: Any) -> dict[Any, Any]:
        """Whatever has changed since it was shown last. `rest`: the controls, the probe's fields, curve, column, seen."""
        *controls, kind, labels, seeds, number, column, seen = rest
        seen = seen if isinstance(seen, dict) else {}
        backbones = files.found()
        b = next((b for b in backbones if b.key == key), backbones[0])
        metrics = tuple(f"{f}@{f.stat().st_size}" for f in files.metrics_files(b).values())
        readme = b.folder / "README.md"
        looked, asked = self._looked(b, controls), self._probed(b, kind, labels, seeds)
        probed = tuple((b.weights, str(f), f.stat().st_mtime_ns) for b in backbones for f, _ in files.probes(b))
        table = shelf(backbones, b.key)
        parts: dict[str, tuple[Any, Callable[[], dict[Any, Any]]]] = {
            "shelf": (table, lambda: {self.shelf: table, self.key: b.key}),
            "head": (headline(b), lambda: {self.head: headline(b), self.problem: ""}),
            "card": ((b.key, readme.is_file() and readme.stat().st_mtime_ns), lambda: {self.card: card(b)}),
            "curve": ((b.key, metrics, number), lambda: self._curve(b, number)),
            "look": (looked, lambda: looked[1]),
            "films": ((looked[0], b.key), lambda: self._films(b, controls)),
            "probe": (asked, lambda: asked),
            "scores": ((b.key, probed), lambda: self._scores(b)),
            "so what": ((probed, column), lambda: self._so_what(backbones, column)),
        }
        changed = {name: _plain(stamp) for name, (stamp, _) in parts.items()}
        shown: dict[Any, Any] = {}
        for name, (_, draw) in parts.items():
            if seen.get(name) != changed[name]:
                shown |= draw()
        return {**shown, self.seen: changed} if shown else {self.seen: gr.skip()}

    def _curve(self, b: Backbone, number: Any) -> dict[Any, Any]:
        options = curve_choices(b)
        known = [value for _, value in options]
        chosen = number if number in known else next(iter(known), None)
        table = curve(b, chosen)
        none = ""
        if not options and b.state in jobs.ACTIVE:
            none = "The curve begins with the first update."
        elif not options:
            none = "Its numbers update by update are not kept; how they ended is said above." if b.log else ""
        return {
            self.number: gr.update(choices=options, value=chosen, visible=len(options) > 1),
            self.curve: gr.update(value=table, visible=table is not None),
            self.no_curve: f'<p class="note">{none}</p>' if none else "",
        }

    # Pictures

    def _looked(self, b: Backbone, controls: Sequence[Any]) -> tuple[str, dict[Any, Any]]:
        """(what the films depend on, the button and the line above them)."""
        able = bool(b.recipe) and RECIPES[b.recipe].shown
        words, active, done, button = "", False, False, "Draw it"
        stamp = ""
        if not able:
            words = (
                "Pictures of masks and reconstructions come from NExT-Vid, InternVideo-Next, LVMAE and its tokenizer."
            )
        elif not b.whole:
            words = "There are no weights to look into yet: the first checkpoint writes them."
        else:
            try:
                view = view_of(b, *controls)
            except UserError as error:
                return str(error), {self.looking: problem(error), self.ask: gr.update(interactive=False)}
            folder = files.show_folder(b, view)
            status, done = jobs.status(folder), files.drawn(folder) is not None
            active = status.active
            usual = files.usual_seconds("show", b)
            button = f"Draw it · about {span(usual)}" if usual else "Draw it"
            stamp = f"{folder} {done} {status.state}"
            if active:
                words = "The backbone draws in a process of its own" + (
                    f"; about {span(usual)} in all." if usual else "."
                )
            elif status.state in ("failed", "lost") and not done:
                words = f"Drawing {status.state}: {public.clean(status.error)}"
            elif not done:
                words = f"Not drawn yet. {OFF}" if public.on() else "Not drawn yet with these settings."
                words += " Below is what was drawn last." if self._latest(b) else ""
        able = able and b.whole and not active and not done and not public.on()
        return stamp, {
            self.looking: f'<p class="note" role="status">{html.escape(words)}</p>' if words else "",
            self.ask: gr.update(value="Drawing …" if active else "Drawn" if done else button, interactive=able),
        }

    def _latest(self, b: Backbone) -> Path | None:
        """The folder of the pictures of these weights that were drawn last."""
        sheets = [*(store.runs_root() / "show" / b.weights[:8]).glob("*/sheet.json")] if b.weights else []
        newest = sorted(sheets, key=lambda f: -f.stat().st_mtime)
        return newest[0].parent if newest else None

    def _films(self, b: Backbone, controls: Sequence[Any]) -> dict[Any, Any]:
        """What was drawn with these settings, else what was drawn last."""
        folder = None
        if b.recipe and RECIPES[b.recipe].shown and b.whole:
            try:
                folder = files.show_folder(b, view_of(b, *controls))
            except UserError:
                return {}
        facts = files.drawn(folder) if folder else None
        if facts is None and (folder := self._latest(b) if b.whole else None):
            facts = files.drawn(folder)
        if facts is None or folder is None:
            return {self.films: None}
        try:
            view = folder.name.replace("-", ", ")
            note = (
                f"{view}, weights {b.weights[:8]} when asked. “Off by”: mean absolute difference from the clip's frame, of 255. "
                f"From {where(folder / 'sheet.json')}; a PNG and a moving WebP lie beside it."
            )
            return {self.films: scrubber.films(facts, b.title, note)}
        except UserError as error:
            return {self.films: None, self.problem: problem(error)}

    def ask_pictures(self, key: str, *rest: Any) -> dict[Any, Any]:
        try:
            public.refuse("Drawing")
            b = files.by_key(key)
            view = view_of(b, *rest[:6])
            if not b.recipe or not RECIPES[b.recipe].shown or not b.whole:
                raise UserError("This backbone has no pictures to draw.")
            folder = files.show_folder(b, view)
            files.start("show", files.show_command(b, view, folder), folder)
        except UserError as error:
            return {self.problem: problem(error)}
        return {**self.tick(key, *rest), self.problem: ""}

    # Probes

    def _probed(self, b: Backbone, kind: Any, labels: Any, seeds: Any) -> dict[Any, Any]:
        able = bool(b.recipe) and RECIPES[b.recipe].probed and b.whole
        button, words, active = "Probe it", "", False
        if able:
            try:
                folder = self._probe_folder(b, kind, labels, seeds)
            except UserError as error:
                return {self.probing: problem(error), self.probe: gr.update(interactive=False)}
            status = jobs.status(folder)
            active, usual = status.active, files.usual_seconds("probe", b)
            button = f"Probe it · about {span(usual)}" if usual else "Probe it"
            if active:
                words = "The probe works in a process of its own; you can leave this page."
            elif status.state in ("failed", "lost"):
                words = f"The probe {status.state}: {public.clean(status.error)}"
            elif (folder / "probe.json").is_file():
                button = "Probe it again"
            elif public.on():
                words = OFF
        return {
            self.probing: f'<p class="note" role="status">{html.escape(words)}</p>' if words else "",
            self.probe: gr.update(
                value="Probing …" if active else button, interactive=able and not active and not public.on()
            ),
        }

    def _probe_folder(self, b: Backbone, kind: Any, labels: Any, seeds: Any) -> Path:
        if kind not in KINDS.values():
            raise UserError("Probes: choose one of the kinds.")
        numbers = whole(labels, "Labelled clips", 20, 20_000), whole(seeds, "Probe seeds", 1, 20)
        return files.probe_folder(b, *numbers, kind)

    def ask_probe(self, key: str, *rest: Any) -> dict[Any, Any]:
        try:
            public.refuse("Probing")
            b = files.by_key(key)
            kind, labels, seeds = rest[6:9]
            folder = self._probe_folder(b, kind, labels, seeds)
            if not b.recipe or not RECIPES[b.recipe].probed or not b.whole:
                raise UserError("Probes read video encoders: NExT-Vid, InternVideo-Next and LVMAE.")
            files.start("probe", files.probe_command(b, int(labels), int(seeds), kind, folder), folder)
        except UserError as error:
            return {self.problem: problem(error)}
        return {**self.tick(key, *rest), self.problem: ""}

    def _scores(self, b: Backbone) -> dict[Any, Any]:
        told = study(b)
        return {self.scores: probe_table(b), self.study: told, self.study_box: gr.update(visible=bool(told))}

    def _so_what(self, backbones: Sequence[Backbone], column: Any) -> dict[Any, Any]:
        columns = probe_columns(backbones)
        usual = next((c for c in columns if c.startswith("motion")), next(iter(columns), None))
        chosen = column if column in columns else usual
        return {
            self.column: gr.update(choices=columns, value=chosen, visible=len(columns) > 1),
            self.so_what: so_what(backbones, chosen),
        }

    # A new one

    def foresee(self, recipe: Any, size: Any, amount: Any, unit: Any, seed: Any) -> dict[Any, Any]:
        sizes = RECIPES[recipe].sizes if recipe in RECIPES else ()
        size = size if size in sizes else (sizes or ("small",))[0]
        name = f"{recipe}-{size}-s{seed}" if isinstance(seed, int) else f"{recipe}-{size}"
        return {
            self.size: gr.update(choices=[*sizes], value=size), self.new_name: name,
            **self.named(recipe, size, amount, unit, seed, name),
        }  # fmt: skip

    def named(self, recipe: Any, size: Any, amount: Any, unit: Any, seed: Any, name: Any) -> dict[Any, Any]:
        try:
            words = self._words(recipe, size, amount, unit, seed, name)
        except UserError as error:
            return {self.new_problem: problem(error), self.start: gr.update(interactive=False)}
        return {
            self.command: shlex.join(["vdmreason", *words[:-1], shown_out(new_folder(name))]), self.new_problem: "",
            self.forecast: f'<p class="note">{html.escape(foretold(recipe, size, amount, unit, new_folder(name)))}</p>',
            self.start: gr.update(interactive=not public.on()),
        }  # fmt: skip

    def _words(self, recipe: Any, size: Any, amount: Any, unit: Any, seed: Any, name: Any) -> list[str]:
        budget = budget_of(amount, unit)
        return files.pretrain_command(
            str(recipe), str(size), budget, whole(seed, "Seed", 0, 2**31 - 1), new_folder(name)
        )

    def pretrain(self, recipe: Any, size: Any, amount: Any, unit: Any, seed: Any, name: Any) -> dict[Any, Any]:
        try:
            public.refuse("Pretraining")
            words, folder = self._words(recipe, size, amount, unit, seed, name), new_folder(name)
            files.start("pretrain", words, folder)
            return {self.new_problem: "", **self.choose(str(folder.relative_to(store.runs_root())))}
        except UserError as error:
            return {self.new_problem: problem(error)}


def shown_out(folder: Path) -> str:
    """A folder as a command names it; a public page does not say where it lies."""
    return f"runs/pretrain/{folder.name}" if public.on() else str(folder)


def foretold(recipe: str, size: str, amount: int, unit: str, folder: Path) -> str:
    """How long a pretraining will take, by the one that ships; what it needs; and whether the folder is a new one."""
    shipped = files.found()
    like = next((b for b in shipped if b.recipe == recipe and b.size == size and b.updates and b.minutes), None)
    said = []
    if like and like.minutes:
        pace = 60 * like.minutes / like.updates
        seconds = amount * {"minutes": 60, "hours": 3600}.get(unit, pace)
        how = f"{like.name} took {pace:.2f} s an update on {_machine(like.machine)}"
        said.append(f"About {span(seconds)}" if unit == "updates" else f"About {seconds / pace:,.0f} updates")
        said[-1] += f": {how}."
    elif unit == "updates":
        said.append("How long it takes is not known: none of this size was timed here.")
    if size in RECIPES[recipe].published:
        said.append("A published size: it needs a GPU and real video (--data), see docs/pretraining.md.")
    if (folder / "state.json").exists():
        said.append("That folder holds a pretraining already: with the same recipe and size it goes on from there.")
    return " ".join(said)


def _plain(value: Any) -> str:
    """A stamp as text, short enough to be kept in the browser's session."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
