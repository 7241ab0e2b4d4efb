"""How a command ends: its exit statuses, and a user's mistake as one sentence."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from softgate import signals
from softgate.cli import stops
from softgate.errors import (
    FULL,
    CannotWrite,
    Diverged,
    OutOfMemory,
    RankFailed,
    SoftgateError,
    Stopped,
    printable,
)

FAILED = 1
MISTAKE = SoftgateError.status
DIVERGED = Diverged.status
DISK = CannotWrite.status
MEMORY = OutOfMemory.status
INTERRUPTED = 130
"""After Ctrl-C; after another signal it is 128 and the signal's number: 143 after SIGTERM, 129 after SIGHUP."""

TRACED = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user wants stack traces."""


def job(function: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Runs one job; a `SoftgateError` ends the process, before Hydra adds lines of its own to the message."""
    if HydraConfig.initialized():
        stops.current.directory = Path(HydraConfig.get().runtime.output_dir)
    try:
        with signals.raised():
            return function(cfg)
    except Stopped as stopped:
        sys.exit(stops.current.stopped(stopped.signal, stopped.kept))
    except RankFailed as failed:
        if failed.__cause__ is not None and failed.status == FAILED:  # a bug keeps its trace
            traceback.print_exception(failed.__cause__)
        if failed.told:
            sys.exit(failed.status)
        refuse(str(failed), failed.status)
    except SoftgateError as error:
        if TRACED and isinstance(error, OutOfMemory):  # where it ran out is what one looks for
            traceback.print_exception(error)
        if error.status == MISTAKE:
            stops.current.take_back()
        refuse(str(error), error.status)
    except OSError as error:  # of Hydra's, Lightning's or a logger's own writers
        if error.errno not in FULL:
            raise
        refuse(unwritten(error), DISK)


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
