"""Adversarial accuracy: projected gradient descent within a ball around each image, under the true gradient.

Madry et al., arXiv 1706.06083. Radii are in pixels of [0, 1]. A network trained through soft gates is attacked through
its hard gates, as anybody would who has its weights: a surrogate gradient would only hide weaknesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import SoftgateError, require
from softgate.explainers.adversarial import Ball, in_pixels
from softgate.explainers.noise import draws, generators
from softgate.explainers.pullback import require_logits
from softgate.sites.inference import reading_out


@dataclass(frozen=True)
class PGD:
    """An attack.

    Args:
        norm: "linf" or "l2".
        radius: Of the ball, in pixels of [0, 1].
        steps: Of gradient ascent on the cross entropy, each of 2.5 radius / steps.
        restarts: Random starts within the ball; an image stands only if it withstands all of them.
        seed: Of the starts, which are drawn from each image's pixels.

    Raises:
        SoftgateError: For an option out of range.
    """

    norm: str
    radius: float
    steps: int = 20
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        Ball(self.norm, self.radius)
        fine = self.steps >= 1 and self.restarts >= 1
        require(fine, f"attack steps={self.steps}, restarts={self.restarts}: at least 1 of each is needed.")

    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Attacks images.

        Args:
            model: The network, attached to a rule or not; the true gradient is used.
            x: [B, C, H, W] as the network takes them.
            labels: [B].
            mean: What was subtracted from pixels in [0, 1], per channel.
            std: What they were divided by.

        Returns:
            [B] bool, whether each image is classified right still, and the images [B, C, H, W] that it was last
            attacked with, as the network takes them.
        """
        pixels, normalize = in_pixels(x, mean, std)
        found, standing = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
        with reading_out(model, None) as sites:
            model = sites.model
            for restart in range(self.restarts + 1):
                left = standing.nonzero().flatten()
                if len(left) == 0:
                    break
                origin, wanted = pixels[left], labels[left]
                # The images themselves come first: what is wrong already need not be attacked.
                changed = origin if restart == 0 else self._climb(model, origin, wanted, normalize, restart)
                found[left] = normalize(changed)
                with torch.no_grad():
                    standing[left] = _logits(model, found[left]).argmax(1) == wanted
        return standing, found

    def _climb(
        self, model: nn.Module, origin: Tensor, labels: Tensor, normalize: Callable[[Tensor], Tensor], restart: int
    ) -> Tensor:
        def loss(now: Tensor) -> Tensor:
            return F.cross_entropy(_logits(model, normalize(now)), labels, reduction="sum")

        ball, seed = Ball(self.norm, self.radius), self.seed + restart
        noise = draws(origin, 1, seed, "uniform" if self.norm == "linf" else "normal")[0]
        shares = torch.cat([torch.rand(1, generator=one) for one in generators(origin, seed + 1_000_003)])
        start = ball.start(origin, noise, shares.to(origin).view(-1, 1, 1, 1))
        return ball.climb(loss, origin, start, self.steps)


def auto_attack(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    like: PGD,
) -> Tensor:
    """AutoAttack's standard ensemble (arXiv 2003.01690), by the package torchattacks.

    Args:
        model: As for `PGD`.
        x: As for `PGD`.
        labels: As for `PGD`.
        mean: As for `PGD`.
        std: As for `PGD`.
        like: Says the norm, the radius and the seed of random starts; steps and restarts are the ensemble's own.

    Returns:
        [B] bool, whether each image withstands all of its attacks.

    Raises:
        SoftgateError: If the package is not installed.
    """
    library = require_auto_attack()
    pixels, normalize = in_pixels(x, mean, std)

    class FromPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model  # the library looks for the device of its parameters

        def forward(self, image: Tensor) -> Tensor:
            return _logits(self.net, normalize(image))

    with reading_out(model, None) as sites:
        model = sites.model
        classes = _logits(model, x[:1]).shape[1]
        net = FromPixels().eval()
        kind = {"linf": "Linf", "l2": "L2"}[like.norm]
        attack = library.AutoAttack(
            net, norm=kind, eps=like.radius, version="standard", n_classes=classes, seed=like.seed
        )
        found = attack(pixels, labels)
        with torch.no_grad():
            standing: Tensor = net(found).argmax(1) == labels
    return standing


def require_auto_attack() -> Any:
    """The package torchattacks; raises `SoftgateError` if it is not installed."""
    try:
        import torchattacks
    except ImportError:
        raise SoftgateError(
            "compare.attack.auto=true: the package torchattacks is not installed; pip install torchattacks, or use PGD "
            "alone with compare.attack.auto=false."
        ) from None
    return torchattacks


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    out: Any = model(x.clone())  # which may normalise its input in place
    logits: Tensor = getattr(out, "logits", out)
    require_logits(logits, len(x))
    return logits
