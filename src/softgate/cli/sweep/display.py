"""What is shown of a sweep: a line for each running job, the table at the end, and `sweep.csv`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from softgate import files
from softgate.cli.sweep.jobs import FINISHED, RUNNING, WAITING, Job
from softgate.rounding import rounded
from softgate.tables import Cell, Mark, Table
from softgate.training import summary
from softgate.training.callbacks.progress import PROGRESS

MARKS: dict[str, Mark] = {FINISHED: "better", WAITING: "pending"}
"""Of how jobs ended; all else is worse."""

LABELS = {"epoch": "", "step": "step", "loss": "loss", "val acc": "val acc", "img/s": "img/s", "left": "left"}


def keys(jobs: Sequence[Job]) -> list[str]:
    """The keys that were set in any job, in the order in which they came."""
    return list(dict.fromkeys(key for job in jobs for key in job.options()))


def varying(jobs: Sequence[Job]) -> list[str]:
    """The keys that tell the jobs apart, in the order in which they came."""
    return list(dict.fromkeys(key for job in jobs for key in job.told))


def write_csv(jobs: Sequence[Job], path: Path) -> None:
    """Writes `sweep.csv`: a row for each job with status, best metric, seconds, directory, and every override."""
    options = keys(jobs)
    rows = [
        {
            "job": job.number,
            **job.options(),
            "status": job.status,
            summary.OBJECTIVE: job.objective,
            "seconds": f"{job.seconds:.1f}",
            "directory": job.directory.name,
            "why": job.why,
        }
        for job in jobs
    ]
    files.write_csv(rows, path, ["job", *options, "status", summary.OBJECTIVE, "seconds", "directory", "why"])


def table(jobs: Sequence[Job], title: str) -> Table:
    """The table at the end: what tells the jobs apart, how each ended, its best metric, its time."""
    options = varying(jobs)
    heads = ["job", *options, "status", summary.OBJECTIVE, "time"]
    rows: list[list[str | Cell]] = []
    for job in jobs:
        best = "" if job.objective is None else rounded(job.objective)
        status = Cell(job.status + (f": {job.why}" if job.why else ""), mark=MARKS.get(job.status, "worse"))
        values = [job.options().get(key, "") for key in options]
        rows.append([str(job.number), *values, status, best, str(timedelta(seconds=round(job.seconds)))])
    return Table(heads, rows, title, align=f"r{'l' * len(options)}lrr")


def name(job: Job, columns: Sequence[str]) -> str:
    """A job in a few words: its number and what tells it apart."""
    options = job.options()
    return " ".join([f"#{job.number}", *(f"{key}={options[key]}" for key in columns if key in options)])


def progress(job: Job, seconds: float) -> str:
    """How far a running job is, in one line."""
    file = job.directory / PROGRESS
    shown = files.read_json(file) or {"epoch": "starting"}
    parts = [f"{label} {shown[key]}".strip() for key, label in LABELS.items() if shown.get(key) is not None]
    return " · ".join([*parts, str(timedelta(seconds=round(seconds)))])


class Display:
    """Live lines on a terminal; elsewhere a line when a job starts and when it ends."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total = console, total
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keeps the lines on the screen while jobs run."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, transient=True, auto_refresh=False) as self._live:
            yield

    def changed(self, job: Job, jobs: Sequence[Job]) -> None:
        """Tells that a job has started or ended."""
        what = name(job, varying(jobs))
        if job.status == RUNNING:
            if self._live is None:
                self.console.print(f"{what}: started, {job.directory}", soft_wrap=True, markup=False, highlight=False)
            return
        best = "" if job.objective is None else f", {summary.OBJECTIVE} {rounded(job.objective)}"
        why = f" ({job.why})" if job.why else ""
        line = f"{what}: {job.status}{why}{best}, {timedelta(seconds=round(job.seconds))}"
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def update(self, running: Sequence[tuple[Job, float]], jobs: Sequence[Job]) -> None:
        """Draws one line for each running job, and how many are done."""
        if self._live is None:
            return
        columns = varying(jobs)
        lines = [Text(f"{name(job, columns)}  {progress(job, seconds)}", no_wrap=True) for job, seconds in running]
        done = sum(job.status == FINISHED for job in jobs)
        broken = sum(job.status not in (FINISHED, RUNNING, WAITING) for job in jobs)
        count = Text(f"{done} of {self.total} jobs finished" + (f", {broken} not" if broken else ""), style="bold")
        self._live.update(Group(*lines, count), refresh=True)
