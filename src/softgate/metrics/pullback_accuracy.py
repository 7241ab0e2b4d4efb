"""Do the maps alone tell the prediction? The class whose map has the largest product with the image."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate.metrics.base import ProbeMetric, finite


def pullback_accuracy(maps: Tensor, x: Tensor, outputs: Tensor) -> Tensor:
    r"""1 where :math:`argmax_c \langle x, v_c \rangle` is the model's prediction, else 0, for each image.

    Args:
        maps: [B, classes, C, H, W] maps of all classes.
        x: [B, C, H, W] their images.
        outputs: [B, classes] the model's logits.

    Returns:
        [B]; NaN where the products are all the same, as those of zero maps are.
    """
    products = (maps.detach().double() * x.detach().double()[:, None]).flatten(2).sum(2)
    agrees = (products.argmax(1) == outputs.argmax(1)).double()
    return agrees.where(products.amax(1) > products.amin(1), torch.nan)


class PullbackAccuracy(ProbeMetric):
    r"""Share of images for which :math:`argmax_c \langle x, v_c \rangle` is the predicted class; chance is 1/classes.

    Source: the paper, equation 7 without its constants.

    >>> import torch
    >>> metric = PullbackAccuracy()
    >>> maps = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 1, 2)
    >>> metric.update(maps, torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[0.3, 0.1]]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    reason = "the products of image and maps are the same for all classes"

    def update(self, maps: Tensor, x: Tensor, outputs: Tensor) -> None:
        """Takes the maps of all classes [B, classes, C, H, W], the images and the logits [B, classes]."""
        self.add(pullback_accuracy(maps, x, outputs), finite(maps, x, outputs))
