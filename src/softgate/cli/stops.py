"""A command that a signal ended: one line on what is kept and how to go on, and an exit status."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from softgate import files, locks, signals
from softgate.cli import ranks
from softgate.errors import printable
from softgate.quoting import quoted

_AGAIN = "the same command begins anew"


class Command:
    """The command that this process runs, as far as a line at its end needs it.

    Attributes:
        script: train or evaluate.
        directory: Where it writes, once that is made.
        named: Whether that is named after the clock and was made for this command alone.
        since: When it began, in seconds of the clock.
        kept: Says what is kept and how to go on; a sweep puts its own here.
        first: The signal that ended it, once the line is written.
    """

    def __init__(self, script: str) -> None:
        self.script, self.since = script, time.time()
        self.directory: Path | None = None
        self.named = False
        self.kept: Callable[[], str] = self.on_disk
        self.first: int | None = None

    def on_disk(self) -> str:
        """What is kept, by the files that are there."""
        if self.directory is None:
            return "nothing was begun"
        return (_trained if self.script == "train" else _evaluated)(self.directory, self.since)

    def take_back(self) -> None:
        """Removes the directory again, of a command that was refused before it wrote a word of its own into it."""
        if self.directory is None or not self.named or not ranks.first():
            return
        with suppress(OSError):
            if {path.name for path in self.directory.iterdir()} <= {".hydra", locks.LOCK}:
                locks.release()
                shutil.rmtree(self.directory)
                self.directory.parent.rmdir()  # the day's, where it is empty

    def stopped(self, number: int, kept: str = "") -> int:
        """Writes the line, once.

        Args:
            number: The signal.
            kept: What is kept and how to go on; empty for `self.kept`.

        Returns:
            The exit status: what a shell says of a process that a signal ended.
        """
        if self.first is None:
            self.first = number
            try:
                words = kept or self.kept()
            except Exception:  # a signal can come in the midst of whatever this reads or imports
                words = f"what was written is kept, in {self.directory}"
            if ranks.first():  # all others end with it
                signals.say(f"stopped by {signals.name(number)}: {printable(' '.join(words.split()))}.")
        return 128 + self.first

    def end(self, number: int, frame: FrameType | None) -> None:
        """Ends this process where it stands, which is safe while modules are imported and after the last act."""
        status = 128 + number
        with suppress(Exception):  # whatever stands half done here, the process ends
            status = self.stopped(number)
        with suppress(Exception):
            locks.release()
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


current = Command("train")


def watch(script: str) -> None:
    """From now on signals end the command at once, except within the blocks of `softgate.signals`."""
    global current
    current = Command(script)
    signals.take(current.end)


def _trained(directory: Path, since: float) -> str:
    last, done = directory / files.LAST_CHECKPOINT, directory / "summary.json"
    if _new(done, since) and files.read_json(done).get("status") == "finished":
        return f"the run is finished, in {directory}"
    plain = re.fullmatch(r"[\w./:@%-]+", str(directory), re.ASCII)
    word = f"resume={directory}" if plain else shlex.quote(f"resume={quoted(directory)}")
    goes_on = f"uv run train.py {word}"
    if last.is_file():
        step = ""
        with suppress(Exception):  # one that is damaged is for the next part to refuse
            step = f", step {files.load(last)['global_step']}"
        return f"kept {last}{step}; {goes_on} goes on from it"
    begins = f"{goes_on} begins anew" if (directory / files.FIRST_WORDS).is_file() else _AGAIN
    return f"no checkpoint of {directory} is written yet; {begins}"


def _evaluated(directory: Path, since: float) -> str:
    if _new(directory / "results.json", since):
        return f"the results are in {directory}"
    if _new(directory / "runs.csv", since):
        runs = len(files.read_csv(directory / "runs.csv"))
        return f"measures of {runs} run{'s' if runs > 1 else ''} are in {directory / 'runs.csv'}; {_AGAIN}"
    return f"no results are in {directory} yet; {_AGAIN}"


def _new(path: Path, since: float) -> bool:
    """Whether a file is of this command; file systems may keep whole seconds only."""
    return path.is_file() and path.stat().st_mtime >= int(since)


def number_of(stop: KeyboardInterrupt) -> int:
    """The signal behind an interrupt."""
    return int(getattr(stop, "signal", signal.SIGINT))
