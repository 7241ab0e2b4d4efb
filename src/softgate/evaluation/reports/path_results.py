"""What `paths=full` reports of recorded runs: tables, a CSV file, heat maps and curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from softgate import files
from softgate.evaluation.config import PathsConfig
from softgate.figures.panels import Line
from softgate.figures.paths import heat_maps, swap_curves
from softgate.figures.style import Chart
from softgate.paths import Point, Swaps
from softgate.paths.agreement import Comparison
from softgate.paths.swapping import CONTROLS

GATES = {"hard": "G", "soft": "Gamma"}
"""The kinds of gates, and the paper's names for them."""

COLUMNS = ("run", "trained", "gates", "measure", "epoch_s", "epoch_t", "value", "low", "high")
"""Of `paths.csv`."""


@dataclass
class Kernels:
    """Path kernels of one network at some moments: debiased CKA between them, alignment with the labels, accuracy."""

    points: list[Point]
    cka: dict[str, list[list[float]]] = field(default_factory=dict)
    alignment: dict[str, list[float]] = field(default_factory=dict)
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    own: list[float] = field(default_factory=list)
    pixels: dict[str, float] = field(default_factory=dict)  # the control: what <x, x'> alone has

    def plain(self) -> dict[str, Any]:
        """For results.json."""
        plain: dict[str, Any] = {
            "cka": self.cka,
            "label_alignment": self.alignment,
            "accuracy": self.accuracy,
            "network": self.own,
        }
        plain["pixels"] = self.pixels
        return {"epochs": [point.epoch for point in self.points], **plain}


@dataclass
class Stability:
    """What was found of one run."""

    label: str
    trained: str
    comparison: Comparison
    swaps: Swaps
    kernels: Kernels | None


def plain(one: Stability, options: PathsConfig) -> dict[str, Any]:
    """What `results.json` holds of a run."""
    swaps, comparison = one.swaps, one.comparison
    draws: dict[str, Any] = {"resamples": options.resamples, "seed": options.seed}
    kinds: dict[str, Any] = {}
    for kind in GATES:
        settled = swaps.settled(kind, options.threshold, **draws)
        kinds[kind] = {
            "within": listed(swaps.matrix(kind, within=True)),
            "pooled": listed(swaps.matrix(kind, within=False)),
            "into_last": [[number(v) for v in part] for part in swaps.curve(kind, True, **draws)],
            "controls": {name: [number(v) for v in swaps.control(kind, name, True)] for name in CONTROLS},
            "controls_pooled": {name: [number(v) for v in swaps.control(kind, name, False)] for name in CONTROLS},
            "above_controls": [[number(v) for v in part] for part in swaps.margin(kind, True, **draws)],
            "settled": [number(v) for v in settled],
            "path_cosine_to_last": [number(v) for v in per_site(swaps.log_cosine[kind], comparison)],
            "gate_auc": [number(v) for v in swaps.gate_auc(kind)],
        }
    return {
        "label": one.label,
        "trained": one.trained,
        "epochs": [point.epoch for point in swaps.points],
        "steps": [point.step for point in swaps.points],
        "accuracy": [number(v) for v in swaps.correct.tolist()],
        "swap": kinds,
        "soft_minus_hard": [[number(v) for v in part] for part in swaps.difference(True, **draws)],
        "agreement": {
            "epochs": [point.epoch for point in comparison.points],
            "hamming": listed(comparison.overall[0]),
            "kappa": listed(comparison.overall[1]),
            "path_cosine_per_site": listed(cosines(comparison)),
            "sites": {
                name: {"hamming": listed(comparison.hamming[i]), "kappa": listed(comparison.kappa[i])}
                for i, name in enumerate(comparison.sites)
            },
        },
        "kernels": None if one.kernels is None else one.kernels.plain(),
    }


def per_site(log_cosine: Tensor, comparison: Comparison) -> list[float]:
    """The geometric mean over call sites of the cosines, from sums of logs [..., N], as a mean over images."""
    mean: Tensor = (log_cosine / len(comparison.sites)).exp().mean(-1)
    return mean.tolist()


def cosines(comparison: Comparison) -> Tensor:
    """[S, S], as `per_site`."""
    return (comparison.log_cosine / len(comparison.sites)).exp().mean(0)


def settling(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settled epochs of the runs trained hard and of those trained soft, for each kind of gates."""
    return {
        f"trained {arm}": {
            kind: [run["swap"][kind]["settled"][0] for run in runs if run["trained"] == arm] for kind in GATES
        }
        for arm in GATES
    }


def maps(one: Stability) -> Chart:
    """The heat maps of one run: agreement of gates and paths, swaps."""
    epochs = [point.epoch for point in one.swaps.points]
    panels = {name: values.numpy() for name, values in matrices(one).items()}
    return heat_maps(panels, epochs, f"{one.label}, trained {one.trained}")


def matrices(one: Stability) -> dict[str, Tensor]:
    """What heat maps show of every pair of the moments of the swaps: name to values [S, S], s first."""
    swaps, comparison = one.swaps, one.comparison
    places = [comparison.points.index(point) for point in swaps.points]
    return {
        "kappa of gates": comparison.overall[1][places][:, places],
        "path cosine per site": cosines(comparison)[places][:, places],
        "swap hard, pooled": swaps.matrix("hard", within=False),
        "swap hard, within class": swaps.matrix("hard", within=True),
        "swap soft, pooled": swaps.matrix("soft", within=False),
        "swap soft, within class": swaps.matrix("soft", within=True),
    }


def curves(found: Sequence[Stability], options: PathsConfig) -> Chart:
    """The swaps into the last network of every run, with the controls' means over the runs of the arm."""
    panels: dict[str, dict[str, tuple[str, Line]]] = {}
    arms = {arm: [one for one in found if one.trained == arm] for arm in GATES}
    for kind, within, arm in product(GATES, (True, False), arms):
        if arms[arm]:
            lines: dict[str, tuple[str, Line]] = {}
            for one in arms[arm]:
                epochs = [point.epoch for point in one.swaps.points]
                ends = one.swaps.curve(kind, within, options.resamples, options.seed)
                drawn = [list(zip(epochs, part, strict=True)) for part in ends]
                label = f"{one.label}, trained {one.trained}"
                lines[label] = one.trained, Line(*drawn)
            for name in CONTROLS:
                lines[f"control: {name}"] = name, Line(_mean_control(arms[arm], kind, name, within))
            panels[f"swap {kind}, {'within class' if within else 'pooled'}, trained {arm}"] = lines
    levels = {name: options.threshold for name in panels if "within class" in name}
    for title, pick in (("path cosine per site with the last gates", 0), ("AUC for the last gates", 1)):
        lines = {}
        for one in found:
            epochs = [point.epoch for point in one.swaps.points]
            values = per_site(one.swaps.log_cosine["hard"], one.comparison), one.swaps.gate_auc("hard")
            label = f"{one.label}, trained {one.trained}"
            lines[label] = one.trained, Line(list(zip(epochs, values[pick], strict=True)))
        panels[f"{title}, G(s)"] = lines
    return swap_curves(panels, levels, "into the last network; bands: 95 % bootstrap over images")


def _mean_control(found: Sequence[Stability], kind: str, name: str, within: bool) -> list[tuple[float, float]]:
    first = [point.epoch for point in found[0].swaps.points]
    same = [one for one in found if [point.epoch for point in one.swaps.points] == first]
    values = np.nanmean([one.swaps.control(kind, name, within) for one in same], 0)
    return list(zip(first, values.tolist(), strict=True))


def write_csv(found: Sequence[Stability], options: PathsConfig, path: Path) -> None:
    """One row for each run, kind of gates and pair of moments, and for each control."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for one in found for row in _rows(one, options)]
    files.write_csv(rows, path, COLUMNS)


def _rows(one: Stability, options: PathsConfig) -> Iterator[tuple[Any, ...]]:
    swaps, epochs = one.swaps, [point.epoch for point in one.swaps.points]
    for kind in GATES:
        start = one.label, one.trained, kind
        for within, name in ((True, "swap_within"), (False, "swap_pooled")):
            values = swaps.matrix(kind, within)
            ends = swaps.curve(kind, within, options.resamples, options.seed)
            for s, from_epoch in enumerate(epochs):
                for t, to in enumerate(epochs):
                    low, high = (ends[1][s], ends[2][s]) if t == len(epochs) - 1 else ("", "")
                    yield (*start, name, from_epoch, to, float(values[s, t]), low, high)
            margin = zip(epochs, *swaps.margin(kind, within, options.resamples, options.seed), strict=True)
            for epoch, value, low, high in margin:
                yield (*start, f"{name}_above_controls", epoch, epochs[-1], value, low, high)
            for control in CONTROLS:
                for epoch, value in zip(epochs, swaps.control(kind, control, within), strict=True):
                    yield (*start, f"{name}_{control.replace(' ', '_')}", epoch, epochs[-1], value, "", "")
    every = [point.epoch for point in one.comparison.points]
    named = {"hamming": one.comparison.overall[0], "kappa": one.comparison.overall[1]}
    for name, values in (*named.items(), ("path_cosine_per_site", cosines(one.comparison))):
        for s, from_epoch in enumerate(every):
            for t, to in enumerate(every):
                yield one.label, one.trained, "hard", name, from_epoch, to, float(values[s, t]), "", ""


def listed(values: Tensor) -> list[list[float | None]]:
    """A matrix as lists, null where it is not finite."""
    return [[number(v) for v in row] for row in values.tolist()]


def number(value: float) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None
