"""One file a model family, behind one protocol. A file dropped in here is found, listed, tested and shown."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

from tasks.base import UserError, suggest

_NOT_FAMILIES = {"__init__", "base", "clips", "kept", "language", "next_frame", "pictures"}


@cache
def families() -> list[str]:
    """The families there are: the names of the files in this folder."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _NOT_FAMILIES)


def family(name: str) -> ModuleType:
    """The family's module: ARM, FLAVOURS, Options, frame, load. Imports neither torch nor a model library."""
    name = name.replace("-", "_")
    if name not in families():
        raise UserError(f"No model family '{name}'.{suggest(name, families())} Known: {', '.join(families())}.")
    return importlib.import_module(f"adapters.{name}")
