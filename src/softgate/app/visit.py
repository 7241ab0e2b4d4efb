"""What belongs to one visit alone: what it uploaded and looks at, and which of its wishes still count."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from softgate.app.look import Shown
from softgate.evaluation.reports.path_results import Stability

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
        upload: The file it uploaded, in memory alone.
        upload_size: How many bytes that has; one that is too large is not sent at all.
    """

    def __init__(self) -> None:
        self.looks, self.measures = Turns(), Turns()
        self.shown: Shown | None = None
        self.stability: Stability | None = None
        self.upload: bytes | None = None
        self.upload_size = 0

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Visit:
        return Visit()

    def end(self) -> None:
        """Calls off what it waits for, and forgets what it has."""
        for turns in (self.looks, self.measures):
            turns.ask()
        self.shown = self.stability = self.upload = None
