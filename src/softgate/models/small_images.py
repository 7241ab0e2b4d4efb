"""Networks for small images that torchvision lacks: CIFAR's ResNets, plain ones without normalisation, and an MLP."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.models.scalable import Scale


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters: where channels double they are padded with zeros.

    He et al. 2015 (arXiv 1512.03385), section 4.2, option A.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.stride, self.more = out // channels, out - channels
        self.conv1 = nn.Conv2d(channels, out, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to [B, out, H / stride, W / stride]."""
        short = x
        if self.more:
            half = self.more // 2
            short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.more - half))
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        made: Tensor = self.relu2(out + short)
        return made


class CIFARResNet(nn.Module):
    """A ResNet of 6 n + 2 layers with 16, 32 and 64 channels (arXiv 1512.03385, section 4.2).

    Args:
        depth: 20, 32, 44, 56 or 110.
        num_classes: Size of the last layer.
        channels: Of the images.
    """

    def __init__(self, depth: int, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        widths = [16] + [width for width in (16, 32, 64) for _ in range(blocks)]
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise(widths)))
        self.fc = nn.Linear(64, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, channels, H, W]."""
        out = self.blocks(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(out.mean((2, 3)))
        return logits


class Plain(nn.Module):
    """3 x 3 convolutions and ReLUs without normalisation or shortcuts, and a global average before the last layer.

    Args:
        widths: Channels of each convolution.
        pools: After which of them, counted from 1, a 2 x 2 max pooling follows.
        num_classes: Size of the last layer.
        channels: Of the images.
    """

    def __init__(
        self, widths: tuple[int, ...], pools: tuple[int, ...], num_classes: int = 10, channels: int = 3
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, (a, b) in enumerate(pairwise((channels, *widths)), start=1):
            layers += [nn.Conv2d(a, b, 3, 1, 1), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(2)] if place in pools else []
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, channels, H, W]."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


class MLP(nn.Module):
    """Fully connected layers with a ReLU after each but the last (arXiv 2006.10529, section 5: 6 layers of 128 units).

    Args:
        inputs: Numbers of an image.
        width: Units of each hidden layer.
        layers: Layers with weights, two at least.
        num_classes: Size of the last layer.
    """

    def __init__(self, inputs: int, width: int = 128, layers: int = 6, num_classes: int = 10) -> None:
        super().__init__()
        made: list[nn.Module] = []
        for a in (inputs, *(width,) * (layers - 2)):
            made += [nn.Linear(a, width), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*made)
        self.fc = nn.Linear(width, num_classes)
        _initialise(self)
        for layer in self.hidden[::2]:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]  # a Linear

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, ...]."""
        logits: Tensor = self.fc(self.hidden(x.flatten(1)))
        return logits


def _initialise(net: nn.Module) -> None:
    """He et al.'s initialisation (arXiv 1502.01852), biases zero."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
            with torch.no_grad():
                module.bias.zero_()


Build = Callable[[int, int, Scale], nn.Module]
"""From classes, channels of the images, and what the network is built for."""


def _resnet(depth: int) -> Build:
    return lambda num_classes, channels, scale: CIFARResNet(depth, num_classes, channels)


def _plain(widths: tuple[int, ...], pools: tuple[int, ...]) -> Build:
    return lambda num_classes, channels, scale: Plain(widths, pools, num_classes, channels)


def _mlp(num_classes: int, channels: int, scale: Scale) -> nn.Module:
    inputs = channels * (scale.size or MLP_SIZE) ** 2
    return MLP(inputs, scale.times(128), max(2, scale.layers(6)), num_classes)


KNOWN: dict[str, Build] = {
    **{f"resnet{depth}": _resnet(depth) for depth in (20, 32, 44, 56, 110)},
    "plain8": _plain((32, 32, 64, 64, 64, 128, 128), (2, 4, 6)),
    "plain20": _plain((16,) * 19, (7, 13)),
    "mlp": _mlp,
}
"""By name. The last number is the layers with weights, as for a ResNet."""

SCALED = SIZED = ("mlp",)
"""Those that have a width and a depth, and that are built for one size of images."""

MLP_SIZE = 28
"""Pixels a side where none are given: MNIST's."""
