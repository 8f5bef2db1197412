"""The Draw tab: a puzzle of one's own, judged by rules where there are some, and an adapter from its few pairs."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from tasks.base import Grid, UserError
from vdmreason import compare as comparing
from vdmreason import drawn, jobs, store
from vdmreason.drawn import Drawing
from vdmreason.ui import compare, inputs, pictures, public, training
from vdmreason.ui.editor import Editor
from vdmreason.ui.frame import Frame

UPDATES = 80  # for both arms; three pairs of 8 x 8 took 72 s on two cores with nothing beside it
MOST_UPDATES = 100_000
STARTS = [
    "maze/7x7", "life/B3S23", "eca/110", "sudoku/4x4", "langton/5", "colour_moves/fall", "hanoi/4-step",
    "connect4/win-in-1", "shortest_path/15x15", "arc1/evaluation/00576224", "arc1/training/007bbfb7",
    "conceptarc/Center/Center1",
]  # fmt: skip
FREE = "No rule is known for this puzzle: nothing is scored unless you draw the answer."

# A link that carries a puzzle opens this tab; the editor, once it is there, opens the puzzle.
OPEN_LINKS = """() => {
  const open = () => {
    if (!location.hash.startsWith("#puzzle=")) return;
    const tab = [...document.querySelectorAll("[role=tab]")].find((t) => t.textContent.trim() === "Draw");
    if (tab) tab.click();
  };
  open();
  window.addEventListener("hashchange", open);
}"""


# ---------------------------------------------------------------------------------------------------------------------
# What the rules say


def said(drawing: Drawing) -> str:
    """What is known of the drawing's answers: by a family's rules, or by what was drawn."""
    lines: list[tuple[str, bool | None]]
    if not drawing.family:
        scored = [i for i, (_, answer) in enumerate(drawing.test, 1) if answer is not None]
        lines = [(f"Test {i}: the answer you drew is the truth the arms are scored by.", None) for i in scored]
        lines += [
            (f"Test {i}: open. The arms will answer; draw its output to have them scored.", None)
            for i in drawn.open_tests(drawing)
        ]
        return _panel("Truth", FREE, lines)
    task = drawn.rules(drawing.family)
    lines = [_line("Pair", i, drawn.judged(task, *pair), True) for i, pair in enumerate(drawing.train, 1)]
    good = [right for _, right in lines]
    if all(good):
        lines = [(f"All {len(good)} pairs are right by the rules.", True)]
    for i, (question, answer) in enumerate(drawing.test, 1):
        lines.append(_line("Test", i, drawn.judged(task, question, answer), answer is not None))
    return _panel(f"By the rules of {drawing.family}", task.about, lines)


def _line(word: str, i: int, truth: drawn.Truth, answered: bool) -> tuple[str, bool | None]:
    """One grid's verdict in words, and whether it is right; None where there is nothing to judge."""
    if truth.trouble:
        return f"{word} {i}: the input is no question of these rules: {truth.trouble}.", False
    if not answered:
        known = "The rules know the answer; draw yours to have it checked." if truth.answer is not None else "Draw it."
        return f"{word} {i}: open. {known}", None
    if truth.fault is None:
        return f"{word} {i}: these rules cannot tell.", None
    yours = "your answer" if word == "Test" else "the output"
    return f"{word} {i}: {yours} is " + (
        f"not right: {truth.fault}." if truth.fault else "right by the rules."
    ), not truth.fault


def _panel(head: str, about: str, lines: Sequence[tuple[str, bool | None]]) -> str:
    signs = {True: "✓", False: "✗", None: "·"}
    rows = "".join(
        f'<li data-right="{str(right).lower()}"><b aria-hidden="true">{signs[right]}</b><span>{html.escape(line)}</span></li>'
        for line, right in lines
    )
    return (
        f'<section class="dw-said"><h3>{html.escape(head)}</h3><p class="quiet">{html.escape(about)}</p>'
        f"<ul>{rows}</ul></section>"
    )


def fillings(drawing: Drawing) -> list[tuple[int, Grid]]:
    """Tests, counted from 0, with the answers that the rules give them; of drawn answers only the wrong ones."""
    if not drawing.family:
        return []
    task = drawn.rules(drawing.family)
    found = [(i, drawn.judged(task, *pair), pair[1]) for i, pair in enumerate(drawing.test)]
    return [
        (i, truth.answer) for i, truth, answer in found if truth.answer is not None and (answer is None or truth.fault)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Adapting


def plan(task: str, flavour: str, updates: int) -> list[Any]:
    """The runs that `compare.adapt` will start."""
    flavours = dict.fromkeys(comparing.one_of_each(), flavour)
    return comparing.plan(task, flavours=flavours, overrides=[f"optim.updates={updates}"])


@dataclass(frozen=True)
class Kept:
    """What a poll must know of the drawing in the browser: its file's task, "" where none was kept; its family; its pairs."""

    task: str = ""
    family: str = ""
    pairs: int = 1


def results(task: str) -> dict[str, Any] | None:
    """What both arms answered: their comparison's compare.json, or None."""
    return store.read_json(compare.adapt_folder(task) / "compare.json") if task else None


def answers(kept: Kept) -> str:
    """Both arms' answers to every test, small; Compare shows them large. Where a rule is known, it judges; else the truth."""
    result = results(kept.task)
    if not result:
        return ""
    figures = []
    for arm in result["arms"]:
        for record in arm["answers"]:
            number = record["i"] + 1
            alt = f"{arm['kind']} answer to test {number}"
            right, verdict, reason = verdict_of(record, kept.family)
            why = f"<br><small>{html.escape(reason)}</small>" if reason else ""
            facts = [
                *([f"{100 * record['cells']:.0f} % of cells"] if record["answer"] else []),
                f"{record['seconds']:.1f} s",
                arm["flavour"],
                arm["folder"],
            ]
            figures.append(
                f"<figure>{pictures.image(record['proposed'], alt)}<figcaption>"
                f"{html.escape(arm['kind'].capitalize())}, test {number}"
                f'<span class="verdict" data-right="{"" if right is None else str(right).lower()}">{verdict}</span>{why}'
                f"<br><small>{html.escape(' · '.join(facts))}</small></figcaption></figure>"
            )
    where = html.escape(public.place(compare.adapt_folder(kept.task)))
    judge = f"the rules of {kept.family}" if kept.family else "the truth, cell by cell, where it is known"
    return (
        f'<div class="dw-box dw-answers">{"".join(figures)}<p class="quiet">Judged by {html.escape(judge)}. '
        f"From {where}/compare.json.</p></div>"
    )


def verdict_of(record: dict[str, Any], family: str) -> tuple[bool | None, str, str]:
    """Whether an answer is right, the word for it, and one line why not. The file knows one truth; rules may know more. None
    where neither does: such an answer is never counted as right or wrong."""
    if record["exact"]:
        return True, "exact", ""
    if family and record["proposed"] is not None:
        question, proposed = (np.asarray(record[key], np.int8) for key in ("question", "proposed"))
        fault = drawn.judged(drawn.rules(family), question, proposed).fault
        if fault is not None:
            return not fault, "wrong" if fault else "right by the rules", fault
    if not record["answer"] and record["proposed"] is not None:
        return None, "nobody knows", ""
    return False, "wrong", str(record["reason"])


def status_of(task: str) -> jobs.Status | None:
    """Where the adapting job of a kept drawing stands; None where the file or the job is not there."""
    with contextlib.suppress(UserError):
        return compare.adapting(task) if task else None
    return None


def stamp(task: str) -> tuple[Any, ...]:
    """What a poll compares: whatever of the job and of its answers the page shows."""
    status = status_of(task)
    if status is None:
        return (task,)
    file = compare.adapt_folder(task) / "compare.json"
    written = file.stat().st_mtime_ns if file.is_file() else 0
    return task, status.state, status.step, round(status.eta or 0), public.clean(status.error), written


# ---------------------------------------------------------------------------------------------------------------------
# The tab


class Tab:
    """The tab's components and listeners. Nothing of a drawing is kept here: it lives in the browser, and in the file that
    adapting writes, whose name is the hash of what is drawn. So a reload, or a link opened elsewhere, finds its job again."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.kept = gr.State(Kept())
        self.seen = gr.State(())
        with gr.Row(equal_height=True, elem_classes=["controls-row"]):
            self.name = gr.Dropdown(
                STARTS, value=STARTS[0], label="Start from (any puzzle's name: arc2/evaluation/…)", allow_custom_value=True,
                filterable=True, scale=4, min_width=220, elem_id="draw-from",
            )  # fmt: skip
            self.begin = gr.Button("Start", elem_id="draw-begin", min_width=70, scale=1)
            self.blank = gr.Button("Blank", elem_id="draw-blank", min_width=70, scale=1)
            self.upload = gr.UploadButton(
                "Open a JSON file", file_types=[".json"], type="binary", elem_id="draw-upload", min_width=130, scale=1
            )
        with gr.Accordion("Paste JSON", open=False, elem_id="draw-paste"):
            self.pasted = gr.Textbox(
                label="A puzzle in the ARC format", lines=3, max_lines=8, max_length=drawn.MAX_BYTES,
                placeholder='{"train": [{"input": [[0, 1]], "output": [[1, 0]]}], "test": [{"input": [[1, 1]]}]}',
            )  # fmt: skip
            self.paste = gr.Button("Open it", elem_id="draw-paste-open", size="md")
        self.problem = gr.HTML("", elem_id="draw-problem")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self.editor = Editor(elem_id="editor")
            with gr.Column(scale=3, min_width=300, elem_id="draw-side"):
                self.said = gr.HTML("", elem_id="draw-said")
                self.fill = gr.Button("Draw the rules' answer", visible=False, elem_id="draw-fill", size="md")
                with gr.Column(elem_id="draw-adapt"):
                    gr.HTML(
                        '<div class="dw-box"><h3>Turn my pairs into an adapter</h3><p class="quiet">Both arms learn from your '
                        "pairs, in the same order with the same number of updates, then answer your tests.</p></div>"
                    )
                    with gr.Row():
                        self.flavour = gr.Dropdown(
                            [*compare.common_flavours()], value=compare.common_flavours()[0], label="Backbones",
                            min_width=110, elem_id="draw-flavour",
                        )  # fmt: skip
                        self.updates = gr.Number(
                            UPDATES, label="Updates", precision=0, minimum=1, maximum=MOST_UPDATES, min_width=90,
                            elem_id="draw-updates",
                        )  # fmt: skip
                    self.forecast = gr.HTML("", elem_id="draw-forecast")
                    self.adapt = gr.Button(
                        "Adapt both arms", variant="primary", elem_id="draw-adapt-both", interactive=False
                    )
                    self.about = gr.HTML("", elem_id="draw-about")
                    self.answers = gr.HTML("", elem_id="draw-answers")
                    self.see = gr.Button("See both answers in Compare", visible=False, elem_id="draw-see", size="md")
        self.view = [self.said, self.fill, self.adapt, self.about, self.answers, self.see, self.kept, self.seen]
        self._listen()

    def _listen(self) -> None:
        def opens(event: Any, make: Any, inputs: Any = None) -> None:
            def listener(*values: Any) -> dict[Any, Any]:
                try:
                    return {self.editor: command(*make(*values)), self.problem: ""}
                except UserError as error:
                    return {self.problem: compare.problem(error)}

            event(**compare.quiet(listener), inputs=inputs, outputs=[self.editor, self.problem])

        opens(self.begin.click, lambda name: (drawn.begin(name or ""), f"Started from {name}."), [self.name])
        opens(self.blank.click, lambda: (drawn.blank(), "A blank puzzle."))
        opens(self.upload.upload, lambda file: (drawn.parse(file or b""), "Opened the file."), [self.upload])
        opens(self.paste.click, lambda text: (drawn.parse(text or ""), "Opened the pasted puzzle."), [self.pasted])

        self.editor.drawn(
            **compare.quiet(self.changed), inputs=[self.editor], outputs=[*self.view, self.editor, self.problem],
            trigger_mode="always_last",
        )  # fmt: skip
        self.fill.click(**compare.quiet(self._fill), inputs=[self.editor], outputs=[self.editor, self.problem])
        self.adapt.click(
            **compare.quiet(self._adapt), inputs=[self.editor, self.flavour, self.updates],
            outputs=[*self.view, self.problem],
        )  # fmt: skip
        for change in (self.flavour.input, self.updates.submit, self.updates.blur):
            change(
                **compare.quiet(self._forecast), inputs=[self.kept, self.flavour, self.updates], outputs=[self.forecast]
            )
        self.frame.opens("draw", self._forecast, [self.kept, self.flavour, self.updates], [self.forecast])
        self.frame.page.load(None, None, None, js=OPEN_LINKS)
        clock = self.frame.clock("draw")
        clock.tick(
            **compare.quiet(self.tick), inputs=[self.kept, self.seen],
            outputs=[self.adapt, self.about, self.answers, self.see, self.seen],
        )  # fmt: skip
        self.frame.leads_to_compare(self.see.click, first_answer, [self.kept], self.problem)

    def changed(self, payload: Any) -> dict[Any, Any]:
        """A stroke has ended: what the rules say of it, and whether it can be learnt from."""
        try:
            drawing = drawn.checked(payload)
        except UserError as error:
            return {self.problem: compare.problem(f"This drawing cannot be used: {error}")}
        view = self._view(drawing)
        told = (payload.get("family") or "", bool(payload.get("named")))
        if told != (drawing.family, bool(drawing.family)):  # it came by a link, without the names of its values
            names = names_of(drawing.family)
            view[self.editor] = {"rules": {"family": drawing.family, "names": names}}
        return view | {self.problem: ""}

    def _view(self, drawing: Drawing) -> dict[Any, Any]:
        task, why = "", ""
        try:
            whole = drawn.finished(drawing)
            if drawn.file_of(whole).is_file():
                task = f"arc:{drawn.file_of(whole)}"
        except UserError as error:
            why = str(error)
        if not any(grid.any() for pair in drawing.train for grid in pair):
            why = "Draw a pair or two first: an input, and the output that your rule makes of it."
        kept = Kept(task, drawing.family, len(drawing.train))
        return {
            self.said: said(drawing),
            self.fill: gr.update(visible=bool(fillings(drawing))),
            self.kept: kept,
            self.seen: stamp(task),
            **self._adapting(kept, why),
        }

    def _adapting(self, kept: Kept, why: str = "") -> dict[Any, Any]:
        """The box that adapts: `why` it cannot, or where the kept drawing's job stands."""
        status = status_of(kept.task)
        busy = bool(status and status.active)
        if public.on():
            why = "Adapting is off on this public page. Copy the link and open it on your own machine."
        text = html.escape(why) or (
            compare.adapt_text(status) if status else "No adapter has been made from this drawing."
        )
        pairs = "pair" if kept.pairs == 1 else f"{kept.pairs} pairs"
        return {
            self.adapt: gr.update(
                value="Adapting…" if busy else f"Adapt both arms on my {pairs}", interactive=not (why or busy)
            ),
            self.about: f'<div class="dw-box"><p class="quiet" role="status">{text}</p></div>',
            self.answers: answers(kept),
            self.see: gr.update(visible=results(kept.task) is not None),
        }

    def tick(self, kept: Kept, seen: tuple[Any, ...]) -> Any:
        """Follow the job of the kept drawing; nothing is sent while nothing changes."""
        now = stamp(kept.task)
        if not kept.task or now == tuple(seen):
            return tuple(gr.skip() for _ in range(5))
        view = self._adapting(kept)
        return view[self.adapt], view[self.about], view[self.answers], view[self.see], now

    def _fill(self, payload: Any) -> dict[Any, Any]:
        try:
            found = fillings(drawn.checked(payload))
            if not found:
                raise UserError("The rules have no answer to these tests.")
        except UserError as error:
            return {self.problem: compare.problem(error)}
        fill = [{"i": i, "output": pictures.cells(grid)} for i, grid in found]
        return {self.editor: {"fill": fill, "note": "Drawn by the rules."}, self.problem: ""}

    def _adapt(self, payload: Any, flavour: Any, updates: Any) -> dict[Any, Any]:
        try:
            public.refuse("Adapting to a drawing")
            count = updates_of(flavour, updates)
            whole = drawn.finished(drawn.checked(payload))
            compare.adapt(drawn.keep(whole), flavour, count)
            return self._view(drawn.checked(payload)) | {self.problem: ""}
        except UserError as error:
            return {self.problem: compare.problem(error)}

    def _forecast(self, kept: Kept, flavour: Any, updates: Any) -> str:
        try:
            runs = plan(kept.task or STARTS[-3], flavour, updates_of(flavour, updates))
            return f'<div class="dw-box"><p class="quiet">{html.escape(training.forecast(runs))}</p></div>'
        except UserError as error:
            return compare.problem(error)


def command(drawing: Drawing, note: str) -> dict[str, Any]:
    """What the editor is told to open."""
    load = drawing.as_json() | {"family": drawing.family, "names": names_of(drawing.family)}
    return {"load": load, "note": note}


def names_of(family: str) -> dict[str, str] | None:
    """What a family calls its values; None for ARC's own names."""
    if not family:
        return None
    return {str(value): name for value, name in drawn.rules(family).colours.items()}


def updates_of(flavour: Any, updates: Any) -> int:
    """The number of updates from its field. Raises UserError, also for a flavour that is not offered."""
    if flavour not in compare.common_flavours():
        raise UserError("Choose one of the backbones in the list.")
    count = inputs.whole_number(updates)
    if not 1 <= count <= MOST_UPDATES:
        raise UserError(f"Updates: a whole number from 1 to {MOST_UPDATES:,}.")
    return count


def first_answer(kept: Kept) -> tuple[Path, int]:
    """The video arm's run of a kept drawing, and its first test. Raises UserError where there is none."""
    result = results(kept.task)
    if not result:
        raise UserError("No answers yet: adapt both arms first.")
    return compare.adapt_folder(kept.task) / result["arms"][0]["folder"], 0
