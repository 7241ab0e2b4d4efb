"""`paths=full`: when the paths of recorded runs settle, what predicts them, and what their kernels say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softgate import files, tables
from softgate.errors import require
from softgate.evaluation.config import PathsConfig
from softgate.evaluation.reports import path_results, paths
from softgate.evaluation.reports.path_results import GATES, Kernels, Stability
from softgate.explainers.pullback import predict
from softgate.paths import Point, Recording, cka, compare, kernel, kernel_accuracy, label_alignment, swap
from softgate.paths.similarity import cosine_kernel
from softgate.sites.calibration import calibrate
from softgate.sites.inference import inner
from softgate.sites.scales import scales_of
from softgate.surrogate.rule import Surrogate
from softgate.training.figures import FIGURES, FiguresConfig

FOLDS = 5

RECORDED = {"val": "paths", "train": "paths-train"}
"""Where the recording of which images is, in a run's directory."""


class PathStudy:
    """Measures recorded runs one after the other, and reports on all of them.

    Args:
        options: Of `paths=full`.
        soft: The rule of the soft gates.

    Raises:
        SoftgateError: For a rule without gates.
    """

    def __init__(self, options: PathsConfig, soft: Surrogate) -> None:
        check(soft)
        self.options, self.soft = options, soft
        self.recordings: dict[str, Recording] = {}
        self.found: list[Stability] = []
        self._console = tables.console()

    def expect(self, label: str, checkpoint: Path, net: nn.Module) -> None:
        """Opens the recording of a run, before anything is measured.

        Raises:
            SoftgateError: If there is none, it is broken or without weights, or not comparable with the others.
        """
        name = RECORDED[self.options.probe]
        place = checkpoint.parents[1] / name if checkpoint.parent.name == "checkpoints" else checkpoint.parent
        recording = opened(place, self.options.probe, net)
        for other in self.recordings.values():
            recording.check_same(other)
        self._check_folds(recording.labels)
        self.recordings[label] = recording

    def look(self, label: str, trained: Surrogate, net: nn.Module) -> None:
        """Measures a run, which takes minutes.

        Args:
            label: Of `expect`.
            trained: The rule it was trained with.
            net: The network, on the device to use; its weights are put back.
        """
        net, recording = inner(net), self.recordings[label]
        self._say(f"paths of {label}: agreement of gates ...")
        found = stability(label, trained, net, recording, self.options, self.soft, partial(self._progress, label))
        found.kernels = self._kernels(label, net, recording) if self.options.kernel_images else None
        self.found.append(found)

    def report(self, directory: Path, figures: FiguresConfig = FIGURES) -> dict[str, Any]:
        """Prints the tables; writes `report.html`, `paths.csv`, `paths.png` and for each run `paths-RUN.png`.

        Args:
            directory: Where to.
            figures: How charts become files.

        Returns:
            For results.json.
        """
        plain = [path_results.plain(one, self.options) for one in self.found]
        path_results.write_csv(self.found, self.options, directory / "paths.csv")
        pictures = {"swaps into the last network": path_results.curves(self.found, self.options)}
        figures.save(pictures["swaps into the last network"], directory / "paths.png")
        for one in self.found:
            name = f"{one.label}, trained {one.trained}"
            pictures[name] = path_results.maps(one)
            figures.save(pictures[name], directory / f"paths-{re.sub(r'[^A-Za-z0-9_.-]', '-', one.label)}.png")
        every = paths.tables(self.found, plain, self.options)
        for table in every:
            self._console.print(table.rich())
        files.write(paths.page(every, pictures), directory / "report.html")
        settled = path_results.settling(plain)
        return {**self.options.plain, "rule": self.soft.to_dict(), "runs": plain, "settled": settled}

    def _check_folds(self, labels: Tensor) -> None:
        count = self.options.kernel_images
        if count:
            least = int(torch.unique(labels[:count], return_counts=True)[1].min())
            require(
                least >= FOLDS,
                f"paths.kernel_images={count}: {least} image(s) of a class; at least {FOLDS} of each are needed for "
                f"{FOLDS} folds, or 0 for no kernels.",
            )

    def _kernels(self, label: str, net: nn.Module, recording: Recording) -> Kernels:
        found = Kernels(thinned(recording.points, self.options.kernel_moments))
        like = next(net.parameters())
        count = self.options.kernel_images
        x, labels = recording.images[:count].to(like.device, like.dtype), recording.labels[:count]
        before = {name: value.detach().clone() for name, value in net.state_dict().items()}
        scales = scales_of(net).state_dict()
        made: dict[str, list[Tensor]] = {kind: [] for kind in GATES}
        try:
            for point in found.points:
                self._say(f"paths of {label}: kernels at epoch {point.epoch:.2g} ...")
                kept = recording.weights(point)
                net.load_state_dict(kept["net"])
                scales_of(net).load_state_dict(kept["scales"])
                if self.soft.scale == "channel" and not scales_of(net):
                    calibrate(net, [x], self.soft)
                found.own.append(float((predict(net, x).argmax(1).cpu() == labels).double().mean()))
                for kind, rule in (("hard", None), ("soft", self.soft)):
                    sign, log = kernel(net, x, None, rule, log=True)
                    made[kind].append(cosine_kernel(sign.cpu(), log.cpu()))
        finally:
            net.load_state_dict(before)
            scales_of(net).load_state_dict(scales)
        pixels = torch.nn.functional.normalize(x.double().flatten(1)).cpu()
        linear, seed = pixels @ pixels.T, self.options.seed
        found.pixels = {
            "label_alignment": label_alignment(linear, labels, debiased=True),
            "accuracy": kernel_accuracy(linear, labels, FOLDS, seed=seed),
        }
        for kind, kernels in made.items():
            found.cka[kind] = [[cka(a, b, debiased=True) for b in kernels] for a in kernels]
            found.alignment[kind] = [label_alignment(k, labels, debiased=True) for k in kernels]
            found.accuracy[kind] = [kernel_accuracy(k, labels, FOLDS, seed=seed) for k in kernels]
        return found

    def _progress(self, label: str, done: int, total: int) -> None:
        if self._console.is_terminal and done < total:
            self._console.print(f"paths of {label}: swap {done} of {total}", end="\r", style="dim", markup=False)
        elif done in (1, total):
            self._say(f"paths of {label}: swap {done} of {total} ...")

    def _say(self, words: str) -> None:
        self._console.print(words, style="dim", soft_wrap=True, markup=False)


def opened(place: Path, probe: str, net: nn.Module) -> Recording:
    """The recording of a run, where paths can be measured of it.

    Args:
        place: Its directory.
        probe: Of which images it is: val or train.
        net: The network of the run.

    Raises:
        SoftgateError: If there is none, it is broken, of another network, without weights, or of one moment only.
    """
    require(
        (place / "header.json").is_file(),
        f"paths=full: {place} holds no recording; train with callbacks=paths"
        f"{'' if probe == 'val' else ' callbacks.paths.probe=train'}, and give the run's directory.",
    )
    recording = Recording(place, "paths=full")
    recording.check_model(inner(net))
    require(
        recording.header.weights,
        f"paths=full: {place} was recorded with callbacks.paths.weights=false; swap needs the weights.",
    )
    require(
        len(recording.points) >= 2,
        f"paths=full: {place} has one recorded moment; at least 2 are needed to compare.",
    )
    return recording


def stability(
    label: str,
    trained: Surrogate,
    net: nn.Module,
    recording: Recording,
    options: PathsConfig,
    soft: Surrogate,
    progress: Callable[[int, int], None],
) -> Stability:
    """Agreement of gates and swaps of one run, without kernels; takes minutes.

    Args:
        label: Of the run.
        trained: The rule it was trained with.
        net: The network, on the device to use; a copy of it is run.
        recording: From `opened`.
        options: Which images and moments.
        soft: The rule of the soft gates.
        progress: As in `softgate.paths.swap`; what it raises ends the measurement.
    """
    swaps = swap(
        net,
        recording,
        {"hard": None, "soft": soft},
        points=thinned(recording.points, options.moments),
        images=options.images,
        later=options.later,
        chunk=options.chunk,
        seed=options.seed,
        progress=progress,
    )
    kind = "soft" if trained.soft else "hard"
    return Stability(label, kind, compare(recording), swaps, None)


def check(soft: Surrogate) -> None:
    """Raises `SoftgateError` for a read-out that has no gates."""
    require(
        not soft.matches, "readout.gain=matched: paths=full needs gates, and there is none that rescales gradients."
    )
    require(soft.soft, "readout: paths=full compares hard with soft gates; choose a soft rule.")


def thinned(points: Sequence[Point], count: int | None) -> list[Point]:
    """At most so many of the moments, evenly spread, the first and the last among them."""
    if count is None or count >= len(points):
        return list(points)
    return [points[round(place)] for place in np.linspace(0, len(points) - 1, count)]
