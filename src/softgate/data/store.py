"""Decoded images between runs: a data set that fits in memory is decoded once, not at every start of every process."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from torch import Tensor

from softgate import files
from softgate.data.images import Listing, decode
from softgate.errors import SoftgateWarning

VERSION = 1


def folder(cache_dir: str | Literal[False] | None) -> Path | None:
    """Where `data.cache_dir` keeps things: a path, None is ~/.cache/softgate, false is nowhere."""
    if cache_dir is False:
        return None
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softgate"


def decoded(listing: Listing, size: int, cache: Path | None) -> Tensor:
    """A split's images, from the store or decoded and put there.

    The file is mapped into memory: all processes of a machine share it. Its name is a digest of every image's path,
    size and modification time, so that a changed image makes another file.

    Args:
        listing: The split.
        size: Height and width of the images that are kept.
        cache: Where the store is; None decodes into memory.

    Returns:
        uint8 [N, 3, size, size].

    Raises:
        SoftgateError: If an image cannot be read.
    """
    if cache is None or isinstance(listing.items, Tensor):
        return decode(listing, size)
    shape = (len(listing), 3, size, size)
    kept = cache / f"decoded-{_digest(listing, size)}.bin"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):  # processes that start together wait for the first instead of decoding too
            if not (kept.is_file() and kept.stat().st_size == math.prod(shape)):
                images = decode(listing, size).numpy().data
                with files.replacing(kept) as file:
                    file.write(images)
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        warnings.warn(
            f"data.cache_dir={cache}: decoded images cannot be kept there ({error}); they are decoded at every start.",
            SoftgateWarning,
            stacklevel=2,
        )
        return decode(listing, size)
    return torch.from_file(str(kept), size=math.prod(shape), dtype=torch.uint8).view(shape)


def _digest(listing: Listing, size: int) -> str:
    digest = hashlib.sha256(f"{VERSION} {size}\n".encode())
    for path in listing.items:
        assert isinstance(path, Path)
        about = path.stat()
        digest.update(os.fsencode(path) + f"\0{about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]
