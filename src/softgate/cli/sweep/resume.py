"""Finds the directory of the sweep that `sweep.resume=true` goes on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from softgate import files
from softgate.errors import SoftgateError

RECORD = "command.json"
SWEEPS = Path("outputs/sweeps")


def asked(words: Sequence[str]) -> list[str]:
    """The words of a command line that say what is swept; not where, nor how many at a time."""
    other = ("-m", "--multirun", "sweep.resume=", "resume=", "hydra.sweep.dir=", "hydra.launcher.", "hydra.mode=")
    return sorted(word for word in words if not word.startswith(other))


def record(words: Sequence[str], directory: Path) -> None:
    """Notes in a sweep's directory what was asked for."""
    files.write_json(asked(words), directory / RECORD)


def directory(words: Sequence[str]) -> list[str]:
    """The override for the directory of the last sweep of the same words, where one is to be gone on with.

    Raises:
        SoftgateError: If there is no such sweep.
    """
    goes_on = any(word.lower() == "sweep.resume=true" for word in words)
    if not goes_on or any(word.startswith("hydra.sweep.dir=") for word in words):
        return []
    for found in sorted(SWEEPS.glob(f"*/*/{RECORD}"), reverse=True):
        if json.loads(found.read_text(encoding="utf-8")) == asked(words):
            return [f"hydra.sweep.dir={found.parent}"]
    raise SoftgateError(
        f"sweep.resume=true: no sweep of the same words is in {SWEEPS}; say where it is by hydra.sweep.dir=DIRECTORY."
    )
