"""The data sets by their names, for options to be checked by: nothing of what reads them is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMED = ("digits", "mnist", "cifar10", "cifar100", "imagenette", "imagewoof", "imagenet", "folder")
"""Those of `sources.SOURCES`."""

ARCHIVES = {
    name: {"160px": f"{name}2-160", "320px": f"{name}2-320", "full": f"{name}2"} for name in ("imagenette", "imagewoof")
}
"""The official archives of a data set by their names in `data.archive`, and the folders that they make."""

Arguments = Mapping[str, Any]

BY_TRAIN: Mapping[str, Arguments] = {"train": {"train": True}, "val": {"train": False}}
_IN_TWO: Mapping[str, Arguments] = {"train": {"split": "train"}, "val": {"split": "test"}}
_IN_THREE: Mapping[str, Arguments] = {**_IN_TWO, "val": {"split": "val"}, "test": {"split": "test"}}
_WHOLE: Mapping[str, Arguments] = {}

PUBLISHED: Mapping[str, Mapping[str, Arguments]] = {
    **dict.fromkeys(("FashionMNIST", "KMNIST", "USPS"), BY_TRAIN),
    **dict.fromkeys(("FER2013", "Food101", "GTSRB", "STL10", "SVHN", "StanfordCars"), _IN_TWO),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "RenderedSST2"), _IN_THREE),
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SUN397"), _WHOLE),
    "Country211": {**_IN_THREE, "val": {"split": "valid"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "val": {"split": "test"}},
}
"""torchvision's data sets for classification, and the arguments that make each split.

Where there is no test set of its own, the official test images are what is validated, unless `data.val_split` cuts
validation images off the training images. Of a set without splits a fixed fifth of every class is for validation.
"""

WITH_TEST = ("imagenet", "folder", *(name for name, splits in PUBLISHED.items() if "test" in splits))
"""Data sets that may have test images beside those for validation."""
