"""The Compare tab: one puzzle, answered by both arms, side by side. Opens on recorded answers; live ones on demand."""

from __future__ import annotations

import contextlib
import html
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

import adapters
import tasks
from tasks.base import UserError
from vdmreason import compare as comparing
from vdmreason import jobs, store
from vdmreason.ui import inputs, public, scenes
from vdmreason.ui.components import Examples, Stage
from vdmreason.ui.inputs import one_of, said, text, texts, whole_number
from vdmreason.ui.scenes import (
    ARMS,
    FILTERS,
    MORE,
    NONE,
    Choice,
    Shown,
    as_shown,
    by_folder,
    by_name,
    catalogue,
    drawn,
    example,
    example_row,
    fitting,
    opening,
    recorded,
    scene,
    scores,
    step,
)
from vdmreason.worker import Stopped, Worker

HONESTY = (
    "The backbones that ship are small and pretrained by us on procedural video and on plain text, so that everything "
    "here runs on a laptop. Their scores say nothing about large published models, which the same code can adapt."
)

# ---------------------------------------------------------------------------------------------------------------------
# Adapting both arms on a puzzle's demonstrations


def adapt_folder(task: str) -> Path:
    return store.runs_root() / "compare" / comparing.name_of(comparing.plan(task))


def adapt(task: str, flavour: str, updates: int) -> jobs.Status:
    """Start the job that adapts both arms on the puzzle's demonstrations and answers its tests: `vdmreason compare`."""
    families = [run.family for run in comparing.plan(task, overrides=[f"optim.updates={updates}"])]
    command = [sys.executable, "-m", "vdmreason", "compare", task, "--updates", str(updates)]
    for family in families:
        command += ["--flavour", f"{family}={flavour}"]
    folder = adapt_folder(task)
    return jobs.start("compare", [*command, "--folder", str(folder)], folder)


def adapting(task: str) -> jobs.Status | None:
    """Where the job that adapts both arms to this puzzle stands; None where none was started, or none can be."""
    if tasks.count(task, "train") is None:
        return None
    folder = adapt_folder(task)
    return jobs.status(folder) if (folder / jobs.JOB).exists() else None


# ---------------------------------------------------------------------------------------------------------------------
# The tab

SHELVES = {
    **{f: f for f in tasks.families() if f not in ("arc", "reasoning_gym")},  # the last one's names are typed in
    "ARC-AGI-1, evaluation": "arc1/evaluation", "ARC-AGI-1, training": "arc1/training",
    "ARC-AGI-2, evaluation": "arc2/evaluation", "ARC-AGI-2, training": "arc2/training",
    "ConceptARC": "conceptarc",
}  # fmt: skip


def shelf_of(task: str) -> str:
    """The entry of the family menu that a task is under, or "" for a file of one's own."""
    return next((shelf for shelf in SHELVES.values() if task.startswith(shelf + "/")), "")


def quiet(fn: Any) -> dict[str, Any]:
    """What every polling or navigating listener has in common."""
    return {"fn": fn, "show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}


class Tab:
    """The tab's components and listeners. The page calls `opened` when it loads and `tick` once a second."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.choice = gr.State(Choice())
        self.shown = gr.State(Shown())
        self.shelf = gr.State({})  # the row of examples as it was sent last
        self.seen = gr.State(())  # what the last tick showed, so that an idle page sends nothing
        with gr.Row(elem_classes=["controls-row"]):
            self.family = gr.Dropdown([*SHELVES.items()], label="Family", min_width=130, scale=2, elem_id="family")
            self.task = gr.Dropdown(
                [], label="Puzzle (type to search: arc1/evaluation/00576224)", allow_custom_value=True, filterable=True,
                min_width=200, scale=4, elem_id="task",
            )  # fmt: skip
            self.index = gr.Number(
                0, label="Test example", precision=0, minimum=0, min_width=90, scale=1, elem_id="index"
            )
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80, scale=1, elem_id="seed")
        with gr.Row(elem_classes=["controls-row"], equal_height=True):
            self.filter = gr.Radio(
                FILTERS, value="all", label="Recorded examples that are right", elem_id="filter", scale=5, min_width=280
            )
            with gr.Row(elem_classes=["nav"], scale=4):
                self.previous = gr.Button("‹ Previous", elem_id="previous-example", min_width=60, size="md")
                self.next = gr.Button("Next ›", elem_id="next-example", min_width=60, size="md")
                self.random = gr.Button("Random", elem_id="random-example", min_width=60, size="md")
                self.run = gr.Button("Run live", variant="primary", elem_id="run-live", min_width=120, size="md")
                self.cancel = gr.Button("Cancel", elem_id="cancel-live", visible=False, min_width=60, size="md")
        self.problem = gr.HTML("", elem_id="problem")
        with gr.Column(visible=False, elem_id="adapt") as self.adapt_box:
            self.adapt_about = gr.HTML()
            with gr.Row(equal_height=True):
                self.flavour = gr.Dropdown(
                    [*common_flavours()],
                    value=common_flavours()[0],
                    label="Backbones",
                    elem_id="adapt-flavour",
                    scale=1,
                )
                self.updates = gr.Number(
                    200, label="Updates", precision=0, minimum=1, maximum=100_000, elem_id="adapt-updates", scale=1
                )
                self.adapt = gr.Button("Adapt both arms", variant="primary", elem_id="adapt-both", scale=2)
        self.examples = Examples(elem_id="examples")
        self.stage = Stage(elem_id="stage")
        with gr.Accordion("Which adapters", open=False, elem_id="adapters"):
            with gr.Row():
                self.video = gr.Dropdown([], label="Video arm", elem_id="video-adapter")
                self.language = gr.Dropdown([], label="Language arm", elem_id="language-adapter")
            self.more = gr.Dropdown(
                [], label="Beside them, up to two more of either arm", multiselect=True, max_choices=MORE,
                elem_id="more-adapters",
            )  # fmt: skip
        self.scores = gr.HTML(elem_id="scores")
        gr.HTML(f'<p class="note">{HONESTY}</p>')
        self.outputs = [
            self.choice, self.family, self.task, self.index, self.seed, self.filter, self.video, self.language, self.more,
            self.problem, self.examples, self.shelf, self.stage, self.scores, self.run, self.adapt_box, self.adapt_about,
            self.adapt,
        ]  # fmt: skip
        self._listen()

    def _listen(self) -> None:
        def on(event: Any, change: Any, *inputs: Any) -> None:
            """Every control makes a new choice from the old one and its own value, and the tab is drawn from it."""

            def listener(choice: Choice, shown: Shown, shelf: Any, *values: Any) -> dict[Any, Any]:
                with shown.turn:
                    now = shown.newest or choice
                    try:
                        fresh = change(now, *values)
                        if not fresh.task:  # a field was left before the page had its first view
                            return {self.problem: ""}
                        # A field that loses the focus says its value again; drawn anew, it could overtake a later choice.
                        # Where an earlier event was not yet known, neither is the row of examples that it sent.
                        known = shelf if now == choice else None
                        return {self.problem: ""} if fresh == now else self.draw(fresh, shown, known)
                    except UserError as error:
                        return {self.problem: problem(error)}

            event(**quiet(listener), inputs=[self.choice, self.shown, self.shelf, *inputs], outputs=self.outputs)

        def picked(choice: Choice, shown: Shown, shelf: Any, event: gr.EventData) -> dict[Any, Any]:
            with shown.turn:
                now = shown.newest or choice
                try:
                    known = shelf if now == choice else None
                    return self.draw(replace(now, index=whole_number(said(event).get("i"))), shown, known)
                except UserError as error:
                    return {self.problem: problem(error)}

        self.examples.pick(**quiet(picked), inputs=[self.choice, self.shown, self.shelf], outputs=self.outputs)

        on(
            self.family.input,
            lambda choice, shelf: first_of(choice, tasks.variants(inputs.task(shelf))[0]),
            self.family,
        )
        on(self.task.input, lambda choice, name: first_of(choice, tasks.get(inputs.task(name)).name), self.task)
        for event in (self.index.submit, self.index.blur):
            on(event, lambda choice, i: replace(choice, index=whole_number(i)), self.index)
        for event in (self.seed.submit, self.seed.blur):
            on(event, lambda choice, seed: replace(choice, seed=whole_number(seed)), self.seed)
        on(self.previous.click, lambda choice: step(choice, -1))
        on(self.next.click, lambda choice: step(choice, 1))
        on(self.random.click, lambda choice: step(choice, "random"))
        on(self.filter.input, lambda choice, name: filtered(choice, one_of(name, FILTERS, "filter")), self.filter)
        on(self.video.input, lambda choice, folder: replace(choice, video=text(folder)), self.video)
        on(self.language.input, lambda choice, folder: replace(choice, language=text(folder)), self.language)
        on(self.more.input, lambda choice, folders: replace(choice, more=tuple(texts(folders)[:MORE])), self.more)

        self.run.click(
            self.answer_live, [self.choice, self.shown],
            [self.stage, self.scores, self.shown, self.run, self.cancel, self.problem],
            show_progress="hidden", concurrency_limit=4, api_visibility="private",
        )  # fmt: skip
        self.cancel.click(self._cancel, None, None, queue=False, show_progress="hidden", api_visibility="private")
        self.adapt.click(
            self._adapt, [self.choice, self.flavour, self.updates], [self.adapt_about, self.adapt, self.problem],
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    def opened(self, shown: Shown, request: gr.Request) -> dict[Any, Any]:
        """The first view: what the address asks for (see `asked_for`), else an example where the arms differ."""
        wanted = dict(request.query_params) if request else {}
        try:
            choice, missing = asked_for(wanted) if "task" in wanted else (opening(), [])
            view = self.draw(choice, shown)
        except UserError as error:
            return {**self.draw(opening(), shown), self.problem: problem(error)}
        if missing:
            view[self.problem] = problem(
                f"Not on this machine: {', '.join(missing)}. Import or pull it in the Library."
            )
            address = view[self.stage]["address"]  # it goes on asking for them: a reload after the import finds them
            address |= {arm: wanted[arm] for arm in ARMS if wanted.get(arm) in missing}
        return view

    def first_view(self) -> None:
        """Make once what a first visitor sees: it reads every adapter's files and a compiled task, half a second's work that is
        kept for all who follow."""
        with contextlib.suppress(UserError):  # the visitor is told
            self.draw(opening(), Shown())

    def open_run(self, folder: Path, index: int, shown: Shown) -> dict[Any, Any]:
        """Everything the tab shows when another tab leads here: a run and, beside it, the partner that fits it best.

        Raises UserError where the folder holds no answers and no adapter.
        """
        adapter = by_folder(str(folder))
        if adapter is None:
            raise UserError(f"{folder.name} has no answers and no adapter to show yet.")
        choice = Choice().with_task(adapter.run.tested)
        fields: dict[str, Any] = {adapter.arm: str(adapter.folder), "index": index, "seed": adapter.run.seed}
        if twin := scenes.twin(adapter):
            fields[twin.arm] = str(twin.folder)
        return self.draw(replace(choice, **fields), shown)

    def draw(self, choice: Choice, shown: Shown, sent: Mapping[str, Any] | None = None) -> dict[Any, Any]:
        """Everything the tab shows for a choice. `sent` is the row of examples as the browser has it."""
        view = scene(choice, shown)
        shown.newest = choice
        row, shelf = example_row(choice), shelf_of(choice.task)
        kept = sent is not None and sent == {**row, "current": sent.get("current")}  # then only the place has moved
        empty = choice.filter != "all" and not recorded(choice)
        return {
            self.choice: choice,
            self.family: gr.update(value=shelf or None),
            self.task: gr.update(choices=tasks.variants(shelf) if shelf else [choice.task], value=choice.task),
            self.index: choice.index,
            self.seed: choice.seed,
            self.filter: choice.filter,
            **self._menus(choice),
            self.problem: problem(f"No recorded example of {choice.task} passes the filter “{choice.filter}”.")
            if empty
            else "",
            self.examples: {"current": row["current"]} if kept else row,
            self.shelf: row,
            self.stage: view,
            self.scores: scores(choice, view),
            self.run: self.run_button(choice),
            **self._adapt_view(choice),
        }

    def _menus(self, choice: Choice) -> dict[Any, Any]:
        """The adapters to choose from, the best match first."""
        known = catalogue()
        menus = {
            arm: [("none", NONE), *((a.label, str(a.folder)) for a in fitting(known, arm, choice.task))] for arm in ARMS
        }
        return {
            self.video: gr.update(choices=menus["video"], value=choice.video),
            self.language: gr.update(choices=menus["language"], value=choice.language),
            self.more: gr.update(
                choices=[
                    entry for arm in ARMS for entry in menus[arm][1:] if entry[1] not in (choice.video, choice.language)
                ],
                value=[*choice.more],
            ),
        }

    # Live answers

    def run_button(self, choice: Choice) -> Any:
        able = [a for a in choice.slots().values() if a and a.live]
        times = [self.worker.seconds.get(str(a.folder)) for a in able]
        known = sum(t for t in times if t)
        label = "Run live" if not able or not all(times) else f"Run live · about {known:.1f} s"
        return gr.update(value=label, interactive=bool(able))

    def answer_live(self, choice: Choice, shown: Shown, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Ask all arms, one after the other, and show each answer as it forms."""
        owner = request.session_hash or ""
        try:
            task, puzzle = tasks.get(choice.task), example(choice)
            able = {slot: a for slot, a in choice.slots().items() if a and a.live}
            public.QUOTA.take(visitor(request), len(able))
        except UserError as error:
            yield {self.problem: problem(error)}
            return
        self.worker.forget_cancel(owner)
        waiting = {"state": "working", "badge": "live"}
        forming = {slot: {**waiting, "run": a.label, "note": "Waits for its turn."} for slot, a in able.items()}
        complaint = ""

        def stage() -> dict[Any, Any]:
            """The answers as they form, unless the visitor has gone on to something else: that stays in sight."""
            return {self.stage: scene(choice, shown, forming) if shown.newest in (None, choice) else gr.skip()}

        yield {
            self.run: gr.update(interactive=False), self.cancel: gr.update(visible=True), self.problem: "", **stage()
        }  # fmt: skip
        for slot, adapter in able.items():
            forming[slot] = {**forming[slot], "note": "The worker loads the model."}
            yield stage()
            try:
                for message in self.worker.predict(adapter.folder, choice.task, choice.index, choice.seed, owner):
                    raw = message.get("clip", message.get("text"))
                    if message.get("done"):
                        fields = [message[key] for key in ("grid", "certainty", "problem", "seconds")]
                        done = as_shown(adapter, task, puzzle, raw, *fields)
                        shown.live[str(adapter.folder), puzzle.key] = {**done, "device": message["device"]}
                        forming.pop(slot)
                    else:
                        note = f"Step {message['step']} of {message['steps']}: the answer forms."
                        forming[slot] = {
                            **waiting, "run": adapter.label, "note": note, **drawn(adapter, puzzle, raw)
                        }  # fmt: skip
                    yield stage()
            except Stopped:
                complaint = "Cancelled."
                break
            except UserError as error:
                complaint = str(error)
                forming.pop(slot, None)
        now = shown.newest or choice
        view = scene(now, shown)
        yield {
            self.stage: view, self.scores: scores(now, view), self.shown: shown, self.run: self.run_button(now),
            self.cancel: gr.update(visible=False), self.problem: problem(complaint),
        }  # fmt: skip

    def _cancel(self, request: gr.Request) -> None:
        self.worker.cancel(request.session_hash or "")

    # Adapting on the demonstrations

    def _adapt_view(self, choice: Choice) -> dict[Any, Any]:
        """The box that offers to adapt both arms on a puzzle's demonstrations, where an arm has no adapter for it."""
        demos = tasks.count(choice.task, "train")
        missing = any(a is None or a.run.tested != choice.task for a in map(choice.adapter, ARMS))
        status = adapting(choice.task)
        busy = bool(status and status.active)
        return {
            self.adapt_box: gr.update(visible=bool(demos) and (missing or busy)),
            self.adapt_about: f'<p class="note" aria-live="polite">{adapt_text(status)}</p>',
            self.adapt: gr.update(
                value=f"Adapt both arms on its {demos} demonstrations", interactive=not busy and not public.on()
            ),
        }

    def _adapt(self, choice: Choice, flavour: str, updates: float) -> dict[Any, Any]:
        try:
            public.refuse("Adapting to a puzzle")
            adapt(choice.task, one_of(flavour, common_flavours(), "backbones"), whole_number(updates))
        except UserError as error:
            return {self.problem: problem(error)}
        view = self._adapt_view(choice)
        return {self.problem: "", self.adapt_about: view[self.adapt_about], self.adapt: view[self.adapt]}

    def tick(self, choice: Choice, shown: Shown, seen: tuple[Any, ...]) -> dict[Any, Any] | Any:
        """Follow the adapting job of the shown puzzle: when an adapter or an answer to it has appeared, show it."""
        with shown.turn, contextlib.suppress(UserError):  # its file may be gone, and what is in sight stays
            return self._follow(shown.newest or choice, shown, seen)
        return {self.seen: seen}

    def _follow(self, choice: Choice, shown: Shown, seen: tuple[Any, ...]) -> dict[Any, Any] | Any:
        if not choice.task:
            return {self.seen: seen}
        known = catalogue(scenes.FRESH)
        here = {str(a.folder): a.arm for a in known if a.run.tested == choice.task}
        before = choice
        # Only what has come since the last look fills an empty place: a visitor may have chosen "none".
        new = (
            {arm for folder, arm in here.items() if folder not in seen[2]}
            if seen and seen[0].task == choice.task
            else ()
        )
        if any(choice.adapter(arm) is None and arm in new for arm in ARMS):
            choice = replace(choice.with_task(choice.task), index=choice.index, filter=choice.filter)
        answered = [a.arm for a in choice.answered() if a.record_at(choice.index)]
        status = adapting(choice.task)
        told = adapt_text(status) if status else ""
        now = (choice, answered, [*here], told, len(known), sum(len(a.records) for a in known))
        if now == seen:
            return {self.seen: seen}
        # An adapter is there some seconds before its answers are: then the stage is drawn once more.
        landed = bool(seen) and choice == seen[0] and answered != seen[1]
        if choice != before or landed:
            return {**self.draw(choice, shown), self.seen: now}
        return {**self._menus(choice), **self._adapt_view(choice), self.seen: now}


def common_flavours() -> list[str]:
    """Names of the flavours that both families that adapt here have, and that need no download."""
    families = [adapters.family(name) for name in comparing.one_of_each()]
    names = [{n for n, f in module.FLAVOURS.items() if not f.published} for module in families]
    return sorted(set.intersection(*names), key=lambda name: (name != "small", name))


def first_of(choice: Choice, task: str) -> Choice:
    """Another puzzle's first example: the first recorded one that passes the filter, if there is one."""
    if task == choice.task:
        return choice
    fresh = choice.with_task(task)
    return replace(fresh, index=(recorded(fresh) or [0])[0])


def filtered(choice: Choice, name: str) -> Choice:
    """The filter changed; the shown example stays if it passes."""
    fresh = replace(choice, filter=name)
    places = recorded(fresh)
    return fresh if not places or choice.index in places else replace(fresh, index=places[0])


def adapt_text(status: jobs.Status | None) -> str:
    """Where the adapting job stands, in words."""
    if status is None:
        return "No adapter has been made for this puzzle. Both arms can learn from its demonstrations now and answer its test."
    if status.active:
        step = f"update {status.step} of {status.updates}" if status.updates else "getting ready"
        left = f", about {status.eta:.0f} s left" if status.eta else ""
        return f"Adapting both arms: {html.escape(step + left)}. You can leave or reload the page; the job goes on."
    if status.state == "done":
        return "Both arms have been adapted."
    return f"The last attempt is {status.state}. {html.escape(public.clean(status.error))}"


def asked_for(wanted: Mapping[str, str]) -> tuple[Choice, list[str]]:
    """What an address asks for: ?task=maze/7x7&index=3&seed=0&video=NAME&language=NAME&more=NAME,NAME, where a name is
    an adapter's folder under the runs or the zoo. Also the names that are not on this machine. Raises UserError."""
    choice = Choice().with_task(tasks.get(inputs.task(wanted["task"])).name)
    fields: dict[str, Any] = {k: whole_number(wanted[k]) for k in ("index", "seed") if wanted.get(k)}
    missing = []

    def folder(name: str, arm: str = "") -> str:
        adapter = by_name(name)
        if adapter is None or (arm and adapter.arm != arm):
            missing.append(name)
            return NONE
        return str(adapter.folder)

    for arm in ARMS:
        if wanted.get(arm):
            fields[arm] = folder(wanted[arm], arm)
    if wanted.get("more"):
        found = [folder(name) for name in wanted["more"].split(",")[:MORE]]
        fields["more"] = tuple(f for f in found if f)
    return replace(choice, **fields), missing


def visitor(request: gr.Request) -> str:
    """Whom a quota counts: the address that asks, so that a reload is no new visitor. On a Space all come by way of its proxy,
    which adds whom it heard at the end; before that stands what anybody may have written."""
    heard = str((request.headers or {}).get("x-forwarded-for", "")) if "SPACE_ID" in os.environ else ""
    return heard.rpartition(",")[2].strip() or str(getattr(request.client, "host", "") or request.session_hash or "")


def problem(error: object) -> str:
    return f'<p class="problem" role="alert">{html.escape(str(error))}</p>' if str(error) else ""
