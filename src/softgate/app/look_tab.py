"""The tab Look: controls, the picture they stand for, its film over the checkpoints, and two pictures to wipe."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from softgate.app import curves, markup, wiping
from softgate.app.images import bounded
from softgate.app.library import Library, Moment
from softgate.app.look import look
from softgate.app.request import MOST_RUNS, MOST_TARGETS, Request
from softgate.app.visit import Superseded, Visit, rest
from softgate.errors import SoftgateError
from softgate.files import encoded, packed
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
OF_DATA, PROBE, UPLOADED = "data set", "probe set", "upload"
PACE = 0.6
"""Seconds that a checkpoint is shown at least while they are played."""

ANSWERS = 9
"""Components that an answer changes."""

Answer = tuple[Any, ...]
_log = logging.getLogger(__name__)


def rule_of(
    base: Surrogate, gate: str, warmth: float, pool: str, pool_warmth: float, unit: str, mix: float
) -> Surrogate:
    """The rule that the controls stand for; what they do not say is as in `base`."""
    makes: Any = gates.KNOWN[gate]
    pools_: Any = pools.KNOWN[pool]
    warm = {} if gate == "hard" else {"temperature": float(warmth)}
    pooled = {} if pool == "hard" else {"temperature": float(pool_warmth)}
    return replace(base, gate=makes(**warm), pool=pools_(**pooled), scale=unit, mix=float(mix))


@dataclass
class Wishes:
    """Components and events that other parts of the page use.

    Attributes:
        runs: The runs that are chosen.
        fits: What fits the controls to them: function, inputs, outputs.
        asks: What makes a new wish: function, inputs, outputs.
        shows: What answers it, likewise.
        answers: The events that answer, which a new wish cancels.
    """

    runs: Any
    fits: dict[str, Any]
    asks: dict[str, Any]
    shows: dict[str, Any]
    answers: list[Any]


class LookTab:
    """Builds the tab and answers it.

    Args:
        library: What there is to see.
        visit: The state that a visit keeps.
    """

    def __init__(self, library: Library, visit: Any) -> None:
        self.library, self.base, self.visit = library, library.config.readout, visit

    def build(self) -> Wishes:
        """The tab, within the tab that is being made."""
        labels = self.library.labels
        fit: Any
        try:
            fit = self._fitted(labels[:1])
        except Exception:  # whatever is wrong with the first run: the page says so when it is opened
            fit = {"maximum": 2, "value": 1}, {"choices": []}, {"choices": []}
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                runs = gr.Dropdown(
                    labels,
                    value=labels[:1],
                    multiselect=True,
                    max_choices=MOST_RUNS,
                    label="Run, or two of them",
                    elem_id="runs",
                )
                slider = {"minimum": 1, "step": 1, "label": "Checkpoint, 1 is the earliest", "elem_id": "moment"}
                moment = gr.Slider(**(slider | fit[0]))
                told = gr.Markdown(elem_id="moment-words")
                with gr.Row():
                    play = gr.Button("\u25b6 Play the checkpoints", size="sm", min_width=120, elem_id="play")
                    stop = gr.Button("\u25a0 Stop", size="sm", min_width=80, elem_id="stop")
                source = gr.Radio([OF_DATA, PROBE, UPLOADED], value=OF_DATA, label="Image", elem_id="source")
                with gr.Row():
                    label = gr.Dropdown(**fit[1], label="Class", min_width=120, elem_id="class")
                    number = gr.Number(0, precision=0, minimum=0, label="Number", min_width=100, elem_id="number")
                most = self.library.options.upload_mb * 1e6
                upload = gr.HTML(
                    html_template=markup.UPLOAD, js_on_load=markup.uploads(most), elem_id="upload", container=True
                )
                targets = gr.Dropdown(
                    **fit[2], multiselect=True, max_choices=MOST_TARGETS, label="Targets", elem_id="targets"
                )
                rule = self._rule()
                kind = gr.Radio(list(KINDS), value="pullback", label="Kind", elem_id="kind")
                with gr.Row(visible=False) as ascent:
                    most = self.library.options.steps
                    steps = gr.Slider(1, most, value=min(10, most), step=1, label="Steps", elem_id="steps")
                    size = gr.Slider(1, 100, value=20, step=1, label="Step size (at 224 px)", elem_id="step-size")
                    radius = gr.Slider(5, 500, value=100, step=5, label="Radius (at 224 px)", elem_id="radius")
                scale = gr.Radio(list(SCALINGS), value=next(iter(SCALINGS)), label="Colours", elem_id="colours")
            with gr.Column(scale=2, min_width=320, elem_classes="softgate-first"):
                message = gr.HTML(elem_id="message")
                picture = gr.HTML(elem_id="picture")
                words = gr.HTML(elem_id="words")
                curve = gr.HTML(elem_id="curve")
                with gr.Row():
                    png = gr.Button("Save as PNG", size="sm", elem_id="png")
                    raw = gr.Button("Save the tensors (.pt)", size="sm", elem_id="raw")
                with gr.Accordion("Wipe one picture over another", open=True):
                    wiped = gr.HTML(elem_id="wipe")
                    with gr.Row():
                        left = gr.Dropdown([], label="Left", min_width=200, elem_id="left")
                        right = gr.Dropdown([], label="Right", min_width=200, elem_id="right")
                with gr.Accordion("The same in Python", open=False):
                    snippet = gr.Code(language="python", interactive=False, label="Python", elem_id="snippet")
        file = gr.Textbox("", visible="hidden", label="saved")
        turn = gr.Number(0, precision=0, visible="hidden", label="turn")
        what = [runs, moment, source, label, number, targets]
        controls = [*what, *rule, kind, steps, size, radius, scale]
        shown = [message, told, picture, words, curve, snippet, left, right, wiped]
        given = [self.visit, turn, left, right, *controls]
        asks: dict[str, Any] = {"fn": self._ask, "inputs": [self.visit], "outputs": [turn], "queue": False}
        asks |= {"show_progress": "hidden", "trigger_mode": "multiple"}
        shows: dict[str, Any] = {"fn": self._show, "inputs": given, "outputs": shown, "concurrency_id": "look"}
        shows |= {
            "concurrency_limit": 2,
            "show_progress": "minimal",
            "show_progress_on": picture,
            "trigger_mode": "multiple",
        }
        plays = shows | {"fn": self._play, "outputs": [moment, *shown], "show_progress": "hidden"}
        fits: dict[str, Any] = {"fn": self._chosen, "inputs": [runs], "outputs": [moment, label, targets, message]}
        fits |= {"show_progress": "hidden"}
        kind.change(lambda kind: gr.update(visible=kind == "ascent"), kind, ascent, show_progress="hidden")
        moved = [control.input for control in controls if control is not runs]
        answers = [gr.on(moved, **asks).then(**shows)]
        for event, takes in ((upload.upload, self._uploaded), (upload.clear, self._cleared)):
            turned = event(takes, [self.visit], source, show_progress="hidden")
            answers.append(turned.then(**asks).then(**shows))
        for button, makes in ((png, self._png), (raw, self._raw)):
            button.click(makes, [self.visit], file).then(None, file, None, js=markup.SAVE)
        answers.append(runs.input(**fits).then(**asks).then(**shows))
        answers.append(play.click(**asks).then(**plays))
        gr.on([*moved, runs.input, upload.upload, upload.clear, play.click], fn=None, cancels=answers)
        stop.click(**asks)
        stop.click(fn=None, cancels=answers)
        gr.on([left.input, right.input], self._wipe, [self.visit, left, right], wiped, show_progress="hidden")
        return Wishes(runs, fits, asks, shows, answers)

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
            pooled = gr.Dropdown(list(POOLS), value=pool, label="Pooling", elem_id="pooling")
            pool_warmth = gr.Slider(**warm, value=begin[1], label="Pool temperature", elem_id="pool-temperature")
            unit = gr.Radio(list(UNITS), value=base.scale, label="Temperature in units of", elem_id="units")
            mix = gr.Slider(0, 1, value=base.mix, step=0.05, label="Mix (0 is the gradient)", elem_id="mix")
        return [gate, warmth, pooled, pool_warmth, unit, mix]

    def _fitted(self, runs: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The settings of slider, class and targets that fit the run that was chosen first."""
        label = first_of(runs)
        moments = self.library.moments(label)
        last = len(moments)
        slider = {"maximum": max(2, last), "value": last, "interactive": last > 1}
        readable = [moment for moment in moments if moment.weights]
        if not readable:
            return slider, {"choices": [], "value": None}, {"choices": [], "value": []}
        names = list(self.library.network(label, readable[-1].key).names)
        targets = [(name, index) for index, name in enumerate(names)]
        classes = [(name, index) for index, name in enumerate(self._classes(label, readable[-1].key) or names)]
        first = list(range(min(2, len(names))))
        return slider, {"choices": classes, "value": 0}, {"choices": targets, "value": first}

    def _chosen(self, runs: Sequence[str]) -> Answer:
        """Fits the controls to the run that was chosen."""
        try:
            return *(gr.update(**each) for each in self._fitted(runs)), ""
        except Exception as error:  # whatever is wrong with a run, the page goes on with the others
            return gr.skip(), gr.skip(), gr.skip(), self._wrong(error)

    def _classes(self, label: str, key: str) -> list[str] | None:
        """The names of the data's classes; None where the images are not on this machine."""
        try:
            return list(self.library.network(label, key).images.data.classes)
        except SoftgateError:
            return None

    def _ask(self, visit: Visit) -> int:
        return visit.looks.ask()

    def _show(self, visit: Visit, turn: float, left: str | None, right: str | None, *values: Any) -> Answer:
        """One answer; a mistake is said above the picture, which stays."""
        check = visit.looks.check(int(turn))
        try:
            check()
            return self._answer(visit, check, (left, right), *values)
        except Superseded:
            return (gr.skip(),) * ANSWERS
        except Exception as error:  # a bug too is said, and the page goes on
            return self._wrong(error), *(gr.skip(),) * (ANSWERS - 1)

    def _play(self, visit: Visit, turn: float, left: str | None, right: str | None, *values: Any) -> Iterator[Answer]:
        """One answer for each checkpoint, from the one that stands on; from the first where that is the last."""
        check = visit.looks.check(int(turn))
        runs, at, *others = values
        try:
            found = list(enumerate(self.library.moments(first_of(runs)), start=1))
            frames = [place for place, moment in found if moment.weights or len(found) == 1]
            frames = frames if len(frames) > 1 else [place for place, _ in found]
            start = int(at) if int(at) < frames[-1] else 0
            for place in (place for place in frames if place >= start):
                begun = time.monotonic()
                check()
                yield place, *self._answer(visit, check, (left, right), runs, place, *others)
                rest(check, PACE - (time.monotonic() - begun))
        except Superseded:
            return
        except Exception as error:  # as in `_show`
            yield gr.skip(), self._wrong(error), *(gr.skip(),) * (ANSWERS - 1)

    def _answer(
        self, visit: Visit, check: Callable[[], None], pair: tuple[str | None, str | None], *values: Any
    ) -> Answer:
        request, told = self._request(visit, *values)
        shown = look(self.library, request, check)
        check()
        visit.shown = shown
        charts = curves.draw(shown.curves, "step")
        curve = markup.curves(charts.pictures, charts.legend, "target logits over the steps of the ascent.")
        pictures = wiping.pictures(shown)
        names = list(pictures)
        one, other = wiping.pair(names, pair)
        return (
            "",
            told,
            markup.picture(shown.picture, shown.narrow, shown.alt),
            markup.lines(list(shown.words)),
            curve,
            shown.snippet,
            gr.update(choices=names, value=one),
            gr.update(choices=names, value=other),
            markup.wipe((one, pictures[one]), (other, pictures[other])),
        )

    def _uploaded(self, visit: Visit, event: gr.EventData) -> str:
        """Takes a file as the browser read it; one that is too large comes as its size alone."""
        given = event._data or {}
        try:
            visit.upload = base64.b64decode(str(given["data"]), validate=True)
            visit.upload_size = len(visit.upload)
        except (KeyError, ValueError):
            visit.upload, visit.upload_size = None, int(given.get("size") or 1)
        return UPLOADED

    def _cleared(self, visit: Visit) -> str:
        visit.upload, visit.upload_size = None, 0
        return OF_DATA

    def _png(self, visit: Visit) -> str:
        return "" if visit.shown is None else markup.download("look.png", encoded(visit.shown.picture, "PNG"))

    def _raw(self, visit: Visit) -> str:
        return "" if visit.shown is None else markup.download("look.pt", packed(visit.shown.tensors()))

    def _wipe(self, visit: Visit, left: str, right: str) -> str:
        if visit.shown is None:
            return ""
        pictures = wiping.pictures(visit.shown)
        one, other = wiping.pair(list(pictures), (left, right))
        return markup.wipe((one, pictures[one]), (other, pictures[other]))

    def _request(self, visit: Visit, *values: Any) -> tuple[Request, str]:
        runs, moment, source, label, number, targets, *rest_ = values
        *rule, kind, steps, size, radius, scale = rest_
        first = first_of(runs)
        moments = self.library.moments(first)
        chosen: Moment = moments[min(max(int(moment), 1), len(moments)) - 1]
        pairs = [(first, chosen.key)]
        told = [chosen.words]
        for other in runs[1:]:
            near = self.library.run(other).near(chosen.epochs)
            pairs.append((other, near.key))
            told.append(f"{other}: {near.words}")
        if source == UPLOADED:
            if visit.upload is None and not visit.upload_size:
                raise SoftgateError("upload: there is no file yet; upload one, or choose the data set.")
            bounded(visit.upload_size, self.library.options.upload_mb * 1e6)
        request = Request(
            pairs,
            [int(target) for target in targets or ()] or ([0] if not chosen.weights else []),
            rule_of(self.base, *rule),
            int(label or 0),
            int(number or 0),
            int(number or 0) if source == PROBE else None,
            visit.upload if source == UPLOADED else None,
            KINDS[kind],
            SCALINGS[scale],
            int(steps),
            float(size),
            float(radius),
        )
        return request, "; ".join(told)

    def _wrong(self, error: Exception) -> str:
        if not isinstance(error, SoftgateError):
            _log.exception("a look failed", exc_info=error)
        return markup.error(self.library.said(error))


def first_of(runs: Sequence[str]) -> str:
    """The run that was chosen first."""
    if not runs:
        raise SoftgateError("runs: none is chosen; choose one or two.")
    return runs[0]
