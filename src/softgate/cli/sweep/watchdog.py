"""The process of a job, seen from within."""

from __future__ import annotations

import os
import signal
import threading
import time

PARENT = "SOFTGATE_SWEEP"
"""The environment variable that tells a job's process the number of the sweep's process."""


def follow_parent() -> None:
    """Ends this process as Ctrl-C does when the sweep that started it has vanished without ending its jobs.

    Otherwise it would go on training beside the one that `sweep.resume=true` starts in its place.
    """
    parent = os.environ.get(PARENT)
    if parent is None or (int(parent) != os.getppid() and _lives(int(parent))):  # of a process that a job has started
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        os.killpg(os.getpgrp(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True, name="softgate-sweep").start()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
