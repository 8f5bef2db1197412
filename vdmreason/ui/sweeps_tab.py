"""The Sweeps tab: an experiment of many trials, defined, watched and reported."""

from __future__ import annotations

import functools
import html
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from tasks.base import UserError
from vdmreason import config, jobs, parcel, store, sweep
from vdmreason.launchers import devices_here
from vdmreason.progress import duration
from vdmreason.ui import matrix, public, training
from vdmreason.ui.compare import problem, quiet
from vdmreason.ui.frame import Frame
from vdmreason.ui.inputs import said
from vdmreason.ui.matrix import Look, Matrix, Report, Shelf

PROTOCOLS = Path(__file__).resolve().parents[2] / "protocols"
FINISHED = PROTOCOLS.parent / "benchmarks" / "results" / "structured-tuned.tar.xz"  # what the README reports
LONGEST = 64_000  # characters of a file that is edited here
MOST_WORKERS = 256
MOST_TRIALS = 20_000  # that are planned here; each is resolved, a thousand a second or so
OFF = " (off on this public page)"
EMPTY = (
    '<div class="note no-sweep"><p>A sweep is one file: puzzles, numbers of examples, seeds and arms. '
    "Every combination is a trial, an ordinary training run with its answers.</p>"
    "<p>Workers do the trials in any order and may be killed at any time; the same command goes on. "
    "What is done is a table and a figure at once.</p>"
    "<p>There is none here yet. Choose a protocol above and plan it.</p></div>"
)


# ---------------------------------------------------------------------------------------------------------------------
# Files that describe a sweep


@dataclass(frozen=True)
class Sheet:
    """A file that can be planned: one that ships, one of the user's own, or the one a sweep was made of."""

    label: str
    path: Path
    folder: Path | None = None  # the sweep's, for the last kind
    scale: str = ""  # which it was made at

    @property
    def shipped(self) -> bool:
        return self.path.parent == PROTOCOLS


WRITTEN = Sheet("written here", Path())  # a text that no file was chosen for


def sheets() -> dict[str, Sheet]:
    """Every file to start from, by the key that the menu sends."""
    found = {f"protocol {path.stem}": Sheet(f"{path.stem} (ships)", path) for path in sorted(PROTOCOLS.glob("*.yaml"))}
    own = store.runs_root() / "sweeps"
    found |= {f"own {path.stem}": Sheet(f"{path.stem} (yours)", path) for path in sorted(own.glob("*.yaml"))}
    for name in Shelf().names():
        folder = store.runs_root() / name
        if (folder / sweep.SHEET).is_file():
            plan = store.read_json(folder / sweep.PLAN) or {}
            found[f"sweep {name}"] = Sheet(
                f"as in the sweep {folder.name}", folder / sweep.SHEET, folder, str(plan.get("scale", ""))
            )
    return found


def sheet(key: object) -> Sheet:
    if key is None or key == "":
        return WRITTEN
    found = sheets().get(key) if isinstance(key, str) else None
    if found is None:
        raise UserError("That file is not here any more. Choose another to start from.")
    return found


def scales(text: str) -> list[str]:
    """The names of a file's scales; [] where it has none or cannot be read."""
    try:
        found = config.keys_of(text, "", "").get("scales")
    except UserError:
        return []
    return [str(name) for name in found] if isinstance(found, dict) else []


def checked(text: object) -> str:
    """A file's text as a browser sent it. Raises UserError where it is none, or longer than a protocol ever is."""
    if not isinstance(text, str) or not text.strip():
        raise UserError("The file is empty. Choose a protocol, or write one.")
    if len(text) > LONGEST:
        raise UserError(f"The file is {len(text)} characters long; {LONGEST} at most are read here.")
    return text if text.endswith("\n") else f"{text}\n"


@functools.lru_cache(maxsize=16)
def read(text: str, scale: str) -> sweep.Sweep:
    """The sweep of a text. Raises UserError, one line that names the key."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            return sweep.read(path, scale, MOST_TRIALS)
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{path}: ").replace(f'"{path}"', "this file")) from None


def own_file(name: str) -> Path:
    """Where an edited file of this name is kept. Raises UserError for a name that is no name of a file."""
    slug = config.slug(name)
    if not slug or len(slug) > 80:
        raise UserError("name: must be a short word or two, as in name: mazes-by-rank.")
    return store.runs_root() / "sweeps" / f"{slug}.yaml"


def place_of(source: Sheet, text: str, name: str) -> Path:
    """The file that a text would be started from: `source` where nothing was edited, else one of the user's own.

    Raises UserError where an edited text would take the name of a shipped protocol, or of another file that is there.
    """
    if _same(source.path, text):
        return source.path
    if any(_same_name(path, name) for path in PROTOCOLS.glob("*.yaml")):
        raise UserError(f"name: {name} is a protocol that ships. Give your version its own, as in name: {name}-mine.")
    path = own_file(name)
    mine = source.path == path or (source.folder is not None and _same_name(source.path, name))
    if path.exists() and not mine and not _same(path, text):
        raise UserError(
            f"name: {name} is taken by another file of yours. Choose that one to change it, or another name."
        )
    return path


def _same(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8").strip() == text.strip()
    except OSError:
        return False


def _same_name(path: Path, name: str) -> bool:
    try:
        return bool(config.read_yaml(path, "", "")[1].get("name") == name)
    except UserError:
        return False


def command(file: Path, scale: str, workers: int, folder: Path | None = None, retry: bool = False) -> list[str]:
    """`vdmreason sweep run` with its arguments."""
    words = ["vdmreason", "sweep", "run", str(file), *(["--scale", scale] if scale else []), "--workers", str(workers)]
    return [*words, *(["--out", str(folder)] if folder else []), *(["--retry-failed"] if retry else [])]


def shown(words: list[str]) -> str:
    """A command as one would type it in this folder; in public without places of this machine."""
    here = f"{Path.cwd()}{os.sep}"
    short = [word.removeprefix(here) for word in words]
    return shlex.join([Path(word).name if public.on() and word.startswith("/") else word for word in short])


def begin(file: Path, scale: str, workers: int, folder: Path, retry: bool = False) -> jobs.Status:
    """Start a sweep's driver as the job of its folder; it outlives the page. Raises UserError where one is at work there."""
    words = command(file.resolve(), scale, workers, folder.resolve(), retry)
    return jobs.start("sweep", [sys.executable, "-m", *words], folder)


def workers_of(value: object) -> int:
    """Raises UserError for what is no number of workers."""
    number = sweep.usual_workers(devices_here()) if value is None else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number % 1 != 0:
        raise UserError("Workers: a whole number, please.")
    if not 1 <= number <= MOST_WORKERS:
        raise UserError(f"Workers: from 1 to {MOST_WORKERS}.")
    return int(number)


def guess(found: sweep.Sweep, folder: Path, workers: int) -> str:
    """How long training will take, from other runs on this machine, for backbones that the sweep itself has not timed yet."""
    forecast = sweep.Forecast(folder, sizes=False)
    forecast.learn(sweep.standing(folder, trial.entry(), check=False) for trial in found.trials)
    by_kind: dict[str, list[sweep.Trial]] = {}
    for trial in found.trials:
        if forecast.seconds(config.to_dict(trial.run)) is None:
            by_kind.setdefault(f"{trial.run.family} {Path(trial.run.flavour).name}", []).append(trial)
    parts, total, silent = [], 0.0, False
    for kind, trials in by_kind.items():
        if pace := training.timed(trials[0].run):
            seconds = sum(pace.update * t.run.optim.updates + (pace.answer or 0.0) * t.run.test for t in trials)
            total += seconds
            silent |= not pace.answer
            parts.append(f"{kind} {duration(seconds)} ({pace.update:.2f} s an update)")
    if not parts:
        return ""
    missing = len(by_kind) - len(parts)
    return (
        f"about {duration(total / workers)} with {workers} worker{'s' * (workers > 1)}, from other runs on "
        f"this machine: {', '.join(parts)}"
        + ("; answers are not all counted" if silent else "")
        + (f", nor are {missing} backbones that were never timed here" if missing else "")
    )


def plan(key: object, text: object, scale: object, workers: object) -> tuple[sweep.Sweep, Path, Path, int]:
    """(sweep, its file, its folder, workers) of what the form says. Raises UserError, one line."""
    source, text = sheet(key), checked(text)
    if not _same(source.path, text):
        public.refuse("Planning a file of one's own")
    found = read(text, scale if isinstance(scale, str) else "")
    same = source.folder is not None and _same(source.path, text) and found.scale == source.scale
    folder = source.folder if same and source.folder else found.folder
    return found, place_of(source, text, found.name), folder, workers_of(workers)


def described(found: sweep.Sweep, file: Path, folder: Path, workers: int) -> str:
    """The plan as the command line tells it, and what other runs say of its time."""
    rows = sweep.describing(folder, found, sweep.preview(folder, found), workers)
    rows = [(key, line.replace(str(folder), public.place(folder))) for key, line in rows]
    if line := guess(found, folder, workers):
        rows.insert(-1, ("guess", line))
    if not file.exists():
        rows.append(("file", f"will be kept as {public.place(file)}"))
    elif not _same(file, found.text):
        rows.append(
            ("file", f"{public.place(file)} will be changed; trials that it has no more are kept, but not reported")
        )
    lines = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(line)}</dd>" for key, line in rows)
    return f'<dl class="plan">{lines}</dl>'


# ---------------------------------------------------------------------------------------------------------------------
# Reports, made beside the page


@dataclass(frozen=True)
class Made:
    """A report of what was done at one moment, as `vdmreason sweep report` writes it."""

    results: int  # `Look.results`
    moment: float
    seconds: float
    folder: Path | None = None
    problem: str = ""


class Reports:
    """Makes reports with the command line's own command, one at a time, and keeps the newest of each sweep.

    It takes seconds to minutes of a core, so it is a process of its own: the page goes on meanwhile.
    """

    PAUSE = 10.0  # seconds between two reports of a sweep that goes on; and ten times what the last one took

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="vdmreason-reports-")
        self._made: dict[Path, Made] = {}
        self._pending: set[tuple[Path, bool]] = set()  # (sweep, whether it is written into its folder)
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def newest(self, look: Look, want: bool = True) -> tuple[Made | None, bool]:
        """(the last report of a sweep, whether one is being made). With `want` a newer one is begun where results changed."""
        with self._lock:
            made = self._made.get(look.folder)
            old = made is None or made.results != look.results
            rested = made is None or time.monotonic() - made.moment > max(self.PAUSE, 10 * made.seconds)
            rested = rested or look.counts["done"] == len(look.trials)  # no other will follow this one
            if want and old and rested and not self._busy(look.folder, False):
                out = Path(self._home.name) / f"{abs(hash(look.folder))}"
                self._begin(look, out)
            return made, self._busy(look.folder, False)

    def write(self, look: Look) -> None:
        """Write the report into the sweep's own folder, in a while."""
        with self._lock:
            if not self._busy(look.folder, True):
                self._begin(look, None)

    def writing(self, folder: Path) -> bool:
        return self._busy(folder, True)

    def _busy(self, folder: Path, kept: bool) -> bool:
        return (folder, kept) in self._pending

    def _begin(self, look: Look, out: Path | None) -> None:
        """In a thread that does not keep the page from ending."""
        self._pending.add((look.folder, out is None))

        def work() -> None:
            try:
                with self._turn:
                    self._make(look.folder, look.results, out)
            finally:
                self._pending.discard((look.folder, out is None))

        threading.Thread(target=work, daemon=True, name="report").start()

    def _make(self, folder: Path, results: int, out: Path | None) -> None:
        words = [sys.executable, "-m", "vdmreason", "sweep", "report", str(folder)]
        words += ["--out", str(out)] if out else []
        began = time.monotonic()
        try:
            # in a group of its own: Ctrl+C on the page must not leave a traceback of this one
            done = subprocess.run(words, capture_output=True, text=True, timeout=1800, start_new_session=True)
            lines = (done.stderr.strip() or "no word").splitlines()
            why = lines[-1].removeprefix("error: ") if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            why = f"the report took too long or could not be started: {error}"
        now = time.monotonic()
        if out or why:
            place = out if out and not why else None
            with self._lock:
                self._made[folder] = Made(results, now, now - began, place, why)


def shown_report(name: str, look: Look, made: Made | None, busy: bool) -> dict[str, Any] | None:
    """What the component draws: the inside of the report's page, under its badge; None where there is nothing yet."""
    if made is None or made.folder is None:
        return None
    page = (made.folder / "index.html").read_text(encoding="utf-8")
    inside = page.partition("<main>")[2].rpartition("</main>")[0]
    inside = re.sub(r"<(/?)h([12])\b", lambda tag: f"<{tag[1]}h{int(tag[2]) + 2}", inside)  # below the tab's own heads
    inside = inside.replace(str(look.folder), html.escape(public.place(look.folder)))
    done, planned = look.counts["done"], len(look.trials)
    stale = made.results != look.results
    words = f"made in {duration(made.seconds)} from the files of {public.place(look.folder)}"
    words += " · newer results are being added" if busy else " · newer results will be added" if stale else ""
    finished = done == planned
    badge = f"finished: {planned} of {planned} trials" if finished else f"unfinished: {done} of {planned} trials"
    return {"name": name, "badge": badge, "finished": finished, "made": words, "main": inside}


# ---------------------------------------------------------------------------------------------------------------------
# Watching


def headline(look: Look) -> str:
    """Done, failed, running, left; time left and pace; and what the driver says."""
    counts, planned = look.counts, len(look.trials)
    done, failed, running = counts["done"], counts["failed"] + counts["damaged"], counts["running"]
    facts = [
        ("done", f"{done} of {planned}"),
        ("failed", str(failed)),
        ("running", str(running)),
        ("left", str(look.waiting)),
    ]
    unsettled = planned - done - counts["failed"]
    if unsettled:
        if look.left is None:
            told = "known after the first trial"
        else:
            told = f"about {duration(look.left / max(1, running))}" + ("" if running else " of work for one worker")
            if look.unknown:
                told += f", if {', '.join(look.unknown)} take as long as the others"
        facts.append(("time left", told))
    now = time.time()
    recent = [t.finished for t in look.trials if t.state == "done" and now - t.finished < matrix.HOUR]
    if recent and running:
        minutes = max(1.0, (now - min(recent)) / 60)
        facts.append(
            ("pace", f"{60 * len(recent) / minutes:.1f} an hour" if len(recent) > 1 else "one in the last hour")
        )
    cells = "".join(f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>" for key, value in facts)
    lines = []
    if look.driver.active:
        lines.append(
            f"Driver: {look.driver.state}, process {look.driver.pid} on this machine. It goes on when this page ends."
        )
    elif running:
        lines.append("Workers are at it that this page did not start.")
    elif unsettled:
        lines.append("Nobody is at work. Resume goes on from where it stopped.")
    if look.stopped and running:
        lines.append("Told to stop: each worker ends after its update, with a checkpoint.")
    if look.dropped:
        lines.append(f"{look.dropped} trials of an earlier version of the file are kept, but not shown or reported.")
    said = html.escape(" ".join(lines))
    why = look.driver.error.replace(str(look.folder), public.place(look.folder))
    error = problem(why) if look.driver.error and not look.driver.active and unsettled + failed else ""
    bar = f'<progress max="{planned}" value="{done}" aria-label="{done} of {planned} trials done"></progress>'
    return f'<dl class="facts">{cells}</dl>{bar}<p class="note">{said}</p>{error}'


def buttons(look: Look) -> list[Any]:
    """Stop, Resume, Retry failed: which make sense now."""
    busy, mine = bool(look.counts["running"]) or look.driver.active, not public.on()
    again, free = look.counts["failed"], mine and not look.driver.active
    label = f"Retry failed ({again})" if again else "Retry failed"
    return [
        gr.update(interactive=mine and busy and not look.stopped),
        gr.update(interactive=free and bool(look.waiting + look.counts["damaged"])),
        gr.update(interactive=free and bool(again), value=label + OFF * public.on()),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The tab


class Tab:
    """The tab's components and listeners."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.shelf, self.reports = frame, Shelf(), Reports()
        off = public.on()
        why = OFF if off else ""
        self.picked = gr.State(None)  # the cell whose trials are shown: {"row", "column"}
        self.opened_trial = gr.State("")
        self.seen = gr.State(("", 0, ()))  # which sweep, its stamp and the list of sweeps that were sent last
        self.reporting = gr.State("")  # the sweep whose report is shown
        self.reported = gr.State(())  # which report was sent last
        gr.HTML('<h2 class="step">1 · Define</h2>')
        with gr.Row(elem_classes=["controls-row"]):
            self.source = gr.Dropdown(
                [], label="Start from", scale=4, min_width=200, elem_id="sweep-source", value=None,
                info="a protocol that ships, a file of yours, or a sweep that is here",
            )  # fmt: skip
            self.scale = gr.Dropdown(
                [], label="Scale", scale=2, min_width=110, visible=False, elem_id="sweep-scale",
                info="which of the file's sizes",
            )  # fmt: skip
            self.workers = gr.Number(
                sweep.usual_workers(devices_here()), label="Workers", precision=0, minimum=1, maximum=MOST_WORKERS,
                scale=1, min_width=110, elem_id="sweep-workers", info="processes at once",
            )  # fmt: skip
        with gr.Accordion("The file, to read and edit", open=False, elem_id="sweep-file"):
            self.code = gr.Code(
                language="yaml", label="YAML. An edited file is kept under its own name, never over a protocol that ships.",
                lines=12, max_lines=26, interactive=True, elem_id="sweep-code", wrap_lines=True,
            )  # fmt: skip
        self.problem = gr.HTML(elem_id="sweep-problem")
        self.planned = gr.HTML(elem_id="sweep-plan")
        self.command = gr.Textbox(
            label="The same from a shell", lines=1, max_lines=3, interactive=False, buttons=["copy"], visible=False,
            elem_classes=["command"], elem_id="sweep-command",
        )  # fmt: skip
        with gr.Row():
            self.plan = gr.Button("Plan", elem_id="plan-sweep", scale=1)
            self.start = gr.Button(
                f"Start the sweep{why}", variant="primary", elem_id="start-sweep", scale=2, interactive=not off
            )
        gr.HTML('<h2 class="step">2 · Watch</h2>')
        self.chosen = gr.Dropdown([], label="Sweep", elem_id="sweep", visible=False)
        self.empty = gr.HTML(EMPTY, elem_id="no-sweep")
        self.bring = gr.Button(
            "Look at a finished one: that of the README, with all its answers", elem_id="bring-sweep", visible=False
        )
        self.headline = gr.HTML(elem_id="sweep-headline")
        with gr.Row(visible=False) as self.actions:
            self.stop = gr.Button(f"Stop{why}", size="sm", elem_id="stop-sweep", interactive=False)
            self.resume = gr.Button(f"Resume{why}", size="sm", elem_id="resume-sweep", interactive=False)
            self.retry = gr.Button(f"Retry failed{why}", size="sm", elem_id="retry-sweep", interactive=False)
        self.matrix = Matrix(elem_id="sweep-matrix")
        self.watch_problem = gr.HTML(elem_id="watch-problem")
        with gr.Column(visible=False) as self.results:
            gr.HTML('<h2 class="step">3 · Report</h2>')
            with gr.Row():
                self.show = gr.Button("Show the results so far", elem_id="show-report", scale=2)
                self.write = gr.Button(
                    f"Write the report into the sweep's folder{why}",
                    elem_id="write-report",
                    scale=2,
                    interactive=not off,
                )
            self.report_line = gr.HTML(elem_id="report-line")
            self.report = Report(self._keeper(), elem_id="sweep-report")
        self.live = [
            self.empty, self.bring, self.headline, self.actions, self.stop, self.resume, self.retry, self.matrix, self.results,
            self.seen, self.watch_problem,
        ]  # fmt: skip
        self._listen()

    def _listen(self) -> None:
        form = [self.source, self.code, self.scale, self.workers]
        foreseen = [self.problem, self.planned, self.command, self.scale]
        # Reading a protocol of thousands of trials takes seconds, so that these say that they are at work.
        heavy = {"concurrency_limit": 4, "concurrency_id": "sweep-plan", "api_visibility": "private"}
        self.source.input(
            self._choose, [self.source, self.workers], [self.code, *foreseen], show_progress_on=self.planned, **heavy
        )
        self.scale.input(self._plan, form, foreseen, show_progress_on=self.planned, **heavy)
        self.workers.submit(self._plan, form, foreseen, show_progress_on=self.planned, **heavy)
        self.plan.click(self._plan, form, foreseen, show_progress_on=self.planned, **heavy)
        self.code.input(**quiet(self._edited), outputs=[self.planned, self.command])
        watching = [self.chosen, self.source, self.picked, *self.live]
        self.start.click(self._start, form, [*foreseen, *watching], show_progress_on=self.planned, **heavy)
        self.bring.click(self._bring, [], watching, show_progress_on=self.bring, **heavy)
        self.chosen.input(**quiet(self._turn), inputs=[self.chosen], outputs=[self.picked, *self.live])
        for button, act in ((self.stop, self._stop), (self.resume, self._resume), (self.retry, self._retry)):
            button.click(**quiet(act), inputs=[self.chosen, self.workers, self.picked], outputs=self.live)
        self.matrix.pick(
            **quiet(self._pick), inputs=[self.chosen], outputs=[self.picked, self.matrix, self.watch_problem]
        )
        asked = self.matrix.open(**quiet(self._asked), outputs=[self.opened_trial])
        self.frame.leads_to_compare(
            asked.success, self._trial, [self.chosen, self.opened_trial], problem=self.watch_problem
        )
        reporting = [self.reporting, self.report, self.report_line, self.reported, self.write]
        self.show.click(**quiet(self._show), inputs=[self.chosen], outputs=reporting)
        self.write.click(**quiet(self._write), inputs=[self.chosen, self.reporting], outputs=reporting)
        clock = self.frame.clock("sweeps")
        state = [self.chosen, self.picked, self.seen]
        clock.tick(**quiet(self.tick), inputs=state, outputs=watching)
        clock.tick(**quiet(self.report_tick), inputs=[self.chosen, self.reporting, self.reported], outputs=reporting)
        self.frame.opens("sweeps", self.opened, [], watching)

    # --- define

    def _choose(self, key: Any, workers: Any) -> dict[Any, Any]:
        if not key:  # the field was emptied; what stands in the editor stays
            return {self.problem: ""}
        try:
            chosen = sheet(key)
            text = chosen.path.read_text(encoding="utf-8")
        except (UserError, OSError) as error:
            return {self.problem: problem(error)}
        names = scales(text)
        scale = chosen.scale if chosen.scale in names else names[0] if names else ""
        view = self._plan(key, text, scale, workers)
        return {**view, self.code: text, self.scale: gr.update(choices=names, value=scale or None, visible=bool(names))}

    def _edited(self) -> dict[Any, Any]:
        """The plan that is shown is another file's now."""
        return {
            self.planned: '<p class="note">The file has changed. Plan shows what it means now; Start plans it too.</p>',
            self.command: gr.update(visible=False),
        }

    def _plan(self, key: Any, text: Any, scale: Any, workers: Any) -> dict[Any, Any]:
        scale, view = self._scaled(text, scale)
        try:
            found, file, folder, count = plan(key, text, scale, workers)
            told = described(found, file, folder, count)
            return {**view, self.problem: "", self.planned: told, self.command: self._shell(found, file, folder, count)}
        except UserError as error:
            return {**view, self.problem: problem(error), self.planned: "", self.command: gr.update(visible=False)}

    def _scaled(self, text: Any, scale: Any) -> tuple[str, dict[Any, Any]]:
        """The scale that is meant, the file's first where none of its own is chosen, and the menu of the file's scales."""
        names = scales(text) if isinstance(text, str) and len(text) <= LONGEST else []
        scale = scale if scale in names else names[0] if names else ""
        return scale, {self.scale: gr.update(choices=names, value=scale or None, visible=bool(names))}

    def _shell(self, found: sweep.Sweep, file: Path, folder: Path, workers: int) -> dict[str, Any]:
        words = command(file, found.scale, workers, folder if folder != found.folder else None)
        return gr.update(value=shown(words), visible=True)

    def _start(self, key: Any, text: Any, scale: Any, workers: Any) -> dict[Any, Any]:
        scale, view = self._scaled(text, scale)
        try:
            public.refuse("Starting a sweep")
            found, file, folder, count = plan(key, text, scale, workers)
            jobs.refuse_active(folder)  # before its file and its plan are another's
            if not _same(file, found.text):
                store.write_text(file, found.text)
            sweep.write_plan(folder, found)  # so that it can be watched before its driver has read the file
            begin(file, found.scale, count, folder)
        except UserError as error:
            return {**view, self.problem: problem(error)}
        name = str(folder.relative_to(store.runs_root()))
        started = '<p class="note" role="status">Started. How far it is stands below.</p>'
        told = {self.problem: "", self.planned: started, self.command: self._shell(found, file, folder, count)}
        view |= {**told, **self.opened(name)}
        if not key:  # the next edit is one of this file
            view[self.source]["value"] = f"own {file.stem}"
        return view

    # --- watch

    def opened(self, name: str = "") -> dict[Any, Any]:
        """The sweep that changed last, or the one of this name; and what can be started from."""
        names = self.shelf.names()
        name = name or (names[0] if names else "")
        chosen = gr.update(choices=[(Path(n).name, n) for n in names], value=name or None, visible=bool(names))
        starts = gr.update(choices=[(s.label, key) for key, s in sheets().items()])
        return {self.chosen: chosen, self.source: starts, **self._turn(name)}

    def _bring(self) -> dict[Any, Any]:
        """Unpack the sweep that the README reports among the runs: everything can be looked at, and nothing has to be trained."""
        try:
            public.refuse("Unpacking a sweep")
            folder, _ = parcel.unpack(FINISHED)
        except UserError as error:
            return {self.watch_problem: problem(error)}
        return self.opened(str(folder.relative_to(store.runs_root())))

    def _turn(self, name: Any) -> dict[Any, Any]:
        return {self.picked: None, **self.follow(name, None)}

    def follow(self, name: Any, picked: Any, fresh: bool = False) -> dict[Any, Any]:
        """Everything that is shown of a sweep."""
        nothing = {
            self.empty: gr.update(visible=not name), self.headline: "", self.actions: gr.update(visible=False), self.matrix: None,
            self.bring: gr.update(visible=not name and FINISHED.is_file() and not public.on()),
            self.results: gr.update(visible=False), self.seen: (name or "", 0, self._known()), self.watch_problem: "",
        }  # fmt: skip
        if not name:
            return nothing
        try:
            look = self.shelf.watched(name).look(fresh)
        except UserError as error:
            return {**nothing, self.watch_problem: problem(error)}
        stop, resume, retry = buttons(look)
        return {
            self.empty: gr.update(visible=False), self.bring: gr.update(visible=False),
            self.headline: headline(look), self.actions: gr.update(visible=True),
            self.stop: stop, self.resume: resume, self.retry: retry, self.matrix: self._drawn(look, picked),
            self.results: gr.update(visible=True), self.seen: (name, look.stamp, self._known()), self.watch_problem: "",
        }  # fmt: skip

    def _drawn(self, look: Look, picked: Any) -> dict[str, Any]:
        trials = matrix.cell(look, picked.get("row"), picked.get("column")) if isinstance(picked, dict) else None
        return {"matrix": matrix.matrix(look), "cell": trials}

    def _known(self) -> tuple[str, ...]:
        return tuple(sorted(self.shelf.names()))

    def tick(self, name: Any, picked: Any, seen: Any) -> dict[Any, Any]:
        """Once a second: nothing where nothing changed. Where there was no sweep, one may have been started in a shell."""
        if not name:
            return self.opened() if self.shelf.names() else {self.seen: gr.skip()}
        try:
            if seen == (name, self.shelf.watched(name).look().stamp, self._known()):
                return {self.seen: gr.skip()}
        except UserError:
            return self.opened()
        view = self.follow(name, picked)
        if view[self.seen][2] != seen[2]:  # a sweep was started elsewhere, or one is gone
            view[self.chosen] = gr.update(choices=[(Path(n).name, n) for n in self.shelf.names()])
        del view[self.watch_problem]  # what an action said stays until the next one
        return view

    def _pick(self, name: Any, event: gr.EventData) -> dict[Any, Any]:
        data = said(event)
        try:
            look = self.shelf.watched(name).look()
            if matrix.cell(look, data.get("row"), data.get("column")) is None:
                raise UserError("This cell has no trials any more.")
        except UserError as error:
            return {self.watch_problem: problem(error)}
        picked = {"row": [str(part) for part in data["row"]], "column": str(data["column"])}
        return {self.picked: picked, self.matrix: self._drawn(look, picked), self.watch_problem: ""}

    def _asked(self, event: gr.EventData) -> str:
        data = said(event)
        return str(data.get("id", ""))[:64]

    def _trial(self, name: Any, trial: Any) -> tuple[Path, int]:
        watched = self.shelf.watched(name)
        found = next((t for t in watched.look().trials if t.entry["id"] == trial), None)
        if found is None:
            raise UserError("This trial is not in the sweep any more.")
        if found.state != "done":
            raise UserError("This trial is not done; its answers are shown when it is.")
        return watched.folder / found.entry["folder"], 0

    def _acted(self, name: Any, picked: Any, what: str, act: Any) -> dict[Any, Any]:
        """Do something to a sweep, and show where it stands then; or the one line why not."""
        try:
            public.refuse(what)
            act(self.shelf.watched(name))
        except UserError as error:
            return {self.watch_problem: problem(error)}
        return self.follow(name, picked, fresh=True)

    def _stop(self, name: Any, workers: Any, picked: Any) -> dict[Any, Any]:
        return self._acted(name, picked, "Stopping a sweep", lambda watched: sweep.cancel(watched.folder))

    def _resume(self, name: Any, workers: Any, picked: Any) -> dict[Any, Any]:
        return self._acted(name, picked, "Resuming a sweep", lambda watched: go_on(watched.folder, workers_of(workers)))

    def _retry(self, name: Any, workers: Any, picked: Any) -> dict[Any, Any]:
        def again(watched: matrix.Watched) -> None:
            go_on(watched.folder, workers_of(workers), retry=True)

        return self._acted(name, picked, "Trying trials again", again)

    # --- report

    def _show(self, name: Any) -> dict[Any, Any]:
        return {self.reporting: name or "", **self.report_tick(name, name or "", None)}

    def report_tick(self, name: Any, reporting: Any, reported: Any) -> dict[Any, Any]:
        """Once a second, where a report is shown: a newer one when there is one. It is made beside the page."""
        if not reporting:
            return {self.reporting: gr.skip()}
        if name != reporting:  # another sweep was chosen
            return {self.reporting: "", self.report: None, self.report_line: "", self.reported: ()}
        try:
            look = self.shelf.watched(name).look()
        except UserError:
            return {self.reporting: gr.skip()}
        if not look.counts["done"]:
            line = '<p class="note">No trial is done yet. The first one that is makes the first line of the table.</p>'
            return self._if_new(reported, (name, "none"), {self.report: None, self.report_line: line})
        made, busy = self.reports.newest(look)
        writing = self.reports.writing(look.folder)
        state = (name, made.moment if made else 0, busy, writing, look.results, look.counts["done"])
        line = self._line(look, made, busy, writing)
        if state == reported:
            return {self.reporting: gr.skip()}
        view = {self.report: shown_report(name, look, made, busy), self.report_line: line}
        view[self.write] = gr.update(interactive=not public.on() and not writing)
        return self._if_new(reported, state, view)

    def _if_new(self, reported: Any, state: Any, view: dict[Any, Any]) -> dict[Any, Any]:
        return {self.reporting: gr.skip()} if state == reported else {**view, self.reported: state}

    def _line(self, look: Look, made: Made | None, busy: bool, writing: bool) -> str:
        if made and made.problem:
            return problem(made.problem)
        page = look.folder / "report" / "index.html"
        if writing:
            return '<p class="note">Writing the report …</p>'
        if made is None and busy:
            return f'<p class="note">Computing intervals and drawing the curves of {look.counts["done"]} trials …</p>'
        if page.is_file():
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(page.stat().st_mtime))
            return f'<p class="note">Written {when}: <code>{html.escape(public.place(page))}</code></p>'
        return ""

    def _write(self, name: Any, reporting: Any) -> dict[Any, Any]:
        try:
            public.refuse("Writing a report")
            look = self.shelf.watched(name).look()
            if not look.counts["done"]:
                raise UserError("No trial is done yet, so that there is nothing to report.")
            self.reports.write(look)
        except UserError as error:
            return {self.report_line: problem(error)}
        return {self.reporting: name, self.report_line: '<p class="note">Writing the report …</p>', self.reported: ()}

    def _keeper(self) -> Any:
        """The server's side of a report's download buttons."""
        kinds = {
            "html": ("index.html", "text/html"),
            "md": ("report.md", "text/markdown"),
            "csv": ("results.csv", "text/csv"),
        }

        def kept(asked: Any) -> dict[str, str]:
            try:
                asked = asked if isinstance(asked, dict) else {}
                kind = str(asked.get("kind"))
                look = self.shelf.watched(asked.get("name")).look() if kind in kinds else None
                made = self.reports.newest(look, want=False)[0] if look else None
                if look is None or made is None or made.folder is None:
                    raise UserError("That report is not here any more. Show the results again.")
                file, type_ = kinds[kind]
                text = (made.folder / file).read_text(encoding="utf-8")
                if public.on():
                    text = text.replace(str(look.folder), public.place(look.folder))
                return {"name": f"{look.name}-report{Path(file).suffix}", "type": type_, "text": text}
            except (UserError, OSError) as error:
                return {"error": str(error)}

        return kept


def go_on(folder: Path, workers: int, retry: bool = False) -> jobs.Status:
    """Start a driver on a sweep that is there, with the file it was made of."""
    plan = sweep.read_plan(folder)
    return begin(folder / sweep.SHEET, str(plan.get("scale", "")), workers, folder, retry)
