"""A short run that the page offers where there is none to look at: trained by a process of its own, when asked for."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from softgate.errors import printable

WORDS = (
    *("model=resnet20", "data=digits", "data.size=16", "trainer=cpu", "trainer.max_epochs=3"),
    *("callbacks=paths", "callbacks.paths.recordings=6", "callbacks.paths.images=60"),
    *("callbacks.alignment.every_n_epochs=2", "callbacks.alignment.images=64"),
)
"""Of the command line of the run: a small network on the handwritten digits, with all that the page can show of one."""

EPOCH = re.compile(r"epoch (\d+) of (\d+)")
LAST_WORDS = 15
"""Seconds that a run is given to end after it was told to."""


@dataclass(frozen=True)
class State:
    """How far the run is.

    Attributes:
        running: Whether it is under way.
        share: Of its epochs, done.
        words: The last line it wrote.
        failed: What it ended with, where it failed.
    """

    running: bool = False
    share: float = 0.0
    words: str = ""
    failed: str | None = None


class Offer:
    """Trains the run that is offered, once at a time, whoever asks.

    Args:
        command: The words that start `train.py`, without options.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = [*command, *WORDS]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self.state = State()

    def begin(self) -> None:
        """Starts the run, unless it is under way."""
        with self._lock:
            if self.state.running:
                return
            self._stopped = False
            try:
                self._process = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            except OSError as error:
                self.state = State(failed=f"the run could not be started ({error.strerror}).")
                return
            self.state = State(running=True, words="starting ...")
            threading.Thread(target=self._follow, args=(self._process,), daemon=True).start()

    def stop(self) -> None:
        """Ends the run, if there is one; it keeps what it has."""
        with self._lock:
            process, self._stopped = self._process, True
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(LAST_WORDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        words = ""
        with process.stdout:
            for line in process.stdout:
                words = printable(line.strip()) or words
                found = EPOCH.match(words)
                if found:
                    share = int(found[1]) / int(found[2])
                    self.state = State(True, share, words)
                elif words.startswith("error: "):
                    break
        status = process.wait()
        if self._stopped:
            self.state = State(failed="the run was stopped.")
        elif status != 0:
            self.state = State(failed=words.removeprefix("error: ") or f"the run ended with status {status}.")
        else:
            self.state = State(share=1.0)


def loopback(host: str, share: bool) -> bool:
    """Whether the visitors of a page are the users of this machine, who may start processes on it anyway."""
    return not share and (host in ("localhost", "::1") or host.startswith("127."))
