"""The data module: from the options of `data=` to loaders, class names and fixed probe images."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from softgate.classes import Classes
from softgate.data import reading, store
from softgate.data.config import DataConfig, NamedData
from softgate.data.images import ImageFiles, ImagesInMemory, Listing, Notes, decode, verify
from softgate.data.loader import Finish, ImageLoader, Process, Share
from softgate.data.parts import listings, official
from softgate.errors import SoftgateWarning, require

CACHE_LIMIT = 2 * 2**30
"""Bytes up to which `data.cache=auto` keeps decoded images in memory."""

VERIFY_LIMIT = 50_000
"""Up to so many files are read once before training; a broken one among more shows when its turn comes."""

MARGIN = 1.25
"""Cached training images are larger than the net's by this factor, so that random crops have something to crop."""


class ImageData(pl.LightningDataModule):
    """Training and validation images of one data set.

    Args:
        options: Those of `data=`, read or as plain data, such as a checkpoint keeps them.
        splits: Which splits to list; ("val",) is enough to evaluate.
        seed: Of the order and the augmentation of the training images.
        measured: Whether the validation images are those that `data.test` names, as an evaluation has them.

    Attributes:
        classes: Names of the classes, known after construction.
        identity: All that the classes are called, to find them among a network's or another data set's.

    Raises:
        SoftgateError: On construction, for options out of range and data that is missing or incomplete; in
            `setup`, for an image that cannot be read.
    """

    def __init__(
        self,
        options: DataConfig | Mapping[str, Any],
        splits: Sequence[str] = ("train", "val"),
        seed: int = 0,
        measured: bool = False,
    ) -> None:
        super().__init__()
        self.config = config = DataConfig.read(options)
        self.options, self.seed, option = config.plain, seed, config.option
        self.save_hyperparameters({"options": self.options})  # a checkpoint then says what it was trained on
        self.size, self.batch_size, read = official(config)
        self.listings: dict[str, Listing] = listings(config, splits, measured, read)
        first = next(iter(self.listings.values()))
        self.classes: list[str] = first.classes
        one = f"{option}: there is only the class '{self.classes[0]}'; at least 2 are needed."
        require(len(self.classes) > 1, one)
        self.identity = Classes.of(self.classes, first.folders)
        say_left_out(option, *self.listings.values())
        self._datasets: dict[str, ImagesInMemory | ImageFiles] = {}

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
        return self.config.per_channel(self.config.mean)

    @property
    def std(self) -> list[float]:
        """What pixels are then divided by, per channel."""
        return self.config.per_channel(self.config.std)

    def setup(self, stage: str | None = None) -> None:
        """Decodes what is kept in memory; once, however often it is called.

        Raises:
            Unreadable: For all images that cannot be read, of all splits.
        """
        wanted = ("train", "val") if stage in (None, "fit") else ("val",)
        broken: list[tuple[Path, str]] = []
        noted: Notes = {}
        for split in wanted:
            if split not in self._datasets:
                try:
                    self._datasets[split] = self._dataset(split, noted)
                except reading.Unreadable as error:
                    broken += error.broken
        if broken:
            raise reading.Unreadable(broken)
        for note, paths in noted.items():
            warnings.warn(reading.warning(note, paths), SoftgateWarning, stacklevel=2)

    def train_dataloader(self) -> ImageLoader:
        """Shuffled, augmented training batches: images [B, C, size, size], labels [B], on the device of training."""
        return self._loader("train", seed=self.seed)

    def val_dataloader(self) -> ImageLoader:
        """Validation batches in a fixed order; over all processes every image exactly once."""
        return self._loader("val")

    def probe(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """The same validation images every time: one of each of `count` classes, as far apart as they go.

        With ten classes and count 5 these are the classes 0, 2, 4, 6, 8 of the paper's grids.

        Args:
            count: How many classes, at most as many as there are.
            seed: Picks the image of each class.

        Returns:
            Images [count, C, size, size] as the network takes them, labels [count].

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
            images.append(pick)
        return self._validated(images), torch.tensor(labels)

    def nth(self, label: int, number: int) -> Tensor:
        """One validation image, by its class and its place among the images of that class.

        Args:
            label: The class.
            number: From 0, in the order of the data set.

        Returns:
            [1, C, size, size] as the network takes it.

        Raises:
            SoftgateError: If there is no such class, or it has no such image.
        """
        count = len(self.classes)
        require(0 <= label < count, f"class={label}: the data has the classes 0 to {count - 1}.")
        members = (self.val_listing.labels == label).nonzero().flatten()
        said = f"'{self.classes[label]}' has {len(members)} validation images, counted from 0"
        require(0 <= number < len(members), f"image={number}: class {said}.")
        self.setup("validate")
        return self._validated([int(members[number])])

    def sample(self, count: int, seed: int, split: Literal["val", "train"] = "val") -> tuple[Tensor, Tensor]:
        """The same images every time, spread evenly over the classes, as validation shows them.

        Args:
            count: How many; all where there are no more.
            seed: Picks the images of each class.
            split: Validation or training images.

        Returns:
            Images [count, C, size, size] as the network takes them, labels [count]; the classes take turns, so that
            the first images of a sample are as evenly spread.
        """
        if split == "train":
            parts = list(self.still(self.train_listing, count, seed))
            return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
        self.setup("validate")
        labels = self.val_listing.labels
        order = _spread(labels, len(self.classes), count, seed)
        return self._validated(order.tolist()), labels[order]

    def still(self, listing: Listing, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images of any listing as validation shows them, not augmented, spread evenly over the classes.

        Args:
            listing: Such as `train_listing`.
            count: How many; all where there are no more.
            seed: Picks the images of each class.

        Yields:
            Batches: images [B, C, size, size] as the network takes them, labels [B].
        """
        show = self._finish("val")
        for part in torch.split(_spread(listing.labels, len(self.classes), count, seed), self.batch_size):
            images, _ = decode(listing.subset(part), self.size, self.config.channels)
            yield show(images), listing.labels[part]

    def class_means(self, most: int = 1024) -> Tensor | None:
        """Mean validation image of each class [classes, C, size, size] as the network takes them.

        Args:
            most: Images that are read in all; None is returned where that leaves fewer than ten for a class.
        """
        share = most // len(self.classes)
        if share < 10:
            return None
        images, labels = self.sample(share * len(self.classes), seed=0)
        return torch.stack([images[labels == c].mean(0) for c in range(len(self.classes))])

    def _validated(self, indices: Sequence[int]) -> Tensor:
        return self._finish("val")(self._datasets["val"].take(indices))

    def denormalize(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] from images [B, C, H, W] as the network takes them."""
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x * std + mean).clamp(0, 1)

    def _crop_scale(self, split: str) -> tuple[float, float] | None:
        low, high = self.config.augment.crop_scale
        return None if split != "train" or (low, high) == (1, 1) else (low, high)

    def _stored_size(self, split: str) -> int:
        return round(self.size * MARGIN) if self._crop_scale(split) else self.size

    @property
    def cached(self) -> bool:
        """Whether decoded images are kept in memory."""
        if not isinstance(self.config, NamedData):
            return False  # what is drawn while somebody's data set reads an image would be drawn once for all
        choice = self.config.cache
        if isinstance(self.val_listing.items, Tensor):
            return True
        channels = self.config.channels
        total = sum(len(listing) * channels * self._stored_size(split) ** 2 for split, listing in self.listings.items())
        return total <= CACHE_LIMIT if choice == "auto" else bool(choice)

    def _dataset(self, split: str, noted: Notes) -> ImagesInMemory | ImageFiles:
        """Reads a split; adds to `noted` what a warning should say."""
        listing, channels = self.listings[split], self.config.channels
        made: ImagesInMemory | ImageFiles
        if self.cached:
            assert isinstance(self.config, NamedData)
            place = store.folder(self.config.cache_dir)
            images, notes = store.decoded(listing, self._stored_size(split), channels, place)
            made = ImagesInMemory(images)
        else:
            assert not isinstance(listing.items, Tensor)
            notes = verify(listing.items) if len(listing) <= VERIFY_LIMIT else {}
            made = ImageFiles(listing.items, self.size, self._crop_scale(split), channels)
        for note, paths in notes.items():
            noted.setdefault(note, []).extend(paths)
        return made

    def _finish(self, split: str) -> Finish:
        # Files are cropped by the workers: they are of many sizes, and a crop is less to hand over.
        scale = self._crop_scale(split) if self.cached else None
        flip = split == "train" and self.config.augment.flip
        return Finish(self.size, self.mean, self.std, scale, flip)

    def _loader(self, split: str, seed: int | None = None) -> ImageLoader:
        data = self._datasets[split]
        return ImageLoader(
            data.images if isinstance(data, ImagesInMemory) else data,
            self.listings[split].labels,
            self._finish(split),
            self.batch_size,
            seed=seed,
            process=self._process(),
            position=self._position if seed is not None else _beginning,
        )

    def _process(self) -> Process:
        workers, trainer = self.config.num_workers, self.trainer
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        if trainer is None:
            return Process(workers=workers)
        return Process(Share(trainer.global_rank, trainer.world_size), workers, trainer.strategy.root_device)

    def _position(self) -> tuple[int, int]:
        """The epoch of training and how many of its batches are done: where a resumed run goes on."""
        trainer: Any = self.trainer
        if trainer is None or not trainer.training or trainer.overfit_batches:  # overfitting takes the same ones always
            return _beginning()
        loop = trainer.fit_loop
        return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready


def say_left_out(option: str, *found: Listing) -> None:
    """Warns, in one line, of what lies among the images and is none.

    Args:
        option: What named the folder, and its value.
        found: Of all its splits.
    """
    each = {id(listing.left_out): listing.left_out for listing in found}  # two parts of one split share theirs
    left = sum(each.values(), Counter())
    if left:
        counts = ", ".join(f"{kind} ({count})" for kind, count in sorted(left.items()))
        warnings.warn(f"{option}: left out: {counts}.", SoftgateWarning, stacklevel=3)


def _beginning() -> tuple[int, int]:
    return 0, 0


def _spread(labels: Tensor, classes: int, count: int, seed: int) -> Tensor:
    """Indices of `count` items, the classes in turn, in a random order within each class."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    turn = torch.zeros_like(labels)
    for c in range(classes):
        mine = labels[shuffled] == c
        turn[mine] = torch.arange(int(mine.sum()))
    return shuffled[(turn * classes + labels[shuffled]).argsort()][:count]
