"""Images of one split: decoded once and kept in memory, or read from their files every time. Batches are uint8."""

from __future__ import annotations

import os
from collections.abc import Sequence
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

from softgate.data.augment import boxes
from softgate.errors import SoftgateError

Request = tuple[int, Any]
"""An image's index, and its uniform numbers (an array, as it travels to a worker), or None without augmentation."""


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


def _tensor(image: Image.Image) -> Tensor:
    pixels: Tensor = TF.pil_to_tensor(image)
    return pixels


def shrink(size: int) -> v2.Transform:
    """The shorter side resized to `size`, the centre cropped."""
    return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])


class ImageFiles(Dataset[Tensor]):
    """Image files, decoded each time they are asked for: uint8 [3, size, size].

    Args:
        paths: The files.
        size: Height and width of what is returned.
        scale: Least and greatest share of the area that a random crop covers; None does not crop at random.
    """

    def __init__(self, paths: Sequence[Path], size: int, scale: Sequence[float] | None = None) -> None:
        self.paths, self.size, self.scale = paths, size, scale
        self._shrink = shrink(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, request: Request) -> Tensor:
        index, u = request
        image = read(self.paths[index])
        if u is None or self.scale is None:
            return _tensor(self._shrink(image))
        top, left, height, width = boxes(torch.from_numpy(u)[None], image.height, image.width, self.scale)[0].tolist()
        cut = TF.resized_crop(image, top, left, height, width, [self.size, self.size], antialias=True)
        return _tensor(cut)

    def collate(self, images: Sequence[Tensor]) -> Tensor:
        """uint8 [N, 3, size, size]; N may be 0, for a process whose share has no image left."""
        return torch.stack(list(images)) if images else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Some images, not augmented."""
        return self.collate([self[int(index), None] for index in indices])


class ImagesInMemory:
    """Decoded images uint8 [N, 3, S, S]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def take(self, indices: Sequence[int]) -> Tensor:
        """Some images."""
        return self.images[torch.as_tensor(indices)]


def verify(paths: Sequence[Path]) -> None:
    """Reads every file once; raises `SoftgateError` for the first that cannot be decoded."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, paths):
            pass


def decode(listing: Listing, size: int) -> Tensor:
    """Reads a whole split: shorter side resized to `size`, centre cropped; uint8 [N, 3, size, size]."""
    if isinstance(listing.items, Tensor):
        resized: Tensor = shrink(size)(listing.items)
        return resized
    images = torch.empty(len(listing), 3, size, size, dtype=torch.uint8)

    def fill(index: int, path: Path) -> None:
        images[index] = TF.pil_to_tensor(small(read(path)))

    small = shrink(size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(listing)), listing.items):
            pass
    return images
