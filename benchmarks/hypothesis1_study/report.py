"""Tables and the figure of the measurement: means over seeds with 95 % intervals of Student's t."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scipy import stats

from softgate.figures.panels import Line
from softgate.figures.paths import swap_curves
from softgate.tables import Table

Values = Mapping[tuple[Any, ...], Mapping[int, float]]
"""A key without the seed to the value of each seed."""

COLOURS = {"epoch": "hard", "own": "f(s)", "random": "shuffled", "last": "mean"}
SAID = {"epoch": "frozen at s", "own": "own (normal)", "random": "random, frozen", "last": "last network's"}


def read(path: Path, keys: Iterable[str], value: str) -> Values:
    """Rows of a table, gathered by seed."""
    found: defaultdict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found[tuple(row[key] for key in keys)][int(row["seed"])] = float(row[value])
    return found


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean and the ends of the 95 % interval over seeds; infinite ends for one seed."""
    each = [v for v in values if math.isfinite(v)]
    if len(each) < 2:
        return (each[0] if each else math.nan), -math.inf, math.inf
    mean = sum(each) / len(each)
    half = stats.t.ppf(0.975, len(each) - 1) * stats.sem(each)
    return mean, mean - half, mean + half


def shown(values: Iterable[float], signed: bool = False) -> str:
    """Mean and interval as words."""
    mean, low, high = interval(values)
    sign = "+" if signed else ""
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def frozen(path: Path, measure: str = "val_accuracy") -> list[Table]:
    """For each schedule and horizon: what is reached with each kind of gates, and the difference to normal training."""
    found = read(path, ("schedule", "epochs", "s", "gates"), measure)
    made = []
    for schedule, epochs in sorted({key[:2] for key in found}, key=lambda key: (key[0], int(key[1]))):
        mine = {key[2:]: value for key, value in found.items() if key[:2] == (schedule, epochs)}
        every = sorted({s for s, _ in mine}, key=float)
        rows = []
        for gates, said in SAID.items():
            rows.append([said, *(shown(mine[s, gates].values()) if (s, gates) in mine else "" for s in every)])
        for gates in ("epoch", "random", "last"):
            cells = []
            for s in every:
                pair = mine.get((s, gates), {}), mine.get((s, "own"), {})
                both = sorted(pair[0].keys() & pair[1].keys())
                cells.append(shown((pair[0][seed] - pair[1][seed] for seed in both), signed=True) if both else "")
            rows.append([f"{SAID[gates]} - own", *cells])
        count = len({seed for values in mine.values() for seed in values})
        made.append(Table(["gates", *every], rows, f"{measure}, {schedule}, {epochs} epochs, {count} seeds"))
    return made


def swaps(path: Path, split: str) -> list[Table]:
    """For each schedule and horizon: each measure at each epoch s."""
    found = read(path, ("schedule", "epochs", "split", "s", "measure"), "value")
    made = []
    for schedule, epochs in sorted({key[:2] for key in found}, key=lambda key: (key[0], int(key[1]))):
        mine = {key[3:]: v for key, v in found.items() if key[:3] == (schedule, epochs, split)}
        every = sorted({s for s, _ in mine}, key=float)
        names = list(dict.fromkeys(name for _, name in mine))
        rows = [[n, *(shown(mine[s, n].values()) if (s, n) in mine else "" for s in every)] for n in names]
        if any(name == "within: swap" for name in names):
            rows.append(["within: swap - greatest control", *(_margin(mine, s) for s in every)])
        count = len({seed for values in mine.values() for seed in values})
        made.append(Table(["measure", *every], rows, f"{schedule}, {epochs} epochs, {split} images, {count} seeds"))
    return made


def _margin(mine: Mapping[tuple[str, str], Mapping[int, float]], s: str) -> str:
    controls = [v for (at, name), v in mine.items() if at == s and name.startswith("within: ")]
    swap = mine.get((s, "within: swap"), {})
    others = [v for v in controls if v is not swap]
    if float(s) == 0:  # the swap from the initial network is the swap itself
        others = [v for v in others if v is not mine.get((s, "within: epoch 0"))]
    differences = [value - max(v[seed] for v in others if math.isfinite(v[seed])) for seed, value in swap.items()]
    return shown(differences, signed=True)


def figure(trained: Path, swapped: Path | None) -> Any:
    """Accuracy with frozen gates over s, a panel for each schedule and horizon; swaps with their controls below."""
    panels: dict[str, dict[str, tuple[str, Line]]] = {}
    found = read(trained, ("schedule", "epochs", "s", "gates"), "val_accuracy")
    for schedule, epochs in sorted({key[:2] for key in found}, key=lambda key: (key[0], int(key[1]))):
        lines = {}
        for gates, said in SAID.items():
            at = {float(k[2]): v.values() for k, v in found.items() if (*k[:2], k[3]) == (schedule, epochs, gates)}
            lines[f"gates {said}"] = COLOURS[gates], _line(at, gates == "epoch")
        panels[f"accuracy, {schedule}, {epochs} epochs"] = lines
    if swapped is not None and swapped.is_file():
        rows = read(swapped, ("schedule", "epochs", "split", "s", "measure"), "value")
        first = min((key[:2] for key in rows), key=lambda key: (key[0] != "cosine", int(key[1])))
        for split in ("val", "train"):
            lines = {}
            names = dict.fromkeys(key[4] for key in rows if key[4].startswith("within: "))
            for name in names:
                at = {float(k[3]): v.values() for k, v in rows.items() if k == (*first, split, k[3], name)}
                short = name.removeprefix("within: ")
                label = "swap" if short == "swap" else f"control: {short}"
                lines[label] = (
                    "hard" if short == "swap" else short,
                    _line(at, short == "swap"),
                )
            panels[f"swap within class, {first[0]}, {first[1]} epochs, {split} images"] = lines
    return swap_curves(panels, title="means over seeds; bands: 95 % over seeds")


def _line(at: Mapping[float, Iterable[float]], band: bool) -> Line:
    """Means over seeds; the band of accuracies and correlations ends where these do, at 1."""
    ends = {x: interval(values) for x, values in sorted(at.items())}
    mean, low, high = ([(x, max(-1.0, min(1.0, each[place]))) for x, each in ends.items()] for place in range(3))
    return Line(mean, low, high) if band else Line(mean)
