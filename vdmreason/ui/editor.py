"""The Draw tab's own component: a whole ARC puzzle, drawn on one canvas. See components.py for how such a one is made."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tasks import arc
from vdmreason import drawn
from vdmreason.ui import pictures
from vdmreason.ui.components import script

STORE = "vdmreason-drawing"  # under which name a browser keeps what was drawn


class Editor(gr.HTML):
    """The editor. Event: `drawn`, when a stroke has ended.

    As an input the value is what the browser says, to be read with `drawn.checked`. As an output it is a command:
    {"load": {"train", "test", "family", "names"}, "note": str} {"fill": [{"i": test, "output": rows}], "note": str} or
    {"rules": {"family", "names"}}.
    """

    def __init__(self, **kwargs: Any) -> None:
        facts = {
            "palette": pictures.palette()[: drawn.VALUES], "names": {str(value): name for value, name in enumerate(arc.COLOURS)},
            "most": {"train": drawn.PAIRS, "test": drawn.TESTS}, "store": STORE,
        }  # fmt: skip
        super().__init__(
            None, html_template=script("editor.html"), js_on_load=script("editor.js"), apply_default_css=False,
            elem_classes=["draw"], facts=facts, **kwargs,
        )  # fmt: skip

    def postprocess(self, value: Any) -> Any:
        return value

    def preprocess(self, payload: Any) -> Any:
        return payload

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "description": "a puzzle in the ARC format"}
