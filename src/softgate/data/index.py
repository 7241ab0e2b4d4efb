"""What lies in a folder of classes, listed once and remembered: 1.28 million files are not listed at every start.

A folder's modification time changes whenever a file or folder in it appears, goes away or is renamed, so the remembered
index holds as long as no folder's time has changed; looking at a thousand folders takes milliseconds. What is written
into an existing file does not matter to an index of names.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from softgate import files

VERSION = 2
"""To be raised with whatever changes which files are found, `SUFFIXES` and `JUNK` among it."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2"),
)
"""What the names of images end with, in either case."""

JUNK = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")
"""Left behind by systems and programs like what begins with a dot, and left out like it."""

HIDDEN_FILES, HIDDEN_FOLDERS, OTHERS, LOOSE, LOOPS = (
    *("hidden files", "hidden folders", "files that are no images", "images outside of a class's folder"),
    "links to folders that were listed already",
)
"""What is left out and counted."""

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


class Found(NamedTuple):
    """The image files of a folder of classes.

    Attributes:
        paths: The files.
        labels: [N] the class of each.
        classes: The classes' names, sorted.
        left_out: How many of what is no image were passed over; only what there was.
    """

    paths: Paths
    labels: Tensor
    classes: list[str]
    left_out: Counter[str]


def index(where: Path, cache: Path | None) -> Found:
    """The image files of a folder of classes, in torchvision's order.

    Hidden files and folders are passed over. Links are followed, but no folder is listed twice for a class.

    Args:
        where: The folder; below it one folder for each class, and folders in these at will.
        cache: Where indices are remembered; None lists anew.

    Raises:
        FileNotFoundError: If there is no class, or a class has no image; the message is for the user.
        OSError: If a folder cannot be listed.
    """
    where = where.resolve()
    kept = None if cache is None else cache / f"index-{hashlib.sha256(os.fsencode(where)).hexdigest()[:20]}.npz"
    found = None if kept is None else _remembered(where, kept)
    if found is None:
        found = _listed(where)
        if kept is not None:
            _remember(found, kept)
    left = Counter(dict(zip(found["left"].tolist(), found["left_counts"].tolist(), strict=True)))
    paths = Paths(where, found["names"], found["ends"])
    return Found(paths, torch.from_numpy(found["labels"]), found["classes"].tolist(), left)


def _listed(where: Path) -> dict[str, Any]:
    begun = time.time_ns()
    left: Counter[str] = Counter()
    above = {_identity(folder) for folder in (where, *where.parents)}
    classes = []
    for entry in _visible(where, left):
        if not _is_folder(entry):
            left[LOOSE if entry.name.lower().endswith(SUFFIXES) else OTHERS] += 1
        elif _identity(entry.path) in above:
            left[LOOPS] += 1
        else:
            classes.append(entry.name)
    classes.sort()
    if not classes:
        raise FileNotFoundError("there is no class folder")
    folders = ["."]
    names: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        before = len(names)
        inside = _inside(where / name, {*above, _identity(where / name)}, left)
        for folder in sorted(inside):
            below = os.path.relpath(folder, where)
            folders.append(below)
            names += [f"{below}/{file}" for file in sorted(inside[folder])]
        labels += [label] * (len(names) - before)
        if len(names) == before:
            empty.append(name)
    if empty:
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        raise FileNotFoundError(f"there is no image in {', '.join(empty[:10])}{more}")
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
        "left": np.array(list(left), dtype=np.str_),
        "left_counts": np.array(list(left.values()), dtype=np.int64),
    }


def _inside(top: Path, seen: set[tuple[int, int]], left: Counter[str]) -> dict[str, list[str]]:
    """The images of a class by their folders; `seen` are folders that are not to be listed (again)."""
    found: dict[str, list[str]] = {}
    waiting = [str(top)]
    while waiting:
        folder = waiting.pop()
        images = found[folder] = []
        for entry in _visible(folder, left):
            if _is_folder(entry):
                place = _identity(entry.path)
                if place in seen:
                    left[LOOPS] += 1
                else:
                    seen.add(place)
                    waiting.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES) and _is_readable(entry):
                images.append(entry.name)
            else:
                left[OTHERS] += 1
    return found


def _visible(folder: str | Path, left: Counter[str]) -> Iterable[os.DirEntry[str]]:
    """What is in a folder, links last so that a folder is found where it lies; counts what is hidden."""
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    for entry in inside:
        if entry.name.startswith(".") or entry.name in JUNK:
            left[HIDDEN_FOLDERS if _is_folder(entry) else HIDDEN_FILES] += 1
        else:
            yield entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_readable(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a broken link, which is reported with the images that cannot be read: no pipe."""
    return entry.is_file() if not entry.is_symlink() else not Path(entry.path).exists() or Path(entry.path).is_file()


def _identity(folder: str | Path) -> tuple[int, int]:
    about = os.stat(folder)  # noqa: PTH116  # called for every folder of ImageNet
    return about.st_dev, about.st_ino


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
