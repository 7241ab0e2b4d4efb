"""Data sets that torchvision reads, by its names: `data=torchvision data.name=Flowers102`.

torchvision finds and checks the files; images are then decoded here, as those of every other source are.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from softgate.data.images import Listing
from softgate.data.names import BY_TRAIN, PUBLISHED
from softgate.data.places import published_folder
from softgate.data.splitting import held_out
from softgate.errors import SoftgateError, require


def read(name: str, root: Path, split: str, download: bool) -> Listing:
    """A split of a data set of torchvision.

    Args:
        name: One of `PUBLISHED`, or another class of torchvision.datasets with an argument `train`.
        root: Where torchvision looks for it.
        split: "train", "val" or "test".
        download: Have torchvision fetch it.

    Raises:
        SoftgateError: If it is not there, or there is no such split.
    """
    splits = PUBLISHED.get(name, BY_TRAIN)
    require(not splits or split in splits, f"data.test={split}: {name} has only the splits {', '.join(splits)}.")
    require(bool(splits) or split != "test", f"data.test=test: {name} has no splits.")
    if not download:
        published_folder(root, name)
    kind = getattr(torchvision.datasets, name)
    fetch = {"download": download} if "download" in inspect.signature(kind).parameters else {}
    try:
        data = kind(root, **splits.get(split, {}), **fetch)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise SoftgateError(
            f"data.root={root}: {name} is not there or not complete (torchvision: {reason}); set data.root to the "
            f"folder that holds it, or data.download=true."
        ) from None
    items, labels = _items(name, data, split)
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    names = [str(each) for each in names] if names else [str(c) for c in range(int(labels.max()) + 1)]
    listing = Listing(items, labels, names)
    return listing if splits else held_out(listing, split)


def _items(name: str, data: Any, split: str) -> tuple[Sequence[Path] | Tensor, Tensor]:
    """The files or the images, and the labels."""
    if name.startswith("Caltech"):
        return [_caltech(name, data, index) for index in range(len(data))], torch.as_tensor(data.y)
    pairs = next((getattr(data, key) for key in ("_samples", "samples") if hasattr(data, key)), None)
    if pairs is not None and isinstance(pairs[0][0], (str, Path)):
        pairs = sorted((Path(path), int(label)) for path, label in pairs)
        return [path for path, _ in pairs], torch.tensor([label for _, label in pairs])
    labels = next((getattr(data, key) for key in ("_labels", "targets", "labels") if hasattr(data, key)), None)
    files = next((getattr(data, key) for key in ("_image_files", "_images") if hasattr(data, key)), None)
    if files is not None and labels is not None:
        pairs = sorted(zip(map(Path, files), map(int, labels), strict=True))
        return [path for path, _ in pairs], torch.tensor([label for _, label in pairs])
    pixels = getattr(data, "data", None)
    if isinstance(pixels, (np.ndarray, Tensor)) and labels is not None:
        return _planes(name, torch.as_tensor(pixels)), torch.as_tensor(np.asarray(labels)).long()
    every = [data[index] for index in range(len(data))]  # whatever else: torchvision's own images, where all are alike
    known = all(label is not None for _, label in every)
    require(known, f"data.name={name}: its {split} images have no classes.")
    images = [np.asarray(image) for image, _ in every]
    alike = len({image.shape for image in images}) == 1
    require(
        alike, f"data.name={name}: its images are of many sizes and not in files; put them into folders: data=folder."
    )
    return _planes(name, torch.from_numpy(np.stack(images))), torch.tensor([int(label) for _, label in every])


def _planes(name: str, pixels: Tensor) -> Tensor:
    """uint8 [N, C, H, W] of grey or colour images, channels first or last."""
    require(pixels.dtype == torch.uint8, f"data.name={name}: its images are {pixels.dtype}; 8 bits are needed.")
    if pixels.dim() == 3:
        return pixels[:, None].contiguous()
    return pixels.contiguous() if pixels.shape[1] in (1, 3) else pixels.permute(0, 3, 1, 2).contiguous()


def _caltech(name: str, data: Any, index: int) -> Path:
    label, number = data.y[index], data.index[index]
    if name == "Caltech101":
        return Path(data.root, "101_ObjectCategories", data.categories[label], f"image_{number:04d}.jpg")
    return Path(data.root, "256_ObjectCategories", data.categories[label], f"{label + 1:03d}_{number:04d}.jpg")
