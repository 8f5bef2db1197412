"""What comes from a browser or a program, checked before it is used: anybody can send anything to every listener."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

import tasks
from tasks.base import UserError, suggest
from vdmreason import store
from vdmreason.ui import public

LONGEST = 1000  # characters of a name, a path, a task


def text(value: Any, longest: int = LONGEST) -> str:
    """A name or a path; None is "". Raises UserError."""
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > longest or "\0" in value:
        raise UserError(f"A name is text of at most {longest} characters.")
    return value.strip()


def texts(value: Any, most: int = 100) -> list[str]:
    """A list of names, at most `most`. Raises UserError."""
    if not isinstance(value, (list, tuple, type(None))) or len(value or ()) > most:
        raise UserError(f"A choice of several is a list of at most {most} names.")
    return [text(each) for each in value or ()]


def task(value: Any) -> str:
    """A puzzle's name, or the path of one in a file; on a public page no file but a puzzle that was drawn there, and no folder.
    Raises UserError."""
    name = text(value)
    path = name.startswith(("/", "./", "../", "~")) or name.endswith(".json") or ":" in name
    if public.on() and path and name not in tasks.variants("reasoning_gym"):
        drawn = (store.runs_root() / "drawn").resolve()
        try:
            file = Path(name.removeprefix("arc:")).resolve()
            known = file.parent == drawn and file.suffix == ".json" and file.is_file()
        except (OSError, ValueError, RuntimeError):  # a name that no file can have
            known = False
        if not known:
            public.refuse("Naming a file, or settings of one's own,")
    return name


def whole_number(value: Any) -> int:
    """A count, a seed or an example's number, from 0 on; None is 0. Raises UserError."""
    try:
        number = int(value or 0)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < 2**31:
        raise UserError(f"{str(value)[:40]!r} is no whole number from 0 on.")
    return number


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number in a range. Raises UserError."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = low - 1
    if not low <= number <= high or number != value:
        raise UserError(f"{name}: give a whole number from {low:,} to {high:,}.")
    return number


def one_of(value: Any, known: Sequence[str], what: str) -> str:
    """One of the known words. Raises UserError."""
    if value not in known:
        raise UserError(f"{what}: {str(value)[:40]!r} is none of {', '.join(known)}.{suggest(str(value), known)}")
    return str(value)


def said(event: gr.EventData) -> dict[str, Any]:
    """What a component of our own said with an event: a JSON object, else {}."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}
