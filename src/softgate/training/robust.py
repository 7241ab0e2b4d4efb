r"""What training does to images and loss so that input gradients align by other means than a backward rule.

Adversarial training (arXiv 1706.06083): each step's images are first moved to where the loss is highest within a ball.
The gradient penalty (arXiv 1711.09404, 2305.19101): :math:`\mu\, E\, \|\partial \ell / \partial x\|_2^2`
is added to the loss. Noise (randomized smoothing, arXiv 1902.02918): :math:`x + \sigma \epsilon`. All three
in pixels of [0, 1], with every backward rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.explainers.adversarial import Ball, in_pixels, scaled_l2
from softgate.sites.inference import reading_out
from softgate.sites.sites import Sites
from softgate.training.robust_config import RobustConfig


class Robust:
    """Does it, step by step.

    Args:
        options: Those of `train.`, read or as plain data.
        mean: What is subtracted from pixels in [0, 1], per channel.
        std: What they are divided by then.
        size: Of the images, in pixels.
    """

    def __init__(
        self, options: RobustConfig | Mapping[str, Any], mean: Sequence[float], std: Sequence[float], size: int
    ) -> None:
        self.options = options if isinstance(options, RobustConfig) else RobustConfig.read(options)
        self.mean, self.std = list(mean), list(std)
        asked, self.ball = self.options.adversarial, None
        if asked.radius:
            radius = asked.radius if asked.norm == "linf" else scaled_l2(asked.radius, size, len(self.std))
            self.ball = Ball(asked.norm, radius)

    def images(self, x: Tensor, labels: Tensor, net: nn.Module, sites: Sites) -> Tensor:
        """The images that a step trains on.

        Args:
            x: [B, C, H, W] as the network takes them.
            labels: [B] classes, or [B, classes] shares of them.
            net: The network, in whatever mode; it is attacked in eval mode.
            sites: Its sites, for the rule of this moment.

        Returns:
            Of the shape of `x`. Noise may lead out of the range of pixels, as in the source; an attack does not.
        """
        if self.options.noise:
            x = x + self.options.noise * torch.randn_like(x) / self._spread(x)
        return x if self.ball is None or not len(x) else self._attacked(x, labels, net, sites, self.ball)

    def _attacked(self, x: Tensor, labels: Tensor, net: nn.Module, sites: Sites, ball: Ball) -> Tensor:
        pixels, normalize = in_pixels(x, self.mean, self.std)
        noise = 2 * torch.rand_like(pixels) - 1 if ball.norm == "linf" else torch.randn_like(pixels)
        shares = torch.rand(len(pixels), 1, 1, 1, dtype=pixels.dtype, device=pixels.device)
        with reading_out(net, sites.rule if self.options.adversarial.rule == "training" else None) as copy:

            def loss(now: Tensor) -> Tensor:
                out: Any = copy.model(normalize(now))
                return F.cross_entropy(getattr(out, "logits", out).float(), labels, reduction="sum")

            found = ball.climb(loss, pixels, ball.start(pixels, noise, shares), self.options.adversarial.steps)
        return normalize(found)

    def penalty(self, loss: Tensor, x: Tensor) -> Tensor:
        """The mean over images of the squared L2 norm of their loss's gradient, in pixels; differentiable.

        Args:
            loss: The mean loss of `x`, with its graph. Under BatchNorm in train mode one image's part in it reads the
                others.
            x: [B, C, H, W], a leaf of that graph.
        """
        (slope,) = torch.autograd.grad(loss * len(x), x, create_graph=True)
        return (slope / self._spread(x)).flatten(1).square().sum(1).mean()

    def _spread(self, x: Tensor) -> Tensor:
        return torch.tensor(self.std, dtype=x.dtype, device=x.device).view(-1, 1, 1)
