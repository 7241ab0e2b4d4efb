"""Runs as people name them on the command line: a bare path, and `latest`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from softgate.errors import SoftgateError, require
from softgate.quoting import quoted, unquoted

LATEST = "latest"
OUTPUTS = Path("outputs")
"""Where commands write unless they are told otherwise."""

_TAKES = {"train": "resume", "evaluate": "runs", "app": "runs"}
"""The option that a run is named by."""

_WITH_VALUE = (
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p", "--info", "-i"),
    *("--experimental-rerun",),
)
"""Hydra's flags whose next word is a value of theirs."""


def named(words: Sequence[str], command: str) -> list[str]:
    """Words in which runs are named by their option and their path.

    `evaluate.py DIR OTHER` stands for `runs=[DIR,OTHER]`, `train.py DIR` for `resume=DIR`, and `latest` for the newest
    run; `runs=latest` is a sweep's directory where that is newer than any single run. A file or a folder called
    `latest` is that file or folder.

    Args:
        words: Of the command line, without flags.
        command: train, evaluate or app.

    Raises:
        SoftgateError: If there is no run that could be the latest.
    """
    option = _TAKES[command]
    free = [word for before, word in zip(("", *words), words, strict=False) if before not in _WITH_VALUE]
    bare = [word for word in free if _is_path(word) or word == LATEST]
    made = [word for word in words if word not in bare]
    if bare:
        both = next((word for word in words if word.startswith(f"{option}=")), None)
        require(both is None, f"{bare[0]}: it stands for {option}={bare[0]}, and {both} is given too; only one can be.")
        places = [_place(word, option, command) for word in bare]
        made.append(f"{option}={places[0] if len(places) == 1 else '[' + ','.join(places) + ']'}")
    return [
        f"{option}={_place(LATEST, option, command)}"
        if word.startswith(f"{option}=") and unquoted(word.partition("=")[2]) == LATEST
        else word
        for word in made
    ]


def _is_path(word: str) -> bool:
    """Whether a word names a file or a folder, as an option never does."""
    try:
        return not word.startswith(("-", "~")) and "=" not in word and Path(word).exists()
    except OSError:  # too long for a name
        return False


def _place(word: str, option: str, command: str) -> str:
    if word != LATEST or _is_path(word):
        return quoted(Path(word))
    found = newest(OUTPUTS, sweeps=command != "train")
    if found is None:
        raise SoftgateError(f"{option}={LATEST}: there is no run under {OUTPUTS.absolute()}; give its directory.")
    print(f"{LATEST}: {found}", file=sys.stderr)
    return quoted(found)


def newest(outputs: Path, sweeps: bool) -> Path | None:
    """The directory of the run that was begun last, or None.

    Args:
        outputs: The folder that commands write into.
        sweeps: Whether a sweep's directory counts, whose runs are looked at together.
    """
    runs = _begun(outputs.glob("*/*/.hydra/overrides.yaml"), 1)
    if sweeps:
        runs |= _begun(outputs.glob("sweeps/*/*/*/.hydra/overrides.yaml"), 2)
    return max(runs, key=lambda path: (runs[path], str(path)), default=None)


def _begun(files: Iterable[Path], above: int) -> dict[Path, float]:
    """By their directories, so many folders above `.hydra`: when runs began, those of train.py."""
    return {file.parents[above]: file.stat().st_mtime for file in files if (file.parents[1] / "config.yaml").is_file()}
