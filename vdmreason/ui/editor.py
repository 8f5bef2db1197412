"""The Draw tab's own component: a whole ARC puzzle, drawn on one canvas. See components.py for how such a one is made."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson

from tasks import arc
from vdmreason import drawn
from vdmreason.ui import pictures
from vdmreason.ui.components import Part, script

STORE = "vdmreason-drawing"  # under which name a browser keeps what was drawn


class Editor(Part):
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
        super().__init__(None, script("editor.html"), script("editor.js"), "draw", facts=facts, **kwargs)

    def preprocess(self, payload: Any) -> Any:
        with contextlib.suppress(TypeError, ValueError):  # what is no JSON is no puzzle either: `drawn.checked` says so
            return orjson.loads(payload)
        return payload
