"""Does the map look like images of its class to a trained eye? One minus its perceptual distance to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate.errors import SoftgateError
from softgate.metrics.base import ProbeMetric, finite

Distance = Callable[[Tensor, Tensor], Tensor]
"""`distance(a, b)`: [B] for images [B, 3, H, W] with values in [-1, 1]."""


def as_image(maps: Tensor) -> Tensor:
    """Maps [B, C, H, W] in units of three standard deviations, clipped to [-1, 1]; NaN where a map is constant."""
    maps = maps.detach().double()
    spread = maps.flatten(1).std(1, correction=0).view(-1, 1, 1, 1)
    return (maps / (3 * spread)).clamp(-1, 1).where(spread > 0, torch.nan)


def learned_distance() -> Distance:
    """LPIPS with AlexNet (Zhang et al., arXiv 1801.03924); its weights are downloaded once.

    Raises:
        SoftgateError: If the weights cannot be had.
    """
    try:
        from torchmetrics.image.lpip import _LPIPS  # type: ignore[attr-defined]  # the public one averages over images

        net = _LPIPS(pretrained=True, net="alex").eval()
    except Exception as error:  # whatever a missing package or a failing download raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SoftgateError(
            f"lpips_alignment: the weights of LPIPS cannot be had ({reason}). It needs torchvision, and once a network "
            f"connection to download torchvision's alexnet IMAGENET1K_V1 into torch.hub's cache; or pass distance=."
        ) from None

    def distance(a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            a, b = (images.float().expand(-1, 3, -1, -1) for images in (a, b))  # grey ones too
            return net.to(a.device)(a, b).flatten()  # type: ignore[no-any-return]  # untyped network

    return distance


class LpipsAlignment(ProbeMetric):
    r"""Mean of :math:`1 - LPIPS(clip(v, \pm 3\sigma), x_c)` over images :math:`x_c` of the target class.

    Source: Zhang et al., arXiv 1801.03924. Optional: its judge is a network with weights from the net.

    Args:
        distance: A perceptual distance in place of LPIPS.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        SoftgateError: If no distance is given and the weights of LPIPS cannot be had.

    >>> import torch
    >>> metric = LpipsAlignment(distance=lambda a, b: (a - b).abs().flatten(1).mean(1))
    >>> metric.update(torch.tensor([[[[3.0, -3.0]]]]), torch.tensor([[[[1.0, -1.0]]]]))
    >>> metric.compute()
    tensor(0.3333, dtype=torch.float64)
    """

    higher_is_better = True
    plot_upper_bound = 1.0
    reason = "the map is constant"

    def __init__(self, distance: Distance | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distance = distance or learned_distance()

    def update(self, maps: Tensor, of_class: Tensor) -> None:
        """Takes maps [B, 3, H, W], and for each an image of its target class [B, 3, H, W] in [-1, 1]."""
        pictures = as_image(maps)
        empty = pictures.isnan().flatten(1).any(1)
        found = self.distance(pictures.nan_to_num().to(of_class), of_class).double()
        self.add((1 - found).masked_fill(empty, torch.nan), finite(maps, of_class))
