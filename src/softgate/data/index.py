"""What lies in a folder of classes, listed once and remembered: 1.28 million files are not listed at every start.

A folder's modification time changes whenever a file or folder in it appears, goes away or is renamed, so the remembered
index holds as long as no folder's time has changed; looking at a thousand folders takes milliseconds. What is written
into an existing file does not matter to an index of names.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes

from softgate import files

VERSION = 1

GRAIN = 2 * 10**9
"""Nanoseconds within which two changes of a folder may bear the same time; on FAT it is two seconds."""


class Paths(Sequence[Path]):
    """Many paths in one block of memory: a list of a million objects would be copied into every worker.

    Args:
        base: The folder that they lie in.
        names: Their names below it, UTF-8, one after the other.
        ends: [N] where each ends.
    """

    def __init__(self, base: Path, names: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> None:
        self.base, self.names, self.ends = base, names, ends

    @classmethod
    def of(cls, base: Path, names: Sequence[str]) -> Paths:
        """From names below `base`."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(base, np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        begin = self.ends[index - 1] if index else 0
        return self.base / os.fsdecode(self.names[begin : self.ends[index]].tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as Python does where __eq__ is defined


def index(where: Path, cache: Path | None) -> tuple[Paths, Tensor, list[str]]:
    """The image files of a folder of classes, in torchvision's order.

    Args:
        where: The folder; below it one folder for each class, and folders in these at will.
        cache: Where indices are remembered; None lists anew.

    Returns:
        The files, [N] the class of each, the classes' names.

    Raises:
        FileNotFoundError: If there is no class, or a class has no image.
    """
    where = where.resolve()
    kept = None if cache is None else cache / f"index-{hashlib.sha256(os.fsencode(where)).hexdigest()[:20]}.npz"
    found = None if kept is None else _remembered(where, kept)
    if found is None:
        found = _listed(where)
        if kept is not None:
            _remember(found, kept)
    return Paths(where, found["names"], found["ends"]), torch.from_numpy(found["labels"]), found["classes"].tolist()


def _listed(where: Path) -> dict[str, Any]:
    begun = time.time_ns()
    classes, _ = find_classes(str(where))
    folders = ["."]
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(names)
        for folder, _, inside in sorted(os.walk(where / name, followlinks=True)):
            below = os.path.relpath(folder, where)
            folders.append(below)
            images = sorted(file for file in inside if file.lower().endswith(IMG_EXTENSIONS))
            names += [f"{below}/{file}" for file in images]
        labels += [label] * (len(names) - before)
        if len(names) == before:
            raise FileNotFoundError(f"Found no valid file for the classes {name}.")
    paths = Paths.of(where, names)
    return {
        "version": np.array(VERSION),
        "begun": np.array(begun),
        "folders": np.array(folders),
        "times": np.array([_time(where / folder) for folder in folders]),
        "classes": np.array(classes),
        "names": paths.names,
        "ends": paths.ends,
        "labels": np.array(labels, dtype=np.int64),
    }


def _time(folder: Path) -> int:
    return folder.stat().st_mtime_ns


def _remembered(where: Path, kept: Path) -> dict[str, Any] | None:
    try:
        with np.load(kept, allow_pickle=False) as file:
            found = dict(file)
        # A folder changed just before it was listed may have changed again within the same tick.
        sure = bool((found["times"] < found["begun"] - GRAIN).all())
        now = [_time(where / folder) for folder in found["folders"].tolist()]
        return found if sure and found["version"] == VERSION and now == found["times"].tolist() else None
    except Exception:  # absent, cut short, of another version, or a folder is gone: listed anew
        return None


def _remember(found: dict[str, Any], kept: Path) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"), files.replacing(kept) as file:  # two that list at once write one after the other
            np.savez(file, **found)
    except (OSError, NotImplementedError):  # a cache that cannot be written costs time at the next start, nothing else
        return
