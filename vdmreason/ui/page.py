"""The page's frame: head, tabs, the strip of jobs, and how it is served."""

from __future__ import annotations

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: no request leaves the machine
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# gradio asks matplotlib for its backend within every call, on the thread that serves all visitors. Named, it is an answer;
# unnamed, the first visitor waits half a second for the import of all of pyplot.
os.environ.setdefault("MPLBACKEND", "agg")

import html
import importlib.util
import threading
from typing import Any

import gradio as gr
import psutil

from tasks.base import UserError
from vdmreason import store
from vdmreason.ui import api, backbones_tab, compare, draw_tab, library_tab, public, sweeps_tab, training
from vdmreason.ui.components import Jobs, script
from vdmreason.ui.frame import SECONDS, Frame
from vdmreason.ui.inputs import said, text
from vdmreason.ui.strip import strip
from vdmreason.worker import Worker

TITLE = "vdmreason"
QUESTION = "Given the same few examples, which learns the puzzle: a model that draws it, or one that reads it?"
EXPLANATION = (
    "Both models learn from the same examples, in the same order, with the same number of updates and the same small "
    "LoRA adapter. The video model sees a puzzle as a picture and draws a short clip that ends in the answer; the "
    "language model reads the puzzle as JSON and writes the answer as JSON. Both answers are read back as grids and "
    "scored by the puzzle's own rules."
)
STYLES = ("page", "train", "draw", "sweeps", "backbones", "library")  # style sheets, the later ones of one tab each

SANS = [
    "ui-sans-serif",
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "Noto Sans",
    "sans-serif",
]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "DejaVu Sans Mono", "monospace"]


def theme() -> Any:
    """Fonts of the reader's own machine and quiet surfaces; the colours are in page.css."""
    return gr.themes.Base(
        primary_hue="stone", neutral_hue="stone", font=SANS, font_mono=MONO, radius_size="lg", text_size="md"
    ).set(
        body_background_fill="var(--paper)", body_background_fill_dark="var(--paper)",
        body_text_color="var(--ink)", body_text_color_dark="var(--ink)",
        block_background_fill="var(--card)", block_background_fill_dark="var(--card)",
        block_border_color="var(--line)", block_border_color_dark="var(--line)",
        block_label_text_color="var(--quiet)", block_label_text_color_dark="var(--quiet)",
        block_info_text_color="var(--quiet)", block_info_text_color_dark="var(--quiet)",
        block_shadow="none", block_shadow_dark="none",
        button_primary_background_fill="var(--ink)", button_primary_background_fill_dark="var(--ink)",
        button_primary_background_fill_hover="var(--quiet)", button_primary_background_fill_hover_dark="var(--quiet)",
        button_primary_text_color="var(--paper)", button_primary_text_color_dark="var(--paper)",
        button_primary_text_color_hover="var(--paper)", button_primary_text_color_hover_dark="var(--paper)",
        button_secondary_background_fill="var(--card)", button_secondary_background_fill_dark="var(--card)",
        button_secondary_border_color="var(--line)", button_secondary_border_color_dark="var(--line)",
        button_secondary_text_color="var(--ink)", button_secondary_text_color_dark="var(--ink)",
        input_background_fill="var(--card)", input_background_fill_dark="var(--card)",
        input_border_color="var(--line)", input_border_color_dark="var(--line)",
    )  # fmt: skip


MASTHEAD = """
<div class="masthead">
  <div><p class="name">NAME</p><h1>QUESTION</h1></div>
  <div class="tools"><span class="device">DEVICE</span>
    <details><summary aria-label="What is compared here?">?</summary><p>EXPLANATION</p></details>
    <button type="button" class="theme" aria-label="Switch between light and dark">◐</button></div>
</div>
"""
THEME_SWITCH = """
const stored = localStorage.getItem('vdmreason-theme');
const asked = new URLSearchParams(location.search).get('__theme');
if (stored && !asked) document.body.classList.toggle('dark', stored === 'dark');
element.querySelector('.theme').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('vdmreason-theme', dark ? 'dark' : 'light');
});
"""


def device() -> str:
    """What live answers will run on, in words."""
    memory = psutil.virtual_memory().total / 2**30
    gpu = training.gpu_memory()
    cores = os.cpu_count() or 1
    return f"GPU, {gpu:.0f} GiB" if gpu else f"CPU, {cores} cores, {memory:.0f} GiB"


def build() -> gr.Blocks:
    """The whole page. Needs no torch: live answers come from `vdmreason.worker`, training from jobs."""
    worker = Worker()
    texts = {"NAME": TITLE, "QUESTION": QUESTION, "DEVICE": device(), "EXPLANATION": EXPLANATION}
    head = MASTHEAD
    for name, words in texts.items():
        head = head.replace(name, html.escape(words))
    keep = (60, 600) if public.on() else (3600, 86400)  # seconds between looks, and that a file of a visitor's stays
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=keep) as page:
        gr.HTML(html_template=head, js_on_load=THEME_SWITCH + script("tabs.js"), apply_default_css=False)
        with gr.Tabs(overflow_behavior="wrap") as row_of_tabs:  # on a phone all six stay in sight
            tabs = {}
            with gr.Tab("Compare", id="compare") as tabs["compare"]:
                comparing = compare.Tab(worker)
            frame = Frame(page, row_of_tabs, comparing)
            with gr.Tab("Draw", id="draw") as tabs["draw"]:
                draw_tab.Tab(frame)
            with gr.Tab("Train", id="train") as tabs["train"]:
                train = training.Tab()
            with gr.Tab("Sweeps", id="sweeps") as tabs["sweeps"]:
                sweeps_tab.Tab(frame)
            with gr.Tab("Backbones", id="backbones") as tabs["backbones"]:
                backbones_tab.Tab(frame)
            with gr.Tab("Library", id="library") as tabs["library"]:
                library_tab.Tab(frame)
        strip_of_jobs = Jobs(elem_id="jobs")
        seen_jobs = gr.State([])
        timer = gr.Timer(SECONDS)

        def act(event: gr.EventData) -> None:
            try:
                training.act(store.runs_root() / text(said(event).get("name")), text(said(event).get("how")))
            except UserError as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from None

        def poll(seen: list[dict[str, Any]]) -> Any:
            rows = strip(age=0.8)
            return (rows, rows) if rows != seen else (gr.skip(), gr.skip())

        strip_of_jobs.act(**compare.quiet(act))
        page.load(**compare.quiet(comparing.opened), inputs=[comparing.shown], outputs=comparing.outputs)
        frame.opens("train", train.opened, [], [train.watched, *train.live])
        frame.opens("train", train.foresee, train.form, train.foreseen)
        page.load(**compare.quiet(poll), inputs=[seen_jobs], outputs=[strip_of_jobs, seen_jobs])
        timer.tick(**compare.quiet(poll), inputs=[seen_jobs], outputs=[strip_of_jobs, seen_jobs])
        frame.clock("compare").tick(
            **compare.quiet(comparing.tick), inputs=[comparing.choice, comparing.shown, comparing.seen],
            outputs=[*comparing.outputs, comparing.seen],
        )  # fmt: skip
        seconds = frame.clock("train")
        seconds.tick(**compare.quiet(train.tick), inputs=train.ticking, outputs=train.ticked)
        frame.wind(tabs)
        api.publish(worker)
    page.worker, page.first_view = worker, comparing.first_view
    return page


def launch(host: str = "127.0.0.1", port: int | None = None, block: bool = True, mcp: bool = False) -> gr.Blocks:
    """Serve the page on `host`:`port` (None: the first free one from 7860). Returns it when `block` is off.

    With `mcp` the endpoints of `api.py` are tools for language models too. Raises UserError where gradio's extra for that
    is missing.
    """
    if mcp and importlib.util.find_spec("mcp") is None:
        raise UserError("--mcp needs one more package: pip install -e '.[mcp]'")
    page = build()
    warm = threading.Thread(target=page.first_view, daemon=True)  # beside the server's start, which mostly waits
    warm.start()
    page.queue(max_size=512, default_concurrency_limit=8)
    # `_frontend` is gradio's question to itself, with three seconds of patience, whether it is there: on a busy machine it gave
    # up on a page that was about to answer.
    page.launch(
        server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, show_error=not public.on(),
        max_file_size="1mb" if public.on() else "20mb", prevent_thread_lock=True, footer_links=["api"], run_history=False,
        ssr_mode=False, strict_cors=True, mcp_server=mcp, _frontend=False, theme=theme(),
        css="".join(script(f"{name}.css") for name in STYLES),
    )  # fmt: skip
    warm.join()
    print(f"vdmreason is at {page.local_url}  (Ctrl+C ends it; jobs go on)", flush=True)
    if mcp:
        print(f"its tools for language models (MCP): {page.local_url}gradio_api/mcp/", flush=True)
    if block:
        try:
            page.block_thread()
        finally:
            page.worker.close()
    return page
