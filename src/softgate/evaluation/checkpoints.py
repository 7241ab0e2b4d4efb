"""Where runs and their checkpoints are: from what `runs` names to directories, files and their labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import escape, glob
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from softgate.errors import require, unknown
from softgate.evaluation.config import CHECKPOINTS


def directories(*patterns: str) -> list[Path]:
    """The directories of the runs that are named: runs, sweeps, checkpoints, or globs of these."""
    found: dict[Path, None] = {}
    for one in patterns:
        pattern = str(Path(one).expanduser())
        for path in [Path(pattern)] if Path(pattern).exists() else matching(pattern):
            if path.suffix == ".ckpt" and path.parent.name == "checkpoints":
                path = path.parents[1]
            if is_run(path):
                found[path] = None
            elif path.is_dir():
                found |= dict.fromkeys(each for each in sorted(path.iterdir(), key=_natural) if is_run(each))
    return list(found)


def matching(pattern: str) -> list[Path]:
    """What a glob matches, job 2 before job 10."""
    # What is there as it is typed is meant as it is typed: a sweep's directory may have [] in its name.
    parts = Path(pattern).parts
    literal = next(n for n in range(len(parts), -1, -1) if Path(*parts[:n]).is_dir())
    pattern = str(Path(escape(str(Path(*parts[:literal]))), *parts[literal:]))
    found = map(Path, glob(pattern, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Digits count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def is_run(path: Path) -> bool:
    """Whether a directory is a training run's, finished or not."""
    return bool(saved_config(path).get("trainer"))


def find_checkpoints(patterns: Sequence[str], which: str) -> list[Path]:
    """The checkpoint files that `runs` and `checkpoint` name: of each run, and of all that a glob matches.

    Args:
        patterns: Directories, checkpoint files, and globs of these.
        which: Of a run's checkpoints: best or last.

    Raises:
        SoftgateError: If nothing is named, one of them is not there, or one is no run's.
    """
    require(
        len(patterns) > 0,
        "runs is not set; give runs=<a run's directory or a checkpoint file>, or model= and data= for a network.",
    )
    found: list[Path] = []
    for one in patterns:
        pattern = str(Path(one).expanduser())
        if not any(mark in one for mark in "*?[") or Path(pattern).exists():
            found.append(find_checkpoint(one, which))
            continue
        # A sweep's directory holds other things than runs.
        runs_of = [path for path in matching(pattern) if path.suffix == ".ckpt" or (path / "checkpoints").is_dir()]
        require(bool(runs_of), f"runs={one}: no run's directory and no checkpoint matches.")
        found += [find_checkpoint(str(path), which) for path in runs_of]
    return list(dict.fromkeys(found))


def find_checkpoint(runs: str, which: str) -> Path:
    """The checkpoint file of a run.

    Args:
        runs: Its directory, or the file itself.
        which: Of a directory's checkpoints: best or last.

    Raises:
        SoftgateError: If there is none.
    """
    if which not in CHECKPOINTS:
        raise unknown("checkpoint", which, CHECKPOINTS)
    path = Path(runs).expanduser()
    require(path.exists(), f"runs={runs}: there is no such file or directory.")
    if path.is_file():
        return path
    file = path / "checkpoints" / f"{which}.ckpt"
    require(file.is_file(), f"runs={runs}: it has no checkpoints/{which}.ckpt; is it a run's directory?")
    return file


def labelled(paths: Sequence[Path]) -> list[str]:
    """For each checkpoint the shortest end of its path that no other one shares, as one word for files and tables."""
    parts = [[part for part in path.absolute().with_suffix("").parts if part != "checkpoints"] for path in paths]
    if len({tuple(each[:-1]) for each in parts}) == len(parts):
        parts = [each[:-1] for each in parts]  # best or last says nothing that the directory does not
    for count in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part.strip("/") for part in each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def saved_config(path: Path) -> dict[str, Any]:
    """A run's `config.yaml`, or what Hydra kept of it; empty where neither can be read."""
    found = read_yaml(path / "config.yaml") or read_yaml(path / ".hydra" / "config.yaml")
    return found if isinstance(found, dict) else {}


def read_yaml(path: Path) -> Any:
    """What a file holds, interpolations as they are; an empty dict where it cannot be read."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, UnicodeDecodeError, RecursionError, OmegaConfBaseException):
        return {}
