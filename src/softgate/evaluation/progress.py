"""How far a comparison is: an estimate before it begins, a bar on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


def duration(seconds: float) -> str:
    """A time as H:MM:SS, in whole seconds."""
    return str(timedelta(seconds=round(seconds)))


def expectation(runs: int, work: Mapping[str, float], seconds: float) -> str:
    """The line before a comparison begins: how long it will take, and of what.

    Args:
        runs: How many there are.
        work: Of one run: parts to forward passes of one image.
        seconds: Of one forward pass of one image.
    """
    total = sum(work.values())
    largest = sorted(work.items(), key=lambda one: -one[1])
    shares = ", ".join(f"{name} {part / total:.0%}" for name, part in largest if part)
    return f"{runs} runs of about {duration(total * seconds)} each, {duration(runs * total * seconds)} in all: {shares}"


class Bar:
    """A bar over all parts of all runs, with the part's name and the time left; nothing where there is no terminal.

    Args:
        console: Where to.
        runs: How many there are.
        work: Of one run.
    """

    def __init__(self, console: Console, runs: int, work: Mapping[str, float]) -> None:
        self.work, self.runs = work, runs
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), TextColumn("{task.percentage:.0f} %"))
        self._progress = Progress(
            *columns,
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task("", total=runs * sum(work.values()), left="")

    def begin(self, run: int, part: str) -> None:
        """Says that a part of a run begins.

        Args:
            run: Its number, from 1.
            part: One of `work`.
        """
        names = list(self.work)
        before = sum(self.work[name] for name in names[: names.index(part)])
        each = sum(self.work.values())
        done, took = (run - 1) * each + before, self._progress.tasks[0].elapsed or 0.0
        left = f"{duration(took / done * (self.runs * each - done))} left" if done else ""
        said = f"run {run} of {self.runs}: {part}"
        self._progress.update(self._task, completed=done, description=said, left=left)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
