"""The page's own components: `Stage` (one puzzle, one to four answers), `Examples` (the row above it) and `Jobs` (the strip
under every tab).

Each is a `gr.HTML` with a fixed template: a template that used `${value}` would be drawn anew on every update, and the
canvases with it. The script beside this file draws once and again when the value changes.
gradio writes a `components.pyi` next to this file on import; git ignores it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import orjson

from tasks.base import UserError
from vdmreason.ui import pictures

HERE = Path(__file__).parent


def script(name: str) -> str:
    """A file of this folder as text: a script, a template, a style sheet."""
    return (HERE / name).read_text(encoding="utf-8")


def movie(asked: Any) -> dict[str, str]:
    """A film that the browser shows and "kind" beside it, as a file: {"file": a `data:` address} or {"error": one line}."""
    try:
        return {"file": pictures.encoded(pictures.clip_of(asked), asked.get("kind"))}
    except UserError as error:
        return {"error": str(error)}


class Part(gr.HTML):
    """A component of our own: a fixed template, and a script beside this file, with part.js in front, that draws what the value
    says. What a browser sends back is never read, but for the data of its events.

    The value travels as JSON text: gradio's page copies every component's value whenever any listener answers, which for a
    large object took most of the browser's time (benchmarks/page.py).
    """

    def __init__(self, value: Any, template: str, js: str, kind: str, **kwargs: Any) -> None:
        super().__init__(
            value,
            html_template=template,
            js_on_load=script("part.js") + js,
            apply_default_css=False,
            elem_classes=[kind],
            **kwargs,
        )

    def postprocess(self, value: Any) -> Any:
        return None if value is None else orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()

    def preprocess(self, payload: Any) -> Any:
        return None

    def api_info(self) -> dict[str, Any]:
        return {"type": "string"}


class Stage(Part):
    """Input, truth, and one card an arm: the video arm's film and grid, the language arm's text and grid; one linked cell.

    The value is a scene, as `compare.scene` makes it, or None.
    """

    def __init__(self, value: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(value, script("stage.html"), script("stage.js"), "stage", server_functions=[movie], **kwargs)


class Examples(Part):
    """The recorded examples in a row, each with what the arms made of it. Event: `pick`, {"i": number}.

    The value is what `scenes.example_row` gives; {"current": number} alone moves the mark.
    """

    def __init__(self, value: dict[str, Any] | None = None, **kwargs: Any) -> None:
        row = '<ol class="example-row" aria-label="Recorded examples"></ol>'
        super().__init__(value, row, script("examples.js"), "examples", **kwargs)


class Jobs(Part):
    """What runs, waits or has just ended: a list of {name, title, state, numbers, share}. Event: `act`."""

    def __init__(self, value: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        frame = '<h2 class="jobs-head">Jobs</h2><ul class="jobs-list"></ul>'
        super().__init__(value or [], frame, script("jobs.js"), "jobs", **kwargs)
