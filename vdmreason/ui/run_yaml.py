"""Runs as YAML that a person edits, and back: a document a run, each as `config.to_yaml` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

import adapters
from tasks.base import UserError
from vdmreason import config
from vdmreason.config import Run
from vdmreason.ui.inputs import text as checked

LONGEST = 20_000  # characters
MOST = 4  # runs
EXAMPLES = 20_000  # that a run started from the page may learn from or be tested on


def to_text(runs: Sequence[Run]) -> str:
    return "---\n".join(f"# {adapters.family(run.family).ARM} arm\n{config.to_yaml(run)}" for run in runs)


def from_text(text: Any) -> list[Run]:
    """The runs that `text` describes. Raises UserError, one line that names the run, where there are several, and the key."""
    text = checked(text, LONGEST)
    try:
        given = [document for document in yaml.load_all(text, config.Loader) if document is not None]
    except UserError as error:
        raise UserError(f"That YAML cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"That is not YAML: {' '.join(str(error).split())[:200]}") from None
    except ValueError:
        raise UserError("That YAML cannot be read: it holds an impossible date.") from None
    if not given:
        raise UserError("The YAML is empty. A run needs at least task, n and family.")
    if len(given) > MOST:
        raise UserError(f"The YAML holds {len(given)} runs; start at most {MOST} at once, or make them a sweep.")
    runs = []
    for number, document in enumerate(given, start=1):
        where = f"Run {number}: " if len(given) > 1 else ""
        if not isinstance(document, Mapping):
            raise UserError(f"{where}holds no keys. A run needs at least task, n and family.")
        try:
            runs.append(bounded(config.resolve(document)))
        except UserError as error:
            raise UserError(f"{where}{error}") from None
        except (RecursionError, TypeError, OverflowError):  # keys or values of kinds that no run has
            raise UserError(f"{where}cannot be read as a run.") from None
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UserError("Two of the runs are the same. Change what is to differ between them.")
    return runs


def bounded(run: Run) -> Run:
    """The run itself. Raises UserError where it asks for more examples than a page can look through."""
    for name, count in (("n", run.n), ("test", run.test), ("far_from", run.far_from)):
        if count * (run.augment if name == "n" else 1) > EXAMPLES:
            raise UserError(f"{name}: at most {EXAMPLES:,} examples from this page; use the command line for more.")
    return run


def beyond(run: Run, plain: Run) -> dict[str, Any]:
    """What a run has that differs from the plain one of the same form, as a tree to be merged over it."""
    return _over(config.to_dict(run), config.to_dict(plain))


def _over(tree: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if inner := _over(value, base.get(key) or {}):
                found[key] = inner
        elif key not in base or value != base[key]:
            found[key] = value
    return found


def in_words(tree: Mapping[str, Any]) -> list[str]:
    """A tree's leaves, one a line: "optim.lr: 0.001"."""
    return [f"{name}: {value}" for name, value in config.flat(tree).items()]
