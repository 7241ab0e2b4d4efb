"""Adversarial images: projected gradient ascent on a loss, within a ball around each image (arXiv 1706.06083).

Radii are in pixels of [0, 1], and images stay in that range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softgate.errors import require, unknown

NORMS = ("linf", "l2")

RELATIVE_STEP = 2.5
"""All steps together go so many radii far, as in the source."""

CIFAR_PIXELS = 3 * 32 * 32
"""Numbers in the images that L2 radii are given for; scaled by the square root to other sizes."""


@dataclass(frozen=True)
class Ball:
    """What an image may become: all images of at most a distance.

    Args:
        norm: Of the distance, "linf" or "l2".
        radius: In pixels of [0, 1].

    Raises:
        SoftgateError: For another norm, or a radius that is not > 0.
    """

    norm: str
    radius: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown("attack norm", self.norm, NORMS)
        require(self.radius > 0, f"attack radius={self.radius}: a number > 0 is needed.")

    def project(self, now: Tensor, origin: Tensor) -> Tensor:
        """The nearest images within the ball around `origin`, both [B, C, H, W], then within [0, 1]."""
        if self.norm == "linf":
            kept = torch.minimum(torch.maximum(now, origin - self.radius), origin + self.radius)
        else:
            away = now - origin
            kept = origin + away * (self.radius / norms(away).clamp_min(1e-12)).clamp(max=1)
        return kept.clamp(0, 1)

    def start(self, origin: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
        """Somewhere in the ball.

        Args:
            origin: [B, C, H, W].
            noise: Of its shape: uniform in [-1, 1] for "linf"; normal for "l2", where only its direction counts.
            shares: [B, 1, 1, 1] in [0, 1]: how far to go there, in radii; of "l2" only.
        """
        if self.norm == "linf":
            return self.project(origin + self.radius * noise, origin)
        return self.project(origin + self.radius * shares * noise / norms(noise), origin)

    def climb(self, loss: Callable[[Tensor], Tensor], origin: Tensor, start: Tensor, steps: int) -> Tensor:
        """Ascends a loss from `start`, by `steps` steps of 2.5 radius / steps each.

        Args:
            loss: A sum over images of pixels, [B, C, H, W].
            origin: The middles of the balls, of that shape.
            start: Likewise.
            steps: >= 1.

        Returns:
            Images in [0, 1], without a graph.
        """
        step, now = RELATIVE_STEP * self.radius / steps, start
        for _ in range(steps):
            now = now.detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss(now), now)
            ahead = slope.sign() if self.norm == "linf" else slope / norms(slope).clamp_min(1e-12)
            now = self.project(now.detach() + step * ahead, origin)
        return now


def scaled_l2(radius: float, size: int, channels: int = 3) -> float:
    """An L2 radius given for images of 3 x 32 x 32, for images of another size: the same change of each pixel."""
    return radius * math.sqrt(channels * size * size / CIFAR_PIXELS)


def in_pixels(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Pixels in [0, 1] of images as the network takes them, and the way back."""
    centre, spread = (torch.tensor(list(v), dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (mean, std))
    return (x * spread + centre).clamp(0, 1), lambda image: (image - centre) / spread


def norms(x: Tensor) -> Tensor:
    """The L2 norm of each image, [B, 1, 1, 1]."""
    found: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return found.view(-1, 1, 1, 1)
