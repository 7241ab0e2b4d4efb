"""Results: one JSON file a run, and all of them as `runs.csv`, `correct.csv` and `mechanism.csv`, which say as much.

A run's file is written whole or not at all and never again, so that nothing is lost or doubled wherever a driver was
stopped. Folders of several machines are merged by what runs they have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from generalization_study.plan import FINAL, Job, Plan
from softgate import files
from softgate.errors import SoftgateError, require

Row = dict[str, Any]

IDENTITY = ("cell", "stage", "arm", "rate", "seed")
TEXT = (
    *("cell", "stage", "arm", "plan", "status", "softgate", "commit", "torch", "python", "hardware", "finished"),
    "settings",
)
WHOLE = ("seed", "epochs", "threads", "step")
MEASURES = (
    *("acc", "nll", "brier", "ece", "train_acc", "train_nll", "gap", "last_train_loss", "last_train_acc", "dead"),
    *("surrogate_cosine", "surrogate_norm_ratio", "noise_cosine_hard", "noise_cosine_soft"),
    *("high_frequency_hard", "high_frequency_soft", "corrupted", "pgd_linf", "pgd_l2", "sharpness", "ascent_gap"),
)
ABOUT = ("images_per_second", "train_seconds", "seconds", "softgate", "commit", "torch", "python", "hardware")
COLUMNS = (*IDENTITY, "plan", "epochs", "status", *MEASURES, *ABOUT, "threads", "finished")
BITS = ("cell", "arm", "seed", "bits")

OVER_TRAINING = (
    *("dead", "died", "revived", "noise_scale_rule", "noise_trace_rule", "gradient_square_rule"),
    *("noise_scale_true", "noise_trace_true", "gradient_square_true", "gradient_cosine", "gradient_norm_ratio"),
    *("sharpness", "noise_cosine_hard", "noise_cosine_soft", "high_frequency_hard", "high_frequency_soft"),
    *("hamming", "kappa", "swap", "swap_same_class", "swap_shuffled", "swap_mean", "swap_function"),
)
"""What is measured of a moment of a final run."""
OF_RUN = ("cell", "arm", "seed", "rate", "plan")
MOMENTS = (*OF_RUN, "settings", "step", "epoch", *OVER_TRAINING, "seconds")

RUNS, CORRECT, MECHANISM = "runs.csv", "correct.csv", "mechanism.csv"
VERSION = ("softgate", "torch")
"""What results must have in common to be compared."""


class Ledger:
    """The results in a folder.

    Args:
        folder: Where they are, or will be.
        plan: Whose results they are.

    Raises:
        SoftgateError: If there are results of another plan.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.rows: dict[str, Row] = {}
        for row in read(folder):
            check(row, plan, folder)
            self.rows[Job.of(row).key] = row

    def put(self, row: Mapping[str, Any]) -> None:
        """Keeps the row of a run; one that is there already stays as it is."""
        put(row, self.folder)
        self.rows.setdefault(Job.of(row).key, dict(row))

    def merge(self, other: Path) -> tuple[int, list[str]]:
        """Takes the runs of another folder.

        Returns:
            How many there were that this one lacked, and the keys of those that it has too with other results: these
            stay as they are here.

        Raises:
            SoftgateError: If there is no such folder, no result in it, or one of another plan.
        """
        require(other.is_dir(), f"--merge={other}: there is no such folder.")
        found = list(read(other))
        require(len(found) > 0, f"--merge={other}: there are no results in it, neither runs/*.json nor {RUNS}.")
        for row in found:
            check(row, self.plan, other)
        added, differ = 0, []
        for row in found:
            key = Job.of(row).key
            if key not in self.rows:
                self.put(row)
                added += 1
            elif _told(self.rows[key]) != _told(row):
                differ.append(key)
        return added, differ

    def export(self, to: Path | None = None) -> None:
        """Writes `runs.csv`, `correct.csv` and `mechanism.csv`, in the order of the plan."""
        place = {name: number for number, name in enumerate((*self.plan.cells, *self.plan.arms))}
        rows = sorted(
            self.rows.values(),
            key=lambda row: (place[row["cell"]], row["stage"] == FINAL, place[row["arm"]], row["seed"], row["rate"]),
        )
        folder = files.folder(to or self.folder)
        shown = [{key: _short(value) for key, value in row.items()} for row in rows]
        files.write_csv(shown, folder / RUNS, COLUMNS)
        files.write_csv([row for row in rows if row.get("bits")], folder / CORRECT, BITS)
        moments = [
            {name: row[name] for name in OF_RUN}
            | {name: _short(value) for name, value in one.items() if _finite(value)}
            for row in rows
            for one in row.get("mechanism", ())
        ]
        files.write_csv(moments, folder / MECHANISM, MOMENTS)


def put(row: Mapping[str, Any], folder: Path) -> None:
    """Writes the row of a run into a folder, unless it is there."""
    path = files.folder(folder / "runs") / f"{Job.of(row).key}.json"
    if not path.is_file():
        files.write_json(row, path)


def read(folder: Path) -> list[Row]:
    """The rows in a folder, each run once: its JSON files, and what only its CSV files have.

    Raises:
        SoftgateError: If a file is damaged.
    """
    found: dict[str, Row] = {}
    for path in sorted((folder / "runs").glob("*.json")):
        row = files.read_json(path)
        try:
            found[Job.of(row).key] = kept = _known(row)
            if "mechanism" in kept:
                kept["mechanism"] = [_known(one) for one in kept["mechanism"]]
        except (KeyError, TypeError, ValueError):
            raise SoftgateError(f"{path}: it is damaged; delete it, and its run is made again.") from None
    moments = _moments(folder)
    try:
        bits = {(row["cell"], row["arm"], row["seed"]): row["bits"] for row in files.read_csv(folder / CORRECT)}
        for text in files.read_csv(folder / RUNS):
            row = {key: _typed(key, value) for key, value in text.items() if value != ""}
            if row["stage"] == FINAL and (text["cell"], text["arm"], text["seed"]) in bits:
                row["bits"] = bits[text["cell"], text["arm"], text["seed"]]
            if Job.of(row).key in moments:
                row["mechanism"] = moments[Job.of(row).key]
            found.setdefault(Job.of(row).key, row)
    except (KeyError, TypeError, ValueError):
        raise SoftgateError(f"{folder / RUNS}: it is damaged, or no file of this study's results.") from None
    for key in moments:
        require(key in found, f"{folder / MECHANISM}: it has rows of {key}, which is not in {RUNS}.")
    return list(found.values())


def _moments(folder: Path) -> dict[str, list[Row]]:
    """The rows of `mechanism.csv` by the keys of their runs.

    Raises:
        SoftgateError: If the file is damaged.
    """
    found: dict[str, list[Row]] = {}
    try:
        for text in files.read_csv(folder / MECHANISM):
            row = {key: _typed(key, value) for key, value in text.items() if value != ""}
            own = {key: row[key] for key in ("plan", "settings", "step", "epoch")}
            own |= {key: row[key] for key in (*OVER_TRAINING, "seconds") if key in row}
            found.setdefault(Job.of({**row, "stage": FINAL}).key, []).append(own)
    except (KeyError, TypeError, ValueError):
        raise SoftgateError(f"{folder / MECHANISM}: it is damaged, or no file of this study's results.") from None
    return found


def check(row: Mapping[str, Any], plan: Plan, folder: Path) -> None:
    """Refuses a row of another plan.

    Raises:
        SoftgateError: It names the run, and the plan it was made by.
    """
    key = Job.of(row).key
    known = row["cell"] in plan.cells and row["arm"] in plan.arms
    now = plan.identity(row["cell"], row["arm"]) if known else "which has no such cell or arm"
    said = f"{folder}: {key} was made by another plan ({row.get('plan')}; this one is {now})"
    require(known and row.get("plan") == now, f"{said}; give another --folder, or go back to that plan.")
    for one in row.get("mechanism", ()):
        theirs = one.get("plan", now), one.get("settings")
        require(
            theirs == (now, plan.mechanism_identity),
            f"{folder}: what was measured while {key} was trained has other settings or another plan ({theirs[1]}, "
            f"{theirs[0]}; these are {plan.mechanism_identity}, {now}); give another --folder, or go back to these.",
        )


def versions(rows: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """How many runs were made by which versions of softgate and torch, the most frequent first."""
    return Counter(dict(Counter(version(row) for row in rows).most_common()))


def version(row: Mapping[str, Any]) -> tuple[str, str]:
    """The versions of softgate and torch that a run was made by."""
    return str(row["softgate"]), str(row["torch"])


def _typed(key: str, value: str) -> Any:
    return value if key in TEXT else int(value) if key in WHOLE else float(value)


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _known(row: Mapping[str, Any]) -> Row:
    return {key: value for key, value in row.items() if value is not None}


def _told(row: Mapping[str, Any]) -> list[Any]:
    """All that a run's row says of what was measured, as it comes back from CSV files."""
    moments = [[_same(one.get(name)) for name in ("step", *OVER_TRAINING)] for one in row.get("mechanism", ())]
    return [*(_same(row.get(name)) for name in (*MEASURES, "status")), moments]


def _same(value: Any) -> Any:
    """A value as it comes back from a CSV file."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return _short(float(value)) if isinstance(value, (int, float)) else value
