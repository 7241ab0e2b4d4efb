"""The plan: which runs there are, and which comes next. Pure logic on `plan.yaml`; nothing is trained here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from softgate.errors import require, unknown

HERE = Path(__file__).parent
CELLS = HERE.parents[1] / "conf" / "experiment" / "study"

TUNE, FINAL = "tune", "final"

CIFAR = "cifar10-jpeg"
"""The folder of CIFAR-10's JPEG copy, which holds train/ and val/."""
IMAGENETTE = "imagenette2-160"
"""The folder of Imagenette's official archive."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One run: its arm's recipe in its cell, at one rate, with one seed, to tune or final."""

    cell: str
    stage: str
    arm: str
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """Names it and no other run of the plan."""
        return f"{self.cell}-{self.stage}-{self.arm}-{self.rate:g}-{self.seed}"

    @classmethod
    def of(cls, row: Row) -> Job:
        """The job of a row of results."""
        return cls(row["cell"], row["stage"], row["arm"], float(row["rate"]), int(row["seed"]))


@dataclass(frozen=True)
class Choice:
    """The rate of an arm in a cell.

    Attributes:
        rate: The best so far; None before every rate of the grid has all its seeds.
        means: Mean accuracy on the tune images of each rate that has all its seeds.
        missing: Runs that are needed before it is settled.
        bound: Whether it is the least or greatest rate that the plan allows.
    """

    rate: float | None
    means: Mapping[float, float]
    missing: Sequence[Job]
    bound: bool = False


class Plan:
    """The plan of a study.

    Args:
        path: Its file.
        cells: The folder of its cells' configs.
    """

    def __init__(self, path: Path = HERE / "plan.yaml", cells: Path = CELLS) -> None:
        self.given: dict[str, Any] = yaml.safe_load(path.read_text())
        self.folder = cells
        self._configs: dict[str, Any] = {}

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """Cells by name, in the order in which they are run."""
        return dict(self.given["cells"])

    @property
    def arms(self) -> dict[str, list[str]]:
        """Arms by name: words of train.py."""
        return dict(self.given["arms"])

    @property
    def baseline(self) -> str:
        """What the other arms are compared with."""
        return next(iter(self.arms))

    def primary(self, cell: str, arm: str) -> bool:
        """Whether the difference of an arm from the baseline in a cell is of the primary endpoint."""
        return cell in self.given["primary"]["cells"] and arm in self.given["primary"]["arms"]

    def finals(self, cell: str) -> list[int]:
        """The seeds of a cell's final runs."""
        seeds: list[int] = self.given["seeds"][FINAL]
        return seeds[: self.cells[cell].get(FINAL, len(seeds))]

    def chosen(self, cells: Iterable[str] | None, arms: Iterable[str] | None) -> dict[str, list[str]]:
        """Cells and their arms as they were asked for, in the order of asking.

        Args:
            cells: Their names; None for all that need no GPU.
            arms: Their names; None for all of each cell. The baseline is always among them.

        Raises:
            SoftgateError: For a cell or an arm that the plan does not have, or that no cell asked for has.
        """
        names = [name for name, cell in self.cells.items() if not cell.get("gpu")] if cells is None else list(cells)
        for name in names:
            if name not in self.cells:
                raise unknown("--cells", name, self.cells)
        asked = None if arms is None else list(arms)
        for name in asked or []:
            if name not in self.arms:
                raise unknown("--arms", name, self.arms)
        found = {
            name: [arm for arm in self.cells[name]["arms"] if asked is None or arm in asked or arm == self.baseline]
            for name in names
        }
        for name in asked or []:
            nowhere = not any(name in of for of in found.values())
            require(not nowhere, f"--arms={name}: none of the cells {', '.join(names)} has this arm.")
        return found

    def identity(self, cell: str, arm: str) -> str:
        """A digest of all that makes an arm's runs in a cell what they are; the rest of the plan may change."""
        recipes = {name: self._config(name) for name in self._bases(cell)}
        fixed = {key: self.given[key] for key in ("schema", "seeds", "rates", "tune_share", "measures")}
        own = {key: value for key, value in self.cells[cell].items() if key != "arms"}
        return _digest([fixed, own, recipes, self.arms[arm]])

    def mechanism(self, cell: str) -> dict[str, Any] | None:
        """What is measured of a cell's final runs while they train; None where nothing is."""
        asked: dict[str, Any] = self.given["mechanism"]
        return asked if cell in asked["cells"] else None

    @property
    def mechanism_identity(self) -> str:
        """A digest of how that is measured, of its own: it changes no run."""
        asked = {key: value for key, value in self.given["mechanism"].items() if key != "cells"}
        return _digest(asked)

    def _bases(self, cell: str) -> list[str]:
        """A cell's config and those that it builds on."""
        below = [name for name in self._config(cell)["defaults"] if isinstance(name, str)]
        return [cell, *(base for name in below for base in self._bases(Path(name).name))]

    def images(self, cell: str) -> str:
        """The `data=` of a cell."""
        for name in self._bases(cell):
            for each in self._config(name)["defaults"]:
                if isinstance(each, dict) and "override /data" in each:
                    return str(each["override /data"])
        raise KeyError(cell)

    def epochs(self, cell: str) -> int:
        """How many epochs a run of a cell has."""
        trainers = (self._config(name).get("trainer", {}) for name in self._bases(cell))
        return int(next(each["max_epochs"] for each in trainers if "max_epochs" in each))

    def place(self, cell: str, root: Path) -> Path:
        """Where below the folder of the data sets the images of a cell lie."""
        return root / (CIFAR if self.images(cell) == "folder" else IMAGENETTE)

    def _config(self, cell: str) -> Any:
        if cell not in self._configs:
            self._configs[cell] = yaml.safe_load((self.folder / f"{cell}.yaml").read_text())
        return self._configs[cell]

    # -- rates ------------------------------------------------------------------------------------------

    def choice(self, cell: str, arm: str, rows: Iterable[Row]) -> Choice:
        """The rate of an arm in a cell, from the rows of its tuning runs; those of others are passed over."""
        rates, seeds = self.given["rates"], self.given["seeds"][TUNE]
        found: dict[float, dict[int, float]] = {}
        for row in rows:
            if (row["cell"], row["stage"], row["arm"]) == (cell, TUNE, arm):
                found.setdefault(float(row["rate"]), {})[int(row["seed"])] = float(row["acc"])
        grid = sorted(map(float, self.cells[cell]["rates"]))
        while True:
            missing = [
                Job(cell, TUNE, arm, rate, seed) for seed in seeds for rate in grid if seed not in found.get(rate, {})
            ]
            full = [rate for rate in grid if all(seed in found.get(rate, {}) for seed in seeds)]
            means = {rate: sum(found[rate][seed] for seed in seeds) / len(seeds) for rate in full}
            if missing:
                return Choice(None, means, missing)
            best = max(grid, key=lambda rate: (means[rate], -rate))  # of two that are as good, the lower
            lower, higher = grid[0] / rates["factor"], grid[-1] * rates["factor"]
            if best == grid[0] and lower >= rates["least"] * (1 - 1e-9):
                grid = [lower, *grid]
            elif best == grid[-1] and higher <= rates["greatest"] * (1 + 1e-9):
                grid = [*grid, higher]
            else:
                return Choice(best, means, [], best in (grid[0], grid[-1]))

    # -- what comes next ----------------------------------------------------------------------------------

    def left(self, chosen: Mapping[str, Sequence[str]], rows: Collection[Row]) -> Iterator[Job]:
        """All runs that can be made now, in order: cell by cell, the tuning before blocks of one seed of all arms.

        A final run waits for the rates of all arms of its cell that were asked for: a block is never torn.
        """
        done = {Job.of(row).key for row in rows}
        for cell, arms in chosen.items():
            rates = {arm: self.choice(cell, arm, rows) for arm in arms}
            yield from (job for arm in arms for job in rates[arm].missing)
            settled = {arm: choice.rate for arm, choice in rates.items() if choice.rate is not None}
            if len(settled) < len(arms):
                continue
            for seed in self.finals(cell):
                for arm in arms:
                    job = Job(cell, FINAL, arm, settled[arm], seed)
                    if job.key not in done:
                        yield job

    def count(self, chosen: Mapping[str, Sequence[str]], rows: Collection[Row]) -> dict[tuple[str, str, str], int]:
        """How many runs are left at least, by cell, stage and arm: grids may yet be extended."""
        done = {Job.of(row).key for row in rows}
        found: dict[tuple[str, str, str], int] = {}
        for cell, arms in chosen.items():
            for arm in arms:
                choice = self.choice(cell, arm, rows)
                found[cell, TUNE, arm] = len(choice.missing)
                made = 0
                if choice.rate is not None:
                    made = sum(Job(cell, FINAL, arm, choice.rate, s).key in done for s in self.finals(cell))
                found[cell, FINAL, arm] = len(self.finals(cell)) - made
        return found

    def about(self, job: Job) -> dict[str, Any]:
        """What a row says of its run beside what was measured."""
        return {**asdict(job), "plan": self.identity(job.cell, job.arm)}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
