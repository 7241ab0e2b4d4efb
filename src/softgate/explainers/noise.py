"""Random draws that are the same for each image whatever the batch it comes in."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def generators(x: Tensor, seed: int) -> list[torch.Generator]:
    """One random generator per image, seeded by its pixels and `seed`.

    So an image meets the same noise in every epoch, whatever batch or process it is in.
    """
    pixels = x.detach().to("cpu", torch.float32).contiguous().numpy()
    return [torch.Generator().manual_seed(zlib.crc32(image.tobytes(), seed)) for image in pixels]


def draws(x: Tensor, count: int, seed: int, kind: str = "normal") -> Tensor:
    """Noise [count, B, C, H, W] for images [B, C, H, W]: "normal" N(0, 1), or "uniform" in [-1, 1]."""
    shape = (count, *x.shape[1:])
    made = []
    for generator in generators(x, seed):
        one = torch.randn(shape, generator=generator) if kind == "normal" else torch.rand(shape, generator=generator)
        made.append(one if kind == "normal" else 2 * one - 1)
    return torch.stack(made, 1).to(x)
