"""The tab Paths: heat maps of the swaps of a recorded run, and what one pair of moments says."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from softgate.app import markup, stability
from softgate.app.library import Library
from softgate.app.visit import Superseded, Visit
from softgate.errors import SoftgateError
from softgate.evaluation.paths import RECORDED
from softgate.evaluation.reports.path_results import Stability, matrices

MAPS = (
    *("swap hard, within class", "swap soft, within class", "swap hard, pooled", "swap soft, pooled"),
    *("kappa of gates", "path cosine per site"),
)
IMAGES, MOMENTS = (10, 256, 40), (2, 20, 6)
"""Least, greatest and first number of images and of moments."""

NONE = "Measures how soon the paths of a run settle, from the gates it recorded. No run here has a recording: "
NONE += "train one with callbacks=paths."
Answer = tuple[Any, ...]
_log = logging.getLogger(__name__)


class PathsTab:
    """Builds the tab and answers it.

    Args:
        library: What there is to see.
        visit: The state that a visit keeps.
    """

    def __init__(self, library: Library, visit: Any) -> None:
        self.library, self.options, self.visit = library, library.config.paths, visit

    def build(self) -> Any:
        """The tab, within the tab that is being made; returns the list of runs."""
        labels = stability.recorded(self.library)
        gr.Markdown(
            "The network of epoch t is run with the gates of epoch s; near 1, the paths had settled at s. "
            "As `softgate evaluate paths=full`, without kernels."
        )
        with gr.Row():
            run = gr.Dropdown(labels, value=next(iter(labels), None), label="Run with recordings", elem_id="recorded")
            probe = gr.Radio(list(RECORDED), value=self.options.probe, label="Recorded images", elem_id="recording")
        with gr.Row():
            low, high, first = IMAGES
            images = gr.Slider(low, high, value=first, step=1, label="Images, at most", elem_id="path-images")
            low, high, first = MOMENTS
            moments = gr.Slider(low, high, value=first, step=1, label="Moments, at most", elem_id="path-moments")
        with gr.Row():
            begin = gr.Button("Measure", variant="primary", elem_id="measure")
            stop = gr.Button("\u25a0 Stop", elem_id="measure-stop")
        message = gr.HTML("" if labels else markup.lines([NONE]), elem_id="path-message")
        which = gr.Radio(list(MAPS), value=MAPS[0], label="Heat map", elem_id="map")
        drawn = gr.HTML(elem_id="heat", js_on_load=markup.PICK)
        numbers = gr.HTML(elem_id="numbers")
        turn = gr.Number(0, precision=0, visible="hidden", label="path turn")
        asks: dict[str, Any] = {"fn": self._ask, "inputs": [self.visit], "outputs": [turn], "queue": False}
        asks |= {"show_progress": "hidden", "trigger_mode": "multiple"}
        measured = begin.click(**asks).then(
            self._measure,
            [self.visit, turn, run, probe, images, moments, which],
            [message, drawn, numbers],
            concurrency_id="paths",
            concurrency_limit=1,
            show_progress="hidden",
            trigger_mode="multiple",
        )
        begin.click(fn=None, cancels=[measured])
        stop.click(**asks).then(lambda: "", None, message, show_progress="hidden")
        stop.click(fn=None, cancels=[measured])
        which.input(self._map, [self.visit, which], [drawn], show_progress="hidden")
        drawn.click(self._picked, [self.visit, which], [drawn, numbers], show_progress="hidden")
        return run

    def _ask(self, visit: Visit) -> int:
        return visit.measures.ask()

    def _measure(
        self, visit: Visit, turn: float, run: str | None, probe: str, images: float, moments: float, which: str
    ) -> Iterator[Answer]:
        """Measures in a thread of its own, and says how far it is."""
        check = visit.measures.check(int(turn))
        told: queue.SimpleQueue[tuple[int, int] | Stability | Exception] = queue.SimpleQueue()

        def progress(done: int, total: int) -> None:
            check()
            told.put((done, total))

        def work() -> None:
            try:
                if run is None:
                    raise SoftgateError(NONE)
                options = stability.within(self.options, probe, int(images), int(moments))
                told.put(stability.measure(self.library, run, options, self.library.config.readout, progress))
            except Exception as error:  # whatever it is, the page goes on
                told.put(error)

        threading.Thread(target=work, daemon=True).start()
        yield markup.progress(0, "reading the recording ..."), "", ""
        while True:
            now = told.get()
            if isinstance(now, tuple):
                done, total = now
                yield markup.progress(done / total, f"{done} of {total} passes"), gr.skip(), gr.skip()
            elif isinstance(now, Superseded):
                yield "", gr.skip(), gr.skip()
                return
            elif isinstance(now, Exception):
                if not isinstance(now, SoftgateError):
                    _log.error("a measurement failed", exc_info=now)
                yield markup.error(self.library.said(now)), gr.skip(), gr.skip()
                return
            else:
                visit.stability = now
                last = len(now.swaps.points) - 1
                yield "", self._drawn(now, which, (0, last)), self._numbers(now, 0, last)
                return

    def _map(self, visit: Visit, which: str) -> str:
        return "" if visit.stability is None else self._drawn(visit.stability, which, None)

    def _picked(self, visit: Visit, which: str, event: gr.EventData) -> Answer:
        one, at = visit.stability, event._data or {}
        if one is None or not {"s", "t"} <= at.keys():
            return gr.skip(), gr.skip()
        s, t = (min(max(int(at[key]), 0), len(one.swaps.points) - 1) for key in ("s", "t"))
        return self._drawn(one, which, (s, t)), self._numbers(one, s, t)

    def _drawn(self, one: Stability, which: str, picked: tuple[int, int] | None) -> str:
        return markup.heat_map(matrices(one)[which].tolist(), stability.epochs(one), picked)

    def _numbers(self, one: Stability, s: int, t: int) -> str:
        return "".join(markup.table(table) for table in stability.numbers(one, s, t))
