"""Slow, obvious references, written from the formulas. They share no code with softgate and import none of it.

ReLU is forward gradient injection (arXiv 2406.00177): m = z * sg(gate(z)); y = m - sg(m) + sg(relu(z)).
Max pooling writes every window out and lets autograd differentiate T * logsumexp(x / T) over it.
`patched` puts both in the place of PyTorch's functions, for whole models.
"""

import math
from contextlib import contextmanager
from unittest import mock

import torch
from torch.nn import functional as F

TRUE_RELU = F.relu
TRUE_MAX_POOL2D = F.max_pool2d


def hard(z):
    return torch.where(z > 0, 1.0, 0.0).to(z.dtype)


def sigmoid(z, temperature=0.3):
    return 1 / (1 + torch.exp(-z / temperature))


def normal_cdf(z, temperature=0.6):
    return (1 + torch.erf(z / (temperature * math.sqrt(2)))) / 2


def softsign(z, temperature):
    return (1 + z / (temperature + z.abs())) / 2


def bsilu(z, alpha):
    s = 1 / (1 + torch.exp(-z))
    return s + (z + alpha) * s * (1 - s)


def nelu(z, alpha):
    return torch.where(z > 0, 1.0, 2 * alpha * z / (1 + z**2) ** 2)


def abs_nelu(z, alpha):
    return torch.where(z > 0, 1.0, (2 * alpha * z / (1 + z**2) ** 2).abs())


def leaky(z, slope):
    return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, slope))


def relu(z, gate):
    """The true relu with `gate(z)` in the backward pass; finite `z` only."""
    injected = z * gate(z).detach()
    return injected - injected.detach() + TRUE_RELU(z).detach()


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def windows(x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Every pooling window of x [..., H, W] written out: [..., oH, oW, kH, kW], -inf where it hangs over the edge."""
    stride = kernel if stride is None else stride
    rows, cols = (
        _positions(x.shape[axis], *(pair(v)[axis] for v in (kernel, stride, padding, dilation)), ceil_mode).to(x.device)
        for axis in (-2, -1)
    )
    inside = [(where >= 0) & (where < size) for where, size in ((rows, x.shape[-2]), (cols, x.shape[-1]))]
    rows, cols = rows.clamp(0, x.shape[-2] - 1), cols.clamp(0, x.shape[-1] - 1)
    spread = x[..., rows[:, None, :, None], cols[None, :, None, :]]
    return spread.masked_fill(~(inside[0][:, None, :, None] & inside[1][None, :, None, :]), -math.inf)


def _positions(size, kernel, stride, padding, dilation, ceil_mode):
    """Row (or column) numbers [windows, kernel] that the windows touch along one axis."""
    span = dilation * (kernel - 1) + 1
    count = (size + 2 * padding - span) / stride
    count = (math.ceil(count) if ceil_mode else math.floor(count)) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1  # the last window must start inside the input or the left padding
    return (torch.arange(count) * stride - padding)[:, None] + torch.arange(kernel) * dilation


def max_pool2d(x, *geometry, temperature=0.3, **settings):
    """The true max pooling with the gradient of T * logsumexp(x / T) over its windows; finite `x` only."""
    spread = windows(x, *geometry, **settings)
    smooth = temperature * torch.logsumexp(spread / temperature, (-2, -1))
    return smooth - smooth.detach() + spread.amax((-2, -1)).detach()


def softmax_pool2d(x, *geometry, temperature=0.3, **settings):
    """The true max pooling with the gradient of sum softmax(x / T) x over its windows (Listing 2); finite `x` only."""
    spread = windows(x, *geometry, **settings)
    weights = (spread / temperature).flatten(-2).softmax(-1).view_as(spread)
    smooth = (weights * spread.masked_fill(spread.isneginf(), 0.0)).sum((-2, -1))
    return smooth - smooth.detach() + spread.amax((-2, -1)).detach()


def rms_gain(gate, samples=1_000_001):
    """sqrt(E[gate(z)^2] / 0.5), z ~ N(0, 1), over equally likely strata of the normal distribution."""
    z = torch.special.ndtri((torch.arange(samples, dtype=torch.float64) + 0.5) / samples)
    return float((gate(z).square().mean() / 0.5).sqrt())


@contextmanager
def patched(gate, temperature):
    """Runs the block with the references in the place of F.relu and F.max_pool2d."""

    def soft_relu(z, inplace=False):
        return relu(z, gate)

    def soft_pool(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        assert not return_indices
        return max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, temperature=temperature)

    with mock.patch.object(F, "relu", soft_relu), mock.patch.object(F, "max_pool2d", soft_pool):
        yield


def distance(found, expected):
    """Relative distance ||found - expected|| / ||expected||; absolute where nothing is expected."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    norm = float(expected.norm())
    return float((found - expected).norm()) / (norm if norm > 0 else 1.0)
