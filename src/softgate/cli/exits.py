"""How a command ends: its exit statuses, and a user's mistake as one sentence."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from softgate.errors import CannotWrite, Diverged, SoftgateError, Stopped, printable

FAILED = 1
MISTAKE = 2
DIVERGED = 3
DISK = 4
INTERRUPTED = 130

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the system says only to those who write."""

TRACED = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user wants stack traces."""


def job(function: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Runs one job; a `SoftgateError` ends the process, before Hydra adds lines of its own to the message."""
    try:
        return function(cfg)
    except Stopped as stopped:
        sys.exit(128 + stopped.signal)  # what a shell says of a process that a signal ended
    except SoftgateError as error:
        refuse(str(error), status(error))
    except OSError as error:  # of Hydra's, Lightning's or a logger's own writers
        if error.errno not in FULL:
            raise
        refuse(unwritten(error), DISK)


def status(error: SoftgateError) -> int:
    """The exit status that an error stands for."""
    return DIVERGED if isinstance(error, Diverged) else DISK if isinstance(error, CannotWrite) else MISTAKE


def unwritten(error: OSError) -> str:
    """The sentence for an error that only those meet who write."""
    where = error.filename or (HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else Path.cwd())
    return f"{where}: cannot be written: {error.strerror}."


def refuse(sentence: str, status: int = MISTAKE) -> NoReturn:
    """Ends the process with one sentence."""
    # An error in a process that loads images arrives with that process's stack trace around it.
    sentence = sentence.rpartition("SoftgateError: ")[2]
    print(f"error: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    sys.exit(status)
