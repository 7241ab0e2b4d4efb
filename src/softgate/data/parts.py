"""What of a data set is trained on, validated and tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from softgate.classes import Classes, match
from softgate.classes.matching import INDEX
from softgate.data import store
from softgate.data.config import DataConfig, NamedData, TargetData
from softgate.data.images import Listing
from softgate.data.own_sets import OwnSets
from softgate.data.sources import Where, source
from softgate.data.splitting import pick, stratified, validation_cut, with_label_noise
from softgate.errors import SoftgateError

Official = Callable[[str], Listing]
"""The images that a data set itself calls "train", "val" or "test"."""


def official(config: DataConfig) -> tuple[int, int, Official]:
    """The size of a data set's images, its batch size, and its own splits.

    Raises:
        SoftgateError: For a target that fails or gives something else.
    """
    if isinstance(config, TargetData):
        own = OwnSets(config)
        return own.size, own.batch_size, own.listing
    assert isinstance(config, NamedData)
    where, found = Where(config.folder, config.archive, config.download, store.folder(config.cache_dir)), config.name
    return config.size, config.batch_size, lambda split: source(found)(where, split)


def listings(
    config: DataConfig, splits: Sequence[str], measured: bool = False, read: Official | None = None
) -> dict[str, Listing]:
    """What is trained on, validated and tested.

    With `data.val_split`, "val" is cut off the official training images and "test" is the official validation set.

    Args:
        config: The options of `data=`.
        splits: Some of "train", "val" and "test".
        measured: Whether "val" is to be what `data.test` names.
        read: The data set's own splits; None finds them.

    Raises:
        SoftgateError: For data that is missing or incomplete, or has no such split or class.
    """
    read = read or official(config)[2]
    known: dict[str, Listing] = {}

    def whole(split: str) -> Listing:
        if split not in known:
            found = read(split)
            known[split] = found if config.classes is None else pick(found, config.classes)
        return known[split]

    def part(split: str) -> Listing:
        if config.val_split is None:
            return whole(split)
        if split == "test":
            return whole("val")
        return validation_cut(whole("train"), float(config.val_split), config.val_seed)[split == "val"]

    found = {split: part(config.measured if measured and split == "val" else split) for split in splits}
    if config.fraction < 1 and "train" in found:
        chosen = stratified(found["train"].labels, config.fraction, config.fraction_seed)
        found["train"] = found["train"].subset(chosen)
    found = alike(found, config.option)
    if config.label_noise > 0 and "train" in found:
        found["train"] = with_label_noise(found["train"], config.label_noise, config.label_noise_seed)
    return found


def alike(found: dict[str, Listing], option: str) -> dict[str, Listing]:
    """Splits whose classes have the same numbers: those of the first, such as where one has WordNet ids for folders.

    Raises:
        SoftgateError: If they do not have the same classes.
    """
    one, *others = found
    first = Classes.of(found[one].classes, found[one].folders)
    for split in others:
        listing = found[split]
        mine = Classes.of(listing.classes, listing.folders)
        if mine.names == first.names:
            continue
        try:
            same = match(mine, first, option)
        except SoftgateError:
            same = None
        if same is None or not same.whole or same.by == INDEX:  # what a number means between splits, nobody has said
            odd = sorted(set(first.names) ^ set(mine.names)) or [mine.names[0]]
            raise SoftgateError(f"{option}: {one} and {split} have different classes, such as '{odd[0]}'.")
        labels = torch.tensor(same.indexes)[listing.labels]
        found[split] = replace(listing, labels=labels, classes=found[one].classes, folders=found[one].folders)
    return found
