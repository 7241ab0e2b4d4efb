"""Hypothesis 1 on digits: `benchmarks/hypothesis1.py frozen swaps kernels report`; goes on where it was broken off.

frozen: from each of ten epochs s on, weights are trained with the gates of the network frozen at s, beside normal
training, gates of an untrained network and those of the last network; five seeds, a cosine and a constant rate, two
horizons. swaps: swaps into the last network with all controls, and combined patterns, on training and on validation
images. kernels: kernel prediction on both. report: tables and the figure of docs/path-stability.md. One thread.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis1_study import report
from hypothesis1_study.measures import Row, predicted, swapped
from hypothesis1_study.training import GATES, SPLITS, Setting, record, settings, trained_on

from softgate import files
from softgate.paths import Recording
from softgate.tables import console

HERE = Path(__file__).parents[1] / "docs" / "path-stability"
WIDE = 320
COLUMNS = ("schedule", "epochs", "seed", "s", "gates")
MEASURED = ("val_accuracy", "val_loss", "train_accuracy", "train_loss", "cpu_seconds")


MEASURES = ("schedule", "epochs", "seed", "split", "s", "measure")


def done(path: Path, columns: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The keys of the rows that a file has already."""
    if not path.is_file():
        return set()
    with path.open(newline="") as file:
        return {tuple(row[name] for name in columns) for row in csv.DictReader(file)}


def recorded(setting: Setting, out: Path, split: str = "train") -> Recording:
    """A recorded run; it is trained where it is not there yet."""
    place = out / setting.name
    if not (place / "finished").is_file():
        record(setting, place)
        files.write("", place / "finished")
    return Recording(place / split)


def frozen(every: list[Setting], out: Path, to: Path) -> None:
    """Trains on from every epoch with every kind of gates, one row each."""
    files.folder(to.parent)
    there = done(to, COLUMNS)
    for setting in every:
        recording = recorded(setting, out)
        for place, point in enumerate(recording.points[:-1]):
            for gates in GATES if place % 2 == 0 else GATES[:1]:
                key = tuple(map(str, (setting.schedule, setting.epochs, setting.seed, point.epoch, gates)))
                if key in there:
                    continue
                started = time.process_time()
                found: dict[str, Any] = trained_on(setting, recording, point, gates)
                found["cpu_seconds"] = time.process_time() - started
                shown = {name: f"{found[name]:.5g}" for name in MEASURED}
                files.append_csv([dict(zip(COLUMNS, key, strict=True)) | shown], to, (*COLUMNS, *MEASURED))
        print(f"{setting.name}: trained on from {len(recording.points) - 1} epochs", flush=True)


def measure(every: list[Setting], out: Path, to: Path, what: Callable[[Setting, Recording], Iterator[Row]]) -> None:
    """Measures recorded runs on training and on validation images; a run and split at a time."""
    files.folder(to.parent)
    there = done(to, MEASURES[:4])
    for setting in every:
        for split in SPLITS:
            key = tuple(map(str, (setting.schedule, setting.epochs, setting.seed, split)))
            if key in there:
                continue
            recording = recorded(setting, out, split)
            found = what(setting, recording)
            rows = [dict(zip(MEASURES, (*key, s, name), strict=True)) | {"value": f"{v:.5g}"} for s, name, v in found]
            files.append_csv(rows, to, (*MEASURES, "value"))
        print(f"{setting.name}: measured", flush=True)


def tables(to: Path) -> None:
    """Prints every table and draws the figure, of what is there."""
    made = [table for name in MEASURED[:3] for table in report.frozen(to / "frozen.csv", name)]
    for path in (to / "swaps.csv", to / "kernels.csv"):
        if path.is_file():
            made += [table for split in SPLITS for table in report.swaps(path, split)]
    for table in made:
        console(WIDE).print(table.rich())
    chart = report.figure(to / "frozen.csv", to / "swaps.csv")
    files.write(chart.encoded("png"), to / "hypothesis1.png")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("stages", nargs="+", choices=("frozen", "swaps", "kernels", "report"))
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--only", choices=("cosine", "constant"), help="runs of one schedule, beside another process")
    options.add_argument("--out", type=Path, default=Path("outputs/hypothesis1"), help="recordings of the runs")
    options.add_argument("--to", type=Path, default=HERE, help="tables")
    given = options.parse_args()
    torch.set_num_threads(1)
    every = [setting for setting in settings(given.seeds) if given.only in (None, setting.schedule)]
    if "frozen" in given.stages:
        frozen(every, given.out, given.to / "frozen.csv")
    if "swaps" in given.stages:
        measure(every, given.out, given.to / "swaps.csv", swapped)
    if "kernels" in given.stages:
        measure(every, given.out, given.to / "kernels.csv", predicted)
    if "report" in given.stages:
        tables(given.to)
