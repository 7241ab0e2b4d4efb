"""Where the images come from: one function for each data set, from options to listings.

A source takes where to look and the split, checks what it finds and returns a
`Listing`. Checks come before anything is decoded; messages name `data.root` and what is expected there.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torchvision.datasets.utils import download_url

from softgate.classes.imagenet import english
from softgate.data import places, published
from softgate.data.images import Listing
from softgate.data.index import index
from softgate.data.names import ARCHIVES
from softgate.data.splitting import held_out
from softgate.errors import SoftgateError, require


@dataclass(frozen=True)
class Where:
    """Where a data set is looked for.

    Attributes:
        root: The folder that holds the data set's official folder.
        archive: Which of its official archives, where it has several; see `ARCHIVES`.
        download: Fetch it where it is not there.
        kept: The folder where listings are kept for the next time; None looks every time.
    """

    root: Path
    archive: str = "160px"
    download: bool = False
    kept: Path | None = None


Source = Callable[[Where, str], Listing]

_MIRROR = "https://s3.amazonaws.com/fast-ai-imageclas"

IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
IMAGEWOOF = {
    "n02086240": "Shih-Tzu",
    "n02087394": "Rhodesian ridgeback",
    "n02088364": "beagle",
    "n02089973": "English foxhound",
    "n02093754": "Border terrier",
    "n02096294": "Australian terrier",
    "n02099601": "golden retriever",
    "n02105641": "Old English sheepdog",
    "n02111889": "Samoyed",
    "n02115641": "dingo",
}
SHA256 = {
    "imagenette2-160": "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5",
    "imagenette2-320": "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
    "imagenette2": "6cbfac238434d89fe99e651496f0812ebc7a10fa62bd42d6874042bf01de4efd",
    "imagewoof2-160": "663c22f69c2802d85e2a67103c017e047096702ffddf9149a14011b7002539bf",
    "imagewoof2-320": "4e4905ed7643120daaf9bf3b2ef7f3a7e8396d9bdaf254a38c6f01f618b4973d",
}
"""Checksums of the official archives; the full-size imagewoof2 has no published one and is not downloaded."""

UNPACKED = (100_000, 8 * 2**30)
"""Most members and bytes that an archive may unpack to; the largest official one has 13 thousand and 1.5 GB."""

COUNTS = {"imagenette": {"train": 9469, "val": 3925}, "imagewoof": {"train": 9025, "val": 3929}}
"""Images in each split, whatever the archive's size."""


def digits(where: Where, split: str) -> Listing:
    """The 8 x 8 digits that come with scikit-learn; a fixed fifth of every class is for validation."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(np.rint(data.images * (255 / 16)).astype(np.uint8))[:, None]
    every = Listing(pixels, torch.from_numpy(data.target), [str(name) for name in data.target_names])
    return held_out(every, split)


def mnist(where: Where, split: str) -> Listing:
    """MNIST in torchvision's files, or in one `.npz`, which `root` is or holds as `mnist*.npz`.

    The file has `x_train`, `y_train`, `x_test` and `y_test`, or `images` and `labels`, of which a fixed fifth of every
    class is for validation; images are uint8 [N, 28, 28].
    """
    found = sorted(where.root.glob("mnist*.npz")) if where.root.is_dir() else [where.root]
    if where.root.suffix != ".npz" and len(found) != 1:
        return replace(published.read("MNIST", where.root, split, where.download), classes=list(DIGITS))
    option, names = f"data.root={where.root}: {found[0].name}", ("images", "labels")
    try:
        with np.load(found[0], allow_pickle=False) as file:
            if names[0] not in file:
                names = ("x_train", "y_train") if split == "train" else ("x_test", "y_test")
            images, labels = (file[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise SoftgateError(f"{option} is no file of images and labels ({error}).") from None
    fits = images.dtype == np.uint8 and images.ndim == 3 and labels.shape == images.shape[:1] and len(images) > 0
    require(
        fits and np.issubdtype(labels.dtype, np.integer) and set(np.unique(labels)) <= set(range(10)),
        f"{option} has images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}; uint8 [N, H, W] "
        f"and whole numbers from 0 to 9 [N] are needed.",
    )
    every = Listing(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long(), list(DIGITS))
    return held_out(every, split) if "images" in names else every


def cifar10(where: Where, split: str) -> Listing:
    """CIFAR-10 by torchvision's own loader, which checks its files' checksums."""
    return published.read("CIFAR10", where.root, split, where.download)


def cifar100(where: Where, split: str) -> Listing:
    """CIFAR-100, likewise."""
    return published.read("CIFAR100", where.root, split, where.download)


def imagenette(where: Where, split: str) -> Listing:
    """Imagenette in its official layout, its file count verified."""
    return _fastai("imagenette", IMAGENETTE, where, split)


def imagewoof(where: Where, split: str) -> Listing:
    """Imagewoof in its official layout, its file count verified."""
    return _fastai("imagewoof", IMAGEWOOF, where, split)


def imagenet(where: Where, split: str) -> Listing:
    """ImageNet-1k, or some of its classes, as class folders, in `root` itself or in `root/imagenet`."""
    base = places.own_folder(where.root, "imagenet")
    listing = _folders(base, split, places.EXPECTED["imagenet"], where.kept)
    return replace(listing, classes=[english(name) for name in listing.classes])


def folder(where: Where, split: str) -> Listing:
    """Any images sorted into `root/{train,val}/CLASS/`."""
    return _folders(where.root, split, places.EXPECTED["folder"], where.kept)


READERS = (digits, mnist, cifar10, cifar100, imagenette, imagewoof, imagenet, folder)
SOURCES: dict[str, Source] = {reader.__name__: reader for reader in READERS}
"""The data sets by the names used in configs, beside those of `names.PUBLISHED`."""

DIGITS = tuple("0123456789")


def source(name: str) -> Source:
    """The source of a data set, by its name."""
    if name in SOURCES:
        return SOURCES[name]
    return lambda where, split: published.read(name, where.root, split, where.download)


def _folders(base: Path, split: str, holds: str, kept: Path | None) -> Listing:
    expected = places.split_folders(base, holds, (split,))
    return class_folders(base / split, f"data.root={base}", expected, kept)


def class_folders(
    where: Path, option: str, expected: str = "a folder of images for each class", kept: Path | None = None
) -> Listing:
    """The images under `where/CLASS/`; the classes are its folders, sorted.

    Args:
        where: The folder.
        option: What named it, and its value, for the error.
        expected: What should be there, for the error.
        kept: The folder where what was found is kept for the next time; None looks every time.

    Raises:
        SoftgateError: If there is no class, or one without an image.
    """
    try:
        found = index(where, kept)
    except FileNotFoundError as error:
        raise SoftgateError(f"{option}: {where}: {error}; expected {expected}.") from None
    except OSError as error:
        raise SoftgateError(f"{option}: {error.filename or where} cannot be listed ({error.strerror}).") from None
    return Listing(found.paths, found.labels, found.classes, found.classes, found.left_out)


def _fastai(name: str, classes: Mapping[str, str], where: Where, split: str) -> Listing:
    root, stem = where.root, ARCHIVES[name][where.archive]
    if not (root / stem).is_dir() and where.download:
        _download(root, stem)
    base = places.archive_folder(root, stem)
    listing = _folders(base, split, "WNID/*.JPEG", where.kept)
    expected, found = COUNTS[name][split], len(listing)
    require(
        found == expected and set(listing.classes) == set(classes),
        f"data.root={root}: {base.name}/{split} has {found} images in {len(listing.classes)} classes where {name} has "
        f"{expected} in {len(classes)}; the archive was extracted in part, delete {base} and extract it again.",
    )
    return replace(listing, classes=[classes[wnid] for wnid in listing.classes])


def _download(root: Path, stem: str) -> None:
    """Fetches an official archive, verifies it and extracts it; a broken download leaves no data folder behind."""
    require(stem in SHA256, f"data.download=true: {stem} has no published checksum; choose data.archive=320px.")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SoftgateError(f"data.root={root}: it cannot be made a folder ({error}).") from None
    archive = root / f"{stem}.tgz"
    if not (archive.is_file() and _sha256(archive) == SHA256[stem]):
        try:
            download_url(f"{_MIRROR}/{stem}.tgz", str(root), archive.name)
        except OSError as error:
            raise SoftgateError(f"data.download=true: {_MIRROR}/{stem}.tgz could not be fetched ({error}).") from None
        require(_sha256(archive) == SHA256[stem], f"data.download=true: {archive} is damaged; delete it and try again.")
    extract(archive, root, stem)


def extract(archive: Path, root: Path, folder: str, most: tuple[int, int] = UNPACKED) -> None:
    """Unpacks one folder of a tar archive, whole or not at all.

    Args:
        archive: The file.
        root: Where the folder goes.
        folder: Its name, in the archive and then in `root`.
        most: Members and bytes that may come out of it.

    Raises:
        SoftgateError: If it holds links, devices, paths that lead elsewhere, more than `most`, or no such folder.
    """
    members, size = most

    def admitted(member: tarfile.TarInfo, place: str) -> tarfile.TarInfo | None:
        nonlocal members, size
        members, size = members - 1, size - member.size
        if not (member.isfile() or member.isdir()):
            raise tarfile.FilterError(f"{member.name} is neither a file nor a folder")
        if members < 0 or size < 0:
            raise tarfile.FilterError(f"it unpacks to more than {most[0]} members or {most[1]} bytes")
        return tarfile.data_filter(member, place)  # no absolute path and none with .. in it

    with tempfile.TemporaryDirectory(prefix=f".{folder}-", dir=root) as unpacked:
        try:
            with tarfile.open(archive) as found:
                found.extractall(unpacked, filter=admitted)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise SoftgateError(f"data.download=true: {archive} is not extracted: {error}.") from None
        made = Path(unpacked, folder)
        require(made.is_dir(), f"data.download=true: {archive} is not extracted: it has no folder {folder}.")
        made.rename(root / folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
