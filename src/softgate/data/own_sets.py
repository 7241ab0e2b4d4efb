"""Data sets of a `_target_`: what a function or a LightningDataModule gives, as listings like those of any other."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset, default_collate

from softgate import targets
from softgate.data.config import TargetData
from softgate.data.images import Listing
from softgate.data.own_images import OwnImages
from softgate.errors import SoftgateError, require

SPLITS = ("train", "val", "test")

SMALLEST = 8
"""Pixels a side; as `data.size`."""


class OwnSets:
    """The data sets that a target gives.

    Args:
        config: The options of `data=`.

    Attributes:
        size: Height and width of the images, as `data.size` or the first image says.
        batch_size: As `data.batch_size` or the LightningDataModule's loader says.

    Raises:
        SoftgateError: If the target is not trusted or fails, or gives something that is no data set of images.
    """

    def __init__(self, config: TargetData) -> None:
        self.config, self.option = config, config.option
        targets.check_trusted(config.plain_target, "data")
        made = targets.make(config.plain_target, "data", None, **config.filled)
        loaded = None
        if isinstance(made, pl.LightningDataModule):
            made, loaded = self._of_module(made)
        self.batch_size: int = config.batch_size or loaded or 64
        self.sets = self._by_name(made)
        labels = {split: self._labels(split, each) for split, each in self.sets.items()}
        self.classes = self._classes(labels)
        first = self._images("train", labels["train"]).image(0, config.channels)
        height, width = first.height, first.width
        alike = config.size is None
        if alike:
            fits = height == width and height >= SMALLEST
            said = f"{self.option}: its first image is {height} x {width} px"
            require(fits, f"{said}; set data.size, {SMALLEST} or more, to which images are resized and cropped.")
        self.size: int = config.size or height
        self.listings = {
            split: Listing(self._images(split, labels[split], (height, width) if alike else None), each, self.classes)
            for split, each in labels.items()
        }

    def listing(self, split: str) -> Listing:
        """The images of a split.

        Raises:
            SoftgateError: If there is none of that name.
        """
        named = f"{split} images" if split != "val" else "validation images"
        require(split in self.listings, f"{self.option} gives no {named}, only {', '.join(self.listings)}.")
        return self.listings[split]

    def _images(self, split: str, labels: Tensor, size: tuple[int, int] | None = None) -> OwnImages:
        config = self.config
        shift = config.per_channel(config.mean) if config.normalized else None
        factor = config.per_channel(config.std) if config.normalized else ()
        return OwnImages(self.sets[split], labels, torch.arange(len(labels)), self.option, split, size, shift, factor)

    def _by_name(self, made: Any) -> dict[str, Any]:
        if isinstance(made, (tuple, list)):
            made = dict(zip(SPLITS, made, strict=False)) if len(made) in (2, 3) else made
        fits = isinstance(made, Mapping) and {"train", "val"} <= set(made) <= set(SPLITS)
        needed = "data sets for training and validation, and perhaps testing, are needed"
        require(fits, f"{self.option}: it returned {_said(made)}; {needed}, as a tuple or by train, val and test.")
        for split, each in made.items():
            sized = hasattr(each, "__len__") and hasattr(each, "__getitem__")
            fits = sized and not isinstance(each, (str, Mapping, IterableDataset))
            require(fits, f"{self.option}: its {split} part is {type(each).__name__}; a Dataset with len() is needed.")
            require(len(each) > 0, f"{self.option}: its {split} part is empty.")
        return {split: made[split] for split in SPLITS if split in made}

    def _of_module(self, module: pl.LightningDataModule) -> tuple[dict[str, Any], int | None]:
        """The data sets behind a module's loaders, and the batch size of its training."""
        for hook in ("on_before_batch_transfer", "on_after_batch_transfer", "transfer_batch_to_device"):
            own = getattr(type(module), hook) is not getattr(pl.LightningDataModule, hook)
            require(not own, f"{self.option}: its {hook} would not be called; do that in the data set or the network.")
        name = hashlib.blake2b(repr(self.config.plain_target).encode(), digest_size=8).hexdigest()
        loaders: dict[str, Any] = {}
        try:
            with FileLock(Path(tempfile.gettempdir(), f"softgate-{name}.lock")):  # one of several processes downloads
                module.prepare_data()
            module.setup("fit")
            loaders["train"], loaders["val"] = module.train_dataloader(), module.val_dataloader()
            if type(module).test_dataloader is not pl.LightningDataModule.test_dataloader:
                module.setup("test")
                loaders["test"] = module.test_dataloader()
        except SoftgateError:
            raise
        except Exception as error:
            raise SoftgateError(f"{self.option}: {targets.reason(error)}.") from error
        for split, loader in loaders.items():
            self._check_loader(split, loader)
        return {split: loader.dataset for split, loader in loaders.items()}, loaders["train"].batch_size

    def _check_loader(self, split: str, loader: Any) -> None:
        said = f"{self.option}: its {split} loader"
        require(isinstance(loader, DataLoader), f"{said} is {type(loader).__name__}; one torch DataLoader is needed.")
        iterable = isinstance(loader.dataset, IterableDataset)
        require(not iterable, f"{said} reads an IterableDataset, whose batches no resumed run can take up again.")
        plain = type(loader.sampler) in (RandomSampler, SequentialSampler)
        plain = plain and loader.batch_size is not None and not getattr(loader.sampler, "replacement", False)
        hint = "softgate draws batches itself, so that a resumed run sees the same ones"
        require(plain, f"{said} has a sampler of its own, which would not be used; {hint}.")
        require(loader.collate_fn is default_collate, f"{said} has a collate_fn of its own, which would not be used.")

    def _labels(self, split: str, dataset: Any) -> Tensor:
        """The label of every item: as the data set says, or read item by item."""
        known = known_labels(dataset)
        if known is None:
            every = OwnImages(dataset, torch.empty(0), torch.empty(0), self.option, split)
            known = torch.tensor([every.item(number)[1] for number in range(len(dataset))])
        return known

    def _classes(self, labels: Mapping[str, Tensor]) -> list[str]:
        named = next((names for names in map(class_names, self.sets.values()) if names is not None), None)
        greatest = max(int(each.max()) for each in labels.values())
        names = named if named is not None else [str(number) for number in range(greatest + 1)]
        for split, each in labels.items():
            beyond = ((each < 0) | (each >= len(names))).nonzero().flatten()
            if len(beyond):
                number, last = int(beyond[0]), len(names) - 1
                said = f"{self.option}: item {number} of {split} has the label {int(each[number])}"
                raise SoftgateError(f"{said}; there are {len(names)} classes, so 0 to {last} are needed.")
        return names


def known_labels(dataset: Any) -> Tensor | None:
    """The labels that a data set knows without reading images, as torchvision's do; None where it does not say.

    A function that changes labels as they are read would make them wrong.
    """
    if isinstance(dataset, Subset):
        inner = known_labels(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(list(dataset.indices), dtype=torch.long)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels", "_labels"):
        found = getattr(dataset, name, None)
        if isinstance(found, (Tensor, np.ndarray, list, tuple)) and len(found) == len(dataset):
            try:
                labels = torch.as_tensor(np.asarray(found))
            except (TypeError, ValueError):
                continue
            if labels.dim() == 1 and not labels.is_floating_point() and labels.dtype != torch.bool:
                return labels.long()
    return None


def class_names(dataset: Any) -> list[str] | None:
    """The names of a data set's classes, where it has them."""
    if isinstance(dataset, Subset):
        return class_names(dataset.dataset)
    found = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    return [str(each) for each in found] if isinstance(found, (list, tuple)) and found else None


def _said(made: Any) -> str:
    if isinstance(made, Mapping):
        return f"a dict of {', '.join(map(str, made))}"
    return f"{len(made)} of them" if isinstance(made, (tuple, list)) else type(made).__name__
