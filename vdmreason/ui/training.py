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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

import adapters
import tasks
from adapters.base import Flavour
from tasks.base import UserError
from vdmreason import config, jobs, store
from vdmreason.config import Run
from vdmreason.ui import failures, inputs, needs, pictures, public, run_yaml
from vdmreason.ui.compare import SHELVES, problem, quiet, shelf_of
from vdmreason.ui.inputs import one_of, text, whole_number
from vdmreason.ui.scenes import ARMS, millions

SIZES = [3, 10, 30, 100, 300, 1000]
CUSTOM = "custom"
SHOWN = 12  # samples in the preview
GUESS = 0.4  # seconds an update, where nothing of the kind has been timed on this machine
BYTES = (
    4.5  # GPU memory a parameter of a large backbone needs while its LoRA trains: bf16 weights and what goes with them
)
SEPARATE, TOGETHER = "one after the other", "both at once"
SIMPLE, YAML = "simple", "YAML"  # two ways to write the same runs
NEWEST = ""  # the checkpoint that a run goes on from when none is chosen


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
    return f"needs a GPU with about {need:.0f} GiB; this machine has " + (
        f"one with {have:.0f} GiB" if have else "none"
    )


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


def plan(
    task: str,
    n: int,
    seed: int,
    arms: Sequence[str],
    keys: Mapping[str, str],
    updates: int,
    test: int,
    beyond: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Run]:
    """One run an arm, equal in everything but the family and its flavour, and what `beyond` says of an arm: settings that the
    form has no field for, as a tree. Raises UserError for what cannot be."""
    if not arms:
        raise UserError("Choose at least one arm to train.")
    runs = []
    for arm in arms:
        family, _, flavour = keys[arm].partition("/")
        if keys[arm] not in backbones(arm):
            raise UserError(f"Choose a {arm} backbone.")
        if reason := obstacle(backbones(arm)[keys[arm]]):
            raise UserError(f"{flavour} {reason}. Choose another backbone.")
        optim = {"updates": updates}
        every = max(1, updates // 4)
        given = {"task": task, "n": n, "seed": seed, "family": family, "flavour": flavour, "optim": optim, "test": test}
        given |= {"preview_every": every, "checkpoint_every": max(1, min(100, every))}
        runs.append(run_yaml.bounded(config.resolve(config.merge(given, (beyond or {}).get(arm, {})))))
    return runs


def refuse_what_cannot_run(runs: Sequence[Run]) -> None:
    """Raises UserError for a backbone that this machine cannot train."""
    for run in runs:
        if reason := obstacle(config.flavour_of(run)):
            raise UserError(f"{run.flavour} {reason}. Choose another flavour.")


@dataclass(frozen=True)
class Form:
    """What the form's fields say of some runs, and `beyond`: arm -> what they have no field for."""

    task: str
    n: int
    seed: int
    test: int
    updates: int
    arms: list[str]
    keys: dict[str, str]
    beyond: dict[str, dict[str, Any]]


def as_form(runs: Sequence[Run]) -> Form:
    """The form that gives these runs. Raises UserError where it has no room for them."""
    arms = [adapters.family(run.family).ARM for run in runs]
    if len(set(arms)) < len(arms):
        raise UserError("The form holds one run an arm, the YAML has more. Stay with YAML, or take some out.")
    told = [{"task": r.task, "n": r.n, "seed": r.seed, "test": r.test, "optim.updates": r.optim.updates} for r in runs]
    for key, value in told[0].items():
        if any(other[key] != value for other in told):
            values = " and ".join(str(other[key]) for other in told)
            raise UserError(
                f"{key}: the form holds one for all arms, the YAML has {values}. Make them equal, or stay with YAML."
            )
    keys = {arm: f"{run.family}/{run.flavour}" for arm, run in zip(arms, runs, strict=True)}
    for arm, key in keys.items():
        if key not in backbones(arm):
            raise UserError(f"flavour: the form does not list {key}. Stay with YAML, or choose one that it lists.")
    first = runs[0]
    ordered = [arm for arm in ARMS if arm in arms]
    plain = plan(first.task, first.n, first.seed, ordered, keys, first.optim.updates, first.test)
    by_arm = dict(zip(arms, runs, strict=True))
    beyond = {arm: run_yaml.beyond(by_arm[arm], run) for arm, run in zip(ordered, plain, strict=True)}
    beyond = {arm: tree for arm, tree in beyond.items() if tree}
    return Form(first.task, first.n, first.seed, first.test, first.optim.updates, ordered, keys, beyond)


def folder_of(run: Run) -> Path:
    return store.runs_root() / run.name


def command(run: Run) -> str:
    """The command that trains this run, as one would type it."""
    return shlex.join(["accelerate", "launch", "-m", "vdmreason.train", *_arguments(run)])


def script(run: Run) -> str:
    """What to paste into a shell: the command, after its config where that is not written yet. In public it is for the
    stranger's own machine, and names no folder of this one."""
    file = folder_of(run) / "config.yaml"
    if file.is_file() and not public.on():
        return command(run)
    folder = shlex.quote(str(file.parent))
    whole = f"mkdir -p {folder} && cat > {folder}/config.yaml <<'EOF'\n{config.to_yaml(run)}EOF\n{command(run)}"
    return whole.replace(f"{store.runs_root()}{os.sep}", "runs/") if public.on() else whole


def _arguments(run: Run) -> list[str]:
    return ["--config", str(folder_of(run) / "config.yaml"), "--folder", str(folder_of(run))]


def launcher() -> list[str]:
    """accelerate's, where there is a device that it might start a process on: it loads torch for itself first, and on a CPU it
    starts one process only."""
    devices = [found for kind in ("nvidia[0-9]*", "kfd", "accel*") for found in Path("/dev").glob(kind)]
    return [sys.executable, *(["-m", "accelerate.commands.launch"] if devices else [])]


def start(runs: Sequence[Run], together: bool) -> None:
    """Write each run's config and start its job: the shown command, then the answers to its test examples.

    The config is in the folder before the job waits its turn, so a later edit of the form does not reach it.
    """
    launch = [*launcher(), "-m", "vdmreason.train", "--answer"]
    before: Path | None = None
    for run in runs:  # all of them before anything is written
        jobs.refuse_active(folder_of(run).resolve())
        sample_hash(run)  # a task that has fewer examples says so here
    for run in runs:
        folder = folder_of(run).resolve()
        store.write_config(folder, run)
        train = shlex.join([*launch, "--config", str(folder / "config.yaml"), "--folder", str(folder)])
        # for what many processes leave unanswered; else it finds nothing to do, and loads nothing
        answer = shlex.join([sys.executable, "-m", "vdmreason", "predict", str(folder)])
        finished = shlex.join(["test", "-d", str(folder / "adapter")])  # a stopped run has no adapter to answer with
        jobs.start("train", ["sh", "-c", f"{train} && {finished} && {answer}"], folder, None if together else before)
        before = folder


def sample_hash(run: Run) -> str:
    """The hash of the training examples, in order: the same for both arms."""
    return store.data_hash(tasks.examples(run.task, "train", run.n, run.seed))


def forecast(runs: Sequence[Run]) -> str:
    """How long training and answers will take, and what that is based on."""
    parts, total, counted = [], 0.0, True
    for run in runs:
        pace = timed(run)
        seconds = (pace.update if pace else GUESS) * run.optim.updates
        basis = f"{pace.update:.2f} s an update here before" if pace else "a guess: not timed here yet"
        part = f"{run.family} about {span(seconds)} ({basis})"
        if pace and pace.answer:
            answers = pace.answer * run.test
            part += f" and {span(answers)} for its {run.test} answers"
            seconds += answers
        else:
            counted = False
        parts.append(part)
        total += seconds
    whole = f" In all {span(total)}" + ("." if counted else ", answers not counted.")
    return f"Predicted: {'; '.join(parts)}." + (whole if len(runs) > 1 or not counted else "")


@dataclass(frozen=True)
class Pace:
    """Seconds of a run here: an update's, and an answer's where one was counted."""

    update: float
    answer: float | None = None


def timed(run: Run) -> Pace | None:
    """The pace of earlier runs like this one: same backbone, batch and task if there are any, else same backbone."""
    updates: dict[bool, list[float]] = {True: [], False: []}  # whether of the same task
    answers: dict[bool, list[float]] = {True: [], False: []}
    for folder in store.find_runs(store.runs_root())[:200]:
        try:
            other = store.read_config(folder)
            if (other.family, other.flavour, other.optim.batch) != (run.family, run.flavour, run.optim.batch):
                continue
            seconds = [line["seconds"] for line in store.read_lines(folder / "metrics.jsonl")[-50:]]
            answer = (store.read_json(folder / "result.json") or {}).get("seconds_per_answer")
        except (UserError, KeyError):
            continue
        same = other.task == run.task
        if seconds:
            updates[same].append(statistics.median(seconds))
        if answer:
            answers[same].append(answer)
    update, spoken = updates[True] or updates[False], answers[True] or answers[False]
    return Pace(statistics.median(update), statistics.median(spoken) if spoken else None) if update else None


def foretold(runs: Sequence[tuple[str, Run]]) -> str:
    """Memory and disk of runs that are called so, as far as they are known."""
    rows = []
    for name, run in runs:
        found = needs.known(needs.key(run))
        said = needs.words(found) if found else "memory and disk: being looked at …"
        short = bool(found and (found.get("problem") or found.get("error")))
        mark = ' class="short"' if short else ""
        rows.append(f"<li{mark}>{html.escape(name)}: {html.escape(said)}</li>")
    return f'<ul class="note needs">{"".join(rows)}</ul>' if rows else ""


def span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def samples(runs: Sequence[Run]) -> str:
    """The training examples as each arm sees them: the clip, and the text."""
    first = runs[0]
    examples = tasks.examples(first.task, "train", first.n, first.seed)
    alike = [run for run in runs if sample_hash(run) == sample_hash(first)]
    others = len(runs) - len(alike)
    figures = []
    for i, example in enumerate(examples[:SHOWN]):
        parts = []
        for run in alike:
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
    shared = "the same for every arm and in the same order" if not others else (
        f"of {html.escape(first.family)}; {others} of the runs learn from <b>others</b>"
    )  # fmt: skip
    head = f"{first.n} training examples{more}, {shared}: {code}"
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
        stamp = store.read_state(folder).get("beat") or 0.0  # and not its file's time, which a job that waits renews
        groups.setdefault(key, []).append((stamp, folder))
    ordered = sorted(groups.items(), key=lambda item: -max(stamp for stamp, _ in item[1]))
    return {key: [folder for _, folder in sorted(pairs, key=lambda p: -p[0])][:4] for key, pairs in ordered}


def name_of(folder: Path) -> str:
    """A run's short name in a legend: "video small", or "video tiny random"."""
    run = store.read_config(folder)
    control = " random" if run.init == "random" else ""
    return f"{adapters.family(run.family).ARM} {run.flavour.rpartition('/')[2]}{control}"


def names_of(folders: Sequence[Path]) -> list[str]:
    """Short names that tell the runs apart: with the beginning of their ids where the arms alone do not."""
    names = [name_of(folder) for folder in folders]
    return [
        f"{name} {store.read_config(folder).id[:4]}" if names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]


def curves(folders: Sequence[Path]) -> tuple[Any, Any]:
    """Two tables for the plots, or None where there is nothing yet: loss (raw and smoothed), exact match on previews."""
    import pandas as pd

    loss: list[tuple[float, float | None, str]] = []
    exact: list[tuple[float, float | None, str]] = []
    for folder, name in zip(folders, names_of(folders), strict=True):
        lines = store.read_lines(folder / "metrics.jsonl")
        steps = [line["step"] for line in lines]
        values = [line["loss"] for line in lines]
        for series, ys in ((f"{name} raw", values), (f"{name}", smooth(values))):
            loss += [(s, y, series) for s, y in thin(steps, ys)]
        exact += [(line["step"], 100 * line["preview_exact"], name) for line in lines if "preview_exact" in line]
    # A plot keeps the curves that it was first drawn with; one that begins later must have a place from the start.
    for rows, wanted in ((loss, colour_map(folders)), (exact, names_of(folders))):
        there = {series for _, _, series in rows}
        rows += [(1, None, series) for series in wanted if rows and series not in there]
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
    for folder, label in zip(folders, names_of(folders), strict=True):
        steps = sorted((folder / "previews").glob("step-*"))[-5:]
        if not steps:
            continue
        by_step = {step: store.read_lines(step / "predictions.jsonl") for step in steps}
        first = next(iter(by_step.values()))
        for k, record in enumerate(first[:3]):
            cells = [pictures.thumb(record["question"], "input"), pictures.thumb(record["answer"], "truth")]
            for step, records in by_step.items():
                if k < len(records):
                    mark = "?" if not records[k]["answer"] else "✓" if records[k]["right"] else "✗"
                    caption = f"{mark} {int(step.name.removeprefix('step-'))}"
                    drawn = step / str(records[k]["raw"])
                    if drawn.suffix == ".webp" and drawn.is_file():
                        cells.append(
                            pictures.figure(
                                f'<img src="{_moving(drawn, store.stamp(drawn))}" alt="{caption}">', caption
                            )
                        )
                    else:
                        cells.append(pictures.thumb(records[k]["proposed"], caption))
            name = f'<span class="preview-arm">{html.escape(label)}</span>'
            rows.append(f'<div class="preview-row">{name}{"".join(cells)}</div>')
    return "".join(rows)


@functools.lru_cache(maxsize=128)
def _moving(path: Path, stamp: store.Stamp) -> str:
    """A stored clip for the page, made once for every time it was written."""
    return pictures.moving(store.read_clip(path))


def progress(folders: Sequence[Path]) -> str:
    """One line a run: state, step, time left, the last loss; what went wrong, in words."""
    lines = []
    for folder, name in zip(folders, names_of(folders), strict=True):
        status = jobs.status(folder)
        answers = wanted = 0
        if answering := is_answering(status) or status.state == "done":
            answers, wanted = len(store.read_lines(folder / "predictions.jsonl")), _tests(folder)
            answering = answers < wanted
        parts = [f"<b>{html.escape(name)}</b>", "answering" if answering else status.state or "not started"]
        if status.updates:
            parts.append(f"update {status.step} of {status.updates}")
        if status.active and status.eta:
            parts.append(f"{span(status.eta)} left")
        if wanted:
            parts.append(f"test {answers} of {wanted}" if answering else "answers are in Compare")
        for wish, words in ((jobs.SAVE, "a checkpoint is asked for"), (jobs.PREVIEW, "previews are asked for")):
            if status.active and (folder / wish).exists():
                parts.append(f"{words}, heard after this update")
        if status.error and status.state not in ("failed", "lost"):  # those have a card
            parts.append(html.escape(public.clean(status.error)))
        lines.append(f'<p class="progress-line" data-state="{status.state}">{" · ".join(parts)}</p>')
    return "".join(lines)


def is_answering(status: jobs.Status) -> bool:
    """Whether a run's job is past its training: there is no more to save, or to preview."""
    return status.state == "running" and bool(store.whole_folder(status.folder / "adapter"))


def is_learning(status: jobs.Status) -> bool:
    """Whether a run's job can be asked for a checkpoint or previews."""
    return status.state == "running" and not is_answering(status)


def _tests(folder: Path) -> int:
    run = store.read_config(folder)
    return min(run.test, tasks.count(run.tested, "test") or run.test)


def act(folder: Path, how: str) -> None:
    """What a job's buttons do. "stop" saves and ends after the step; "kill" ends at once; "resume" goes on; "save" and "preview"
    ask a training for a checkpoint or previews after the step."""
    public.refuse("Stopping and resuming")
    if not folder.resolve().is_relative_to(store.runs_root().resolve()):
        raise UserError("That is no run of this page.")
    if how == "stop":
        jobs.request_stop(folder)
    elif how == "kill":  # the page does not wait for the process to go
        threading.Thread(target=jobs.stop, args=(folder, 1.0), daemon=True).start()
    elif how == "resume":
        jobs.resume(folder)
    elif how in ("save", "preview"):
        jobs.ask(folder, {"save": jobs.SAVE, "preview": jobs.PREVIEW}[how])


def resumable(folder: Path) -> bool:
    """Whether a run has ended before its end."""
    return jobs.status(folder).state in ("stopped", "lost", "failed")


def _learning_left(folder: Path) -> bool:
    """Whether a run ended before its training did: one that has its adapter goes on with its answers, from no checkpoint."""
    return resumable(folder) and not store.whole_folder(folder / "adapter")


def checkpoint_choices(folders: Sequence[Path]) -> list[tuple[str, str]]:
    """What runs that can be resumed may go on from: (what is known of a checkpoint, "folder's name/update")."""
    found = [("the newest checkpoint", NEWEST)]
    for folder, name in zip(folders, names_of(folders), strict=True):
        lines = {line["step"]: line for line in store.read_lines(folder / "metrics.jsonl")}
        steps = (
            [int(path.name.removeprefix("step-")) for path in store.checkpoints(folder)]
            if _learning_left(folder)
            else []
        )
        looked = {step: line["preview_exact"] for step, line in lines.items() if "preview_exact" in line}
        for step in reversed(steps):
            parts = [f"{name}, update {step}"]
            if step in lines:
                parts.append(f"loss {lines[step]['loss']:.3f}")
            if before := [at for at in looked if at <= step]:
                at = max(before)
                best = (
                    ", the best"
                    if len(looked) > 1 and looked[at] == max(looked.values()) > min(looked.values())
                    else ""
                )
                parts.append(f"previews {100 * looked[at]:.0f} %{best}" + (f" at {at}" if at != step else ""))
            found.append((" · ".join(parts), f"{folder.name}/{step}"))
    return found


def go_on(folders: Sequence[Path], chosen: str) -> None:
    """Resume the runs that can be, each from its newest checkpoint; or the one run of `chosen` from that checkpoint, in which
    case later ones are set aside. Raises UserError for a checkpoint that none of them has."""
    if chosen == NEWEST:
        for folder in folders:
            if resumable(folder):
                act(folder, "resume")
        return
    public.refuse("Stopping and resuming")
    name, _, step = chosen.rpartition("/")
    named = [folder for folder in folders if folder.name == name and _learning_left(folder)]
    if not named or not step.isdecimal():
        raise UserError("That checkpoint is of no run that can be resumed here. Choose one from the list.")
    store.go_back(named[0], int(step))
    act(named[0], "resume")


# ---------------------------------------------------------------------------------------------------------------------
# The tab

# of each arm's runs, the first first
COLOURS = {
    "video": ("#c26a14", "#8f5b00", "#d9480f", "#a8325a"), "language": ("#2a7ab0", "#5b5bd6", "#0c8599", "#33691e")
}  # fmt: skip


def colour_map(folders: Sequence[Path]) -> dict[str, str]:
    """A colour for every curve: the arm's own; raw values pale, so that the smoothed curve lies on top of them."""
    colours: dict[str, str] = {}
    used = {arm: 0 for arm in COLOURS}
    for name in names_of(folders):
        arm = name.partition(" ")[0]
        strong = COLOURS[arm][used[arm] % len(COLOURS[arm])]
        used[arm] += 1
        colours |= {name: strong, f"{name} raw": strong + "55"}
    return colours


class Tab:
    """The tab's components and listeners. The page calls `opened` and `foresee` when it loads and `tick` once a second while the
    tab is looked at."""

    def __init__(self) -> None:
        self.seen = gr.State("")
        self.beyond = gr.State({})  # arm -> settings that the form has no field for
        self.asked = gr.State(([], ""))  # runs whose memory and disk is shown, by name, and what is shown of it
        off = public.on()
        self.mode = gr.Radio(
            [("Form", SIMPLE), ("YAML: every setting", YAML)], value=SIMPLE, label="Write the runs as", elem_id="train-mode",
            interactive=not off,
        )  # fmt: skip
        with gr.Row(equal_height=False) as self.simple:
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
            with gr.Column(scale=1, min_width=280):
                gr.HTML('<h2 class="step">2 · Who learns it</h2>')
                self.backbones = {}
                for arm in ARMS:
                    options = choices(arm)
                    self.backbones[arm] = gr.Radio(
                        options, value=options[0][1] if options else None, label=f"{arm.capitalize()} backbone",
                        elem_id=f"train-{arm}", elem_classes=["backbones"],
                    )  # fmt: skip
                    if cannot := unable(arm):
                        gr.HTML(cannot)
        with gr.Column(visible=False) as self.written:
            gr.HTML(
                '<h2 class="step">1 and 2 · The runs, a YAML document each</h2>'
                '<p class="note">Every setting there is, filled in. '
                "What you change here goes along when you turn back to the form, and is named there.</p>"
            )
            self.code = gr.Code(
                language="yaml", label="Runs, parted by a line of ---", lines=12, max_lines=28, wrap_lines=True,
                elem_id="train-yaml", interactive=True,
            )  # fmt: skip
        with gr.Row(visible=False, elem_id="beyond-row") as self.beyond_row:
            self.beyond_words = gr.HTML(elem_id="beyond")
            self.drop = gr.Button("Drop these settings", size="sm", elem_id="drop-beyond", scale=0, min_width=170)
        self.order = gr.Radio([SEPARATE, TOGETHER], value=SEPARATE, label="Start them", elem_id="train-order")
        self.forecast = gr.HTML(elem_id="forecast")
        self.needs = gr.HTML(elem_id="needs")
        self.command = gr.Textbox(
            label="The same from a shell", lines=2, max_lines=4, interactive=False, buttons=["copy"],
            elem_classes=["command"], elem_id="train-command",
        )  # fmt: skip
        with gr.Row():
            self.start = gr.Button(
                "Start training", variant="primary", elem_id="start-training", scale=2, interactive=not off
            )
            self.look = gr.Button("Show the training examples", elem_id="show-samples", scale=1)
        if off:
            gr.HTML(f'<p class="note">{public.off("Training")}</p>')
        self.problem = gr.HTML(elem_id="train-problem")
        self.samples = gr.HTML(elem_id="samples")
        gr.HTML('<h2 class="step">3 · Live</h2>')
        self.watched = gr.Dropdown(
            [], label="Runs", elem_id="watched", info="a reload, another browser and the command line see the same runs"
        )
        self.progress = gr.HTML(elem_id="progress")
        self.failures = gr.HTML(elem_id="failures")
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
        with gr.Row(elem_classes=["train-actions"]):
            self.save = gr.Button("Save now", size="sm", elem_id="save-now", interactive=not off)
            self.look_now = gr.Button("Preview now", size="sm", elem_id="preview-now", interactive=not off)
            self.stop = gr.Button("Stop and save", size="sm", elem_id="stop-save", interactive=not off)
            self.kill = gr.Button("Stop now", size="sm", variant="stop", elem_id="stop-now", interactive=not off)
        with gr.Row(elem_classes=["train-actions"], equal_height=True):
            self.checkpoint = gr.Dropdown(
                [("the newest checkpoint", NEWEST)], value=NEWEST, label="Go on from", elem_id="checkpoint", scale=3,
                info="optimiser, step and random state as they were; later checkpoints are set aside, not deleted",
            )  # fmt: skip
            self.resume = gr.Button("Resume", size="sm", elem_id="resume", interactive=not off, scale=1)
        self.acted = gr.HTML(elem_id="train-acted")
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
            self.failures,
            self.loss,
            self.exact,
            self.save,
            self.look_now,
            self.stop,
            self.kill,
            self.checkpoint,
            self.resume,
            self.previews,
            self.log,
            self.seen,
        ]
        self._listen()

    def _listen(self) -> None:
        form = [self.task, self.n, self.custom, self.seed, self.test, self.arms, *self.backbones.values(), self.updates]
        self.form = [*form, self.mode, self.code, self.beyond]
        self.ticking = [self.watched, self.seen, self.asked]
        self.ticked = [*self.live, self.needs, self.asked]
        self.foreseen = [
            self.forecast, self.command, self.start, self.problem, self.custom, self.needs, self.asked, self.beyond_row,
            self.beyond_words,
        ]  # fmt: skip
        foresee = {**quiet(self.foresee), "inputs": self.form, "outputs": self.foreseen}
        self.family.input(**quiet(self._shelf), inputs=self.family, outputs=self.task)
        for component in [*form, self.code, self.beyond]:
            component.change(**foresee, trigger_mode="always_last")
        views = [self.mode, self.simple, self.written, self.code, self.beyond, self.family, *form, self.problem]
        self.mode.input(**quiet(self._turn), inputs=self.form, outputs=views)
        self.drop.click(**quiet(lambda: {}), outputs=[self.beyond])
        self.look.click(**quiet(self._look), inputs=self.form, outputs=[self.samples, self.problem])
        self.start.click(
            **quiet(self._start), inputs=[*self.form, self.order], outputs=[self.problem, self.watched, *self.live]
        )
        self.watched.input(**quiet(self._watch), inputs=[self.watched], outputs=[self.acted, *self.live])
        buttons = {"save": self.save, "preview": self.look_now, "stop": self.stop, "kill": self.kill}
        for how, button in buttons.items():
            button.click(**quiet(self._acting(how)), inputs=[self.watched], outputs=[self.acted])
        self.resume.click(**quiet(self._resume), inputs=[self.watched, self.checkpoint], outputs=[self.acted])

    def _shelf(self, shelf: str) -> Any:
        names = tasks.variants(inputs.task(shelf))
        return gr.update(choices=names, value=names[0])

    def _runs(self, *form: Any) -> list[Run]:
        """The runs that the form, or the YAML, describes. Raises UserError."""
        task, n, custom, seed, test, arms, video, language, updates, mode, code, beyond = form
        if mode == YAML:
            public.refuse("Writing runs as YAML")
            runs = run_yaml.from_text(code)
            refuse_what_cannot_run(runs)
            return runs
        task = tasks.get(inputs.task(task)).name
        wanted, asked = whole_number(custom if n == CUSTOM else n), whole_number(test)
        # an ARC puzzle has its demonstrations and its tests, and no more
        finite = tasks.count(task, "train")
        wanted = min(wanted, finite or wanted)
        if not finite and wanted > (reach := tasks.get(task).within_reach):
            public.refuse(f"Drawing more than {reach} examples of {task}")
        asked = min(asked, tasks.count(task, "test") or asked)
        ordered = [arm for arm in ARMS if arm in (arms or [])]
        keys = {"video": text(video), "language": text(language)}
        return plan(task, wanted, whole_number(seed), ordered, keys, whole_number(updates), asked, beyond)

    def foresee(self, *form: Any) -> dict[Any, Any]:
        *_, mode, _code, beyond = form
        lines = [f"{arm}: {line}" for arm, tree in (beyond or {}).items() for line in run_yaml.in_words(tree)]
        said = "; ".join(html.escape(line) for line in lines)
        shown = bool(lines) and mode == SIMPLE
        always = {
            self.custom: gr.update(visible=form[1] == CUSTOM), self.beyond_row: gr.update(visible=shown),
            self.beyond_words: f'<p class="note">Beyond the form: {said}</p>' if shown else "",
        }  # fmt: skip
        try:
            runs = self._runs(*form)
            hashes = {run.name: sample_hash(run)[:12] for run in runs}
        except UserError as error:
            nothing: dict[Any, Any] = {self.needs: "", self.asked: ([], ""), self.forecast: "", self.command: ""}
            return {**always, **nothing, self.problem: problem(error), self.start: gr.update(interactive=False)}
        same = len(set(hashes.values())) == 1
        examples = f"Examples <code>{hashes[runs[0].name]}</code>, n {runs[0].n}." if same else (
            "The runs learn from <b>different</b> examples: "
            + ", ".join(f"{html.escape(run.family)} <code>{hashes[run.name]}</code>, n {run.n}" for run in runs) + "."
        )  # fmt: skip
        names = [f"{run.family} {run.flavour.rpartition('/')[2]}" for run in runs]
        asked = [] if public.on() else [*zip(names, runs, strict=True)]
        told = foretold(asked)
        return {
            **always, self.forecast: f'<p class="note">{html.escape(forecast(runs))} {examples}</p>',
            self.command: "\n".join(script(run) for run in runs),
            self.start: gr.update(interactive=not public.on()), self.problem: "",
            self.needs: told, self.asked: (asked, told),
        }  # fmt: skip

    def _turn(self, *form: Any) -> dict[Any, Any]:
        """From the form to YAML and back, with the same runs; where they do not go over, the old way stays and says why."""
        *_, mode, code, beyond = form
        try:
            mode = one_of(mode, [SIMPLE, YAML], "Write the runs as")
            before = SIMPLE if mode == YAML else YAML
            runs = self._runs(*form[:-3], before, code, beyond)
            told = self._as_fields(as_form(runs)) if mode == SIMPLE else {self.code: run_yaml.to_text(runs)}
        except UserError as error:
            back = SIMPLE if mode == YAML else YAML
            return {self.mode: back, self.problem: problem(error)}
        views = {self.simple: gr.update(visible=mode == SIMPLE), self.written: gr.update(visible=mode == YAML)}
        return {**views, **told, self.problem: ""}

    def _as_fields(self, form: Form) -> dict[Any, Any]:
        listed = form.n in SIZES
        shelf = shelf_of(form.task)
        return {
            self.family: shelf or gr.skip(),
            self.task: gr.update(choices=tasks.variants(shelf), value=form.task) if shelf else form.task,
            self.n: form.n if listed else CUSTOM, self.custom: gr.update(value=form.n, visible=not listed),
            self.seed: form.seed, self.test: form.test, self.updates: form.updates, self.arms: form.arms,
            **{self.backbones[arm]: key for arm, key in form.keys.items()}, self.beyond: form.beyond,
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
        def listener(key: str) -> str:
            try:
                public.refuse("Stopping and resuming")
                running = [f for f in trained().get(key, []) if jobs.status(f).active]
                # what waits or ends cannot be asked for anything
                heard = [f for f in running if how in ("stop", "kill") or is_learning(jobs.status(f))]
                if not heard:
                    raise UserError("None of these runs is at work now.")
                for folder in heard:
                    act(folder, how)
            except UserError as error:
                return problem(error)
            return ""

        return listener

    def _resume(self, key: str, chosen: Any) -> str:
        try:
            go_on(trained().get(key, []), text(chosen))
        except UserError as error:
            return problem(error)
        return ""

    def opened(self) -> dict[Any, Any]:
        """The newest runs, so that a reload finds what was going on."""
        groups = trained()
        key = next(iter(groups), None)
        return {self.watched: gr.update(choices=[*groups], value=key, visible=bool(groups)), **self.follow(key)}

    def _watch(self, key: Any) -> dict[Any, Any]:
        return {self.acted: "", **self.follow(key)}

    def follow(self, key: str | None) -> dict[Any, Any]:
        """Everything that is shown of the watched runs."""
        folders = trained().get(key or "", [])
        loss, exact = curves(folders)
        colours = colour_map(folders)
        states = [jobs.status(folder) for folder in folders]
        names = names_of(folders)
        active = any(s.active for s in states)
        learning = any(map(is_learning, states))
        ended = any(resumable(folder) for folder in folders)
        kept = checkpoint_choices(folders)
        logs = [f"{name}\n{public.log_of(folder, 15)}" for folder, name in zip(folders, names, strict=True)]
        return {
            self.progress: progress(folders)
            or '<p class="note">No training yet. Choose a task above and start one.</p>',
            self.loss: gr.update(value=loss, color_map=colours, visible=loss is not None),
            self.exact: gr.update(value=exact, color_map=colours, visible=exact is not None),
            self.failures: "".join(failures.card(folder, name) for folder, name in zip(folders, names, strict=True)),
            self.save: gr.update(visible=learning),
            self.look_now: gr.update(visible=learning),
            self.stop: gr.update(visible=active),
            self.kill: gr.update(visible=active),
            self.checkpoint: gr.update(choices=kept, value=NEWEST, visible=ended and len(kept) > 1),
            self.resume: gr.update(visible=ended),
            self.previews: previews(folders),
            self.log: "\n\n".join(logs),
            self.seen: self.stamp(key, folders),
        }

    def stamp(self, key: str | None, folders: Sequence[Path]) -> str:
        """Changes when there is something new to show."""
        names = ("metrics.jsonl", "predictions.jsonl", jobs.LOG, jobs.STOP, jobs.SAVE, jobs.PREVIEW)
        files = [folder / name for folder in folders for name in names]
        sizes = [f"{os.path.getsize(f)}@{os.path.getmtime(f)}" if f.exists() else "-" for f in files]
        states = [(status.state, status.beat) for status in map(jobs.status, folders)]
        return f"{key} {' '.join(sizes)} {states}"

    def tick(self, key: str | None, seen: str, asked: tuple[list[tuple[str, Run]], str]) -> dict[Any, Any]:
        """What is new since `seen`, and of the memory and disk of the runs that are `asked` about. Those are looked at when the
        tab is, and not when the page opens: it takes a process some seconds."""
        runs, shown = asked
        for _, run in runs:
            needs.lookout.look(run)
        told = foretold(runs)
        news = {self.needs: told, self.asked: (runs, told)} if told != shown else {}
        folders = trained().get(key or "", [])
        if self.stamp(key, folders) == seen:
            return news or {self.seen: gr.skip()}
        return {**news, **self.follow(key)}
