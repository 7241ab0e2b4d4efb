"""The tab Compare: runs as a table to sort, their curves with a cursor, their grids of one epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from softgate.app import compare, markup
from softgate.app.library import Library
from softgate.app.look_tab import Wishes, first_of
from softgate.errors import SoftgateError

MOST = 8
"""Runs that are shown at once."""

CURVES = 3
"""Measures that are drawn at first, of many."""


class CompareTab:
    """Builds the tab and answers it.

    Args:
        library: What there is to see.
    """

    def __init__(self, library: Library) -> None:
        self.library = library

    def build(self, tab: Any, tabs: Any, look: Wishes) -> Any:
        """The tab, within the tab that is being made; returns the list of runs.

        Args:
            tab: It is read when this tab is opened.
            tabs: A click on a run goes to the one called look.
            look: Where that run is opened.
        """
        labels = self.library.labels
        again = gr.Button("Read the runs again", size="sm", elem_id="again")
        table = gr.Dataframe(
            interactive=False,
            label="Accuracy in %. A click on a head sorts, on a run opens it in Look",
            elem_id="table",
            wrap=False,
            show_search="none",
        )
        runs = gr.Dropdown(
            labels,
            value=labels[:4],
            multiselect=True,
            max_choices=MOST,
            label="Curves and grids of",
            elem_id="compared",
        )
        epoch = gr.Slider(1, 2, value=1, step=1, label="Epoch", elem_id="epoch")
        measures = gr.Dropdown([], multiselect=True, label="Curves", elem_id="measures")
        message, curve, grids = gr.HTML(), gr.HTML(elem_id="curves"), gr.HTML(elem_id="grids")
        shows: dict[str, Any] = {
            "fn": self._sides,
            "inputs": [runs, epoch, measures],
            "outputs": [message, curve, grids],
            "trigger_mode": "always_last",
            "show_progress": "minimal",
        }
        reads: dict[str, Any] = {
            "fn": self._table,
            "inputs": [measures],
            "outputs": [table, epoch, measures],
            "show_progress": "minimal",
        }
        gr.on([tab.select, again.click], **reads).then(**shows)
        gr.on([runs.input, epoch.input, measures.input], **shows)
        opened = table.select(self._opened, None, [tabs, look.runs], show_progress="hidden")
        look.answers.append(opened.then(**look.fits).then(**look.asks).then(**look.shows))
        return runs

    def _table(self, measures: Sequence[str]) -> tuple[Any, ...]:
        known = list(compare.measured(self.library))
        chosen = [name for name in measures if name in known] or known[:CURVES]
        heads, rows = compare.table(self.library)
        last = compare.epochs(self.library)
        value = {"headers": heads, "data": rows}
        slider = gr.update(maximum=max(2, last), value=max(1, last), interactive=last > 1)
        return value, slider, gr.update(choices=known, value=chosen)

    def _sides(self, runs: Sequence[str], epoch: float, measures: Sequence[str]) -> tuple[Any, ...]:
        try:
            first_of(runs)
            charts = compare.charts(self.library, runs, int(epoch), measures)
            sides = compare.sides(self.library, runs, int(epoch))
        except SoftgateError as error:
            return markup.error(self.library.said(error)), gr.skip(), gr.skip()
        curve = markup.curves(charts.pictures, charts.legend, f"over the epochs, cursor at {epoch:g}.")
        return "", curve, markup.figures([(side.picture, f"{side.label}: {_grid_of(side)}") for side in sides])

    def _opened(self, event: gr.SelectData) -> tuple[Any, ...]:
        label = str(event.row_value[0])
        if label not in self.library.runs:
            return gr.skip(), gr.skip()
        return gr.Tabs(selected="look"), [label]


def _grid_of(side: compare.Side) -> str:
    if side.epoch is None:
        return "it has no saved grid."
    return f"grid of epoch {side.epoch}" + ("." if side.picture is not None else ", whose file is damaged.")
