"""Datasets of images: decoded once and kept in memory, or read from their files every time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from softgate.errors import SoftgateError

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Listing:
    """A split of a data set before it is read.

    Attributes:
        items: Paths of image files, or one uint8 tensor [N, C, H, W].
        labels: [N] class of each.
        classes: Names of the classes.
    """

    items: Sequence[Path] | Tensor
    labels: Tensor
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Listing:
        """The listing of some of its items."""
        items = self.items[index] if isinstance(self.items, Tensor) else [self.items[i] for i in index.tolist()]
        return Listing(items, self.labels[index], self.classes)


def read(path: Path) -> Image.Image:
    """Decodes an image file to RGB, whatever it was.

    Raises:
        SoftgateError: If the file is cut short, is no image or cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise SoftgateError(f"data.root: the image {path} cannot be read ({error}); delete or replace it.") from None


class ImagesInMemory(Dataset[tuple[Tensor, int]]):
    """Images [N, 3, S, S] held as uint8, transformed each time they are asked for."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Transform) -> None:
        self.images = images
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files, decoded each time they are asked for."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, transform: Transform) -> None:
        self.paths = [str(path) for path in paths]
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(TF.pil_to_tensor(read(Path(self.paths[index])))), self.labels[index]


def verify(paths: Sequence[Path]) -> None:
    """Reads every file once; raises `SoftgateError` for the first that cannot be decoded."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, paths):
            pass


def decode(listing: Listing, size: int) -> Tensor:
    """Reads a whole split: shorter side resized to `size`, centre cropped; uint8 [N, 3, size, size]."""
    shrink = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    if isinstance(listing.items, Tensor):
        resized: Tensor = shrink(listing.items)
        return resized
    images = torch.empty(len(listing), 3, size, size, dtype=torch.uint8)

    def fill(index: int, path: Path) -> None:
        images[index] = TF.pil_to_tensor(shrink(read(path)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(listing)), listing.items):
            pass
    return images
