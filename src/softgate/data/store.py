"""Decoded images between runs: a data set that fits in memory is decoded once, not at every start of every process."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from pathlib import Path
from typing import Literal

import PIL
import torch
from filelock import FileLock
from torch import Tensor

from softgate import files
from softgate.data.images import Listing, Notes, decode
from softgate.data.own_images import OwnImages
from softgate.errors import SoftgateWarning

VERSION = 2
"""To be raised with whatever changes the pixels that come out of a file."""


def folder(cache_dir: str | Literal[False] | None) -> Path | None:
    """Where `data.cache_dir` keeps things: a path, None is ~/.cache/softgate, false is nowhere."""
    if cache_dir is False:
        return None
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softgate"


def decoded(listing: Listing, size: int, channels: int, cache: Path | None) -> tuple[Tensor, Notes]:
    """A split's images, from the store or decoded and put there.

    The file is mapped into memory: all processes of a machine share it. Its name is a digest of every image's path,
    size and modification time and of how it is decoded, so that what changes any of it makes another file.

    Args:
        listing: The split.
        size: Height and width of the images that are kept.
        channels: 3 for RGB, 1 for grey.
        cache: Where the store is; None decodes into memory.

    Returns:
        uint8 [N, channels, size, size], and what a warning should say.

    Raises:
        Unreadable: For all images that cannot be read.
    """
    if cache is None or isinstance(listing.items, (Tensor, OwnImages)):
        return decode(listing, size, channels)
    shape = (len(listing), channels, size, size)
    kept = cache / f"decoded-{_digest(listing, shape)}.bin"
    notes = kept.with_suffix(".json")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):  # processes that start together wait for the first instead of decoding too
            if not (kept.is_file() and kept.stat().st_size == math.prod(shape)):
                images, noted = decode(listing, size, channels)
                with files.replacing(notes) as file:
                    file.write(json.dumps({note: list(map(str, paths)) for note, paths in noted.items()}).encode())
                with files.replacing(kept) as file:
                    file.write(images.numpy().data)
            said = json.loads(notes.read_bytes())
    except (OSError, NotImplementedError, json.JSONDecodeError) as error:  # some file systems have no locks
        warnings.warn(
            f"data.cache_dir={cache}: decoded images cannot be kept there ({error}); they are decoded at every start.",
            SoftgateWarning,
            stacklevel=2,
        )
        return decode(listing, size, channels)
    noted = {note: [Path(path) for path in paths] for note, paths in said.items()}
    return torch.from_file(str(kept), size=math.prod(shape), dtype=torch.uint8).view(shape), noted


def _digest(listing: Listing, shape: tuple[int, ...]) -> str:
    digest = hashlib.sha256(f"{VERSION} {PIL.__version__} {shape}\n".encode())
    assert not isinstance(listing.items, (Tensor, OwnImages))
    for path in listing.items:
        try:
            about = path.stat()
        except OSError:  # a broken link: decoding it says so
            digest.update(os.fsencode(path) + b"\0\n")
            continue
        digest.update(os.fsencode(path) + f"\0{about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]
