"""The page. Every callback calls what the command line calls; nothing here imports torch."""

from __future__ import annotations

from typing import Any


def build() -> Any:
    """The page as a `gradio.Blocks`, not yet served."""
    from vdmreason.ui.page import build

    return build()


def launch(host: str = "127.0.0.1", port: int | None = None, block: bool = True, mcp: bool = False) -> Any:
    """Build the page and serve it. Blocks until Ctrl+C unless `block` is off."""
    from vdmreason.ui.page import launch

    return launch(host, port, block, mcp)
