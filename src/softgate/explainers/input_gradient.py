r"""The input gradient of a network's first convolution, faster on the CPU than the library's own.

A strided convolution of images has three input channels. Its input gradient is a transposed convolution with three
output channels, which vector units run at a fifth of their speed. Each of the s x s phases of the input, x[s i + a,
s j + b], is a convolution with stride 1 of the upstream gradient; all phases together are one convolution with 3 s^2
output channels, followed by a pixel shuffle (Shi et al. 2016, arXiv 1609.05158, section 3.2):

.. math:: dx_c[s i + a] = \sum_o \sum_m g_o[i - m] \, w_{o,c}[s m + a + p], \quad 0 \le s m + a + p < k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 4
"""Most input channels of a convolution that is taken for a stem."""


class Stem(nn.Conv2d):
    """A strided convolution of images, frozen, whose input gradient is taken phase by phase.

    Forward it is the convolution it was made of, bit for bit; the gradient is equal up to rounding.

    Args:
        conv: A convolution that `fits`; its parameters are shared, and taken for constants.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        kernel, stride, padding = (int(pair[0]) for pair in (conv.kernel_size, conv.stride, conv.padding))
        channels = conv.in_channels, conv.out_channels
        super().__init__(*channels, kernel, stride, padding, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        weight, self.lead = phases(conv.weight.detach(), stride, padding)
        self.weight_of_phases = nn.Buffer(weight, persistent=False)

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether a module is a convolution that this one is the faster form of."""
        if type(conv) is not nn.Conv2d or conv.weight.device.type != "cpu" or isinstance(conv.padding, str):
            return False
        square = all(len(set(pair)) == 1 for pair in (conv.stride, conv.padding, conv.kernel_size))
        plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
        return square and plain and conv.in_channels <= CHANNELS and conv.stride[0] > 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, oH, oW]."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        out: Tensor = _Convolved.apply(x, self)
        return out

    def gradient(self, grad: Tensor, height: int, width: int) -> Tensor:
        """The input gradient [B, C, height, width] of the upstream gradient [B, O, oH, oW]."""
        stride, taps = self.stride[0], self.weight_of_phases.shape[-1]
        rows, columns = -(-height // stride), -(-width // stride)
        reach = (rows + taps - 1 - grad.shape[-2], columns + taps - 1 - grad.shape[-1])
        pad = max(0, self.lead, *(size - self.lead for size in reach))
        out = F.conv2d(grad, self.weight_of_phases, padding=pad)
        first = pad - self.lead
        out = F.pixel_shuffle(out[..., first : first + rows, first : first + columns], stride)
        return out[..., :height, :width]


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stem: Stem) -> Tensor:
        ctx.stem, ctx.size = stem, x.shape[-2:]
        return nn.Conv2d.forward(stem, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.stem.gradient(grad, *ctx.size), None


def phases(weight: Tensor, stride: int, padding: int) -> tuple[Tensor, int]:
    """The weights of the convolution that gives all phases of an input gradient.

    Args:
        weight: [O, C, k, k].
        stride: s, of rows and of columns.
        padding: p, of rows and of columns.

    Returns:
        [C s^2, O, t, t], channel c s^2 + a s + b being the phase (a, b) of channel c, and how many rows (and
        columns) of the upstream gradient before row i a window of it begins.
    """
    out, channels, size, _ = weight.shape
    least = min(-((a + padding) // stride) for a in range(stride))
    most = max((size - 1 - a - padding) // stride for a in range(stride))
    taps = most - least + 1
    found = weight.new_zeros(channels, stride, stride, out, taps, taps)
    for k in range(size):
        m, a = divmod(k - padding, stride)
        for j in range(size):
            n, b = divmod(j - padding, stride)
            found[:, a, b, :, most - m, most - n] = weight[:, :, k, j].T
    return found.flatten(0, 2), most
