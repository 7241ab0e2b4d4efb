"""What belongs to one visit alone: files of its downloads, what it looks at, and which of its wishes still count."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from softgate import files
from softgate.app.look import Shown
from softgate.evaluation.reports.path_results import Stability

KEPT = 8
"""Answers whose files stay in the folder of a visit."""

NAP = 0.05
"""Seconds between two looks at whether a wish still counts, while nothing is computed."""


class Superseded(Exception):
    """Ends a computation whose result nobody waits for any more."""


class Turns:
    """The wishes of a visit, of which the newest counts; any number of threads may ask."""

    def __init__(self) -> None:
        self._newest = 0
        self._lock = threading.Lock()

    def ask(self) -> int:
        """The number of a new wish. Those before it no longer count: what computes them stops at its next check."""
        with self._lock:
            self._newest += 1
            return self._newest

    def check(self, turn: int) -> Callable[[], None]:
        """A function that raises `Superseded` once a wish no longer counts."""

        def check() -> None:
            if turn != self._newest:
                raise Superseded

        return check


def rest(check: Callable[[], None], seconds: float) -> None:
    """Waits, but not longer than a wish counts."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check()
        time.sleep(NAP)
    check()


class Visit:
    """What belongs to one visit. A copy is a new visit.

    Attributes:
        looks: Its wishes in the tab Look.
        measures: Its wishes in the tab Paths.
        shown: What Look shows.
        stability: What Paths shows.
    """

    def __init__(self) -> None:
        self.looks, self.measures = Turns(), Turns()
        self.shown: Shown | None = None
        self.stability: Stability | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Visit:
        return Visit()

    def keep(self, shown: Shown) -> tuple[str, str]:
        """Writes the picture and the tensors of what is shown; of those before, the last few stay."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="softgate-visit-")
        place = Path(self._folder.name)
        self._count = (self._count + 1) % KEPT  # another answer to the same visit may be on its way
        png, raw = place / f"look-{self._count}.png", place / f"look-{self._count}.pt"
        files.save_picture(shown.picture, png)
        files.save(shown.tensors(), raw)
        return str(png), str(raw)

    def end(self) -> None:
        """Calls off what it waits for, and removes its files."""
        for turns in (self.looks, self.measures):
            turns.ask()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
