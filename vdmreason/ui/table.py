"""A table to search, filter, sort and choose from, as an HTML component; its script is table.js.

In a file of its own: gradio writes a stub beside every module that has a component, and mypy would read that in its stead.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from vdmreason.ui.components import Part, script

TABLE = """
<div class="sieve"><label>Search <input type="search" aria-label="Search LABEL" autocomplete="off"></label>
  <span class="count" aria-live="polite"></span></div>
<div class="frame" tabindex="0" role="region" aria-label="LABEL"><table role="table" aria-label="LABEL">
  <thead><tr role="row"></tr></thead><tbody></tbody></table></div>
<p class="nothing"></p>
"""


class Table(Part):
    """A table to search, filter, sort and choose from. Events: `pick` {id}, `tick` {ids}, `act` {id, how}.

    The value is what `table` makes: {"columns", "rows", "picked", "filters", "ticks", "actions", "picks", "off", "empty"}.
    """

    def __init__(self, value: dict[str, Any] | None = None, label: str = "", **kwargs: Any) -> None:
        template = TABLE.replace("LABEL", html.escape(label))
        super().__init__(value, template, script("table.js"), "library-table", **kwargs)


def table(columns: Sequence[str], rows: list[dict[str, Any]], empty: str, **more: Any) -> dict[str, Any]:
    """The value of a `Table`. A column is its label, "#" before it where it holds numbers; its key is the label in lower case.

    A row is {"id", "cells": {key: text}, "order": {key: number or None}, "titles": {key: text}, "state"}. `more`: "picked" (the
    id of the chosen row), "filters" (labels of columns with a menu), "ticks" (how many rows may be ticked), "actions"
    ([(how, label, question or "")]), "picks" (False: nothing to choose), "off" (the actions are switched off).
    """
    labels = [label.removeprefix("#") for label in columns]
    named = [
        {"key": label.lower(), "label": label, "number": column.startswith("#")}
        for label, column in zip(labels, columns, strict=True)
    ]
    given = {"picked": None, "ticks": 0, "actions": [], "picks": True, "off": False, **more}
    given["filters"] = [{"key": label.lower(), "label": label} for label in given.get("filters", [])]
    return {"columns": named, "rows": rows, "empty": empty, **given}
