"""Recordings: the gates of a fixed probe set at several times of a training run, on disk.

A recording is a directory:

    header.json          version, architecture, probe set, layout of the rows
    probe.pt             the probe images and their labels
    step=00000148.gates  hard gates after so many optimiser steps: a head of 128 bytes, then one row of bytes per image
    step=00000148.soft   the same with soft gates in 8 bits, where they were asked for
    step=00000148.pt     the weights of that moment, where they were asked for: a state dict, and per-channel scales

Rows are read through a memory map, a few images at a time. Every file is written under another name and renamed when
it is whole; of each moment the gates come last, so that where they are, the rest is too.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softgate import files
from softgate.errors import SoftgateError, require
from softgate.explainers.gates import Gates
from softgate.paths.packing import Bytes, Layout
from softgate.surrogate.rule import Surrogate

VERSION = 1
FORMAT = "softgate path recording"
MAGIC = b"sgpaths1"
HEAD = struct.Struct("<8s32sQdQQ")
HEAD_SIZE = 128
KINDS = {"hard": "gates", "soft": "soft"}
"""The kinds of gates, and the suffixes of their files."""


@dataclass(frozen=True)
class Header:
    """What a recording is of.

    Attributes:
        architecture: Class of the network.
        network: Hash of the names and shapes of its parameters and buffers.
        probe: Hash of the probe images and labels.
        images: How many there are.
        hard: Layout of the hard gates.
        soft: Layout of the soft gates; None where there are none.
        rule: The rule of the soft gates, as plain data.
        weights: Whether the weights are kept.
        run: Tells the run from others of the same network and probe set; None in recordings before 0.1.0.
    """

    architecture: str
    network: str
    probe: str
    images: int
    hard: Layout
    soft: Layout | None
    rule: Mapping[str, Any] | None
    weights: bool
    run: str | None = None

    def plain(self) -> dict[str, Any]:
        """For `header.json`."""
        run = {} if self.run is None else {"run": self.run}
        return run | {
            "format": FORMAT,
            "version": VERSION,
            "architecture": self.architecture,
            "network": self.network,
            "probe": self.probe,
            "images": self.images,
            "weights": self.weights,
            "rule": self.rule,
            "hard": self.hard.to_plain(),
            "soft": None if self.soft is None else self.soft.to_plain(),
        }

    def identity(self) -> bytes:
        """Stands in every file, so that none of another recording is taken for one of this."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).digest()


@dataclass(frozen=True, order=True)
class Point:
    """A recorded moment.

    Attributes:
        step: Optimiser steps done; 0 is the initial network.
        epoch: Epochs done, a fraction within an epoch.
    """

    step: int
    epoch: float


def network_hash(model: nn.Module) -> str:
    """Hash of the names and shapes of a network's parameters and buffers."""
    shapes = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def probe_hash(images: Tensor, labels: Tensor) -> str:
    """Hash of images [N, C, H, W], in float32, and labels [N]."""
    found = hashlib.sha256(repr(tuple(images.shape)).encode())
    found.update(images.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    found.update(labels.detach().to("cpu", torch.int64).contiguous().numpy().tobytes())
    return found.hexdigest()


def size_on_disk(header: Header, model: nn.Module, image: Tensor, points: int) -> int:
    """Bytes that a recording of so many moments takes; `image` is one probe image [C, H, W]."""
    rows = header.hard.row + (header.soft.row if header.soft else 0)
    each = header.images * rows + 2 * HEAD_SIZE
    if header.weights:
        each += sum(2048 + value.numel() * value.element_size() for value in model.state_dict().values())
    return points * each + header.images * (4 * image.numel() + 8) + 2**20


class Recorder:
    """Writes a recording.

    Args:
        directory: Where to.
        header: What it is of.
    """

    def __init__(self, directory: Path, header: Header) -> None:
        self.directory, self.header = directory, header

    def begin(self, images: Tensor, labels: Tensor, after: int = 0, run: str | None = None) -> None:
        """Starts a recording, or goes on with the one that is there.

        Args:
            images: The probe images.
            labels: Their classes.
            after: Optimiser steps done. At 0 what is there is removed; later, what was recorded after that step.
            run: Tells this run from others, for a recording that starts; one that goes on keeps what it has.
        """
        files.folder(self.directory)
        for path in self.directory.glob("*.partial"):  # of a process that was killed
            path.unlink()
        for path in _files(self.directory):
            if after == 0 or int(path.stem.partition("=")[2]) > after:
                path.unlink()
        if after > 0 and (self.directory / "header.json").is_file():
            self.header = replace(self.header, run=_header(self.directory, "paths").run)
        else:
            self.header = replace(self.header, run=run)
            probe = {"images": images.detach().cpu().contiguous(), "labels": labels.cpu()}
            files.save(probe, self.directory / "probe.pt")
            files.write_json(self.header.plain(), self.directory / "header.json")

    def add(
        self,
        point: Point,
        gates: Callable[[str], Iterator[Gates]],
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes one moment.

        Args:
            point: Which one.
            gates: Of a kind, "hard" or "soft": the gates of the probe images, a few images at a time.
            weights: The network's state dict under "net" and its scales under "scales".
        """
        if self.header.weights:
            kept = dict(weights or {}) | {"run": self.header.run}
            files.save(kept, self._path(point.step, "pt"))
        if self.header.soft is not None:
            self._rows(point, "soft", self.header.soft, gates("soft"))
        self._rows(point, "hard", self.header.hard, gates("hard"))

    def has(self, step: int) -> bool:
        """Whether a moment is recorded already."""
        return self._path(step, "gates").is_file()

    def _rows(self, point: Point, kind: str, layout: Layout, gates: Iterator[Gates]) -> None:
        head = HEAD.pack(MAGIC, self.header.identity(), point.step, point.epoch, self.header.images, layout.row)
        with files.replacing(self._path(point.step, KINDS[kind])) as file:
            file.write(head.ljust(HEAD_SIZE, b"\0"))
            for part in gates:
                file.write(layout.pack(part).tobytes())

    def _path(self, step: int, suffix: str) -> Path:
        return self.directory / f"step={step:08d}.{suffix}"


class Recording:
    """A recording that a training run left, read through memory maps.

    Attributes:
        directory: Where it is.
        header: What it is of.
        points: The recorded moments, the earliest first.
        images: [N, C, H, W] the probe images.
        labels: [N] their classes.

    Args:
        directory: A directory that `Recorder` wrote.
        option: Names the recording in errors.

    Raises:
        SoftgateError: If it is none, of another version, truncated, or holds files of another recording.
    """

    def __init__(self, directory: Path | str, option: str = "paths") -> None:
        self.directory, self.option = Path(directory), option
        self.header = _header(self.directory, option)
        found = [self._point(path) for path in _files(self.directory) if path.suffix == ".gates"]
        self.points = sorted(found)
        require(bool(found), f"{option}: {self.directory} holds no recorded moment.")
        if self.header.weights:
            for path in (self._path(point.step, "pt") for point in self.points):
                require(path.is_file(), f"{option}: {path} is missing.")
                require(zipfile.is_zipfile(path), f"{option}: {path} is truncated or damaged.")
        probe = _load(self.directory / "probe.pt", option)
        same = isinstance(probe, dict) and all(isinstance(probe.get(key), Tensor) for key in ("images", "labels"))
        same = same and len(probe["images"]) == self.header.images
        same = same and probe_hash(probe["images"], probe["labels"]) == self.header.probe
        require(same, f"{option}: {self.directory / 'probe.pt'} is not the probe set of this recording.")
        self.images: Tensor = probe["images"]
        self.labels: Tensor = probe["labels"]

    def rows(self, point: Point, kind: str = "hard") -> Bytes:
        """The packed gates [N, row] of a moment, not yet read."""
        layout = self.layout(kind)
        path = self._path(point.step, KINDS[kind])
        self._point(path, layout)
        shape = (self.header.images, layout.row)
        rows: Bytes = np.memmap(path, np.uint8, "r", HEAD_SIZE, shape)
        return rows

    def gates(self, point: Point, index: slice = slice(None), kind: str = "hard") -> Gates:
        """The gates of some of the probe images at a moment; soft ones to 1/255."""
        return self.layout(kind).unpack(np.asarray(self.rows(point, kind)[index]))

    def layout(self, kind: str = "hard") -> Layout:
        """How the rows of a kind of gates are laid out."""
        layout = self.header.hard if kind == "hard" else self.header.soft
        if layout is None:
            raise SoftgateError(f"{self.option}: {self.directory} has no soft gates; record with soft=true.")
        return layout

    def rule(self) -> Surrogate | None:
        """The rule of the soft gates."""
        return None if self.header.rule is None else Surrogate.from_dict(self.header.rule)

    def weights(self, point: Point) -> dict[str, Any]:
        """The network's state dict under "net" and its per-channel scales under "scales" at a moment."""
        require(
            self.header.weights, f"{self.option}: {self.directory} has no weights; record with weights=true for them."
        )
        path = self._path(point.step, "pt")
        found: Any = _load(path, self.option)
        own = isinstance(found, dict) and found.get("run") == self.header.run
        require(own, f"{self.option}: {path} belongs to another recording than {self.directory / 'header.json'}.")
        weights: dict[str, Any] = found
        return weights

    def check_same(self, other: Recording) -> None:
        """Raises `SoftgateError` unless two recordings are of one architecture and one probe set."""
        for key, named in (("network", "architectures"), ("probe", "probe sets")):
            same = getattr(self.header, key) == getattr(other.header, key)
            require(
                same,
                f"{self.option}: {self.directory} and {other.directory} are recordings of different {named} and cannot "
                f"be compared.",
            )

    def check_model(self, model: nn.Module) -> None:
        """Raises `SoftgateError` unless the recording is of a network of this architecture."""
        require(
            network_hash(model) == self.header.network,
            f"{self.option}: {self.directory} is a recording of another architecture ({self.header.architecture}) than "
            f"this {type(model).__name__}.",
        )

    def _path(self, step: int, suffix: str) -> Path:
        return self.directory / f"step={step:08d}.{suffix}"

    def _point(self, path: Path, layout: Layout | None = None) -> Point:
        layout = self.header.hard if layout is None else layout
        require(path.is_file(), f"{self.option}: {path} is missing.")
        with path.open("rb") as file:
            head = file.read(HEAD_SIZE)
        whole = HEAD_SIZE + self.header.images * layout.row
        if len(head) == HEAD_SIZE and head[: len(MAGIC)] == MAGIC:
            _, identity, step, epoch, _, _ = HEAD.unpack(head[: HEAD.size])
            own = identity == self.header.identity()
            require(own, f"{self.option}: {path} belongs to another recording than {self.directory / 'header.json'}.")
        size = path.stat().st_size
        require(
            size == whole and head[: len(MAGIC)] == MAGIC,
            f"{self.option}: {path} is truncated or damaged: it has {size} bytes, {whole} are needed.",
        )
        return Point(step, epoch)


def _header(directory: Path, option: str) -> Header:
    path = directory / "header.json"
    require(path.is_file(), f"{option}: {directory} is no path recording; it has no header.json.")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        known = plain["format"] == FORMAT
        version = plain["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SoftgateError(f"{option}: {path} is truncated, or not the header of a path recording.") from None
    require(known, f"{option}: {path} is not the header of a path recording.")
    require(version == VERSION, f"{option}: {path} has version {version}; this softgate reads version {VERSION}.")
    try:
        found = Header(
            plain["architecture"],
            plain["network"],
            plain["probe"],
            int(plain["images"]),
            Layout.from_plain(plain["hard"]),
            plain["soft"] and Layout.from_plain(plain["soft"]),
            plain["rule"],
            bool(plain["weights"]),
            plain.get("run"),
        )
        if found.images < 1:
            raise ValueError(f"{found.images} images")
        return found
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SoftgateError(f"{option}: {path} is damaged ({error}).") from None


def _files(directory: Path) -> list[Path]:
    """The files of moments; `header.json` and `probe.pt` are none."""
    return sorted(path for suffix in (*KINDS.values(), "pt") for path in directory.glob(f"step=*.{suffix}"))


def _load(path: Path, option: str) -> Any:
    try:
        return files.load(path)
    except Exception as error:  # whatever a file that is cut short makes the unpickler raise
        what = "missing" if isinstance(error, FileNotFoundError) else "truncated or damaged"
        raise SoftgateError(f"{option}: {path} is {what}.") from None
