"""The Library tab: which adapters are here and what each is, how they come and go, every run there was, and the trash."""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

import adapters
from tasks.base import UserError
from vdmreason import library, store, trash
from vdmreason.ui import public, shelf
from vdmreason.ui.compare import problem, quiet
from vdmreason.ui.frame import Frame
from vdmreason.ui.inputs import said
from vdmreason.ui.scenes import by_folder
from vdmreason.ui.shelf import COMPARED, HUB_ID, LOGIN, MOST, Kept, adapters_here, id_of, runs_here
from vdmreason.ui.table import Table

# ---------------------------------------------------------------------------------------------------------------------
# The tab


def _chosen(picked: str) -> Kept:
    """The chosen adapter. Raises UserError where none is."""
    kept = adapters_here()[0].get(picked)
    if kept is None:
        raise UserError("Choose an adapter first.")
    return kept


def _word(event: gr.EventData, key: str, most: int = 500) -> str:
    """A word that a browser sent with an event. Raises UserError for anything else."""
    word = said(event).get(key)
    if not isinstance(word, str) or len(word) > most:
        raise UserError("The page did not understand that. Reload it.")
    return word


def each(fn: Any) -> dict[str, Any]:
    """For a choice in a table: quick clicks are all heard, one after the other, so that the last one stands."""
    return {**quiet(fn), "trigger_mode": "multiple", "concurrency_limit": 1}


class Tab:
    """The tab's components and listeners."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.off = public.on()
        why = public.off()
        self.picked = gr.State("")  # the chosen adapter's id
        self.run = gr.State("")  # the chosen run's id
        self.ticked = gr.State([])  # ids of the runs to compare
        self.undone = gr.State("")  # the trash entry that "Undo" puts back
        self.errand = gr.State("")  # the push or pull that this browser asked for last
        self.seen = gr.State({})  # what was sent last, by part: an idle page sends nothing

        gr.HTML('<h2 class="step">Adapters</h2>')
        self.problem = gr.HTML(elem_id="library-problem", elem_classes=["library-line"])
        with gr.Row(visible=False, elem_id="library-undo-row") as self.undo_row:
            self.removed = gr.HTML(elem_id="library-removed")
            self.undo = gr.Button("Undo", size="sm", elem_id="library-undo", scale=0, min_width=90)
        self.adapters = Table(shelf.adapters_table({}, None), "Adapters", elem_id="library-adapters")
        with gr.Column(visible=False, elem_id="library-card-box") as self.card_box:
            self.card = gr.HTML(elem_id="library-card")
            with gr.Row(elem_classes=["library-buttons"]):
                self.use = gr.Button("Use in Compare", variant="primary", elem_id="library-use", min_width=130)
                self.export = gr.Button("Export zip", elem_id="library-export", min_width=110)
                self.pushing = gr.Button(
                    "Push to the hub …", elem_id="library-push-open", min_width=140, interactive=not self.off
                )
                self.remove = gr.Button(
                    "Remove", variant="stop", elem_id="library-remove", min_width=100, interactive=not self.off
                )
            with gr.Row(elem_classes=["library-buttons"], equal_height=True):
                self.id = gr.Textbox(
                    label="Id, as an address and the API call it", interactive=False, buttons=["copy"], elem_classes=["command"],
                    elem_id="library-id", scale=3, min_width=240,
                )  # fmt: skip
            with gr.Row(elem_classes=["library-buttons"], equal_height=True):
                self.with_answers = gr.Checkbox(
                    label="Export and push its recorded answers too",
                    elem_id="library-with-answers",
                    scale=2,
                    min_width=200,
                )
                self.download = gr.DownloadButton(
                    "Download", visible=False, elem_id="library-download", scale=2, min_width=200, size="md"
                )
            with gr.Column(visible=False, elem_id="library-push") as self.push_box:
                with gr.Row(equal_height=True):
                    self.push_repo = gr.Textbox(
                        label="Name on the hub",
                        placeholder="owner/name",
                        max_length=200,
                        elem_id="library-push-repo",
                        scale=3,
                    )
                    self.private = gr.Checkbox(True, label="Private", elem_id="library-private", scale=1, min_width=110)
                    self.push = gr.Button(
                        "Push now", variant="primary", elem_id="library-push-now", scale=1, min_width=120
                    )
                self.push_line = gr.HTML(elem_id="library-push-line", elem_classes=["library-line"])
                self.parcel = gr.HTML(elem_id="library-parcel")
        if self.off:
            gr.HTML(f'<p class="note">Import, push and removal: {why}</p>')

        with gr.Accordion("Bring an adapter in", open=False, elem_id="library-in"):
            gr.HTML(
                '<p class="note">Safetensors only. A zip that was exported here says itself what it is for; so does a LoRA that '
                "was trained here. Everything else needs the four fields.</p>"
            )
            with gr.Row():
                with gr.Column(min_width=260):
                    self.files = gr.File(
                        label="A .zip, or a .safetensors and the adapter_config.json beside it", file_count="multiple",
                        height=132, elem_id="library-files", interactive=not self.off,
                    )  # fmt: skip
                    self.import_ = gr.Button(
                        "Import", variant="primary", elem_id="library-import", interactive=not self.off
                    )
                with gr.Column(min_width=260):
                    self.pull_repo = gr.Textbox(
                        label="Or its name on the hub", placeholder="owner/name or owner/name@revision", max_length=300,
                        elem_id="library-pull-repo", interactive=not self.off,
                    )  # fmt: skip
                    self.pull = gr.Button("Pull from the hub", elem_id="library-pull", interactive=not self.off)
            with gr.Row():
                self.family = gr.Dropdown(
                    [("as the file says", ""), *adapters.families()], value="", label="Family", elem_id="library-family",
                    min_width=130, interactive=not self.off,
                )  # fmt: skip
                self.flavour = gr.Dropdown(
                    [("as the file says", "")], value="", label="Backbone (or a hub id)", allow_custom_value=True,
                    elem_id="library-flavour", min_width=170, interactive=not self.off,
                )  # fmt: skip
                self.task = gr.Textbox(
                    label="Task", placeholder="as the file says, or maze/7x7", max_length=200, elem_id="library-task",
                    interactive=not self.off,
                )  # fmt: skip
                self.n = gr.Textbox(
                    label="n, training examples", placeholder="as the file says", max_length=7, elem_id="library-n",
                    min_width=110, interactive=not self.off,
                )  # fmt: skip
            self.in_line = gr.HTML(elem_id="library-in-line", elem_classes=["library-line"])

        gr.HTML('<h2 class="step">Runs</h2><p class="note">Everything that ran under this folder, started here or from a shell. '
                f"Choose one for its log; tick two to {COMPARED} to compare them.</p>")  # fmt: skip
        self.runs = Table(shelf.runs_table([], 0, None), "Runs", elem_id="library-runs")
        self.more = gr.HTML(elem_id="library-more", elem_classes=["library-line"])
        self.compared = gr.HTML(elem_id="library-compared", elem_classes=["library-line"])
        with gr.Column(visible=False, elem_id="library-run-box") as self.run_box:
            self.log = gr.Textbox(
                label="Log",
                lines=8,
                max_lines=14,
                interactive=False,
                elem_classes=["log"],
                elem_id="library-log",
                autoscroll=True,
            )
            with gr.Row(elem_classes=["library-buttons"]):
                self.run_use = gr.Button("Use in Compare", elem_id="library-run-use", min_width=130)
                self.run_remove = gr.Button(
                    "Remove this run",
                    variant="stop",
                    elem_id="library-run-remove",
                    min_width=130,
                    interactive=not self.off,
                )
            self.run_problem = gr.HTML(elem_id="library-run-problem", elem_classes=["library-line"])

        with gr.Accordion("Removed", open=False, elem_id="library-trash-box") as self.trash_box:
            self.trash_line = gr.HTML(elem_id="library-trash-line", elem_classes=["library-line"])
            self.trash = Table(shelf.trash_table(), "Removed runs", elem_id="library-trash")
        self.outputs = [
            self.picked, self.run, self.ticked, self.seen, self.adapters, self.problem, self.card_box, self.card, self.id,
            self.remove, self.download, self.runs, self.more, self.compared, self.run_box, self.log, self.run_remove,
            self.trash_box, self.trash, self.in_line, self.push_line, self.undo_row, self.removed, self.undone,
        ]  # fmt: skip
        self._listen()

    def _listen(self) -> None:
        state = [self.picked, self.run, self.ticked, self.errand, self.seen]
        clock = self.frame.clock("library")
        self.frame.opens("library", self._opened, state, self.outputs)
        clock.tick(**quiet(self.refresh), inputs=state, outputs=self.outputs)
        self.adapters.pick(**each(self._pick), inputs=state, outputs=[*self.outputs, self.push_box])
        self.runs.pick(**each(self._pick_run), inputs=state, outputs=[*self.outputs, self.run_problem])
        self.runs.tick(**each(self._tick), inputs=state, outputs=self.outputs)

        self.frame.leads_to_compare(self.use.click, self._find_adapter, [self.picked], self.problem)
        self.frame.leads_to_compare(self.run_use.click, self._find_run, [self.run], self.run_problem)
        self.remove.click(**quiet(self._remove), inputs=state, outputs=self.outputs)
        self.run_remove.click(**quiet(self._remove_run), inputs=state, outputs=[*self.outputs, self.run_problem])
        self.undo.click(**quiet(self._undo), inputs=[self.undone, *state], outputs=self.outputs)
        self.trash.act(**quiet(self._trash_act), inputs=state, outputs=[*self.outputs, self.trash_line])

        self.export.click(
            self._export, [self.picked, self.with_answers], [self.download, self.problem], api_visibility="private",
            show_progress="hidden", concurrency_limit=2,
        )  # fmt: skip
        shown = [self.picked, self.push_repo, self.with_answers]
        self.pushing.click(
            **quiet(self._open_push), inputs=shown, outputs=[self.push_box, self.parcel, self.push_line, self.problem]
        )
        self.push_repo.blur(**quiet(self._show_parcel), inputs=shown, outputs=[self.parcel, self.push_line])
        self.with_answers.input(
            **quiet(self._answers_toggled), inputs=shown, outputs=[self.download, self.parcel, self.push_line]
        )
        self.push.click(
            **quiet(self._push), inputs=[*shown, self.private], outputs=[self.errand, self.push_line]
        )  # fmt: skip
        fields = [self.family, self.flavour, self.task, self.n]
        self.family.input(**quiet(self._flavours), inputs=[self.family], outputs=[self.flavour])
        self.import_.click(
            self._import, [self.files, *fields, *state], [*self.outputs, self.files], api_visibility="private",
            show_progress="hidden", concurrency_limit=2,
        )  # fmt: skip
        self.pull.click(**quiet(self._pull), inputs=[self.pull_repo, *fields], outputs=[self.errand, self.in_line])

    # What is shown

    def _opened(self, *state: Any) -> dict[Any, Any] | Any:
        """The first view: the newest adapter's card; what lay in the trash for a week is gone."""
        if not public.on():
            with contextlib.suppress(OSError, UserError):
                trash.empty()
        return self.refresh(*state)

    def refresh(
        self, picked: str, run: str, ticked: list[str], errand: str, seen: dict[str, str]
    ) -> dict[Any, Any] | Any:
        """Everything of the tab that is not as it was sent last."""
        asked = {self.picked: picked, self.run: run, self.ticked: ticked}
        known, faults = adapters_here()
        picked = picked if picked in known else next(iter(known), "")
        places, rows, more = runs_here()
        run = run if run in places else ""
        ticked = [key for key in ticked if key in places]
        kept = known.get(picked)
        fresh = dict(seen)
        out: dict[Any, Any] = {}

        def part(name: str, about: Any, make: Callable[[], dict[Any, Any]]) -> None:
            """Send a part of the tab where `about`, all that it is drawn from, has changed."""
            now = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()
            if seen.get(name) != now:
                fresh[name] = now
                out.update(make())

        list_ = shelf.adapters_table(known, picked)
        part("adapters", [list_, faults], lambda: {self.adapters: list_, self.problem: _faults(faults)})
        files = ("config.yaml", "result.json", "metrics.jsonl", "predictions.jsonl", "README.md", "previews")
        stamps = [store.stamp(kept.folder / name) for name in files] if kept else []
        part("card", [picked, stamps], lambda: self._card(kept))
        ran = shelf.runs_table(rows, more, run)
        part("runs", ran, lambda: {self.runs: ran, self.more: _more(more)})
        log = public.log_of(places[run]) if run else ""
        part("log", [run, log], lambda: {self.run_box: gr.update(visible=bool(run)), self.log: log})
        chosen = {key: places[key] for key in ticked[:COMPARED]}
        curves = [
            [store.stamp(f / n) for n in ("config.yaml", "result.json", "metrics.jsonl")] for f in chosen.values()
        ]
        part("compared", [ticked, curves], lambda: {self.compared: _compared(chosen)})
        bin_ = shelf.trash_table()
        label = f"Removed ({len(bin_['rows'])})" if bin_["rows"] else "Removed"
        part("trash", bin_, lambda: {self.trash: bin_, self.trash_box: gr.update(label=label)})
        line = self.push_line if errand.startswith("push-") else self.in_line
        text = shelf.errand_text(errand)
        part("errand", [errand, text], lambda: {line: text} if errand else {})
        # A choice is said only where it has to be another: this may be a clock's turn that began before the last click.
        now = {self.picked: picked, self.run: run, self.ticked: ticked}
        out |= {state: value for state, value in now.items() if value != asked[state]}
        return {**out, self.seen: fresh} if out else {self.seen: gr.skip()}

    def _card(self, kept: Kept | None) -> dict[Any, Any]:
        if kept is None:
            return {
                self.card_box: gr.update(visible=False),
                self.card: "",
                self.id: "",
                self.download: gr.update(visible=False),
            }
        try:
            text = shelf.card(kept)
        except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            text = problem(f"{kept.folder.name}: {public.clean(error)}")
        return {
            self.card_box: gr.update(visible=True), self.card: text, self.id: id_of(kept.folder).partition("/")[2],
            self.remove: gr.update(
                value="Remove" if not kept.shipped else "Remove (it ships, so it stays)",
                interactive=not kept.shipped and not self.off,
            ),
            self.download: gr.update(visible=False),
        }  # fmt: skip

    def _pick(self, event: gr.EventData, *state: Any) -> dict[Any, Any]:
        with contextlib.suppress(UserError):
            key = _word(event, "id")
            return {self.picked: key, self.push_box: gr.update(visible=False), **self.refresh(key, *state[1:])}
        return {self.seen: gr.skip()}

    def _pick_run(self, event: gr.EventData, *state: Any) -> dict[Any, Any]:
        with contextlib.suppress(UserError):
            picked, _, *others = state
            key = _word(event, "id")
            return {self.run: key, self.run_problem: "", **self.refresh(picked, key, *others)}
        return {self.seen: gr.skip()}

    def _tick(self, event: gr.EventData, *state: Any) -> dict[Any, Any]:
        picked, run, _, errand, seen = state
        ids = said(event).get("ids")
        wanted = [key for key in ids if isinstance(key, str)][:COMPARED] if isinstance(ids, list) else []
        return {self.ticked: wanted, **self.refresh(picked, run, wanted, errand, seen)}

    # Into Compare

    def _find_adapter(self, picked: str) -> tuple[Path, int]:
        return self._first(_chosen(picked).folder)

    def _find_run(self, run: str) -> tuple[Path, int]:
        place = runs_here()[0].get(run)
        if place is None:
            raise UserError("Choose a run first.")
        return self._first(place)

    def _first(self, folder: Path) -> tuple[Path, int]:
        """A run and its first recorded example, else the first there is."""
        known = by_folder(str(folder))
        return folder, min((record["i"] for record in known.records.values()), default=0) if known else 0

    # The trash

    def _remove(self, *state: Any) -> dict[Any, Any]:
        return self._away(adapters_here()[0], state[0], self.problem, state)

    def _remove_run(self, *state: Any) -> dict[Any, Any]:
        return {self.run_problem: "", **self._away(runs_here()[0], state[1], self.run_problem, state)}

    def _away(self, known: Mapping[str, Any], key: str, line: gr.HTML, state: Sequence[Any]) -> dict[Any, Any]:
        try:
            public.refuse("Removing a run")
            if key not in known:
                raise UserError("That is not here any more.")
            found = known[key]
            removed = trash.remove(found.folder if isinstance(found, Kept) else found)
        except UserError as error:
            return {line: problem(public.clean(error))}
        line_ = f"Removed {removed.was}. It is kept until {shelf.day(removed.until)}."
        said = f'<p class="note" role="status">{html.escape(line_)}</p>'
        return {
            **self.refresh(*state), self.undo_row: gr.update(visible=True), self.removed: said, self.undone: removed.name
        }  # fmt: skip

    def _undo(self, name: str, *state: Any) -> dict[Any, Any]:
        try:
            public.refuse("Restoring a run")
            trash.restore(name)
        except UserError as error:
            return {self.problem: problem(public.clean(error)), self.undo_row: gr.update(visible=False)}
        return {**self.refresh(*state), self.undo_row: gr.update(visible=False), self.undone: ""}

    def _trash_act(self, event: gr.EventData, *state: Any) -> dict[Any, Any]:
        try:
            public.refuse("Emptying the trash")
            name, how = _word(event, "id"), _word(event, "how", 20)
            if how == "restore":
                said = f"Put back: {trash.restore(name)}"
            elif how == "delete":
                trash.delete(name)
                said = f"Deleted for good: {name}"
            else:
                raise UserError("The page did not understand that. Reload it.")
        except UserError as error:
            return {**self.refresh(*state), self.trash_line: problem(public.clean(error))}
        return {
            **self.refresh(*state), self.trash_line: f'<p class="note" role="status">{html.escape(said)}</p>',
            self.undo_row: gr.update(visible=False),
        }  # fmt: skip

    # Out

    def _export(self, picked: str, with_answers: bool) -> dict[Any, Any]:
        try:
            kept = _chosen(picked)
            out = shelf.pack(kept, bool(with_answers))
        except (UserError, OSError) as error:
            return {self.problem: problem(public.clean(error)), self.download: gr.update(visible=False)}
        label = f"Download {out.name} ({shelf.size_of(out.stat().st_size)})"
        return {self.download: gr.update(value=str(out), label=label, visible=True), self.problem: ""}

    def _open_push(self, picked: str, repo: str, with_answers: bool) -> dict[Any, Any]:
        try:
            public.refuse("Pushing to the hub")
        except UserError as error:
            return {self.problem: problem(error)}
        return {
            self.push_box: gr.update(visible=True),
            self.problem: "",
            **self._show_parcel(picked, repo, with_answers),
        }

    def _show_parcel(self, picked: str, repo: str, with_answers: bool) -> dict[Any, Any]:
        try:
            kept = _chosen(picked)
            name = str(repo or "").strip()
            return {
                self.parcel: shelf.parcel(kept, name if HUB_ID.fullmatch(name) else "", bool(with_answers)),
                self.push_line: "" if library.logged_in() else problem(LOGIN),
            }
        except (UserError, OSError) as error:
            return {self.parcel: "", self.push_line: problem(public.clean(error))}

    def _answers_toggled(self, picked: str, repo: str, with_answers: bool) -> dict[Any, Any]:
        return {self.download: gr.update(visible=False), **self._show_parcel(picked, repo, with_answers)}

    def _push(self, picked: str, repo: str, with_answers: bool, private: bool) -> dict[Any, Any]:
        try:
            public.refuse("Pushing to the hub")
            kept = _chosen(picked)
            status = shelf.start_push(kept.folder, repo, private is not False, bool(with_answers))
        except UserError as error:
            return {self.push_line: problem(public.clean(error))}
        return {self.errand: status.folder.name, self.push_line: shelf.errand_text(status.folder.name)}

    # In

    def _flavours(self, family: str) -> Any:
        known = [*adapters.family(family).FLAVOURS] if family in adapters.families() else []
        return gr.update(choices=[("as the file says", ""), *known], value=known[0] if known else "")

    def _import(self, files: Any, *more: Any) -> dict[Any, Any]:
        fields, state = more[:4], more[4:]
        try:
            public.refuse("Importing an adapter")
            place = shelf.bring_in(files, shelf.given(*fields))
        except UserError as error:
            return {self.in_line: problem(public.clean(error))}
        key = id_of(place)
        said = f'<p class="good-line" role="status">✓ Imported as {html.escape(key.partition("/")[2])}.</p>'
        return {self.picked: key, **self.refresh(key, *state[1:]), self.in_line: said, self.files: None}

    def _pull(self, repo: str, *fields: Any) -> dict[Any, Any]:
        try:
            public.refuse("Pulling an adapter")
            status = shelf.start_pull(repo, shelf.given(*fields))
        except UserError as error:
            return {self.in_line: problem(public.clean(error))}
        return {self.errand: status.folder.name, self.in_line: shelf.errand_text(status.folder.name)}


def _faults(faults: Sequence[str]) -> str:
    if not faults:
        return ""
    more = f" And {len(faults) - 3} more." if len(faults) > 3 else ""
    return problem(f"Passed over: {'; '.join(fault.rstrip('.') for fault in faults[:3])}.{more}")


def _more(more: int) -> str:
    return f'<p class="note">The {MOST} latest; {more} older ones are not listed.</p>' if more else ""


def _compared(chosen: Mapping[str, Path]) -> str:
    if not chosen:
        return ""
    if len(chosen) == 1:
        return '<p class="note">One run is ticked. Tick another to compare them.</p>'
    return shelf.side_by_side(chosen)
