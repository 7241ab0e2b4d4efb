"""How far apart two images are: in pixels, in structure, and between the deep features of a network.

Candidates for a perceptual metric, each a function or object `distance(a, b)` of images that gives a number for each
pair. The distance between path features is `softgate.paths.kernel_distance`; `of_network` hands it pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import require
from softgate.explainers.layers import listening, require_layer
from softgate.sites.inference import reading_out
from softgate.surrogate.inputs import checked

ImageDistance = Callable[[Tensor, Tensor], Tensor]
"""`distance(a, b)`, [B] float64, for images `a` and `b` [B, C, H, W]; `a` may be [1, C, H, W], one for all."""

SSIM_WINDOW = 11
"""Pixels a side of the window of SSIM."""


@checked
def pixel_distance(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared difference of pixels.

    Args:
        a: [B, C, H, W], or [1, C, H, W] for one that all are compared with.
        b: [B, C, H, W].

    Returns:
        [B] float64.

    Raises:
        SoftgateError: For images of other shapes or numbers.
    """
    _check_partners("pixel_distance", a, b)
    return (a.double() - b.double()).square().flatten(1).mean(1)


@checked
def ssim_distance(a: Tensor, b: Tensor) -> Tensor:
    """One minus the structural similarity, as torchmetrics has it: an 11 x 11 Gaussian window, edges mirrored.

    Source: Wang et al., IEEE Trans. Image Process. 13(4), 2004, equation 13; the mean over places and colours.

    Args:
        a: [B, C, H, W] pixels in [0, 1], or [1, C, H, W] for one that all are compared with.
        b: [B, C, H, W] likewise.

    Returns:
        [B] float64, in [0, 2].

    Raises:
        SoftgateError: As `pixel_distance`; for images smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_partners("ssim_distance", a, b)
    size = tuple(b.shape[-2:])
    fits = min(size) >= SSIM_WINDOW
    require(fits, f"ssim_distance: images of {size} pixels; at least {SSIM_WINDOW} a side are needed.")
    found = structural_similarity_index_measure(
        b.double(), a.double().expand_as(b), data_range=1.0, kernel_size=SSIM_WINDOW, reduction="none"
    )
    assert isinstance(found, Tensor)
    return 1 - found.reshape(len(b))


@dataclass(frozen=True)
class FeatureDistance:
    r"""One minus the cosine between the channels of deep features, averaged over places and added up over layers.

    .. math:: d(x, x') = \sum_\ell \frac{1}{H_\ell W_\ell} \sum_{h, w}
              \left(1 - \cos(y^\ell_{hw}(x), y^\ell_{hw}(x'))\right)

    It is half of what LPIPS (Zhang et al., arXiv 1801.03924, equation 1) gives with all its weights one: the squared
    distance between features of unit norm. Where one of the features is zero its cosine counts as 0, where both are as
    1. The network runs in eval mode and is afterwards as it was.

    Args:
        model: A network.
        layers: Names of the modules whose outputs [B, channels, ...] are the features.

    Raises:
        SoftgateError: If there is no layer, or the network has none of that name.

    >>> import torch, softgate as sg
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    >>> x = torch.rand(2, 3, 8, 8)
    >>> sg.metrics.FeatureDistance(net, ["1"])(x, x).abs().max() < 1e-6
    tensor(True)
    """

    model: nn.Module
    layers: Sequence[str]

    def __post_init__(self) -> None:
        kind = type(self.model).__name__
        require(isinstance(self.model, nn.Module), f"FeatureDistance: model is of type {kind}; a module is needed.")
        require(bool(self.layers), "FeatureDistance: layers=[]: the name of one module at least is needed.")
        for name in self.layers:
            require_layer("FeatureDistance: layers", name, self.model)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """The distances [B] float64 of images as the network takes them, [B, ...] or [1, ...] and [B, ...]."""
        _check_partners("FeatureDistance", a, b)
        total = torch.zeros(len(b), dtype=torch.float64, device=b.device)
        for first, second in zip(self.features(a), self.features(b), strict=True):
            total += (1 - _channel_cosine(first, second)).flatten(1).mean(1)
        return total

    def features(self, x: Tensor) -> list[Tensor]:
        """What each layer returns for images [B, ...], the first time that it is called."""
        listened = set(self.layers)
        with reading_out(self.model, None) as sites, torch.no_grad(), listening(sites.model, listened) as outputs:
            sites.model(x.clone())
        for name in self.layers:
            require(name in outputs.kept, f"FeatureDistance: layers: {name} is not called in a forward pass.")
        return [outputs.kept[name] for name in self.layers]


def _channel_cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine over the channels of features [B, channels, ...], [B, ...]; 1 where both are zero, 0 where one is."""
    a, b = a.double(), b.double()
    empty = (a.square().sum(1) == 0) & (b.square().sum(1) == 0)
    return torch.where(empty, 1.0, (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1))


def of_network(distance: ImageDistance, mean: Sequence[float], std: Sequence[float]) -> ImageDistance:
    """A distance of images as a network takes them, as one of pixels.

    Args:
        distance: Of normalised images.
        mean: What is subtracted from pixels in [0, 1], per channel.
        std: What they are divided by then.
    """

    def of_pixels(a: Tensor, b: Tensor) -> Tensor:
        centre, spread = (torch.tensor(list(v), dtype=b.dtype, device=b.device).view(-1, 1, 1) for v in (mean, std))
        return distance((a - centre) / spread, (b - centre) / spread)

    return of_pixels


def _check_partners(name: str, a: Tensor, b: Tensor) -> None:
    fits = b.dim() == 4 and len(a) in (1, len(b)) and a.shape[1:] == b.shape[1:]
    shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
    require(fits, f"{name}: images of shapes {shapes}: [B, C, H, W] twice, or [1, C, H, W] for all, are needed.")
