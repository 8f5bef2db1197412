"""The Train tab: both arms adapted to the same n examples, as jobs with folders, followed live."""

from __future__ import annotations

import functools
import html
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import adapters
import tasks
from adapters.base import Flavour
from tasks.base import UserError
from tasks.render import STYLES, paint
from vdmreason import config, jobs, store
from vdmreason.config import Run
from vdmreason.ui import pictures, public
from vdmreason.ui.compare import SHELVES, problem, quiet
from vdmreason.ui.scenes import ARMS, millions

SIZES = [3, 10, 30, 100, 300, 1000]
CUSTOM = "custom"
SHOWN = 12  # samples in the preview
GUESS = 0.4  # seconds an update, where nothing of the kind has been timed on this machine
BYTES = (
    4.5  # GPU memory a parameter of a large backbone needs while its LoRA trains: bf16 weights and what goes with them
)
SEPARATE, TOGETHER = "one after the other", "both at once"


# ---------------------------------------------------------------------------------------------------------------------
# Backbones, and whether this machine can train them


@cache
def gpu_memory() -> float:
    """GiB of the largest GPU here, 0 where there is none. Asked of the driver, so that torch stays out of the page."""
    if not shutil.which("nvidia-smi"):
        return 0.0
    ask = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(ask, capture_output=True, text=True, timeout=10)
    sizes = [float(line) for line in answer.stdout.split() if line.replace(".", "").isdigit()]
    return max(sizes, default=0.0) / 1024


def backbones(arm: str) -> dict[str, Flavour]:
    """ "family/flavour" -> flavour, of all families of an arm; the one for tests only where a small one ships beside it."""
    found: dict[str, Flavour] = {}
    for name in adapters.families():
        flavours = adapters.family(name).FLAVOURS if adapters.family(name).ARM == arm else {}
        found |= {f"{name}/{key}": f for key, f in flavours.items() if key != "tiny" or "small" in flavours}
    return found


def obstacle(flavour: Flavour) -> str:
    """Why this machine cannot train a backbone, in words; "" if it can."""
    if not flavour.published:
        return ""
    need = flavour.parameters * BYTES / 2**30
    have = gpu_memory()
    if have >= need:
        return ""
    return f"needs a GPU with about {need:.0f} GB; this machine has " + (f"one with {have:.0f} GB" if have else "none")


def choices(arm: str) -> list[tuple[str, str]]:
    """The backbones that can be trained here, as (label, key); the shipped one first."""
    able = [(key, f) for key, f in backbones(arm).items() if not obstacle(f)]
    able.sort(key=lambda item: not item[0].endswith("/small"))
    several = len({key.partition("/")[0] for key, _ in able}) > 1  # then a backbone's name alone does not tell it
    return [(f"{_named(key, several)}: {f.about}" + _size(f), key) for key, f in able]


def _named(key: str, with_family: bool) -> str:
    """ "cogvideox/small" -> "small", or "cogvideox, small"."""
    family, _, flavour = key.partition("/")
    name = flavour.rpartition("/")[2]
    return f"{family}, {name}" if with_family else name


def _size(flavour: Flavour) -> str:
    return f" ({millions(flavour.parameters)})" if flavour.parameters else ""


def unable(arm: str) -> str:
    """The backbones that cannot be trained here, drawn as choices that are off, each with its reason."""
    off = '<label class="off"><input type="radio" disabled> {} <small>{}</small></label>'
    rows = [off.format(html.escape(f.name), html.escape(obstacle(f))) for f in backbones(arm).values() if obstacle(f)]
    return f'<div class="offs">{"".join(rows)}</div>' if rows else ""


# ---------------------------------------------------------------------------------------------------------------------
# From the form to runs


def plan(task: str, n: int, seed: int, arms: Sequence[str], keys: dict[str, str], updates: int, test: int) -> list[Run]:
    """One run an arm, equal in everything but the family and its flavour. Raises UserError for what cannot be."""
    if not arms:
        raise UserError("Choose at least one arm to train.")
    runs = []
    for arm in arms:
        family, _, flavour = keys[arm].partition("/")
        if reason := obstacle(backbones(arm)[keys[arm]]):
            raise UserError(f"{flavour} {reason}. Choose another backbone.")
        optim = {"updates": updates}
        every = max(1, updates // 4)
        given = {"task": task, "n": n, "seed": seed, "family": family, "flavour": flavour, "optim": optim, "test": test}
        runs.append(config.resolve({**given, "preview_every": every, "checkpoint_every": max(1, min(100, every))}))
    return runs


def folder_of(run: Run) -> Path:
    return store.runs_root() / run.name


def command(run: Run) -> str:
    """The command that trains this run, as one would type it."""
    return shlex.join(["accelerate", "launch", "-m", "vdmreason.train", *_arguments(run)])


def _arguments(run: Run) -> list[str]:
    return ["--config", str(folder_of(run) / "config.yaml"), "--folder", str(folder_of(run))]


def start(runs: Sequence[Run], together: bool) -> None:
    """Write each run's config and start its job: the shown command, then the answers to its test examples.

    The config is in the folder before the job waits its turn, so a later edit of the form does not reach it.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch", "-m", "vdmreason.train"]
    before: Path | None = None
    for run in runs:
        folder = folder_of(run).resolve()
        if jobs.status(folder).active:
            raise UserError(f"{run.name} is already running. Wait for it, or stop it first.")
        store.write_config(folder, run)
        train = shlex.join([*launch, "--config", str(folder / "config.yaml"), "--folder", str(folder)])
        answer = shlex.join([sys.executable, "-m", "vdmreason", "predict", str(folder)])
        finished = shlex.join(["test", "-d", str(folder / "adapter")])  # a stopped run has no adapter to answer with
        jobs.start("train", ["sh", "-c", f"{train} && {finished} && {answer}"], folder, None if together else before)
        before = folder


def sample_hash(run: Run) -> str:
    """The hash of the training examples, in order: the same for both arms."""
    return store.data_hash(tasks.examples(run.task, "train", run.n, run.seed))


def forecast(runs: Sequence[Run]) -> str:
    """How long the training will take, and what that is based on."""
    parts, total = [], 0.0
    for run in runs:
        pace = timed(run)
        seconds = (pace or GUESS) * run.optim.updates
        total += seconds
        basis = f"{pace:.2f} s an update here before" if pace else "a guess: not timed here yet"
        parts.append(f"{run.family} about {_time(seconds)} ({basis})")
    return f"Predicted: {'; '.join(parts)}." + (f" In all {_time(total)}." if len(runs) > 1 else "")


def timed(run: Run) -> float | None:
    """Seconds an update of earlier runs like this one: same backbone, batch and task if there are any, else same backbone."""
    same: list[float] = []
    near: list[float] = []
    for folder in store.find_runs(store.runs_root())[:200]:
        try:
            other = store.read_config(folder)
            if (other.family, other.flavour, other.optim.batch) != (run.family, run.flavour, run.optim.batch):
                continue
            seconds = [line["seconds"] for line in store.read_lines(folder / "metrics.jsonl")[-50:]]
        except (UserError, KeyError):
            continue
        if seconds:
            (same if other.task == run.task else near).append(statistics.median(seconds))
    found = same or near
    return statistics.median(found) if found else None


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def samples(runs: Sequence[Run]) -> str:
    """The training examples as each arm sees them: the clip, and the text."""
    first = runs[0]
    examples = tasks.examples(first.task, "train", first.n, first.seed)
    figures = []
    for i, example in enumerate(examples[:SHOWN]):
        parts = []
        for run in runs:
            family = adapters.family(run.family)
            sample = family.frame(example, run.arm_options())
            if family.ARM == "video":
                alt = f"Example {i + 1} as the video arm sees it: a clip of {len(sample.wanted)} frames"
                parts.append(f'<img src="{pictures.moving(sample.wanted)}" alt="{alt}">')
            else:
                given, wanted = _short(sample.given), _short(sample.wanted)
                parts.append(f'<pre tabindex="0" aria-label="Example {i + 1} as the language arm sees it">{given}\n'
                             f'<span class="wanted">{wanted}</span></pre>')  # fmt: skip
        figures.append(f"<figure>{''.join(parts)}</figure>")
    more = f", {SHOWN} shown" if first.n > SHOWN else ""
    code = f"<code>{sample_hash(first)[:12]}</code>"
    head = f"{first.n} training examples{more}, the same for every arm and in the same order: {code}"
    return f'<p class="samples-head">{head}</p><div class="samples">{"".join(figures)}</div>'


def _short(value: Any, most: int = 600) -> str:
    """What the language arm is given or hopes for, as text of a bearable length."""
    text = str(value)
    return html.escape(text if len(text) <= most else text[:most] + " …")


# ---------------------------------------------------------------------------------------------------------------------
# Following


def trained() -> dict[str, list[Path]]:
    """Runs that belong together, newest first: "maze/7x7 · n 30 · seed 0" -> the folders of its arms."""
    groups: dict[str, list[tuple[float, Path]]] = {}
    for folder in store.find_runs(store.runs_root()):
        if not (folder / "state.json").exists():
            continue
        try:
            run = store.read_config(folder)
        except UserError:
            continue
        key = f"{run.task} · n {run.n} · seed {run.seed} · {run.optim.updates} updates"
        stamp = (folder / "state.json").stat().st_mtime
        groups.setdefault(key, []).append((stamp, folder))
    ordered = sorted(groups.items(), key=lambda item: -max(stamp for stamp, _ in item[1]))
    return {key: [folder for _, folder in sorted(pairs, key=lambda p: -p[0])][:4] for key, pairs in ordered}


def name_of(folder: Path) -> str:
    """A run's short name in a legend: "video small", or "video tiny random"."""
    run = store.read_config(folder)
    control = " random" if run.init == "random" else ""
    return f"{adapters.family(run.family).ARM} {run.flavour.rpartition('/')[2]}{control}"


def curves(folders: Sequence[Path]) -> tuple[Any, Any]:
    """Two tables for the plots, or None where there is nothing yet: loss (raw and smoothed), exact match on previews."""
    import pandas as pd

    loss, exact = [], []
    for folder in folders:
        lines, name = store.read_lines(folder / "metrics.jsonl"), name_of(folder)
        steps = [line["step"] for line in lines]
        values = [line["loss"] for line in lines]
        for series, ys in ((f"{name} raw", values), (f"{name}", smooth(values))):
            loss += [(s, y, series) for s, y in thin(steps, ys)]
        exact += [(line["step"], 100 * line["preview_exact"], name) for line in lines if "preview_exact" in line]
    tables = [
        pd.DataFrame(rows, columns=["update", y, "run"]) if rows else None
        for rows, y in ((loss, "loss"), (exact, "exact match, %"))
    ]
    return tables[0], tables[1]


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """An exponential mean that neither leads nor lags: the mean of one run forwards and one run backwards."""

    def one_way(ys: Sequence[float]) -> list[float]:
        smoothed, mean = [], 0.0
        for i, y in enumerate(ys, start=1):
            mean = weight * mean + (1 - weight) * y
            smoothed.append(mean / (1 - weight**i))  # without the pull towards 0 at the start, as in Adam
        return smoothed

    backwards = one_way(values[::-1])[::-1]
    return [(a + b) / 2 for a, b in zip(one_way(values), backwards, strict=True)]


def thin(xs: Sequence[float], ys: Sequence[float], most: int = 300) -> list[tuple[float, float]]:
    """At most about `most` points of a curve, first and last among them."""
    stride = max(1, len(xs) // most)
    kept = [*range(0, len(xs), stride)]
    if xs and kept[-1] != len(xs) - 1:
        kept.append(len(xs) - 1)
    return [(xs[i], ys[i]) for i in kept]


def previews(folders: Sequence[Path]) -> str:
    """The fixed preview examples: the truth, then each stage of training, one row an example and arm. A clip is
    shown as it moves."""
    rows = []
    for folder in folders:
        steps = sorted((folder / "previews").glob("step-*"))[-5:]
        if not steps:
            continue
        by_step = {step: store.read_lines(step / "predictions.jsonl") for step in steps}
        first = next(iter(by_step.values()))
        for k, record in enumerate(first[:3]):
            cells = [_thumb(record["question"], "input"), _thumb(record["answer"], "truth")]
            for step, records in by_step.items():
                if k < len(records):
                    mark = "✓" if records[k]["right"] else "✗"
                    caption = f"{mark} {int(step.name.removeprefix('step-'))}"
                    drawn = step / str(records[k]["raw"])
                    if drawn.suffix == ".webp" and drawn.is_file():
                        cells.append(_figure(_moving(drawn, drawn.stat().st_mtime_ns), caption))
                    else:
                        cells.append(_thumb(records[k]["proposed"], caption))
            name = f'<span class="preview-arm">{html.escape(name_of(folder))}</span>'
            rows.append(f'<div class="preview-row">{name}{"".join(cells)}</div>')
    return "".join(rows)


def _thumb(grid: Any, caption: str) -> str:
    if grid is None:
        return f'<figure class="thumb"><div class="unread">no grid</div><figcaption>{caption}</figcaption></figure>'
    cells = np.asarray(grid, np.int8)
    return _figure(pictures.webp(paint(cells, STYLES["video-8"], (cells.shape[0], cells.shape[1]))), caption)


def _figure(address: str, caption: str) -> str:
    image = f'<img src="{address}" alt="{caption}">'
    return f'<figure class="thumb">{image}<figcaption>{caption}</figcaption></figure>'


@functools.lru_cache(maxsize=128)
def _moving(path: Path, written: int) -> str:
    """A stored clip for the page, made once for every time it was written (ns)."""
    return pictures.moving(store.read_clip(path))


def progress(folders: Sequence[Path]) -> str:
    """One line a run: state, step, time left, the last loss; what went wrong, in words."""
    lines = []
    for folder in folders:
        status = jobs.status(folder)
        parts = [f"<b>{html.escape(name_of(folder))}</b>", status.state or "not started"]
        if status.updates:
            parts.append(f"update {status.step} of {status.updates}")
        if status.active and status.eta:
            parts.append(f"{_time(status.eta)} left")
        if status.state == "done":
            answers, wanted = len(store.read_lines(folder / "predictions.jsonl")), _tests(folder)
            parts.append(
                "answers are in Compare" if answers >= wanted else f"answering its tests, {answers} of {wanted}"
            )
        if status.error:
            parts.append(html.escape(status.error))
        lines.append(f'<p class="progress-line" data-state="{status.state}">{" · ".join(parts)}</p>')
    return "".join(lines)


def _tests(folder: Path) -> int:
    run = store.read_config(folder)
    return min(run.test, tasks.count(run.tested, "test") or run.test)


def act(folder: Path, how: str) -> None:
    """What a job's buttons do. "stop" saves and ends after the step; "kill" ends at once; "resume" goes on."""
    public.refuse("Stopping and resuming")
    if not folder.resolve().is_relative_to(store.runs_root().resolve()):
        raise UserError("That is no run of this page.")
    if how == "stop":
        jobs.request_stop(folder)
    elif how == "kill":  # the page does not wait for the process to go
        threading.Thread(target=jobs.stop, args=(folder, 1.0), daemon=True).start()
    elif how == "resume":
        jobs.resume(folder)


# ---------------------------------------------------------------------------------------------------------------------
# The tab

COLOURS = {"video": "#c26a14", "language": "#2a7ab0"}


def colour_map(folders: Sequence[Path]) -> dict[str, str]:
    """A colour for every curve: the arm's own; raw values pale, so that the smoothed curve lies on top of them."""
    colours: dict[str, str] = {}
    for folder in folders:
        name = name_of(folder)
        strong = COLOURS[name.partition(" ")[0]]
        colours |= {name: strong, f"{name} raw": strong + "55"}
    return colours


class Tab:
    """The tab's components and listeners. The page calls `opened` when it loads and `tick` once a second."""

    def __init__(self) -> None:
        self.seen = gr.State("")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280):
                gr.HTML('<h2 class="step">1 · What they learn</h2>')
                with gr.Row():
                    self.family = gr.Dropdown(
                        [*SHELVES.items()], value="maze", label="Family", min_width=120, elem_id="train-family"
                    )
                    self.task = gr.Dropdown(
                        tasks.variants("maze"), value=tasks.variants("maze")[0], label="Task", allow_custom_value=True,
                        min_width=140, elem_id="train-task",
                    )  # fmt: skip
                self.n = gr.Radio([*SIZES, CUSTOM], value=30, label="Training examples n", elem_id="train-n")
                with gr.Row():
                    self.custom = gr.Number(
                        30,
                        label="n, custom",
                        precision=0,
                        minimum=1,
                        visible=False,
                        min_width=90,
                        elem_id="train-custom-n",
                    )
                    self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90, elem_id="train-seed")
                    self.test = gr.Number(
                        100, label="Test examples", precision=0, minimum=1, min_width=90, elem_id="train-test"
                    )
                    self.updates = gr.Number(
                        300, label="Updates", precision=0, minimum=1, min_width=90, elem_id="train-updates"
                    )
                self.arms = gr.CheckboxGroup(
                    [("Video", "video"), ("Language", "language")], value=[*ARMS], label="Arms", elem_id="train-arms"
                )
                self.order = gr.Radio([SEPARATE, TOGETHER], value=SEPARATE, label="Start them", elem_id="train-order")
            with gr.Column(scale=1, min_width=280):
                gr.HTML('<h2 class="step">2 · Who learns it</h2>')
                self.backbones = {}
                for arm in ARMS:
                    options = choices(arm)
                    self.backbones[arm] = gr.Radio(
                        options, value=options[0][1] if options else None, label=f"{arm.capitalize()} backbone",
                        elem_id=f"train-{arm}", elem_classes=["backbones"],
                    )  # fmt: skip
                    if off := unable(arm):
                        gr.HTML(off)
        self.forecast = gr.HTML(elem_id="forecast")
        self.command = gr.Textbox(
            label="The same from a shell", lines=2, max_lines=4, interactive=False, buttons=["copy"],
            elem_classes=["command"], elem_id="train-command",
        )  # fmt: skip
        with gr.Row():
            self.start = gr.Button("Start training", variant="primary", elem_id="start-training", scale=2)
            self.look = gr.Button("Show the training examples", elem_id="show-samples", scale=1)
        self.problem = gr.HTML(elem_id="train-problem")
        self.samples = gr.HTML(elem_id="samples")
        gr.HTML('<h2 class="step">3 · Live</h2>')
        self.watched = gr.Dropdown(
            [], label="Runs", elem_id="watched", info="a reload, another browser and the command line see the same runs"
        )
        self.progress = gr.HTML(elem_id="progress")
        with gr.Row():
            self.loss = gr.LinePlot(
                x="update",
                y="loss",
                color="run",
                title="Loss (pale: raw, strong: smoothed)",
                height=260,
                elem_id="loss",
            )
            self.exact = gr.LinePlot(x="update", y="exact match, %", color="run", y_lim=[0, 100],
                                     title="Exact match on the previews",
                                     height=260, elem_id="exact")  # fmt: skip
        with gr.Row():
            self.stop = gr.Button("Stop and save", size="sm", elem_id="stop-save")
            self.kill = gr.Button("Stop now", size="sm", variant="stop", elem_id="stop-now")
            self.resume = gr.Button("Resume", size="sm", elem_id="resume")
        self.previews = gr.HTML(elem_id="previews")
        with gr.Accordion("Log", open=False):
            self.log = gr.Textbox(
                label="Last lines",
                lines=10,
                max_lines=14,
                interactive=False,
                elem_classes=["log"],
                elem_id="log",
                autoscroll=True,
            )
        self.live = [
            self.progress,
            self.loss,
            self.exact,
            self.stop,
            self.kill,
            self.resume,
            self.previews,
            self.log,
            self.seen,
        ]
        self._listen()

    def _listen(self) -> None:
        form = [self.task, self.n, self.custom, self.seed, self.test, self.arms, *self.backbones.values(), self.updates]
        self.form = form
        self.foreseen = [self.forecast, self.command, self.start, self.problem, self.custom]
        foresee = {**quiet(self.foresee), "inputs": form, "outputs": self.foreseen}
        self.family.input(**quiet(self._shelf), inputs=self.family, outputs=self.task)
        for component in form:
            component.change(**foresee)
        self.look.click(**quiet(self._look), inputs=form, outputs=[self.samples, self.problem])
        self.start.click(
            **quiet(self._start), inputs=[*form, self.order], outputs=[self.problem, self.watched, *self.live]
        )
        self.watched.input(**quiet(self.follow), inputs=[self.watched], outputs=self.live)
        for button, how in ((self.stop, "stop"), (self.kill, "kill"), (self.resume, "resume")):
            button.click(**quiet(self._acting(how)), inputs=[self.watched], outputs=[self.problem])

    def _shelf(self, shelf: str) -> Any:
        names = tasks.variants(shelf)
        return gr.update(choices=names, value=names[0])

    def _runs(
        self,
        task: str,
        n: Any,
        custom: Any,
        seed: Any,
        test: Any,
        arms: list[str],
        video: str,
        language: str,
        updates: Any,
    ) -> list[Run]:
        task = tasks.get((task or "").strip()).name
        wanted = int(custom or 0) if n == CUSTOM else int(n)
        finite = tasks.count(task, "train")
        if finite is not None:  # an ARC puzzle has its demonstrations and no more
            wanted = min(wanted, finite)
        ordered = [arm for arm in ARMS if arm in arms]
        keys = {"video": video, "language": language}
        return plan(task, wanted, int(seed or 0), ordered, keys, int(updates or 0), int(test or 0))

    def foresee(self, *form: Any) -> dict[Any, Any]:
        custom = gr.update(visible=form[1] == CUSTOM)
        try:
            runs = self._runs(*form)
        except UserError as error:
            return {self.problem: problem(error), self.start: gr.update(interactive=False), self.custom: custom}
        note = f"{forecast(runs)} Examples <code>{sample_hash(runs[0])[:12]}</code>, n {runs[0].n}."
        return {
            self.forecast: f'<p class="note">{note}</p>', self.command: "\n".join(command(run) for run in runs),
            self.start: gr.update(interactive=True), self.problem: "", self.custom: custom,
        }  # fmt: skip

    def _look(self, *form: Any) -> dict[Any, Any]:
        try:
            return {self.samples: samples(self._runs(*form)), self.problem: ""}
        except UserError as error:
            return {self.problem: problem(error)}

    def _start(self, *form: Any) -> dict[Any, Any]:
        *fields, order = form
        try:
            public.refuse("Training")
            runs = self._runs(*fields)
            start(runs, together=order == TOGETHER)
        except UserError as error:
            return {self.problem: problem(error)}
        groups = trained()
        key = next(
            key for key, folders in groups.items() if folder_of(runs[0]).resolve() in [f.resolve() for f in folders]
        )
        watched = gr.update(choices=[*groups], value=key, visible=True)
        return {self.problem: "", self.watched: watched, **self.follow(key)}

    def _acting(self, how: str) -> Any:
        def listener(key: str) -> dict[Any, Any]:
            try:
                for folder in trained().get(key, []):
                    status = jobs.status(folder)
                    if status.active if how in ("stop", "kill") else status.state in ("stopped", "lost", "failed"):
                        act(folder, how)
            except UserError as error:
                return {self.problem: problem(error)}
            return {self.problem: ""}

        return listener

    def opened(self) -> dict[Any, Any]:
        """The newest runs, so that a reload finds what was going on."""
        groups = trained()
        key = next(iter(groups), None)
        return {self.watched: gr.update(choices=[*groups], value=key, visible=bool(groups)), **self.follow(key)}

    def follow(self, key: str | None) -> dict[Any, Any]:
        """Everything that is shown of the watched runs."""
        folders = trained().get(key or "", [])
        loss, exact = curves(folders)
        colours = colour_map(folders)
        states = [jobs.status(folder) for folder in folders]
        active = any(status.active for status in states)
        logs = [f"{name_of(folder)}\n{jobs.log_tail(folder, 15)}" for folder in folders]
        return {
            self.progress: progress(folders)
            or '<p class="note">No training yet. Choose a task above and start one.</p>',
            self.loss: gr.update(value=loss, color_map=colours, visible=loss is not None),
            self.exact: gr.update(value=exact, color_map=colours, visible=exact is not None),
            self.stop: gr.update(visible=active),
            self.kill: gr.update(visible=active),
            self.resume: gr.update(visible=any(s.state in ("stopped", "lost", "failed") for s in states)),
            self.previews: previews(folders),
            self.log: "\n\n".join(logs),
            self.seen: self.stamp(key, folders),
        }

    def stamp(self, key: str | None, folders: Sequence[Path]) -> str:
        """Changes when there is something new to show."""
        names = ("state.json", "metrics.jsonl", "predictions.jsonl", jobs.LOG, jobs.STOP)
        files = [folder / name for folder in folders for name in names]
        sizes = [f"{os.path.getsize(f)}@{os.path.getmtime(f)}" if f.exists() else "-" for f in files]
        return f"{key} {' '.join(sizes)} {[jobs.status(folder).state for folder in folders]}"

    def tick(self, key: str | None, seen: str) -> dict[Any, Any]:
        folders = trained().get(key or "", [])
        if self.stamp(key, folders) == seen:
            return {self.seen: seen}
        return self.follow(key)
