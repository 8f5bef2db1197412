"""Names to tasks to examples.

A file of this folder that is not one of the room's tools is a family. Dropping one in is all it takes. It has

    VARIANTS: tuple[str, ...]           its listed variants, without the family's name
    def task(variant: str) -> Task      "7x7" -> the task "maze/7x7"; raises UserError for a variant it does not know

Where the list is long to make, `def variants() -> list[str]` with full names stands in for VARIANTS.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from types import ModuleType

from tasks import split as _split
from tasks.base import Example, Split, Task, UserError, suggest

TOOLS = {"augment", "base", "split", "fast", "paths", "render", "text", "transition"}


@cache
def families() -> list[str]:
    """The families, by file name: "arc", "colour_moves", "eca", "life", "maze"."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in TOOLS and not m.name.startswith("_"))


def variants(family: str | None = None) -> list[str]:
    """Full names of the listed variants of a family, or of all families.

    `family` may be any leading part of names: "maze", "arc1", "arc1/evaluation", "arc:<folder>". A family can make
    more than it lists: every size of maze, every rule.
    """
    if family is None:
        return [name for known in families() for name in _listed(known)]
    if family.startswith("arc:"):
        from tasks import arc

        return arc.files(family.removeprefix("arc:"))
    part = _folded(family).rstrip("/")
    module = _family_of(part)
    if part == module:
        return _listed(module)
    found = [name for name in _listed(module) if name.startswith(part + "/") or name == part]
    if not found:
        raise UserError(f"no task's name starts with {family!r}.{suggest(part, _listed(module))}")
    return found


def get(name: str) -> Task:
    """The task of that name: "maze/7x7", "life/game-of-life", "eca/110", "arc1/evaluation/<id>", "arc:<file>".

    The path of a JSON file or of a folder stands for "arc:<path>". Raises UserError, with a suggestion, if unknown.
    """
    if name.startswith("arc:") or name.endswith(".json") or name.startswith(("/", "./", "../", "~")):
        from tasks import arc

        return arc.task_from_path(name.removeprefix("arc:"))
    folded = _folded(name)
    _, _, variant = folded.partition("/")
    module = _family_of(folded)
    if module == "arc":  # its names carry the data set and not the file's name
        variant = folded
    if not variant and not _listed(module):  # another library's, which is not installed: it says so
        _module(module).task("")
    if not variant:
        raise UserError(f"{name!r} is a family; name one of its puzzles, for example {_listed(module)[0]!r}")
    task: Task = _module(module).task(variant)
    return task


def examples(
    name_or_task: str | Task, split: Split, n: int, seed: int = 0, far_from: Sequence[Example] = ()
) -> list[Example]:
    """The first n examples of a task's "train" or "test" list; see `split.examples`."""
    return _split.examples(_task(name_or_task), split, n, seed, far_from)


def count(name_or_task: str | Task, split: Split) -> int | None:
    """How many examples a finite task has in a split; None for one that makes them."""
    stock = _task(name_or_task).stock(split)
    return None if stock is None else len(stock)


def is_arc(name_or_task: str | Task) -> bool:
    """Whether it is one puzzle in the manner of ARC: a few demonstrations of a rule of its own, and tests scored as one."""
    from tasks import arc

    return isinstance(_task(name_or_task), arc.Arc)


def _task(name_or_task: str | Task) -> Task:
    return get(name_or_task) if isinstance(name_or_task, str) else name_or_task


def _folded(name: str) -> str:
    """The family's part of a name as a file is called: lower case, "_" for "-"."""
    head, slash, rest = name.strip().partition("/")
    return head.lower().replace("-", "_") + slash + rest


def _family_of(name: str) -> str:
    arc_prefixes = ("arc1", "arc2", "conceptarc")  # the one family whose names do not start with its file's name
    head = name.partition("/")[0]
    if head in arc_prefixes:
        return "arc"
    if head not in families():
        known = [*families(), *arc_prefixes, *(v for f in families() if f != "arc" for v in _listed(f))]
        raise UserError(f"unknown task {name!r}; families are {', '.join(families())}.{suggest(name, known)}")
    return head


@cache
def _module(family: str) -> ModuleType:
    return importlib.import_module(f"tasks.{family}")


def _listed(family: str) -> list[str]:
    module = _module(family)
    if hasattr(module, "variants"):
        return list(module.variants())
    return [f"{family}/{variant}" for variant in module.VARIANTS]
