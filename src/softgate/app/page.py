"""The page: its tabs, and the run it offers where there is none. Only the library is shared between visits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from softgate.app import markup, stability
from softgate.app.compare_tab import CompareTab
from softgate.app.library import Library
from softgate.app.look_tab import LookTab
from softgate.app.offer import WORDS, Offer
from softgate.app.paths_tab import PathsTab
from softgate.app.visit import Visit

ASIDE = 3600
"""Seconds after its last use that a visit's files go."""


class Page:
    """Builds the page of a library.

    Args:
        library: What there is to see.
        offer: The run that can be trained where there is none; None offers nothing.
        here: Whether visitors may start it; else they are told how to on the machine itself.
    """

    def __init__(self, library: Library, offer: Offer | None = None, here: bool = True) -> None:
        self.library, self.offer, self.here = library, offer, here

    def build(self) -> gr.Blocks:
        """The page, not yet served."""
        with gr.Blocks(title="softgate", analytics_enabled=False, fill_width=True, delete_cache=(600, ASIDE)) as page:
            gr.Markdown("# softgate\nGradients and excitation pullbacks of trained networks.")
            visit = gr.State(Visit(), time_to_live=ASIDE, delete_callback=Visit.end)
            there = bool(self.library.labels)
            offered = None if self.offer is None or there else self._offer()
            with gr.Tabs(visible=there) as tabs:
                with gr.Tab("Look", id="look"):
                    look = LookTab(self.library, visit).build()
                compared = recorded = None
                if not self.library.fixed:
                    with gr.Tab("Compare", id="compare") as tab:
                        compared = CompareTab(self.library).build(tab, tabs, look)
                    with gr.Tab("Paths", id="paths"):
                        recorded = PathsTab(self.library, visit).build()
            lists = [look.runs] if compared is None else [look.runs, compared, recorded]
            begins: dict[str, Any] = {"fn": self._begin, "outputs": lists, "show_progress": "hidden"}
            if offered is None:
                opened = page.load(**begins).then(**look.asks).then(**look.shows)
            else:
                whole, trained = offered
                begins |= {"outputs": [whole, tabs, *lists], "fn": self._opened}
                opened = page.load(**begins).then(**look.fits).then(**look.asks).then(**look.shows)
                look.answers.append(trained.then(**begins).then(**look.fits).then(**look.asks).then(**look.shows))
            look.answers.append(opened)
        return page

    def _begin(self) -> Any:
        """What there is to choose from now; what was begun since the app was started too."""
        before = self.library.labels
        self.library.refresh()
        labels = self.library.labels
        if self.library.fixed:
            return gr.skip()
        if labels == before:
            return gr.skip(), gr.skip(), gr.skip()
        recorded = stability.recorded(self.library)
        return (
            gr.update(choices=labels),
            gr.update(choices=labels),
            gr.update(choices=recorded),
        )

    # --- the run that is offered ---

    def _offer(self) -> tuple[Any, Any]:
        """The offer, and the event that ends with its run."""
        assert self.offer is not None
        command = f"softgate train {' '.join(WORDS)}"
        with gr.Column() as whole:
            gr.Markdown(
                "## There is no run yet\nA small network can be trained on handwritten digits, in one to two minutes "
                f"on two cores. It is written to `outputs/`. The same from a terminal:\n\n`{command}`"
            )
            with gr.Row():
                begin = gr.Button("Train it", variant="primary", visible=self.here, elem_id="train")
                stop = gr.Button("\u25a0 Stop", visible=self.here, elem_id="train-stop")
            status = gr.HTML(elem_id="train-status")
        trained = begin.click(self._train, None, status, show_progress="hidden", concurrency_limit=None)
        stop.click(self.offer.stop, None, None, show_progress="hidden", queue=False)
        return whole, trained

    def _train(self) -> Iterator[str]:
        assert self.offer is not None
        self.offer.begin()
        while self.offer.state.running:
            yield markup.progress(self.offer.state.share, self.offer.state.words)
            time.sleep(0.5)
        failed = self.offer.state.failed
        yield markup.progress(1.0, "done") if failed is None else markup.error(self.library.scrubbed(failed))

    def _opened(self) -> tuple[Any, ...]:
        """The tabs in place of the offer, once there is a run."""
        self.library.refresh()
        labels, recorded = self.library.labels, stability.recorded(self.library)
        return (
            gr.update(visible=not labels),
            gr.update(visible=bool(labels)),
            gr.update(choices=labels, value=labels[:1]),
            gr.update(choices=labels, value=labels[:4]),
            gr.update(choices=recorded, value=next(iter(recorded), None)),
        )
