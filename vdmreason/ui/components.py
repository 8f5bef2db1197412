"""The page's own components: `Stage` (one puzzle, two answers) and `Jobs` (the strip under every tab).

Each is a `gr.HTML` with a fixed template: a template that used `${value}` would be drawn anew on every update, and the
canvases with it. The script beside this file draws once and again when the value changes.
gradio writes a `components.pyi` next to this file on import; git ignores it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent


def script(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


STAGE = """
<section class="stage-head" aria-live="polite"><h2 class="title"></h2><p class="about"></p></section>
<div class="demo-row"><p class="demos-label"></p><div class="demos"></div></div>
<div class="columns">
  <div class="sides">
    <section class="card given"><header><h3>Input</h3><span class="size"></span></header><div class="well"><canvas></canvas></div></section>
    <section class="card truth"><header><h3>Ground truth</h3><span class="size"></span></header><div class="well"><canvas></canvas></div></section>
  </div>
  <section class="card arm video" aria-label="The video arm's answer">
    <header><h3>Video model <small>draws the answer</small></h3><span class="verdict"></span></header>
    <p class="origin"><span class="badge"></span><span class="run"></span></p>
    <p class="reason" aria-live="polite"></p>
    <div class="film" role="group" aria-label="Transition. Keys: left and right, home and end, space plays, o lays the truth over it, d shows the difference, c shows certainty">
      <div class="well"><canvas class="screen" role="img" tabindex="0"></canvas></div>
      <div class="controls">
        <button type="button" class="back" aria-label="Previous frame">‹</button>
        <button type="button" class="play" aria-label="Play">▶</button>
        <button type="button" class="forth" aria-label="Next frame">›</button>
        <input type="range" min="0" max="8" value="0" step="1" aria-label="Frame of the transition">
        <span class="count"></span>
      </div>
      <div class="controls toggles">
        <button type="button" class="onion" aria-pressed="false" title="Lay the truth over the frame (o)">onion skin</button>
        <button type="button" class="difference" aria-pressed="false" title="Difference to the truth (d)">difference</button>
        <button type="button" class="heat" aria-pressed="false" title="How sure the reading is, cell by cell (c)">certainty</button>
      </div>
    </div>
    <div class="decoded"><header><h4>Read from the last frame</h4><span class="size"></span></header><div class="well"><canvas></canvas></div></div>
  </section>
  <section class="card arm language" aria-label="The language arm's answer">
    <header><h3>Language model <small>writes the answer</small></h3><span class="verdict"></span></header>
    <p class="origin"><span class="badge"></span><span class="run"></span></p>
    <p class="reason" aria-live="polite"></p>
    <pre class="text" tabindex="0" aria-label="The text the language arm wrote"></pre>
    <button type="button" class="more" hidden></button>
    <p class="fault" role="alert" hidden></p>
    <div class="decoded"><header><h4>Parsed from the text</h4><span class="size"></span></header><div class="well"><canvas></canvas></div></div>
  </section>
</div>
<p class="readout" aria-live="polite"></p>
"""


class Stage(gr.HTML):
    """Input, truth, the video arm's film and grid, the language arm's text and grid, with one linked cell.

    The value is a scene, as `compare.scene` makes it, or None.
    """

    def __init__(self, value: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(
            value, html_template=STAGE, js_on_load=script("stage.js"), apply_default_css=False,
            elem_classes=["stage"], **kwargs,
        )  # fmt: skip

    def postprocess(self, value: Any) -> Any:
        return value

    def preprocess(self, payload: Any) -> Any:
        return None  # what a browser sends back is never read

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "description": "one puzzle and its two answers"}


class Jobs(gr.HTML):
    """What runs, waits or has just ended: a list of {name, title, state, numbers, share}. Event: `act`."""

    def __init__(self, value: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(
            value or [], html_template='<h2 class="jobs-head">Jobs</h2><ul class="jobs-list"></ul>',
            js_on_load=script("jobs.js"), apply_default_css=False, elem_classes=["jobs"], **kwargs,
        )  # fmt: skip

    def postprocess(self, value: Any) -> Any:
        return value

    def preprocess(self, payload: Any) -> Any:
        return None

    def api_info(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "object"}}
