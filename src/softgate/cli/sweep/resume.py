"""Finds the directory of the sweep that `sweep.resume=true` goes on with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        SoftgateError: If there is no such sweep, or its directory holds links that lead out of it.
    """
    if not any(word.lower() == "sweep.resume=true" for word in words):
        return []
    typed = [word.partition("=")[2].strip("'\"") for word in words if word.startswith("hydra.sweep.dir=")]
    if typed:
        _check(Path(typed[-1]))
        return []
    for found in sorted(SWEEPS.glob(f"*/*/{RECORD}"), reverse=True):
        # Of a stranger's file nothing is taken but that it says the same; and of its folder's name, only a plain one.
        if _read(found) == asked(words) and re.fullmatch(r"[\w.:-]+", found.parent.name):
            _check(found.parent)
            return [f"hydra.sweep.dir={found.parent}"]
    raise SoftgateError(
        f"sweep.resume=true: no sweep of the same words is in {SWEEPS}; say where it is by hydra.sweep.dir=DIRECTORY."
    )


def _check(found: Path) -> None:
    from softgate.training import strangers  # brings in torch, which --help can do without

    strangers.check_links(found, f"hydra.sweep.dir={found}")


def _read(record: Path) -> Any:
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError, RecursionError):  # damaged, or somebody else's
        return None
