"""Transformers, ConvNeXt and EfficientNet at other sizes of images, widths and depths than the published ones.

Published networks cut images into patches of 4 or 16 pixels, which leaves nothing of one of 32. With the small stem
patches are smaller; `width` and `depth` are factors on channels and layers. At their published settings the networks
are torchvision's and timm's own, parameter by parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from softgate.models import timm_networks


@dataclass(frozen=True)
class Scale:
    """What a network is built for.

    Attributes:
        small: Whether it has the stem for small images.
        size: Pixels a side of the images; None is 224.
        width: A factor on the channels, > 0.
        depth: A factor on the layers, > 0.
    """

    small: bool = False
    size: int | None = None
    width: float = 1.0
    depth: float = 1.0

    def patch(self, published: int, count: int) -> int:
        """Pixels a side of a patch: with the small stem the most that leaves `count` of them a side, else as published.

        Args:
            published: The published patch.
            count: Patches a side that are wanted of a small image; there are more where its size is no multiple.
        """
        if not self.small or self.size is None:
            return published
        most = max(1, min(published, self.size // count))
        return next(patch for patch in range(most, 0, -1) if self.size % patch == 0)

    def layers(self, published: int) -> int:
        """How many layers."""
        return max(1, round(self.depth * published))

    def times(self, published: int, unit: int = 1) -> int:
        """A number of heads or channels, a multiple of a unit."""
        return max(1, round(self.width * published / unit)) * unit


def _vit(name: str, layers: int, heads: int, num_classes: int, scale: Scale) -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    size, count = scale.size or 224, scale.times(heads)
    patch = scale.patch(int(name.rpartition("_")[2]), 8)
    net: nn.Module = VisionTransformer(
        size, patch, scale.layers(layers), count, 64 * count, 256 * count, num_classes=num_classes
    )
    return net


def _swin(name: str, depths: tuple[int, ...], heads: int, drop: float, num_classes: int, scale: Scale) -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    first, patch = scale.times(heads), scale.patch(4, 16)
    net: nn.Module = SwinTransformer(
        [patch, patch],
        32 * first,
        [scale.layers(depth) for depth in depths],
        [first * 2**stage for stage in range(len(depths))],
        [7, 7],
        stochastic_depth_prob=drop,
        num_classes=num_classes,
    )
    return net


def _convnext(
    name: str, channels: int, depths: tuple[int, ...], drop: float, num_classes: int, scale: Scale
) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = [scale.times(channels, 8) * 2**stage for stage in range(len(depths))]
    after = [*widths[1:], None]
    blocks = [CNBlockConfig(a, b, scale.layers(d)) for a, b, d in zip(widths, after, depths, strict=True)]
    net: nn.Module = ConvNeXt(blocks, stochastic_depth_prob=drop, num_classes=num_classes)
    patch = scale.patch(4, 16)
    if patch != 4:
        first = nn.Conv2d(3, widths[0], patch, patch)
        nn.init.trunc_normal_(first.weight, std=0.02)
        assert first.bias is not None
        nn.init.zeros_(first.bias)
        net.set_submodule("features.0.0", first)
    return net


def _efficientnet(name: str, num_classes: int, scale: Scale) -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    block = partial(MBConvConfig, width_mult=scale.width, depth_mult=scale.depth)
    blocks = [block(*settings) for settings in _EFFICIENTNET]
    net: nn.Module = EfficientNet(blocks, dropout=0.2, num_classes=num_classes)
    if scale.small:
        first: Any = net.get_submodule("features.0.0")
        first.stride = (1, 1)
    return net


_EFFICIENTNET = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
"""Expansion, kernel, stride, channels in and out, and layers of each stage (arXiv 1905.11946, Table 1)."""


def _pvt(name: str, unit: int, depths: tuple[int, ...], num_classes: int, scale: Scale) -> nn.Module:
    each = scale.times(unit, 8)
    settings = {
        "depths": tuple(scale.layers(depth) for depth in depths),
        "embed_dims": tuple(each * heads for heads in (1, 2, 5, 8)),
    }
    net = timm_networks.build(name.removeprefix(timm_networks.PREFIX), num_classes, 3, **settings)
    patch = scale.patch(4, 16)
    if patch != 4:
        first: Any = net.get_submodule("patch_embed.proj")
        first.stride = (patch, patch)
    return net


_DEPTHS = {"t": (2, 2, 6, 2), "s": (2, 2, 18, 2), "b": (2, 2, 18, 2)}

NETWORKS: Mapping[str, Callable[[str, int, Scale], nn.Module]] = {
    **{f"vit_b_{patch}": lambda name, n, s: _vit(name, 12, 12, n, s) for patch in (16, 32)},
    **{f"vit_l_{patch}": lambda name, n, s: _vit(name, 24, 16, n, s) for patch in (16, 32)},
    "swin_t": lambda name, n, s: _swin(name, _DEPTHS["t"], 3, 0.2, n, s),
    "swin_s": lambda name, n, s: _swin(name, _DEPTHS["s"], 3, 0.3, n, s),
    "swin_b": lambda name, n, s: _swin(name, _DEPTHS["b"], 4, 0.5, n, s),
    "convnext_tiny": lambda name, n, s: _convnext(name, 96, (3, 3, 9, 3), 0.1, n, s),
    "convnext_small": lambda name, n, s: _convnext(name, 96, (3, 3, 27, 3), 0.4, n, s),
    "convnext_base": lambda name, n, s: _convnext(name, 128, (3, 3, 27, 3), 0.5, n, s),
    "efficientnet_b0": _efficientnet,
    "timm/pvt_v2_b0": lambda name, n, s: _pvt(name, 32, (2, 2, 2, 2), n, s),
    "timm/pvt_v2_b1": lambda name, n, s: _pvt(name, 64, (2, 2, 2, 2), n, s),
    "timm/pvt_v2_b2": lambda name, n, s: _pvt(name, 64, (3, 4, 6, 3), n, s),
}
"""The networks by their full names, each a function of name, classes and scale."""

SIZED = tuple(name for name in NETWORKS if name.startswith("vit_"))
"""Those that are built for one size of images."""
