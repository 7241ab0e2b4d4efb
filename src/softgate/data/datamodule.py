"""The data module: from the options of `data=` to loaders, class names and fixed probe images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from softgate.data.images import ImageFiles, ImagesInMemory, Listing, Transform, decode, verify
from softgate.data.sources import SOURCES, stratified
from softgate.errors import SoftgateError, require, unknown

CACHE_LIMIT = 2 * 2**30
"""Bytes up to which `data.cache=auto` keeps decoded images in memory."""

VERIFY_LIMIT = 50_000
"""Up to so many files are read once before training; a broken one among more shows when its turn comes."""

MARGIN = 1.25
"""Cached training images are larger than the net's by this factor, so that random crops have something to crop."""


def check(options: Mapping[str, Any]) -> None:
    """Raises `SoftgateError` for options of `data=` that are out of range."""
    name = options.get("name")
    if name not in SOURCES:
        raise unknown("data.name", name, SOURCES)
    for key, least, default in (("size", 8, None), ("batch_size", 1, 64), ("num_workers", 0, 0)):
        value = options.get(key, default)
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
        fine = fine or (key == "num_workers" and value is None)
        require(fine, f"data.{key}={value}: a whole number >= {least} is needed.")
    fraction = options.get("fraction", 1.0)
    require(_number(fraction) and 0 < fraction <= 1, f"data.fraction={fraction}: a number > 0 and <= 1 is needed.")
    cache = options.get("cache", "auto")
    require(cache in (True, False, "auto"), f"data.cache={cache}: true, false or auto is needed.")
    augment = options.get("augment", {})
    require(isinstance(augment, Mapping), f"data.augment={augment}: crop_scale and flip are needed under it.")
    scale = augment.get("crop_scale", (1.0, 1.0))
    pair = isinstance(scale, (list, tuple)) and len(scale) == 2 and all(_number(v) for v in scale)
    fine = pair and 0 < scale[0] <= scale[1] <= 1
    require(fine, f"data.augment.crop_scale={scale}: two numbers, 0 < smallest <= largest <= 1, are needed.")
    for key in ("mean", "std"):
        value = options.get(key)
        fine = isinstance(value, (list, tuple)) and len(value) == 3 and all(_number(v) for v in value)
        fine = fine and (key == "mean" or min(value) > 0)  # type: ignore[arg-type]  # a list by now
        require(fine, f"data.{key}={value}: three numbers{' > 0' if key == 'std' else ''} are needed.")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class ImageData(pl.LightningDataModule):
    """Training and validation images of one data set.

    Args:
        options: The keys of `conf/data/default.yaml`, plain data.
        splits: Which splits to list; ("val",) is enough to evaluate.

    Attributes:
        classes: Names of the classes, known after construction.

    Raises:
        SoftgateError: On construction, for options out of range and data that is missing or incomplete; in
            `setup`, for an image that cannot be read.
    """

    def __init__(self, options: Mapping[str, Any], splits: Sequence[str] = ("train", "val")) -> None:
        super().__init__()
        self.options = dict(options)
        self.save_hyperparameters({"options": self.options})  # a checkpoint then says what it was trained on
        check(self.options)
        self.size: int = self.options["size"]
        self.batch_size: int = self.options.get("batch_size", 64)
        root = Path(str(self.options.get("root", "data"))).expanduser()
        source = SOURCES[self.options["name"]]
        self.listings: dict[str, Listing] = {split: source(root, split, self.options) for split in splits}
        names = [listing.classes for listing in self.listings.values()]
        if names[0] != names[-1]:
            odd = sorted(set(names[0]) ^ set(names[-1]))
            raise SoftgateError(f"data.root={root}: train and val have different classes, such as '{odd[0]}'.")
        require(len(names[0]) > 1, f"data.root={root}: there is only the class '{names[0][0]}'; at least 2 are needed.")
        fraction = self.options.get("fraction", 1.0)
        if fraction < 1 and "train" in self.listings:
            whole = self.listings["train"]
            self.listings["train"] = whole.subset(stratified(whole.labels, fraction, seed=0))
        self.classes: list[str] = names[0]
        self._datasets: dict[str, Dataset[tuple[Tensor, int]]] = {}

    @property
    def train_listing(self) -> Listing:
        """The training images, not yet read."""
        return self.listings["train"]

    @property
    def val_listing(self) -> Listing:
        """The validation images, not yet read."""
        return self.listings["val"]

    @property
    def mean(self) -> list[float]:
        """What is subtracted from pixels in [0, 1], per channel."""
        return list(self.options["mean"])

    @property
    def std(self) -> list[float]:
        """What pixels are then divided by, per channel."""
        return list(self.options["std"])

    def setup(self, stage: str | None = None) -> None:
        """Decodes what is kept in memory; once, however often it is called."""
        wanted = ("train", "val") if stage in (None, "fit") else ("val",)
        for split in wanted:
            if split not in self._datasets:
                self._datasets[split] = self._dataset(split)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Shuffled training batches: images [B, 3, size, size], labels [B]."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Validation batches in a fixed order."""
        return self._loader("val", shuffle=False)

    def probe(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """The same validation images every time: one of each of `count` classes, as far apart as they go.

        With ten classes and count 5 these are the classes 0, 2, 4, 6, 8 of the paper's grids.

        Args:
            count: How many classes, at most as many as there are.
            seed: Picks the image of each class.

        Returns:
            Images [count, 3, size, size] as the network takes them, labels [count].

        Raises:
            SoftgateError: If there are fewer classes, or a class has no validation image.
        """
        total = len(self.classes)
        require(1 <= count <= total, f"callbacks.grids.classes={count}: the data has {total} classes.")
        self.setup("validate")
        generator = torch.Generator().manual_seed(seed)
        images, labels = [], [(i * total) // count for i in range(count)]
        for label in labels:
            members = (self.val_listing.labels == label).nonzero().flatten()
            require(len(members) > 0, f"callbacks.grids: class '{self.classes[label]}' has no validation image.")
            pick = int(members[torch.randint(len(members), (1,), generator=generator)])
            images.append(self._datasets["val"][pick][0])
        return torch.stack(images), torch.tensor(labels)

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """The same validation images every time, spread evenly over the classes.

        Args:
            count: How many; all where there are no more.
            seed: Picks the images of each class.

        Returns:
            Images [count, 3, size, size] as the network takes them, labels [count]; the classes take turns, so that
            the first images of a sample are as evenly spread.
        """
        self.setup("validate")
        labels = self.val_listing.labels
        shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        turn = torch.zeros_like(labels)
        for c in range(len(self.classes)):
            mine = labels[shuffled] == c
            turn[mine] = torch.arange(int(mine.sum()))
        order = shuffled[(turn * len(self.classes) + labels[shuffled]).argsort()][:count]
        return torch.stack([self._datasets["val"][int(i)][0] for i in order]), labels[order]

    def class_means(self, most: int = 1024) -> Tensor | None:
        """Mean validation image of each class [classes, 3, size, size] as the network takes them.

        Args:
            most: Images that are read in all; None is returned where that leaves fewer than ten for a class.
        """
        share = most // len(self.classes)
        if share < 10:
            return None
        images, labels = self.sample(share * len(self.classes), seed=0)
        return torch.stack([images[labels == c].mean(0) for c in range(len(self.classes))])

    def denormalize(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] from images [B, 3, H, W] as the network takes them."""
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x * std + mean).clamp(0, 1)

    def _stored_size(self, split: str) -> int:
        crops = split == "train" and tuple(self.options.get("augment", {}).get("crop_scale", (1, 1))) != (1, 1)
        return round(self.size * MARGIN) if crops else self.size

    @property
    def cached(self) -> bool:
        """Whether decoded images are kept in memory."""
        choice = self.options.get("cache", "auto")
        if isinstance(self.val_listing.items, Tensor):
            return True
        total = sum(len(listing) * 3 * self._stored_size(split) ** 2 for split, listing in self.listings.items())
        return total <= CACHE_LIMIT if choice == "auto" else bool(choice)

    def _dataset(self, split: str) -> Dataset[tuple[Tensor, int]]:
        listing = self.listings[split]
        if self.cached:
            images = decode(listing, self._stored_size(split))
            return ImagesInMemory(images, listing.labels, self._transform(split))
        assert not isinstance(listing.items, Tensor)
        if len(listing) <= VERIFY_LIMIT:
            verify(listing.items)
        return ImageFiles(listing.items, listing.labels, self._transform(split))

    def _transform(self, split: str) -> Transform:
        augment = self.options.get("augment", {})
        steps: list[Any] = []
        if split == "train" and tuple(augment.get("crop_scale", (1, 1))) != (1, 1):
            steps.append(v2.RandomResizedCrop(self.size, scale=tuple(augment["crop_scale"]), antialias=True))
        else:
            steps += [v2.Resize(self.size, antialias=True), v2.CenterCrop(self.size)]
        if split == "train" and augment.get("flip"):
            steps.append(v2.RandomHorizontalFlip())
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        transform: Transform = v2.Compose(steps)
        return transform

    def _loader(self, split: str, shuffle: bool) -> DataLoader[tuple[Tensor, int]]:
        workers = self.options.get("num_workers")
        if workers is None:
            workers = 0 if self.cached else min(8, os.cpu_count() or 1)
        processes = self.trainer.world_size if self.trainer else 1
        return DataLoader(
            self._datasets[split],
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=shuffle and len(self.listings[split]) // processes >= self.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
