"""The report: from results to tables, sentences, pictures and CSV files; what is not finished is not compared."""

from __future__ import annotations

import math
import statistics as numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from generalization_study import pictures
from generalization_study.ledger import CORRECT, MECHANISM, RUNS, Ledger, version
from generalization_study.measures import unpacked
from generalization_study.plan import FINAL, Job, Plan
from generalization_study.statistics import Contrast, family
from softgate import files
from softgate.data.sources import COUNTS
from softgate.errors import require
from softgate.tables import Table

BEGIN, END = "<!-- results: written by benchmarks/study.py --report -->", "<!-- end of results -->"
CLASSES = 10
CIFAR_TEST = 10_000
"""Test images of CIFAR-10."""

MARKED = (
    "Mean ± standard deviation over seeds; * marks what differs from the true gradient's after Holm's correction over "
    "the arms of that measure."
)

OVER_TRAINING = (
    "Means over seeds with 95 % intervals, on {plan[images]} fixed training images, gradients and noise on others. "
    "None of it is a claim: nothing is corrected for the number of panels."
)

MEASURES: dict[str, tuple[str, bool | None, bool]] = {
    "acc": ("top-1", True, True),
    "nll": ("NLL", False, False),
    "brier": ("Brier", False, False),
    "ece": ("ECE", False, True),
    "train_acc": ("train top-1", None, True),
    "gap": ("train - test", None, True),
    "dead": ("dead units", None, True),
    "corrupted": ("corrupted", True, True),
    "pgd_linf": ("PGD Linf", True, True),
    "pgd_l2": ("PGD L2", True, True),
    "sharpness": ("sharpness", None, False),
    "ascent_gap": ("SAM gap", None, False),
    "surrogate_cosine": ("cosine of surrogate and true gradient", None, False),
    "noise_cosine_hard": ("stability, hard read-out", None, False),
    "noise_cosine_soft": ("stability, soft read-out", None, False),
    "high_frequency_hard": ("high frequencies, hard read-out", None, False),
    "high_frequency_soft": ("high frequencies, soft read-out", None, False),
}
"""Title, whether more of it is better (None: neither), whether it is a share."""


@dataclass
class CellReport:
    """What is said of one cell.

    Attributes:
        name: The cell's.
        smallest: The smallest difference of interest, as a share.
        rows: The final runs that are compared, by arm and seed.
        top: Contrasts of top-1 by arm; each corrected within its family, primary or secondary.
        others: Contrasts by measure and arm.
        notes: What a reader must know.
    """

    name: str
    smallest: float
    rows: dict[str, dict[int, Mapping[str, Any]]]
    top: dict[str, Contrast] = field(default_factory=dict)
    others: dict[str, dict[str, Contrast]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def report(plan: Plan, ledger: Ledger, docs: Path, unfinished: bool = False) -> None:
    """Writes the results into `docs/study.md`, beside `docs/study/*.csv` and `docs/images/study-*.png`.

    Args:
        plan: The plan.
        ledger: The results.
        docs: The folder of the documents.
        unfinished: Compare also what some seeds are missing of; for when no more runs will be made.

    Raises:
        SoftgateError: If there is no result, or no place for results in the page.
    """
    require(len(ledger.rows) > 0, f"--folder={ledger.folder}: there are no results in it.")
    page = docs / "study.md"
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    require(bool(begin and end), f"{page}: the lines '{BEGIN}' and '{END}' are needed; results go between them.")
    ledger.export(docs / "study")
    ledger = Ledger(docs / "study", plan)  # what is said comes from the files that are published
    cells = [cell for name in plan.cells if (cell := compare(plan, ledger, name, unfinished)) is not None]
    drawn = []
    painted = {"forest": pictures.forest(plan, cells), "rates": pictures.rates(plan, ledger)}
    painted |= {f"mechanism-{cell.name}": pictures.mechanism(plan, cell) for cell in cells}
    for name, made in painted.items():
        if made is not None:
            files.save_picture(made, files.folder(docs / "images") / f"study-{name}.png")
            drawn.append(name)
    text = "\n\n".join(document(plan, ledger, cells, drawn))
    files.write(f"{before}{begin}\n\n{text}\n\n{end}{after}", page)


# -- numbers -----------------------------------------------------------------------------------------------


def compare(plan: Plan, ledger: Ledger, cell: str, unfinished: bool = False) -> CellReport | None:
    """Compares the arms of a cell with its baseline; None where it has no run.

    Arms of which a seed is missing, or was made by another version than most, are not compared but named.
    """
    every = [row for row in ledger.rows.values() if row["cell"] == cell]
    if not every:
        return None
    made = CellReport(cell, plan.cells[cell]["smallest"] / 100, {})
    finals = [row for row in every if row["stage"] == FINAL]
    _describe(plan, every, made)
    found, seeds = _of_one_version(finals, made), plan.finals(cell)
    for arm in plan.cells[cell]["arms"]:
        mine = found.get(arm, {})
        if mine and len(mine) < len(seeds):
            word = "compared as they are, no more will come" if unfinished else "not compared before the last is made"
            made.notes.append(f"{arm}: {len(mine)} of {len(seeds)} seeds, {word}.")
        if mine and (unfinished or len(mine) == len(seeds)):
            made.rows[arm] = dict(sorted(mine.items()))
    others = [arm for arm in made.rows if arm != plan.baseline]
    if plan.baseline not in made.rows or not others:
        return made
    primary = [arm for arm in others if plan.primary(cell, arm)]
    for some in (primary, [arm for arm in others if arm not in primary]):
        made.top |= _family(plan, made, some, "acc")
    for measure in MEASURES:
        if measure != "acc":
            made.others[measure] = _family(plan, made, others, measure)
    return made


def _describe(plan: Plan, rows: Sequence[Mapping[str, Any]], made: CellReport) -> None:
    for arm in plan.cells[made.name]["arms"]:
        if (choice := plan.choice(made.name, arm, rows)).bound:
            made.notes.append(f"{arm}: its rate, {choice.rate:g}, is a bound of the plan's grid.")
    diverged = Counter(row["arm"] for row in rows if row["status"] == "diverged" and row["stage"] == FINAL)
    made.notes += [f"{arm}: {count} final runs diverged; they count at chance." for arm, count in diverged.items()]
    for key, word in (("hardware", "hardware"), ("commit", "commits")):
        seen = sorted({str(row.get(key)) for row in rows})
        if len(seen) > 1:
            made.notes.append(f"runs were made on several {word}: {', '.join(seen)}.")


def _of_one_version(finals: Sequence[Mapping[str, Any]], made: CellReport) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Final runs by arm and seed: those of the version of softgate and torch that most were made by."""
    counted = Counter(version(row) for row in finals)
    most = counted.most_common(1)[0][0] if counted else None
    for (softgate, torch), count in counted.items():
        if (softgate, torch) != most and most is not None:
            made.notes.append(
                f"{count} runs were made by softgate {softgate} and torch {torch}, the others by {' and '.join(most)}; "
                "they are left out."
            )
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in finals:
        if version(row) == most:
            found.setdefault(row["arm"], {})[int(row["seed"])] = row
    return found


def _family(plan: Plan, made: CellReport, arms: Sequence[str], measure: str) -> dict[str, Contrast]:
    """Contrasts of some arms on a measure, over the seeds that each shares with the baseline."""
    pairs = {}
    base = made.rows[plan.baseline]
    for arm in arms:
        shared = [seed for seed in made.rows[arm] if seed in base]
        pair = [_scores(plan, made.name, [of[seed] for seed in shared], measure) for of in (made.rows[arm], base)]
        if shared and all(np.isfinite(each).all() for each in pair):
            pairs[arm] = (pair[0], pair[1])
    smallest = made.smallest if measure == "acc" else None
    return dict(zip(pairs, family(list(pairs.values()), smallest), strict=True))


def _scores(plan: Plan, cell: str, rows: Sequence[Mapping[str, Any]], measure: str) -> np.ndarray:
    """[seeds, images] for top-1, [seeds] for all else; NaN where a run has no such number."""
    if measure != "acc":
        return np.array([float(row.get(measure, math.nan)) for row in rows])
    return np.stack([_right(row, test_images(plan, cell)) for row in rows])


def _right(row: Mapping[str, Any], count: int) -> np.ndarray:
    """Which of the test images a run was right on, [images]; a diverged one was, with the probability of chance."""
    if row["status"] == "diverged":
        return np.full(count, 1 / CLASSES)
    key = Job.of(row).key
    require("bits" in row, f"{CORRECT}: it has no row for {key}, which {RUNS} has.")
    right = unpacked(row["bits"], count).astype(float)
    agrees = abs(right.mean() - float(row["acc"])) < 1 / (2 * count)
    require(agrees, f"{CORRECT}: {key} has {right.mean():.4f} of its images right there, and {row['acc']} in {RUNS}.")
    return right


def test_images(plan: Plan, cell: str) -> int:
    """How many test images a cell has."""
    return CIFAR_TEST if plan.images(cell) == "folder" else COUNTS["imagenette"]["val"]


# -- words -------------------------------------------------------------------------------------------------


def document(plan: Plan, ledger: Ledger, cells: Sequence[CellReport], drawn: Sequence[str]) -> list[str]:
    """The results as paragraphs of Markdown."""
    rows = list(ledger.rows.values())
    hours = sum(float(row["seconds"]) for row in rows) / 3600
    made = Counter(f"softgate {a}, torch {b}" for a, b in map(version, rows))
    parts = [
        headline(plan, cells),
        f"{len(rows)} runs, {hours:.1f} core-hours; {'; '.join(f'{name}: {count}' for name, count in made.items())}.",
    ]
    if any(cell.top for cell in cells):
        parts += ["Top-1 against the true gradient, paired by seed:", contrasts(plan, cells).markdown()]
        parts.append(
            "*detectable*: the true difference that these runs find four times in five. The intervals take seeds and "
            "images for samples; *as good* goes by the 90 % interval."
        )
    if "forest" in drawn:
        parts.append("![Top-1 minus the true gradient's, with intervals and seeds](images/study-forest.png)")
    for cell in cells:
        parts.append(f"### Cell {cell.name}")
        if cell.rows:
            parts += [measures(plan, cell).markdown(), MARKED]
        if f"mechanism-{cell.name}" in drawn:
            parts.append(f"![What was measured while they were trained](images/study-mechanism-{cell.name}.png)")
            parts.append(OVER_TRAINING.format(plan=plan.given["mechanism"]))
        parts += ["\n".join(f"- {note}" for note in cell.notes)] if cell.notes else []
    if "rates" in drawn:
        parts += ["### Rates", "![Accuracy on the tune images by rate, for each arm](images/study-rates.png)"]
    files_of = {"Every run": RUNS, "Right test images": CORRECT}
    if any("mechanism" in row for row in rows):
        files_of["What was measured while they were trained"] = MECHANISM
    parts.append(" ".join(f"{title}: [{name}](study/{name})." for title, name in files_of.items()))
    return parts


def headline(plan: Plan, cells: Sequence[CellReport]) -> str:
    """What there is to say of the primary endpoint, in one sentence for each contrast, or that there is nothing yet."""
    lines = []
    for cell in cells:
        for arm, one in cell.top.items():
            if plan.primary(cell.name, arm):
                word = one.verdict
                than = {"as good": "as good as", "undecided": "not told apart from"}.get(word, f"{word} than")
                found = one.difference
                lines.append(
                    f"- Cell {cell.name}: {arm} is **{than}** the true gradient: {points(found.mean)} "
                    f"(95 %: {points(found.low)} to {points(found.high)}), {len(found.deltas)} seeds, Holm p = "
                    f"{found.adjusted:.2g}; a difference of {100 * one.detectable:.2f} points would have been found "
                    "four times in five."
                )
    return "\n".join(lines) or "The primary contrasts are not finished; nothing is claimed."


def contrasts(plan: Plan, cells: Sequence[CellReport]) -> Table:
    """Top-1 of every arm against the baseline."""
    rows = []
    for cell in cells:
        for arm, one in cell.top.items():
            found, more = one.difference, " (primary)" if plan.primary(cell.name, arm) else ""
            ends = [f"{points(low)} … {points(high)}" for low, high in ((found.low, found.high), found.inner)]
            numbers = [points(found.mean), *ends, f"{found.p:.2g}", f"{found.adjusted:.2g}", str(len(found.deltas))]
            rows.append([cell.name, arm + more, *numbers, f"{100 * one.detectable:.2f}", one.verdict])
    heads = ["cell", "arm", "points", "95 %", "90 %", "p", "Holm p", "seeds", "detectable", "verdict"]
    return Table(heads, rows, align="ll" + "r" * 7 + "l")


def measures(plan: Plan, cell: CellReport) -> Table:
    """All measures of a cell, a column for each arm."""
    rates = [f"{next(iter(of.values()))['rate']:g}" for of in cell.rows.values()]
    rows = [["rate", *rates]]
    for key, (title, _, share) in MEASURES.items():
        line = [title]
        for arm, of in cell.rows.items():
            values = [float(row[key]) for row in of.values() if math.isfinite(float(row.get(key, math.nan)))]
            one = (cell.top if key == "acc" else cell.others.get(key, {})).get(arm)
            line.append(_mean(values, share) + (" *" if one is not None and one.apart else ""))
        rows.append(line)
    rows.append(["seeds", *(str(len(of)) for of in cell.rows.values())])
    return Table(["measure", *cell.rows], rows)


def _mean(values: Sequence[float], share: bool) -> str:
    if not values:
        return "–"
    mean, spread = numbers.fmean(values), numbers.stdev(values) if len(values) > 1 else math.nan
    return f"{100 * mean:.2f} % ± {100 * spread:.2f} %" if share else f"{mean:.4g} ± {spread:.2g}"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * share:+.2f}"
