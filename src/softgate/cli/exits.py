"""How a command ends: its exit statuses, and a user's mistake as one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from omegaconf import DictConfig

from softgate.errors import Diverged, SoftgateError, Stopped, printable

FAILED = 1
MISTAKE = 2
DIVERGED = 3
INTERRUPTED = 130

TRACED = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user wants stack traces."""


def job(function: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Runs one job; a `SoftgateError` ends the process, before Hydra adds lines of its own to the message."""
    try:
        return function(cfg)
    except Stopped as stopped:
        sys.exit(128 + stopped.signal)  # what a shell says of a process that a signal ended
    except Diverged as error:
        refuse(str(error), DIVERGED)
    except SoftgateError as error:
        refuse(str(error))


def refuse(sentence: str, status: int = MISTAKE) -> NoReturn:
    """Ends the process with one sentence."""
    # An error in a process that loads images arrives with that process's stack trace around it.
    sentence = sentence.rpartition("SoftgateError: ")[2]
    print(f"error: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    sys.exit(status)
