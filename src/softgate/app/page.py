"""The page: controls, and what they show. Every visit has a `Visit` of its own; only the library is shared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from softgate import files
from softgate.app import compare, curves, markup
from softgate.app.library import Library
from softgate.app.look import Shown, look
from softgate.app.request import MOST_RUNS, MOST_TARGETS, Request
from softgate.errors import SoftgateError, printable
from softgate.grids import SCALES
from softgate.surrogate import gates, pools
from softgate.surrogate.rule import SCALES as UNITS
from softgate.surrogate.rule import Surrogate

GATES = ("sigmoid", "normal_cdf", "softsign", "hard")
POOLS = ("lse", "softmax_full", "hard")
TEMPERATURES = (0.05, 2.0, 0.05)
"""Least, greatest and step of a temperature."""

KINDS = {"pullback": "raw", "ascent": "ascent"}
SCALINGS = dict(zip(("each cell by itself", "one scale", "heat map"), SCALES, strict=True))
KEPT = 8
"""Answers whose files stay in the folder of a visit."""

UPLOADED, OF_DATA = "upload", "data set"


class Visit:
    """What belongs to one visit: the folder of its downloads. A copy is a new visit."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Visit:
        return Visit()

    def keep(self, shown: Shown) -> tuple[str, str]:
        """Writes the picture and the tensors of what is shown; of those before, the last few stay."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="softgate-visit-")
        place = Path(self._folder.name)
        self._count = (self._count + 1) % KEPT  # another answer to the same visit may be on its way
        png, raw = place / f"look-{self._count}.png", place / f"look-{self._count}.pt"
        files.save_picture(shown.picture, png)
        files.save(shown.tensors(), raw)
        return str(png), str(raw)

    def end(self) -> None:
        """Removes them."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def rule_of(
    base: Surrogate, gate: str, warmth: float, pool: str, pool_warmth: float, unit: str, mix: float
) -> Surrogate:
    """The rule that the controls stand for; what they do not say is as in `base`."""
    makes: Any = gates.KNOWN[gate]
    pools_: Any = pools.KNOWN[pool]
    warm = {} if gate == "hard" else {"temperature": float(warmth)}
    pooled = {} if pool == "hard" else {"temperature": float(pool_warmth)}
    return replace(base, gate=makes(**warm), pool=pools_(**pooled), scale=unit, mix=float(mix))


class Page:
    """Builds the page of a library.

    Args:
        library: What there is to see.
    """

    def __init__(self, library: Library) -> None:
        self.library, self.base = library, library.config.readout

    def build(self) -> gr.Blocks:
        """The page, not yet served."""
        with gr.Blocks(title="softgate", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
            gr.Markdown("# softgate\nGradients and excitation pullbacks of trained networks.")
            with gr.Tab("Look"):
                self._look(page)
            if self.library.runs:
                with gr.Tab("Compare"):
                    self._compare(page)
        return page

    # --- Look ---

    def _look(self, page: gr.Blocks) -> None:
        labels = self.library.labels
        fit: Any
        try:
            fit = self._fitted(labels[:1])
        except SoftgateError:  # the page says so when it is opened
            fit = {"maximum": 1, "value": 0}, {"choices": []}, {"choices": []}
        visit = gr.State(Visit(), time_to_live=3600, delete_callback=Visit.end)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                runs = gr.Dropdown(
                    labels, value=labels[:1], multiselect=True, max_choices=MOST_RUNS, label="Run, or two of them"
                )
                moment = gr.Slider(**{"minimum": 0, "step": 1, "label": "Checkpoint", "elem_id": "moment"} | fit[0])
                told = gr.Markdown(elem_id="moment-words")
                source = gr.Radio([OF_DATA, UPLOADED], value=OF_DATA, label="Image")
                with gr.Row():
                    label = gr.Dropdown(**fit[1], label="Class", min_width=120)
                    number = gr.Number(0, precision=0, minimum=0, label="Number", min_width=100, elem_id="number")
                upload = gr.File(type="binary", label="Upload", height=110, elem_id="upload")
                targets = gr.Dropdown(**fit[2], multiselect=True, max_choices=MOST_TARGETS, label="Targets")
                rule = self._rule()
                kind = gr.Radio(list(KINDS), value="pullback", label="Kind", elem_id="kind")
                with gr.Row(visible=False) as ascent:
                    steps = gr.Slider(1, self.library.options.steps, value=10, step=1, label="Steps")
                    size = gr.Slider(1, 100, value=20, step=1, label="Step size (at 224 px)")
                    radius = gr.Slider(5, 500, value=100, step=5, label="Radius (at 224 px)")
                scale = gr.Radio(list(SCALINGS), value=next(iter(SCALINGS)), label="Colours", elem_id="colours")
            with gr.Column(scale=2, min_width=320):
                message = gr.HTML(elem_id="message")
                picture = gr.HTML(elem_id="picture")
                words = gr.HTML(elem_id="words")
                curve = gr.HTML(elem_id="curve")
                with gr.Row():
                    png = gr.DownloadButton("PNG", interactive=False)
                    raw = gr.DownloadButton("Tensors (.pt)", interactive=False)
                with gr.Accordion("The same in Python", open=False):
                    snippet = gr.Code(language="python", interactive=False, label="Python")
        what = [runs, moment, source, label, number, upload, targets]
        controls = [*what, *rule, kind, steps, size, radius, scale]
        chosen: dict[str, Any] = {"fn": self._chosen, "inputs": [runs], "outputs": [moment, label, targets, message]}
        shows: dict[str, Any] = {
            "fn": self._show,
            "inputs": [visit, *controls],
            "outputs": [message, told, picture, words, curve, png, raw, snippet],
            "trigger_mode": "always_last",
            "concurrency_id": "look",
            "concurrency_limit": 2,
            "show_progress": "minimal",
        }
        kind.change(lambda kind: gr.update(visible=kind == "ascent"), kind, ascent, show_progress="hidden")
        upload.upload(lambda: UPLOADED, None, source, show_progress="hidden").then(**shows)
        upload.clear(lambda: OF_DATA, None, source, show_progress="hidden").then(**shows)
        runs.input(**chosen, show_progress="hidden").then(**shows)
        gr.on([control.input for control in controls if control not in (runs, upload)], **shows)
        page.load(**shows)

    def _rule(self) -> list[Any]:
        base = self.base
        names = {kind: name for name, kind in gates.KNOWN.items()}
        mine, pool = names.get(type(base.gate), "sigmoid"), {k: n for n, k in pools.KNOWN.items()}[type(base.pool)]
        least, most, step = TEMPERATURES
        warm: dict[str, Any] = {"minimum": least, "maximum": most, "step": step}
        begin = [min(most, max(least, getattr(part, "temperature", 0.3))) for part in (base.gate, base.pool)]
        with gr.Group():
            gate = gr.Dropdown(list(GATES), value=mine if mine in GATES else "sigmoid", label="Gate", elem_id="gate")
            warmth = gr.Slider(**warm, value=begin[0], label="Temperature", elem_id="temperature")
            pooled = gr.Dropdown(list(POOLS), value=pool, label="Pooling")
            pool_warmth = gr.Slider(**warm, value=begin[1], label="Pool temperature")
            unit = gr.Radio(list(UNITS), value=base.scale, label="Temperature in units of")
            mix = gr.Slider(0, 1, value=base.mix, step=0.05, label="Mix (0 is the gradient)")
        return [gate, warmth, pooled, pool_warmth, unit, mix]

    def _fitted(self, runs: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The settings of slider, class and targets that fit the run that was chosen first."""
        label = self._first(runs)
        moments = self.library.moments(label)
        last = len(moments) - 1
        slider = {"maximum": max(1, last), "value": last, "interactive": last > 0}
        readable = [moment for moment in moments if moment.weights]
        if not readable:
            return slider, {"choices": [], "value": None}, {"choices": [], "value": []}
        names = list(self.library.network(label, readable[-1].key).names)
        targets = [(name, index) for index, name in enumerate(names)]
        classes = [(name, index) for index, name in enumerate(self._classes(label, readable[-1].key) or names)]
        first = list(range(min(2, len(names))))
        return slider, {"choices": classes, "value": 0}, {"choices": targets, "value": first}

    def _chosen(self, runs: Sequence[str]) -> tuple[Any, ...]:
        """Fits the controls to the run that was chosen."""
        try:
            return *(gr.update(**each) for each in self._fitted(runs)), ""
        except SoftgateError as error:
            return gr.skip(), gr.skip(), gr.skip(), markup.error(self._said(error))

    def _classes(self, label: str, key: str) -> list[str] | None:
        """The names of the data's classes; None where the images are not on this machine."""
        try:
            return list(self.library.network(label, key).images.data.classes)
        except SoftgateError:
            return None

    def _first(self, runs: Sequence[str]) -> str:
        if not runs:
            raise SoftgateError("runs: none is chosen; choose one or two.")
        return runs[0]

    def _show(self, visit: Visit, *values: Any) -> tuple[Any, ...]:
        """One answer; a mistake is said above the picture, which stays."""
        try:
            request, told = self._request(*values)
            shown = look(self.library, request)
            png, raw = visit.keep(shown)
        except SoftgateError as error:
            stay = [gr.skip()] * 7
            return markup.error(self._said(error)), *stay
        chart = curves.draw(shown.curves, "steps") if shown.curves else None
        curve = markup.picture(chart, "Target logits over the steps of the ascent.") if chart else ""
        return (
            "",
            told,
            markup.picture(shown.picture, shown.alt),
            markup.lines(list(shown.words)),
            curve,
            gr.update(value=png, interactive=True),
            gr.update(value=raw, interactive=True),
            shown.snippet,
        )

    def _request(self, *values: Any) -> tuple[Request, str]:
        runs, moment, source, label, number, upload, targets, *rest = values
        *rule, kind, steps, size, radius, scale = rest
        first = self._first(runs)
        moments = self.library.moments(first)
        chosen = moments[min(int(moment), len(moments) - 1)]
        pairs = [(first, chosen.key)]
        told = [chosen.words]
        for other in runs[1:]:
            near = self.library.run(other).near(chosen.epochs)
            pairs.append((other, near.key))
            told.append(f"{other}: {near.words}")
        if source == UPLOADED and upload is None:
            raise SoftgateError("upload: there is no file yet; upload one, or choose the data set.")
        request = Request(
            pairs,
            [int(target) for target in targets or ()] or ([0] if not chosen.weights else []),
            rule_of(self.base, *rule),
            int(label or 0),
            int(number or 0),
            upload if source == UPLOADED else None,
            KINDS[kind],
            SCALINGS[scale],
            int(steps),
            float(size),
            float(radius),
        )
        return request, "; ".join(told)

    def _said(self, error: SoftgateError) -> str:
        return printable(self.library.scrubbed(" ".join(str(error).split())))

    # --- Compare ---

    def _compare(self, page: gr.Blocks) -> None:
        labels = list(self.library.runs)
        again = gr.Button("Read the runs again", size="sm")
        table = gr.Dataframe(interactive=False, label="Runs, in %; click a head to sort")
        runs = gr.Dropdown(labels, value=labels[:4], multiselect=True, max_choices=8, label="Curves and grids of")
        epoch = gr.Slider(0, 1, value=0, step=1, label="Epoch, counted from 0")
        message, curve, grids = gr.HTML(), gr.HTML(), gr.HTML()
        reads: Callable[[], tuple[Any, ...]] = self._table
        shows: dict[str, Any] = {
            "fn": self._sides,
            "inputs": [runs, epoch],
            "outputs": [message, curve, grids],
            "trigger_mode": "always_last",
            "show_progress": "minimal",
        }
        gr.on([page.load, again.click], reads, None, [table, epoch], show_progress="minimal").then(**shows)
        gr.on([runs.input, epoch.input], **shows)

    def _table(self) -> tuple[Any, ...]:
        heads, rows = compare.table(self.library)
        last = compare.epochs(self.library)
        value = {"headers": heads, "data": rows}
        return value, gr.update(maximum=max(1, last), value=last, interactive=last > 0)

    def _sides(self, runs: Sequence[str], epoch: float) -> tuple[Any, ...]:
        try:
            self._first(runs)
            chart = compare.chart(self.library, runs, int(epoch))
            sides = compare.sides(self.library, runs, int(epoch))
        except SoftgateError as error:
            return markup.error(self._said(error)), gr.skip(), gr.skip()
        curve = markup.picture(chart, f"Accuracy and alignment over the epochs, cursor at {epoch:g}.") if chart else ""
        told = [(s.picture, f"{s.label}: " + _grid_of(s)) for s in sides]
        return "", curve, markup.figures(told)


def _grid_of(side: compare.Side) -> str:
    if side.epoch is None:
        return "it has no saved grid."
    return f"grid of epoch {side.epoch}" + ("." if side.picture is not None else ", whose file is damaged.")
