"""The Backbones tab: how our own video backbones were made, and what they know."""

from __future__ import annotations

from vdmreason.ui.frame import Frame


class Tab:
    """The tab's components and listeners."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
