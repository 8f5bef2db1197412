"""What the page's tabs share: the way from one tab to another, and a clock that ticks for the tab that is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from tasks.base import UserError
from vdmreason.ui import compare
from vdmreason.ui.scenes import Shown

SECONDS = 2.0  # between two looks at what is new: a look costs the browser a tenth of a second of its processor


@dataclass
class Frame:
    """The row of tabs and the Compare tab, for those that lead there."""

    page: gr.Blocks
    tabs: gr.Tabs
    compare: compare.Tab
    clocks: dict[str, gr.Timer] = field(default_factory=dict)  # tab id -> its clock
    views: list[tuple[str, Callable[..., Any], list[Any], list[Any]]] = field(
        default_factory=list
    )  # first views, by tab id

    def clock(self, tab: str) -> gr.Timer:
        """A timer that runs while the tab of this id is the one that is looked at. Compare is, when the page opens."""
        self.clocks[tab] = gr.Timer(SECONDS, active=tab == "compare")
        return self.clocks[tab]

    def opens(self, tab: str, view: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Show a tab's first view when it is first turned to, so that the page's first comparison waits for no other tab.

        `view` gives a dict by component, or the value of its only output.
        """
        self.views.append((tab, view, [*inputs], [*outputs]))

    def leads_to_compare(
        self,
        event: Callable[..., Any],
        find: Callable[..., tuple[Path, int]],
        inputs: Sequence[Any] = (),
        problem: gr.HTML | None = None,
    ) -> None:
        """On `event`, open Compare on what `find(*inputs)` gives: a run's folder and the number of a test example.

        `find` may raise UserError; its line goes to `problem`, else into a toast.
        """

        def listener(shown: Shown, *values: Any) -> dict[Any, Any]:
            try:
                folder, index = find(*values)
                return {self.tabs: gr.Tabs(selected="compare"), **self.compare.open_run(folder, index, shown)}
            except UserError as error:
                if problem is None:
                    raise gr.Error(str(error), duration=None, print_exception=False) from None
                return {problem: compare.problem(error)}

        outputs = [self.tabs, *self.compare.outputs, *([problem] if problem is not None else [])]
        event(**compare.quiet(listener), inputs=[self.compare.shown, *inputs], outputs=outputs)

    def wind(self, tabs: dict[str, gr.Tab]) -> None:
        """Let each tab's clock run while it is selected, and no other's, and show its first view once. Call once, when all
        tabs are built."""
        for name, view, inputs, views_outputs in self.views:
            been = gr.State(False)

            def first(
                been_here: bool, *values: Any, view: Any = view, been: Any = been, to: Any = views_outputs
            ) -> Any:
                if been_here:
                    return {been: True}
                shown = view(*values)
                return {been: True, **(shown if isinstance(shown, dict) else {to[0]: shown})}

            tabs[name].select(**compare.quiet(first), inputs=[been, *inputs], outputs=[been, *views_outputs])
        names = [*self.clocks]
        outputs = [*self.clocks.values()]
        for name, tab in tabs.items():
            states = [gr.Timer(active=name == other) for other in names]
            result = states[0] if len(states) == 1 else states
            tab.select(**compare.quiet(lambda result=result: result), outputs=outputs)
