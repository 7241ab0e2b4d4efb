"""Runs side by side: a table, their curves with a cursor, and their grids of one epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from softgate import files
from softgate.app import curves
from softgate.app.library import Library, Run
from softgate.errors import SoftgateError, is_number
from softgate.evaluation import runs
from softgate.evaluation.checkpoints import saved_config
from softgate.training.summary import history

FIRST = ("run", "arm", "seed", "state", "top-1", "best top-1")
ACCURACY, ALIGNED = "val/acc", "align/"
LARGEST = 40_000_000
"""Pixels of a saved grid's picture, at most."""


@dataclass(frozen=True)
class Side:
    """A saved grid of a run.

    Attributes:
        label: Of the run.
        epoch: Counted from 1; None where the run has no grid.
        picture: As the run drew it; None where it has none, or a damaged one.
    """

    label: str
    epoch: int | None
    picture: Image.Image | None


def table(library: Library) -> tuple[list[str], list[list[object]]]:
    """Heads and one row for each run, finished or not: arm, seed, accuracy in %, and the last alignment values."""
    found = {label: runs.read_run(run.place) for label, run in library.runs.items()}
    sorted_ = runs.sort([run for run in found.values() if run is not None], (), ())
    arms = {run.directory: run.arm for run in sorted_}
    points = {label: _points(run) for label, run in library.runs.items()}
    keys = sorted({key for each in points.values() for key in each if _aligned(key)})
    rows: list[list[object]] = []
    for label, run in library.runs.items():
        config, summary = saved_config(run.place), files.read_json(run.place / "summary.json")
        accuracy = [value for _, value in points[label].get(ACCURACY, [])]
        gate = ((config.get("surrogate") or {}).get("gate") or {}).get("name", "")
        state = summary.get("status", "finished") if summary else "not finished"
        row: list[object] = [label, arms.get(run.place, gate), config.get("seed"), state]
        row += [_percent(accuracy[-1]), _percent(max(accuracy))] if accuracy else [None, None]
        row += [round(points[label][key][-1][1], 4) if points[label].get(key) else None for key in keys]
        rows.append(row)
    return [*FIRST, *map(_called, keys)], rows


def epochs(library: Library) -> int:
    """The last epoch of any run, counted from 1; 0 where there is none."""
    found = [epoch for run in library.runs.values() for xy in _points(run).values() for epoch, _ in xy]
    return int(max(found, default=0))


def measured(library: Library) -> dict[str, str]:
    """What any run measured over its epochs, accuracy first: what it is called to its name in `metrics.csv`."""
    keys = {key for run in library.runs.values() for key in _points(run)}
    found = [key for key in (ACCURACY,) if key in keys] + sorted(key for key in keys if _aligned(key))
    return {_called(key): key for key in found}


def charts(library: Library, labels: Sequence[str], epoch: int, measures: Sequence[str]) -> curves.Curves:
    """What some runs measured over the epochs, counted from 1, with a cursor.

    Args:
        library: Of the runs.
        labels: The runs.
        epoch: Where the cursor stands.
        measures: What is drawn, of `measured`; what is not there is left out.
    """
    points = {label: _points(library.run(label)) for label in labels}
    known = measured(library)
    keys = {name: known[name] for name in measures if name in known}
    lines = {name: {label: points[label].get(key, []) for label in labels} for name, key in keys.items()}
    return curves.draw(lines, "epoch", epoch)


def sides(library: Library, labels: Sequence[str], epoch: int) -> list[Side]:
    """For each run its saved grid of an epoch, counted from 1, or of the nearest one before, else of its first."""
    found = []
    for label in labels:
        place = library.run(label).place / "grids"
        known = {int(path.stem[6:]) + 1: path for path in place.glob("epoch=*.png") if path.stem[6:].isdecimal()}
        if not known:
            found.append(Side(label, None, None))
            continue
        nearest = max((each for each in known if each <= epoch), default=min(known))
        found.append(Side(label, nearest, _read(known[nearest])))
    return found


def _read(path: Path) -> Image.Image | None:
    try:
        with Image.open(path, formats=["PNG"]) as file:
            return file.convert("RGB") if file.width * file.height <= LARGEST else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _points(run: Run) -> dict[str, list[tuple[float, float]]]:
    metrics = run.place / "metrics.csv"
    try:
        found = history(metrics) if metrics.is_file() else {}
        return {key: [(epoch + 1, value) for epoch, value in points] for key, points in found.items()}
    except SoftgateError:  # damaged: the run's row has no figures
        return {}


def _called(key: str) -> str:
    return "accuracy" if key == ACCURACY else key.removeprefix(ALIGNED).replace("/", " ").replace("_", " ")


def _aligned(key: str) -> bool:
    return key.startswith(ALIGNED) and not key.endswith(("_low", "_high"))


def _percent(value: object) -> float | None:
    return round(100 * value, 2) if is_number(value) else None
