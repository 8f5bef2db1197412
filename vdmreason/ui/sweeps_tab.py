"""The Sweeps tab: an experiment of many trials, defined, watched and reported."""

from __future__ import annotations

from vdmreason.ui.frame import Frame


class Tab:
    """The tab's components and listeners."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
