"""The images that a network is probed with while it trains: the same ones every time, of every class."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate.data import ImageData


def spread(data: ImageData, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Validation images of all classes alike, or of `count` classes where there are more.

    Args:
        data: Where they come from.
        count: How many.
        seed: Picks them; an image of a small class may come twice.

    Returns:
        Images [count, C, size, size] as the network takes them, labels [count].
    """
    classes = min(count, len(data.classes))
    rounds = [data.probe(classes, seed + i) for i in range(-(-count // classes))]
    images, labels = (torch.cat(parts)[:count] for parts in zip(*rounds, strict=True))
    return images, labels
