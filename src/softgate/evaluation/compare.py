"""`evaluate.py` over many runs: arms, paired by seed, measured and compared; tables, a report, `results.json`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from softgate import files, memory
from softgate.classes import Classes
from softgate.data import ImageData
from softgate.data.config import DataConfig
from softgate.errors import SoftgateError, require, unknown
from softgate.evaluation import alignment, grids, tuning
from softgate.evaluation.checkpoints import directories
from softgate.evaluation.config import CompareConfig, DataChanges, EvaluationConfig, GridConfig
from softgate.evaluation.confusion import Confusion
from softgate.evaluation.generalization import measures, planning, statistics
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY, Bench, Measured
from softgate.evaluation.generalization.planning import Outlook
from softgate.evaluation.generalization.statistics import Difference
from softgate.evaluation.networks import Subject, align, readout
from softgate.evaluation.progress import Bar, expectation
from softgate.evaluation.runs import Run, never_started, read, require_known, softens, sort, without_doubles
from softgate.rounding import rounded
from softgate.surrogate.rule import Surrogate
from softgate.tables import Terminal
from softgate.training import SoftgateModule, provenance

EFFECTS = (0.005, 0.01, 0.02)
"""True differences in top-1 that seeds are counted for."""

Restore = Callable[[Path], tuple[SoftgateModule, dict[str, Any]]]
Networks = dict[str, tuple[SoftgateModule, DataConfig]]
"""By the labels of their runs: networks, and the options of their data."""


@dataclass(frozen=True)
class Row:
    """One arm against the baseline, on one measure, in one condition; `outlook` is what other seeds would find."""

    arm: str
    condition: str
    measure: str
    seeds: tuple[int, ...]
    difference: Difference
    verdict: str
    outlook: Outlook | None = None


@dataclass
class Comparison:
    """What a report is made of.

    Attributes:
        runs: Those that take part.
        measured: The numbers of each of them, in the same order.
        baseline: The arm that the others are compared with.
        rows: The differences.
        left: A line on each run that does not take part.
        notes: Lines on what else a reader must know.
        tuned: Lines on what was chosen for each arm.
        grids: Arm to the picture of its best epoch.
        options: Of the comparison.
        data: Name of the data, its number of images, what these may be called, its classes.
        environment: Of the evaluation.
    """

    runs: list[Run]
    baseline: str
    options: CompareConfig
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tuned: list[str] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    grids: dict[str, Path] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """The baseline, then the others in the order of their names."""
        return [self.baseline, *sorted({run.arm for run in self.runs} - {self.baseline})]

    @property
    def conditions(self) -> list[str]:
        """In the order of their names."""
        return sorted({run.condition for run in self.runs})

    @property
    def keys(self) -> list[str]:
        """The measures that any run has."""
        return [key for key in MEASURES if any(key in each.values for each in self.measured)]

    @property
    def names(self) -> dict[str, str]:
        """Arm to its name for people; the arm's own where two would be alike."""
        called = {run.arm: run.called for run in self.runs}
        return called if len(set(called.values())) == len(called) else {arm: arm for arm in called}

    def for_people(self) -> Comparison:
        """The same with arms under their names for people; files for machines keep the others."""
        names = self.names
        return replace(
            self,
            runs=[replace(run, arm=names[run.arm]) for run in self.runs],
            baseline=names.get(self.baseline, self.baseline),
            rows=[replace(row, arm=names.get(row.arm, row.arm)) for row in self.rows],
            grids={names.get(arm, arm): path for arm, path in self.grids.items()},
        )

    def of(self, arm: str, condition: str) -> dict[int, Measured]:
        """Seed to numbers."""
        pairs = zip(self.runs, self.measured, strict=True)
        return {run.seed: each for run, each in pairs if (run.arm, run.condition) == (arm, condition)}

    def confusion(self, arm: str, condition: str) -> Confusion | None:
        """Which classes an arm takes for which, summed over its seeds; None where it has none there."""
        counts = [each.confusion for each in self.of(arm, condition).values() if each.confusion is not None]
        return Confusion(self.data["classes"], torch.stack(counts).sum(0)) if counts else None


def wanted(options: EvaluationConfig) -> list[Path]:
    """The directories to compare; empty where `runs` names one run, or no comparison is asked for."""
    given = options.patterns
    # Alignment and paths look at each run by themselves.
    if options.compare is None or not given or options.alignment is not None or options.paths is not None:
        return []
    if any(one.endswith(".ckpt") and Path(one).expanduser().is_file() for one in given):
        return []  # files are taken as they are; a comparison chooses its own checkpoint of each run
    found = directories(*given)
    several = len(given) > 1 or any(mark in given[0] for mark in "*?[")
    return found if len(found) > 1 or (several and found) else []


def compare(
    evaluation: EvaluationConfig,
    paths: Sequence[Path],
    device: torch.device,
    directory: Path,
    restore: Restore,
) -> Comparison:
    """Compares runs and writes the report's tables; what cannot be compared is left out and said.

    Args:
        evaluation: Of the whole evaluation, a comparison among them.
        paths: The runs' directories.
        device: Where to measure.
        directory: Where results go.
        restore: From a checkpoint to a network and the options of its data.

    Returns:
        All that the report shows.

    Raises:
        SoftgateError: If nothing is left to compare, or an option is out of range.
    """
    options, console = evaluation.compare, Terminal()
    if options is None:
        raise SoftgateError("compare=null: there is no comparison; choose compare=quick or compare=full.")
    measures.check(options)
    runs, left = read(paths, options.checkpoint)
    left += never_started(paths)
    require_known(options, runs)
    left += [f"{one}: there is no run." for one in evaluation.patterns if not directories(one)]
    networks: Networks = {}
    score = "val/acc" if options.checkpoint == "last" else "best/val/acc"
    failed = tuning.diverged(paths) if options.tune else []
    while True:
        every = sort([*runs, *failed], options.within, options.tune)
        chosen, doubles = without_doubles(every[: len(runs)], options.tune)
        chosen, tuned = tuning.tune(chosen, options.tune, score, every[len(runs) :])
        broken = _load(chosen, options.checkpoint, evaluation.data, restore, networks)
        left += [f"{label}: {why}" for label, why in broken.items()]
        runs = [run for run in runs if run.label not in broken]
        if not broken:  # else an older run, or one of another value, may stand in
            break
    networks = {run.label: networks[run.label] for run in chosen}
    left += [*doubles, *_other_data(networks)]
    runs = [run for run in chosen if run.label in networks]
    for line in left:
        console.print(f"left out: {line}", style="yellow", soft_wrap=True, markup=False)
    require(bool(runs), f"runs={evaluation.plain['runs']}: none of {len(paths)} runs can be compared; {' '.join(left)}")
    # Once more: what was left out may have been all that differed in a key.
    runs = sort(runs, options.within, options.tune)
    found = Comparison(runs, _baseline(runs, options.baseline), options, left, tuned=tuned)
    found.notes = missing(found)
    found.environment = provenance.environment(kind=device.type)
    _measure(found, networks, device, directory, console)
    found.rows = differences(found)
    if options.grids:
        _draw(found, networks, evaluation.readout, evaluation.grid, device, directory, restore)
    return found


def _load(
    runs: Sequence[Run], which: str, changed: DataChanges, restore: Restore, networks: Networks
) -> dict[str, str]:
    """Adds the networks of runs by their labels; of those that do not load, says why."""
    broken = {}
    for run in runs:
        if run.label in networks:
            continue
        try:
            module, options = restore(run.directory / "checkpoints" / f"{which}.ckpt")
        except SoftgateError as error:
            broken[run.label] = str(error).partition(": ")[2]
            continue
        module.sites.detach()
        networks[run.label] = module, changed.onto(options)
    return broken


def _other_data(networks: Networks) -> list[str]:
    """Takes out networks of other data or classes than most, or than the first where as many are of either."""
    kinds = {
        label: {**alignment.about(options), "classes": sorted(Classes.of(module.classes).canonical())}
        for label, (module, options) in networks.items()
    }
    counted = Counter(map(repr, kinds.values()))
    usual = max(kinds, key=lambda label: counted[repr(kinds[label])], default="")
    left = []
    for label, kind in kinds.items():
        other = next((key for key in kind if kind[key] != kinds[usual][key]), None)
        if other is not None:
            mine, theirs = kind[other], kinds[usual][other]
            shown = f"{len(mine)} and {len(theirs)}" if other == "classes" else f"{mine} and {theirs}"
            named = "classes" if other == "classes" else f"data.{other}"
            left.append(f"{label}: other {named} than {usual} ({shown}).")
            del networks[label]
    return left


def _baseline(runs: Sequence[Run], named: str | None) -> str:
    arms = sorted({run.arm for run in runs})
    if named is not None:
        named = {run.called: run.arm for run in runs}.get(named, named)
        if named not in arms:
            raise unknown("compare.baseline", named, arms)
        return named
    hard = [run.arm for run in runs if not softens(run)]
    return min(hard, key=len) if hard else arms[0]


def missing(found: Comparison) -> list[str]:
    """A line for each seed that an arm has and the other lacks: the pair does not count."""
    lines, names = [], found.names
    for condition in found.conditions:
        where = f" at {condition}" if condition else ""
        base = _seeds(found, found.baseline, condition)
        for arm in found.arms[1:]:
            mine = _seeds(found, arm, condition)
            for name, lacking, other in ((found.baseline, mine - base, arm), (arm, base - mine, found.baseline)):
                if lacking and mine:
                    which = ", ".join(map(str, sorted(lacking)))
                    lines.append(f"{names[name]}{where} lacks seed {which}: left out of its pairs with {names[other]}.")
    return lines


def _seeds(found: Comparison, arm: str, condition: str) -> set[int]:
    return {run.seed for run in found.runs if (run.arm, run.condition) == (arm, condition)}


def _measure(
    found: Comparison,
    networks: Networks,
    device: torch.device,
    directory: Path,
    console: Console,
) -> None:
    module, options = networks[found.runs[0].label]
    data = ImageData(options, splits=("val",), measured=True)
    bench = Bench(data, found.options)
    found.data = {"name": options.name, "images": len(data.val_listing), "classes": data.classes}
    found.data["measured"] = options.measured_images
    called, lines = tuning.images(found.options, found.runs, options.measured_images)
    found.data["called"] = called
    found.notes += [*bench.notes, *lines]
    work = bench.work(options)
    ahead = expectation(len(found.runs), work, bench.seconds_of_a_pass(module.to(device).eval()))
    console.print(ahead, soft_wrap=True, markup=False, highlight=False)
    found.notes += bench.subset()
    rows = []
    with Bar(console, len(found.runs), work) as bar:
        for count, run in enumerate(found.runs, start=1):
            module, options = networks[run.label]
            found.notes += align(module, bench.data, run.label)
            module.to(device).eval()
            found.measured.append(bench.measure(module, options, partial(bar.begin, count)))
            module.cpu()
            values = found.measured[-1].values
            for line in (f"{run.label}: {each}" for each in found.measured[-1].left):
                found.notes.append(line)
                console.print(f"left out: {line}", style="yellow", soft_wrap=True, markup=False)
            rows.append({"run": run.label, "arm": run.arm, "condition": run.condition, "seed": run.seed, **values})
            files.write_csv(rows, directory / "runs.csv")  # after every run: nothing measured is lost
            line = f"{count} of {len(found.runs)}: {run.label}: top-1 {rounded(values['acc'])}"
            console.print(line, style="dim", soft_wrap=True, markup=False, highlight=False)


def differences(found: Comparison) -> list[Row]:
    """Every arm against the baseline on every measure; Holm's correction is over the arms of a measure."""
    rows = []
    level, points = found.options.level, found.options.equivalence
    for key in found.keys:
        primary = key == PRIMARY
        margin = points / 100 if primary and points is not None else None
        made: list[tuple[str, str, tuple[int, ...], Difference]] = []
        for condition in found.conditions:
            base = found.of(found.baseline, condition)
            for arm in found.arms[1:]:
                mine = found.of(arm, condition)
                both = sorted(set(mine) & set(base))
                seeds = tuple(seed for seed in both if key in mine[seed].values and key in base[seed].values)
                if seeds:
                    a, b = (measures.stacked([each[seed] for seed in seeds], key) for each in (mine, base))
                    made.append((arm, condition, seeds, statistics.paired(a, b, level, margin)))
        compared = statistics.together([one for *_, one in made])
        share = (1 - level) / max(1, sum(not math.isnan(one.p) for one in compared))
        for (arm, condition, seeds, _), one in zip(made, compared, strict=True):
            verdict = one.verdict(MEASURES[key].better, level)
            ahead = planning.outlook(one.variance, share, EFFECTS if primary else ()) if one.variance else None
            rows.append(Row(arm, condition, key, seeds, one, verdict, ahead))
    return rows


def _draw(
    found: Comparison,
    networks: Networks,
    soft: Surrogate,
    grid: GridConfig,
    device: torch.device,
    directory: Path,
    restore: Restore,
) -> None:
    """The grid of the best epoch of every arm's first seed, where its checkpoint loads."""
    first: dict[str, Run] = {}
    for run in sorted(found.runs, key=lambda run: (run.condition, run.seed)):
        first.setdefault(run.arm, run)
    data: ImageData | None = None
    for arm, run in first.items():
        module, options = networks[run.label]
        data = data or ImageData(options, splits=("val",), measured=True)
        best = run.directory / "checkpoints" / "best.ckpt"
        if best.is_file() and found.options.checkpoint != "best":
            try:
                module, _ = restore(best)
            except SoftgateError as error:
                found.notes.append(f"{run.label}: no grid of its best epoch; {error}")
                continue
            module.sites.detach()
        align(module, data, run.label)
        subject = Subject(run.arm, module.net, data.classes, list(range(len(data.classes))))
        grid.require_fit(len(data.classes), len(data.classes))
        own, why = readout(module.net, soft, data)
        found.notes += [f"{run.label}: its grid's readout: {why}."] if why else []
        module.to(device).eval()
        place = directory / "grids" / str(len(found.grids))
        epoch = run.summary.get("best/epoch")
        title = f"{found.names[arm]}, seed {run.seed}" + (f", epoch {epoch + 1}" if isinstance(epoch, int) else "")
        with memory.spared(partial(_without_grid, found, run)):
            grids.draw(subject, data, own, grid, place, title)
            found.grids[arm] = place / f"{grids.FILES[grid.kinds[0]]}.png"
        module.cpu()


def _without_grid(found: Comparison, run: Run, why: str) -> None:
    found.notes.append(
        f"{run.label}: no grid of its best epoch: {why}; set grid.rows, grid.columns or grid.chunk lower."
    )
