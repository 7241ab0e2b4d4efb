"""Augmentation of whole batches, on the device that trains: random resized crops and flips.

What is drawn depends on the run's seed, the epoch and the batch alone: not on the number of processes or workers, nor
on what else draws random numbers. A run that is resumed, or split over two processes, sees the same images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TRIES = 10
"""Boxes drawn for each image; the first that lies within the image counts, as in torchvision."""

RATIO = (3 / 4, 4 / 3)
"""Aspect ratios of crops, torchvision's default."""

COLUMNS = 2 * TRIES + 3
"""Uniform numbers for each image: area and aspect of each try, top, left, flip."""


def seed_of(*parts: int) -> int:
    """A 63-bit seed of several whole numbers >= 0, such as run, epoch and batch; other numbers give unrelated seeds."""
    # NumPy takes a list of 32-bit words for the same one with zeros behind it.
    words = [len(parts), *(word for part in parts for word in (part & 0xFFFFFFFF, part >> 32))]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw(count: int, *seed: int) -> Tensor:
    """Uniform numbers [count, COLUMNS] in [0, 1), float64, a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed_of(*seed))
    return torch.rand(count, COLUMNS, dtype=torch.float64, generator=generator)


def boxes(u: Tensor, height: int, width: int, scale: Sequence[float]) -> Tensor:
    """Crops as torchvision's RandomResizedCrop draws them.

    Args:
        u: [N, COLUMNS] uniform numbers.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        scale: Least and greatest share of the area.

    Returns:
        [N, 4] whole numbers: top, left, height, width.
    """
    low, high = scale
    area = height * width * (low + (high - low) * u[:, :TRIES])
    aspect = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * u[:, TRIES : 2 * TRIES])
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    none = ~fits.any(1)
    whole_h, whole_w = _central(height, width)
    h = h.gather(1, first).squeeze(1).masked_fill(none, whole_h)
    w = w.gather(1, first).squeeze(1).masked_fill(none, whole_w)
    top, left = (u[:, 2 * TRIES] * (height - h + 1)).floor(), (u[:, 2 * TRIES + 1] * (width - w + 1)).floor()
    top = top.masked_fill(none, (height - whole_h) // 2)
    left = left.masked_fill(none, (width - whole_w) // 2)
    return torch.stack([top, left, h, w], 1).long()


def _central(height: int, width: int) -> tuple[int, int]:
    """The largest crop of an allowed aspect."""
    if width / height < RATIO[0]:
        return round(width / RATIO[0]), width
    if width / height > RATIO[1]:
        return height, round(height * RATIO[1])
    return height, width


def flips(u: Tensor) -> Tensor:
    """[N] bool: which images are mirrored."""
    return u[:, -1] < 0.5


def crop(images: Tensor, box: Tensor, size: int) -> Tensor:
    """Cuts a box out of each image and resizes it, bilinear and antialiased.

    A resize is linear in the pixels, row by row and column by column, so it is two small matrix products for an image.

    Args:
        images: [N, C, H, W], any type.
        box: [N, 4] top, left, height, width.
        size: Height and width of the result.

    Returns:
        float32 [N, C, size, size] in the values of `images`.
    """
    n, channels, height, width = images.shape
    box = box.to(images.device, torch.float32)
    rows = _weights(box[:, 0], box[:, 2], height, size)
    columns = _weights(box[:, 1], box[:, 3], width, size)
    flat = images.permute(0, 2, 1, 3).float().reshape(n, height, channels * width)
    half = (rows @ flat).view(n, size * channels, width)
    return (half @ columns.transpose(1, 2)).view(n, size, channels, size).transpose(1, 2)


def _weights(start: Tensor, length: Tensor, total: int, size: int) -> Tensor:
    """Triangle filter [N, size, total] from pixels to the samples of `size` equal parts of each span."""
    step = (length / size)[:, None, None]
    centre = start[:, None, None] + (torch.arange(size, device=start.device) + 0.5)[None, :, None] * step
    pixel = torch.arange(total, device=start.device)[None, None] + 0.5
    inside = (pixel > start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weight = (1 - (pixel - centre).abs() / step.clamp_min(1)).clamp_min(0) * inside
    return weight / weight.sum(2, keepdim=True)
