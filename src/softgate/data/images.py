"""Images of one split: decoded once and kept in memory, or read from their files every time. Batches are uint8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from softgate.data import reading
from softgate.data.augment import boxes
from softgate.data.own_images import OwnImages

Request = tuple[int, Any]
"""An image's index, and its uniform numbers (an array, as it travels to a worker), or None without augmentation."""


@dataclass(frozen=True)
class Listing:
    """A split of a data set before it is read.

    Attributes:
        items: Paths of image files, one uint8 tensor [N, C, H, W], C 1 or 3, or items of somebody's data set.
        labels: [N] class of each.
        classes: Names of the classes.
        folders: The names of the classes' folders, where they lie in folders.
        left_out: How many files and folders of what kind were passed over.
    """

    items: Sequence[Path] | Tensor | OwnImages
    labels: Tensor
    classes: list[str]
    folders: list[str] | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Listing:
        """The listing of some of its items."""
        items: Sequence[Path] | Tensor | OwnImages
        if isinstance(self.items, OwnImages):
            items = self.items.subset(index)
        else:
            items = self.items[index] if isinstance(self.items, Tensor) else [self.items[i] for i in index.tolist()]
        return replace(self, items=items, labels=self.labels[index])


def _tensor(image: Image.Image) -> Tensor:
    pixels: Tensor = TF.pil_to_tensor(image)
    return pixels


def shrink(size: int) -> v2.Transform:
    """The shorter side resized to `size`, the centre cropped."""
    return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])


class ImageFiles(Dataset[Tensor]):
    """Images that are read each time they are asked for: uint8 [channels, size, size].

    Args:
        items: Their files, or items of somebody's data set.
        size: Height and width of what is returned.
        scale: Least and greatest share of the area that a random crop covers; None does not crop at random.
        channels: 3 for RGB, 1 for grey.
    """

    def __init__(
        self, items: Sequence[Path] | OwnImages, size: int, scale: Sequence[float] | None = None, channels: int = 3
    ) -> None:
        self.items, self.size, self.scale, self.channels = items, size, scale, channels
        self._shrink = shrink(size)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, request: Request) -> Tensor:
        index, u = request
        image = self._read(index, u)
        if u is None or self.scale is None:
            return _tensor(self._shrink(image))
        top, left, height, width = boxes(torch.from_numpy(u)[None], image.height, image.width, self.scale)[0].tolist()
        cut = TF.resized_crop(image, top, left, height, width, [self.size, self.size], antialias=True)
        return _tensor(cut)

    def _read(self, index: int, u: Any) -> Image.Image:
        if isinstance(self.items, OwnImages):
            return self.items.image(index, self.channels, u)
        return reading.read(self.items[index], self.channels).image

    def collate(self, images: Sequence[Tensor]) -> Tensor:
        """uint8 [N, channels, size, size]; N may be 0, for a process whose share has no image left."""
        shape = (0, self.channels, self.size, self.size)
        return torch.stack(list(images)) if images else torch.empty(shape, dtype=torch.uint8)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Some images, not augmented."""
        return self.collate([self[int(index), None] for index in indices])


class ImagesInMemory:
    """Decoded images uint8 [N, C, S, S]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def take(self, indices: Sequence[int]) -> Tensor:
        """Some images."""
        return self.images[torch.as_tensor(indices)]


Notes = dict[str, list[Path]]
"""What a warning should say to the files that it is about."""


def verify(paths: Sequence[Path] | OwnImages) -> Notes:
    """Reads every image once.

    Raises:
        Unreadable: For all files that cannot be decoded.
        SoftgateError: For the first item that somebody's data set has no image for.
    """
    if isinstance(paths, OwnImages):
        for index in range(len(paths)):
            paths.image(index, 3)
        return {}
    return reading.each(paths, 3, lambda index, image: None)


def decode(listing: Listing, size: int, channels: int = 3) -> tuple[Tensor, Notes]:
    """Reads a whole split: shorter side resized to `size`, centre cropped; uint8 [N, channels, size, size].

    Raises:
        Unreadable: For all files that cannot be decoded.
    """
    small = shrink(size)
    if isinstance(listing.items, Tensor):
        return small(in_channels(listing.items, channels)).contiguous(), {}
    images = torch.empty(len(listing), channels, size, size, dtype=torch.uint8)
    if isinstance(listing.items, OwnImages):
        for index in range(len(listing)):
            images[index] = _tensor(small(listing.items.image(index, channels)))
        return images, {}

    def fill(index: int, image: Image.Image) -> None:
        images[index] = _tensor(small(image))

    return images, reading.each(listing.items, channels, fill)


def in_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 images [N, C, H, W] of 1 or 3 channels as such of 1 or 3; grey as Pillow makes it."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8)[:, None]
