"""`alignment=full`: all alignment metrics of all explainers, of one network or of several beside each other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from softgate import files, memory, tables
from softgate.classes import Classes, match
from softgate.data import ImageData
from softgate.data.config import DataConfig, NamedData
from softgate.errors import SoftgateWarning, UnreachableSites, require
from softgate.evaluation.config import AlignmentConfig
from softgate.evaluation.networks import Subject
from softgate.evaluation.progress import duration
from softgate.figures.panels import Dots, dots
from softgate.figures.style import Chart
from softgate.metrics import controls
from softgate.metrics.control_table import BETTER, POSSIBLE, Probe, Score, control_table, failures, titled, verdict
from softgate.metrics.workload import expected
from softgate.rounding import rounded
from softgate.sites.inference import inner
from softgate.surrogate.rule import Surrogate
from softgate.tables import Table
from softgate.training.callbacks.alignment import MOST_CLASSES, Renumbered
from softgate.training.figures import FIGURES, FiguresConfig

SAME = ("name", "root", "archive", "size", "channels", "mean", "std", "test")
"""Options of the data that networks must share to be compared."""

DEFINED = ("representation", "kernel_agreement", "kernel_agreement_within")
"""Without a verdict: they are perfect for the gradient by definition."""

READ = {"hard": "gradient", "soft": "pullback"}
"""The read-outs of the 2 x 2, and their explainers."""

Scores = dict[str, dict[str, Score]]


@dataclass(frozen=True)
class Measured:
    """The control table of one network.

    Attributes:
        label: Says which network.
        trained: "hard" or "soft", the gates of its training; None where it is not known.
        table: Explainer to metric to score.
        failed: Explainer to the parts of the sanity gate that it fails.
        notes: Explainer to what is undefined, and why.
    """

    label: str
    trained: str | None
    table: Scores
    failed: dict[str, list[str]]
    notes: dict[str, list[str]]

    def verdicts(self) -> list[str]:
        """A line for each metric; only that there is none, if the pullback does not pass the sanity gate."""
        if self.failed["pullback"]:
            return [f"no verdict on any metric: the pullback fails {' and '.join(self.failed['pullback'])}."]
        keys = [key for key, better in BETTER.items() if better is not None and key not in DEFINED]
        found = [key for key in keys if key in self.table["pullback"]]
        return [verdict(key, bool(BETTER[key]), self.table, self.failed) for key in found]

    def plain(self) -> dict[str, Any]:
        """For results.json: a score is [value, low, high], null where it is undefined."""
        scores = {
            name: {key: [_number(value) for value in scores[key]] for key in BETTER if key in scores}
            for name, scores in self.table.items()
        }
        about = {"label": self.label, "trained": self.trained, "scores": scores}
        return {**about, "fails": self.failed, "notes": self.notes, "verdicts": self.verdicts()}


class Study:
    """Measures networks one after the other, and reports on all of them.

    Args:
        options: Of `alignment=full`.
        soft: The rule of the pullback.
        judge: An independently trained network, the options of its data and its classes' names.

    Raises:
        SoftgateError: If the evaluator's file is not there, or for a rule with hard gates.
    """

    def __init__(
        self,
        options: AlignmentConfig,
        soft: Surrogate,
        judge: tuple[nn.Module, DataConfig, Sequence[str]] | None = None,
    ) -> None:
        check(options, soft)
        self.options, self.soft, self.judge = options, soft, judge
        self.measured: list[Measured] = []
        self._expected: tuple[str, dict[str, Any], list[str]] | None = None
        self._means: tuple[ImageData, Tensor | None] | None = None
        self._console = tables.console()

    def expect(self, label: str, options: DataConfig, classes: Sequence[str], images: int | None = None) -> None:
        """Says that a network will be measured; nothing is loaded.

        Args:
            label: Says which network.
            options: Of its data.
            classes: Names of the data's classes.
            images: How many validation images there are, where it is known.

        Raises:
            SoftgateError: If there are too few images, or it cannot be compared with the others or judged.
        """
        count = self.options.images if images is None else min(self.options.images, images)
        few = f"alignment.images={self.options.images}"
        few += "" if count == self.options.images else f", of which the data has {count}"
        require(count >= len(classes), f"{few}: at least one for each of the {len(classes)} classes is needed.")
        mine = about(options)
        if self._expected is None:
            self._expected = label, mine, list(classes)
        other, theirs, named = self._expected
        _same(f"alignment=full: {label} and {other} cannot be compared", (mine, classes), (theirs, named), SAME)
        if self.judge is not None:
            start = f"alignment.evaluator={self.options.evaluator}: it cannot judge {label}"
            judged = about(self.judge[1]), self.judge[2]
            _same(start, judged, (mine, classes), ("size", "channels", "mean", "std"))

    def look(
        self, label: str, trained: Surrogate | None, subject: Subject, data: ImageData, soft: Surrogate | None = None
    ) -> None:
        """Measures a network, which takes minutes.

        Args:
            label: Says which network.
            trained: The rule it was trained with; None where it is not known.
            subject: The network, on the device to use.
            data: Its images.
            soft: The rule of its pullback, where it is not that of all.
        """
        net = inner(subject.net)
        probe = self._probe(subject, data)
        table: Scores = {}
        notes: dict[str, list[str]] = {}
        judge = None
        if self.judge is not None:
            start = f"alignment.evaluator={self.options.evaluator}"
            own = match(data.identity, Classes.of(self.judge[2]), start, "the evaluator").indexes
            judge = Renumbered(self.judge[0], own, subject.classes, len(subject.names))
        judge = judge if judge is None else judge.to(probe.images).eval()
        dear, draws = self.options.dear_images, self.options.draws
        explainers = controls.standard(soft or self.soft, probe.images, draws)
        self._announce(label, expected(net, explainers, probe, dear, draws), len(probe.images))
        for name, explainer in explainers.items():
            self._console.print(f"alignment of {label}: {name} ...", style="dim", soft_wrap=True, markup=False)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", SoftgateWarning)
                # Without these two there is neither gate nor verdict.
                with nullcontext() if name in READ.values() else memory.spared(_left_out):
                    try:
                        table |= control_table(net, {name: explainer}, probe, judge, dear=dear, draws=draws)
                    except UnreachableSites:
                        if name in READ.values():
                            raise
                        warnings.warn(
                            f"{name} has nothing for the network's activations.", SoftgateWarning, stacklevel=2
                        )
            said = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, SoftgateWarning)))
            notes |= {name: said} if said else {}
            for other in caught:
                if not issubclass(other.category, SoftgateWarning):
                    warnings.warn(other.message, other.category, stacklevel=2)
        kind = None if trained is None else "soft" if trained.soft else "hard"
        self.measured.append(Measured(label, kind, table, failures(table), notes))

    def _announce(self, label: str, seconds: Mapping[str, float], count: int) -> None:
        """The line before a network is measured: how long it will take, and what of it longest."""
        total = sum(seconds.values())
        largest = sorted(seconds.items(), key=lambda one: -one[1])[:3]
        shares = ", ".join(f"{name} {part / total:.0%}" for name, part in largest)
        few = min(self.options.dear_images, count)
        images = f"{count} images, {few} of them for what takes many passes"
        line = f"alignment of {label}: about {duration(total)}, {len(seconds)} explainers ({shares}); {images}"
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def report(self, directory: Path, figures: FiguresConfig = FIGURES) -> dict[str, Any]:
        """Prints the tables and verdicts; writes `alignment.csv` and `alignment.png`.

        Args:
            directory: Where to.
            figures: How charts become files.

        Returns:
            For results.json.
        """
        for one in self.measured:
            show(one, self._console)
        crossed = two_by_two(self.measured)
        if crossed:
            show_crossed(crossed, self.measured, self._console)
        files.write_csv(_rows(self.measured), directory / "alignment.csv")
        figures.save(picture(self.measured, self.options), directory / "alignment")
        networks = [one.plain() for one in self.measured]
        better = {key: {True: "higher", False: "lower", None: "zero"}[better] for key, better in BETTER.items()}
        return {**self.options.plain, "better": better, "networks": networks, "two_by_two": crossed}

    def _probe(self, subject: Subject, data: ImageData) -> Probe:
        like = next(subject.net.parameters())
        images, labels = data.sample(self.options.images, self.options.seed)
        if self._means is None or self._means[0] is not data:
            self._means = data, data.class_means()
        numbers = torch.tensor(subject.classes)
        compared = subject.classes[:: -(-len(subject.classes) // MOST_CLASSES)]
        settings = self._means[1], compared, data.mean, data.std, subject.classes
        return Probe(images.to(like), numbers[labels].to(like.device), *settings)


def _left_out(why: str) -> None:
    warnings.warn(f"left out: {why}", SoftgateWarning, stacklevel=2)


def check(options: AlignmentConfig, soft: Surrogate) -> None:
    """Raises `SoftgateError` for an evaluator that is not there and for a read-out with hard gates; loads nothing."""
    controls.standard(soft, torch.empty(0))
    fine = options.judge is None or options.judge.is_file()
    require(fine, f"alignment.evaluator={options.evaluator}: there is no such file; a checkpoint is needed.")


def two_by_two(measured: Sequence[Measured]) -> dict[str, Any] | None:
    """Every metric for {trained hard, trained soft} x {read out hard, read out soft}.

    Args:
        measured: The networks; those of which it is not known how they were trained do not count.

    Returns:
        Metric to "trained hard" and "trained soft" to "read hard" and "read soft" to the values of the networks, null
        where there is none; None unless there are networks of both kinds.
    """
    arms = {kind: [one for one in measured if one.trained == kind] for kind in READ}
    if not all(arms.values()):
        return None
    return {
        key: {
            f"trained {kind}": {
                f"read {read}": [_number(one.table[name][key].value) if key in one.table[name] else None for one in arm]
                for read, name in READ.items()
            }
            for kind, arm in arms.items()
        }
        for key in BETTER
        if any(key in one.table["pullback"] for one in measured)
    }


def show(one: Measured, console: Console) -> None:
    """Prints a network's table: metrics down, explainers across; then the gate and the verdicts."""
    trained = "" if one.trained is None else f", trained {one.trained}"
    across, every = max(2, (console.width - 27) // 10), list(one.table)
    for start in range(0, len(every), across):  # a narrow terminal gets several tables
        names = every[start : start + across]
        rows = [
            [titled(key), *[_cell(one.table[name].get(key)) for name in names]]
            for key in BETTER
            if any(key in scores for scores in one.table.values())
        ]
        rows.append(["passes the gate", *["no" if one.failed[name] else "yes" for name in names]])
        heads = ["metric", *[_broken(name) for name in names]]
        console.print(Table(heads, rows, f"alignment of {one.label}{trained}").rich(whole=True))
    lines = [f"{name} fails {' and '.join(keys)}: its scores say nothing." for name, keys in one.failed.items() if keys]
    said = dict.fromkeys(note for notes in one.notes.values() for note in notes)
    lines += [f"{', '.join(name for name in one.notes if note in one.notes[name])}: {note}" for note in said]
    for line in [*lines, "", *one.verdicts(), ""]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def show_crossed(crossed: Mapping[str, Any], measured: Sequence[Measured], console: Console) -> None:
    """Prints the 2 x 2: the mean over the networks of each kind."""
    arms = {kind: [one for one in measured if one.trained == kind] for kind in READ}
    sizes = " and ".join(f"{len(arm)} trained {kind}" for kind, arm in arms.items())
    pairs = [(kind, read) for kind in READ for read in READ]
    rows = []
    for key, found in crossed.items():
        cells = [found[f"trained {kind}"][f"read {read}"] for kind, read in pairs]
        values = [math.nan if None in cell else sum(cell) / len(cell) for cell in cells]
        rows.append([titled(key), *[rounded(value) for value in values]])
    passes = [sum(not one.failed[READ[read]] for one in arms[kind]) for kind, read in pairs]
    counts = [f"{n} of {len(arms[kind])}" for n, (kind, _) in zip(passes, pairs, strict=True)]
    heads = ["metric", *[f"trained {kind}\nread {read}" for kind, read in pairs]]
    console.print(Table(heads, [*rows, ["pass the gate", *counts]], f"2 x 2, means over {sizes}").rich(whole=True))


def picture(measured: Sequence[Measured], options: AlignmentConfig) -> Chart:
    """One panel for each metric, one row for each explainer, one dot with its interval for each network."""
    panels: dict[str, list[Dots]] = {}
    for key in BETTER:
        made = []
        for one in measured:
            rows = {name: tuple(scores[key]) for name, scores in one.table.items() if key in scores}
            label = one.label if one.trained is None else f"{one.label}, trained {one.trained}"
            made.append(Dots(label, rows, frozenset(n for n, keys in one.failed.items() if keys), one.trained))
        panels[titled(key)] = made
    names = list(dict.fromkeys(name for one in measured for name in one.table))
    title = f"alignment, {options.images} images, {options.dear_images} for what takes many passes"
    title += "; ↑ more, ↓ less, →0 zero is best; hollow: fails the sanity gate"
    return dots(panels, names, title, ranges={titled(key): ends for key, ends in POSSIBLE.items()})


def _rows(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row of `alignment.csv` for each score."""
    return [
        {
            "network": one.label,
            "trained": one.trained,
            "explainer": name,
            "passes_gate": "no" if one.failed[name] else "yes",
            "metric": key,
            **scores[key]._asdict(),
        }
        for one in measured
        for name, scores in one.table.items()
        for key in BETTER
        if key in scores
    ]


def about(options: DataConfig) -> dict[str, Any]:
    """What of the options of data says which images they are."""
    found: dict[str, Any] = {key: getattr(options, key, None) for key in SAME}
    if isinstance(options, NamedData):
        found["root"] = str(options.folder.resolve())
    else:
        found["root"] = {key: value for key, value in options.plain.items() if key not in DataConfig.model_fields}
    found["test"] = options.measured_images
    return found | {key: list(found[key]) for key in ("mean", "std")}


def _same(
    start: str,
    mine: tuple[Mapping[str, Any], Sequence[str]],
    theirs: tuple[Mapping[str, Any], Sequence[str]],
    keys: Sequence[str],
) -> None:
    for key in keys:
        values = mine[0][key], theirs[0][key]
        require(values[0] == values[1], f"{start}: data.{key} is {values[0]} and {values[1]}.")
    counts = f"{len(mine[1])} and {len(theirs[1])}"
    canonical = [sorted(Classes.of(classes).canonical()) for classes in (mine[1], theirs[1])]
    require(canonical[0] == canonical[1], f"{start}: their classes ({counts}) are not the same.")


def _broken(name: str) -> str:
    """A heading with a word of at most eight letters on each line."""
    name = name.replace("SmoothGrad", "Smooth Grad").replace("backprop", "back- prop").replace("backward", "back- ward")
    return name.replace(" ", "\n")


def _cell(score: Score | None) -> str:
    return "" if score is None else rounded(score.value)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
