"""Where a data set is looked for: the folders of each, checked before PyTorch is imported and again when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softgate.data.names import ARCHIVES
from softgate.errors import require

EXPECTED = {"imagenet": "WNID/*.JPEG", "folder": "CLASS/*.jpg"}
"""What the folders `train` and `val` hold, of the data sets that are read folder by folder."""


def look(name: str, root: Path, archive: str, download: bool) -> None:
    """Whether a data set's folders are there, as far as that can be seen at a glance.

    Args:
        name: One of `names.NAMED` or `names.PUBLISHED`.
        root: `data.root`.
        archive: Which official archive, of those data sets that have several.
        download: Whether it is fetched where it is not there.

    Raises:
        SoftgateError: If one is missing.
    """
    if name in ("digits", "mnist") or download:  # digits come with scikit-learn; of MNIST, root may be a file
        return
    if name in ARCHIVES:
        split_folders(archive_folder(root, ARCHIVES[name][archive]), "WNID/*.JPEG", ("train", "val"))
    elif name in EXPECTED:
        split_folders(own_folder(root, name), EXPECTED[name], ("train", "val"))
    else:
        published_folder(root, name)


def own_folder(root: Path, name: str) -> Path:
    """The folder of ImageNet, which may be `root` itself; of other images `root`."""
    inner = root / name
    return inner if name == "imagenet" and inner.is_dir() else root


def archive_folder(root: Path, stem: str) -> Path:
    """The folder that an official archive makes.

    Raises:
        SoftgateError: If it is not there.
    """
    hint = "set data.root to the folder that holds it, or data.download=true"
    require(root.is_dir(), f"data.root={root}: there is no such folder; {hint}.")
    require((root / stem).is_dir(), f"data.root={root}: there is no {stem}/ in it; {hint}.")
    return root / stem


def split_folders(base: Path, holds: str, splits: Sequence[str]) -> str:
    """What is expected in a folder of class folders, for errors.

    Raises:
        SoftgateError: If the folder or one of its splits is not there.
    """
    expected = f"{base}/{{train,val}}/{holds}"
    require(base.is_dir(), f"data.root={base}: there is no such folder; expected {expected}.")
    for split in splits:
        require((base / split).is_dir(), f"data.root={base}: it has no folder '{split}'; expected {expected}.")
    return expected


def published_folder(root: Path, name: str) -> None:
    """Refuses a folder that is not there, of a data set that torchvision reads."""
    require(root.is_dir(), f"data.root={root}: there is no such folder; it should hold {name}.")
