"""The Backbones tab's own components: aligned films under one slider, and the table of backbones.

`Scrubber` shows what a model was given, what was hidden from it, what it drew, how it went on. gradio writes a `scrubber.pyi`
next to this file on import; git ignores it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.base import UserError
from vdmreason.ui.components import Part, script

TEMPLATE = """
<div class="films"></div>
<div class="scrub" role="group" aria-label="Frames of all films">
  <button type="button" class="back" aria-label="One frame back">‹</button>
  <button type="button" class="play" aria-label="Play" aria-pressed="false">▶</button>
  <button type="button" class="forth" aria-label="One frame on">›</button>
  <input type="range" min="0" value="0" step="1" aria-label="Frame of all films">
  <span class="count" aria-hidden="true"></span>
  <button type="button" class="strips" aria-pressed="false" title="Every frame beside the next (s)">All frames</button>
  <button type="button" class="difference" aria-pressed="false" title="How far from the clip, threefold (d)">Difference</button>
  <button type="button" class="hatch" aria-pressed="true" title="Hidden patches hatched (h)">Hidden</button>
</div>
<p class="scrub-note"></p>
"""
MOST = 24 << 20  # bytes of a sprite that still goes into a page


def films(facts: dict[str, Any], title: str = "", note: str = "") -> dict[str, Any]:
    """A scrubber's value from what `vdmreason pretrain show` leaves: its JSON, and "sprite", a WebP with a row a film and a
    column a frame. Raises UserError for files that do not fit together."""
    sprite = Path(facts["sprite"])
    try:
        kept = [
            {key: film[key] for key in ("name", "frames", "error", "hidden") if key in film} for film in facts["films"]
        ]
        size = {key: int(facts[key]) for key in ("width", "height", "frames", "patch")}
        data = sprite.read_bytes()
    except (KeyError, TypeError, ValueError, OSError):
        raise UserError(f"{sprite.parent.name}: its pictures are damaged. Draw them again.") from None
    if len(data) > MOST:
        raise UserError(f"{sprite.parent.name}: too large to show here; its PNG and WebP lie in that folder.")
    address = "data:image/webp;base64," + base64.b64encode(data).decode()
    return {"title": title, "note": note, "films": kept, "sprite": address, **size}


class Scrubber(Part):
    """Films (`films`) that move together. Keys, with the focus inside: left, right, home, end, space; s all frames, d the
    difference from the first film, h the hidden patches. None hides it."""

    def __init__(self, value: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(value, TEMPLATE, script("scrubber.js"), "scrubber", **kwargs)


class Shelf(Part):
    """The table of backbones. The value is what `backbones_tab.shelf` gives. Event: `pick`, {"key": a backbone's}."""

    def __init__(self, columns: Sequence[str], value: dict[str, Any] | None = None, **kwargs: Any) -> None:
        heads = "".join(f'<th scope="col">{name}</th>' for name in columns)
        caption = '<caption class="sr">Backbones of our own</caption>'
        template = f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody></tbody></table>"
        super().__init__(value, template, script("backbones.js"), "shelf", **kwargs)
