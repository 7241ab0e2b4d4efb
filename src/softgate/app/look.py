"""What the page shows, computed: from a request to a picture, numbers, a snippet. Nothing of a browser is in here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from softgate import files
from softgate.app import snippets
from softgate.app.images import as_pixels
from softgate.app.library import Library, Moment, Network
from softgate.app.request import MOST_RUNS, MOST_TARGETS, Request
from softgate.errors import SoftgateError, require, unknown
from softgate.explainers.pullback import Ascent, ascend, predict, pullback, size_factor, unit
from softgate.grids import SCALES
from softgate.grids.reading import Grid, Reading
from softgate.surrogate.rule import Surrogate
from softgate.training.callbacks.grids import HARD, SOFT

KINDS = ("raw", "ascent")
"""Kinds of grids that somebody may wait for in a browser."""

NO_CLASS = -1
"""The class of an uploaded image."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Shown:
    """What a request is answered with.

    Attributes:
        grid: Rows are runs, columns targets, read-outs "hard: gradient" and "soft: excitation pullback".
        picture: The grid, drawn.
        narrow: The same with its read-outs below each other, for a phone.
        rows: What the runs are called.
        words: A line for each run: what it predicts before and after.
        alt: The picture in words.
        curves: Read-out to line to (step, target logit) of an ascent; empty for pullbacks.
        snippet: Python that computes the same.
        scale: How pullbacks became colours.
    """

    grid: Grid
    picture: Image.Image
    narrow: Image.Image
    rows: Sequence[str]
    words: Sequence[str]
    alt: str
    snippet: str
    scale: str
    curves: Mapping[str, Mapping[str, Points]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Any]:
        """The grid as plain data for `torch.save`."""
        return self.grid.tensors()


def look(library: Library, request: Request, check: Callable[[], None] = lambda: None) -> Shown:
    """Answers a request.

    The values are those of `softgate.pullback` and `softgate.ascend` with the same arguments, bit for bit, drawn by
    `softgate.grids.Grid.picture`.

    Args:
        library: The networks.
        request: What is to be shown.
        check: Called between two passes of the networks, also within an ascent; what it raises ends the computation.

    Raises:
        SoftgateError: For a run, moment, image or target that is not there, settings out of range, an upload that
            cannot be read, or runs that cannot stand side by side.
    """
    _check(library, request)
    moments = [library.moment(*each) for each in request.runs]
    if not all(moment.weights for moment in moments):
        require(len(moments) == 1, "a saved grid is shown by itself; choose one run, or moments with weights.")
        return saved(library, request.runs[0][0], moments[0], request.scale)
    found = []
    for (label, _), moment in zip(request.runs, moments, strict=True):
        check()
        found.append(library.network(label, moment.key))
    first = found[0]
    for network in found[1:]:
        require(
            list(network.names) == list(first.names), "the two runs have other classes; choose runs of one data set."
        )
    images, labels = zip(*(_image(library, network, request, first.probe) for network in found), strict=True)
    inputs = [x.to(next(network.net.parameters())) for x, network in zip(images, found, strict=True)]
    shapes = {tuple(x.shape) for x in inputs}
    require(len(shapes) == 1, "the two runs take images of other sizes; choose runs of one size.")
    own = NO_CLASS if labels[0] is None else first.own(labels[0])
    parts = [_read(network, x, request, check) for network, x in zip(found, inputs, strict=True)]
    readings = {name: _stacked([part[name][0] for part in parts]) for name in (HARD, SOFT)}
    names = [label for label, _ in request.runs]
    grid = Grid(
        request.kind,
        torch.cat([(as_pixels(x, network.images) + 1) / 2 for x, network in zip(inputs, found, strict=True)]).cpu(),
        [own] * len(found),
        list(request.targets),
        torch.cat([predict(network.net, x).argmax(1) for network, x in zip(found, inputs, strict=True)]).tolist(),
        first.names,
        readings,
        {HARD: None, SOFT: request.rule.to_dict()},
        _settings(request, inputs[0]),
    )
    rows = [_row(network, name, moment) for network, name, moment in zip(found, names, moments, strict=True)]
    curves = _curves(grid, parts, names) if request.kind == "ascent" else {}
    shown = snippets.of_networks(request, found, own)
    return _shown(grid, rows, names, shown, request.scale, curves)


def saved(library: Library, label: str, moment: Moment, scale: str = "cell") -> Shown:
    """A grid that a run saved while it trained; there are no weights to read out anew.

    Raises:
        SoftgateError: If the file is damaged.
    """
    try:
        kept = files.load(moment.file)
        targets, values = kept["targets"], {key: kept[key] for key in ("hard", "soft") if key in kept}
        known = dict(zip(targets, kept["names"], strict=True))
        predicted = {name: kept[f"{name}/predicted"] for name in values}
        most = max([*targets, *kept["labels"], *kept["predicted"], *(int(p.max()) for p in predicted.values())])
        names = [str(known.get(index, f"class {index}")) for index in range(most + 1)]
        called = {"hard": HARD, "soft": SOFT}
        readings = {}
        for key, value in values.items():
            pixels = (kept["images"][:, None] + value / 2).clamp(0, 1)  # what an ascent added, in [-1, 1]
            parts = (kept[f"{key}/before"], kept[f"{key}/after"], predicted[key])
            readings[called[key]] = Reading(value, pixels, *parts)
        settings = dict(kept["settings"])
        whole = (kept["images"], kept["labels"], targets, kept["predicted"], names, readings)
        grid = Grid(kept["kind"], *whole, settings=settings)
        rows = [names[index] for index in grid.labels]
        shown = snippets.of_saved(f"{library.run(label).called}/grids/{moment.file.name}", scale)
        return _shown(grid, rows, [f"{label}, {moment.words}"] * len(rows), shown, scale, {})
    except SoftgateError:
        raise
    except Exception as error:  # whatever a file that is cut short, or of other content, makes its readers raise
        why = type(error).__name__
        raise SoftgateError(f"run {label}: {moment.words}: the file is damaged ({why}).") from None


def _check(library: Library, request: Request) -> None:
    most = library.options.steps
    counts = 1 <= len(request.runs) <= MOST_RUNS
    require(counts, f"runs: {len(request.runs)} are chosen; one or two are needed.")
    counts = 1 <= len(request.targets) <= MOST_TARGETS
    require(counts, f"targets: {len(request.targets)} are chosen; 1 to {MOST_TARGETS} are needed.")
    if request.kind not in KINDS:
        raise unknown("kind", request.kind, KINDS)
    if request.scale not in SCALES:
        raise unknown("scale", request.scale, SCALES)
    require(
        1 <= request.steps <= most, f"steps={request.steps}: a whole number from 1 to {most} is needed (app.steps)."
    )
    for name, value in (("step_size", request.step_size), ("radius", request.radius)):
        require(math.isfinite(value) and value > 0, f"{name}={value}: a number > 0 is needed.")


def _image(library: Library, network: Network, request: Request, probe: tuple[int, int]) -> tuple[Tensor, int | None]:
    """The image and its class, as the data counts them; an uploaded one has none."""
    if request.upload is not None:
        options = library.options
        return network.images.uploaded(request.upload, options.upload_mb * 1e6, options.upload_pixels), None
    if request.probe is not None:
        return network.images.of_probe(*probe, request.probe)
    return network.images.of_class(request.label, request.number), request.label


def _settings(request: Request, x: Tensor) -> dict[str, float]:
    factor = size_factor(x)
    sizes = {"step_size": request.step_size * factor, "radius": request.radius * factor}
    return {"steps": request.steps if request.kind == "ascent" else 1, **sizes}


def _read(
    network: Network, x: Tensor, request: Request, check: Callable[[], None]
) -> dict[str, tuple[Reading, Ascent | None]]:
    """Both read-outs of one network on one image."""
    network.calibrated(request.rule)
    read = _ascent if request.kind == "ascent" else _pullback
    rules: dict[str, Surrogate | None] = {HARD: None, SOFT: request.rule}
    return {name: read(network, x, request, rule, check) for name, rule in rules.items()}


def _normalize(network: Network, x: Tensor, check: Callable[[], None]) -> Callable[[Tensor], Tensor]:
    """From pixels in [-1, 1] to what the network takes; an ascent calls it before each of its passes."""
    centre, spread = (x.new_tensor(list(v)).view(-1, 1, 1) for v in (network.images.mean, network.images.std))

    def normalize(image: Tensor) -> Tensor:
        check()
        return ((image + 1) / 2 - centre) / spread

    return normalize


def _pullback(
    network: Network, x: Tensor, request: Request, rule: Surrogate | None, check: Callable[[], None]
) -> tuple[Reading, Ascent | None]:
    check()
    targets = list(request.targets)
    values = pullback(network.net, x, targets, rule)
    check()
    before = predict(network.net, x)[:, targets]
    pixels, size = as_pixels(x, network.images), _settings(request, x)["step_size"]
    way = unit(values[0] / x.new_tensor(network.images.std).view(-1, 1, 1))
    stepped = (pixels + size * way).clamp(-1, 1)
    after = predict(network.net, _normalize(network, x, check)(stepped))
    logits = after[range(len(targets)), targets][None]
    parts = (values, (stepped[None] + 1) / 2, before, logits, after.argmax(1)[None])
    return Reading(*(part.detach().cpu() for part in parts)), None


def _ascent(
    network: Network, x: Tensor, request: Request, rule: Surrogate | None, check: Callable[[], None]
) -> tuple[Reading, Ascent | None]:
    settings = _settings(request, x)
    sizes = {key: settings[key] for key in ("step_size", "radius")}
    way: Any = {"steps": request.steps, **sizes, "normalize": _normalize(network, x, check)}
    risen = ascend(network.net, as_pixels(x, network.images), list(request.targets), rule, **way)
    ends = (risen.logits[..., 0], risen.logits[..., -1], risen.predicted[..., 1])
    parts = (risen.difference, (risen.image + 1) / 2, *ends)
    return Reading(*(part.detach().cpu() for part in parts)), risen


def _stacked(readings: Sequence[Reading]) -> Reading:
    parts = ("values", "pixels", "before", "after", "predicted")
    return Reading(*(torch.cat([getattr(reading, part) for reading in readings]) for part in parts))


def _row(network: Network, name: str, moment: Moment) -> str:
    if network.trained is None:
        return name
    return f"trained {'soft' if network.soft else 'hard'}: {name}"


def _curves(
    grid: Grid, parts: Sequence[Mapping[str, tuple[Reading, Ascent | None]]], names: Sequence[str]
) -> dict[str, dict[str, Points]]:
    curves: dict[str, dict[str, Points]] = {HARD: {}, SOFT: {}}
    for part, name in zip(parts, names, strict=True):
        for readout, (_, risen) in part.items():
            assert risen is not None
            for k, target in enumerate(grid.targets):
                line = grid.names[target] if len(names) == 1 else f"{grid.names[target]}, {name}"
                curves[readout][line] = list(enumerate(risen.logits[0, k].tolist()))
    return curves


def _shown(
    grid: Grid,
    rows: Sequence[str],
    names: Sequence[str],
    snippet: str,
    scale: str,
    curves: Mapping[str, Mapping[str, Points]],
) -> Shown:
    across = 2 if grid.kind == "ascent" or len(grid.targets) <= 2 else 1
    picture = grid.picture("", scale, rows=rows, across=across)
    narrow = grid.picture("", scale, rows=[row.partition(":")[0] for row in rows], across=1)
    words = []
    for index, name in enumerate(names):
        label = grid.labels[index]
        seen = f"predicts {grid.names[grid.predicted[index]]}"
        seen += f" for an image of {grid.names[label]}" if label != NO_CLASS else " for the uploaded image"
        ways = []
        for readout, reading in grid.readings.items():
            after = [grid.names[int(c)] for c in reading.predicted[index]]
            pairs = [f"{a} (target {grid.names[t]})" for a, t in zip(after, grid.targets, strict=True)]
            ways.append(f"{readout.partition(':')[0]}: {', '.join(pairs)}")
        words.append(f"{name} {seen}; after {_steps(grid)} along the read-out {'; '.join(ways)}.")
    what = "images after an ascent, and what it added" if grid.kind == "ascent" else "input gradients and pullbacks"
    for_ = ", ".join(grid.names[target] for target in grid.targets)
    alt = f"Grid of {what}. Rows: {', '.join(rows)}. Columns: the image, then targets {for_}, by "
    return Shown(grid, picture, narrow, rows, words, alt + f"{' and '.join(grid.readings)}.", snippet, scale, curves)


def _steps(grid: Grid) -> str:
    steps = int(grid.settings.get("steps", 1))
    return "one step" if grid.kind == "raw" or steps == 1 else f"{steps} steps"
