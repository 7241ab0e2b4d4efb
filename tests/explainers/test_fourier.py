"""Images by Fourier coefficients: there and back, real, in range, and against a sum over frequencies."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softgate.explainers.fourier import MARGIN, decode, encode, units

SIDES = st.integers(1, 17)


def slow_units(height, width):
    """1 / frequency in cycles per pixel, at most max(H, W), a loop over coefficients."""
    found = torch.empty(height, width // 2 + 1, dtype=torch.float64)
    for k in range(height):
        for m in range(width // 2 + 1):
            down = (k if k <= (height - 1) // 2 else k - height) / height
            found[k, m] = 1 / max(math.hypot(down, m / width), 1 / max(height, width))
    return found


def slow_decode(theta, height, width, low, high):
    """low + (high - low) sigmoid(sum over frequencies of Re(theta / f exp(2 pi i (k y / H + m x / W))) / sqrt(H W))."""
    down, across = torch.arange(height).double(), torch.arange(width).double()
    total = theta.new_zeros(*theta.shape[:2], height, width)
    scale = slow_units(height, width)
    for k in range(height):
        for m in range(width // 2 + 1):
            angle = 2 * math.pi * (k * down[:, None] / height + m * across[None] / width)
            twice = 1 if m == 0 or 2 * m == width else 2  # of the two conjugate halves one is given
            real, imaginary = theta[..., k, m, 0, None, None], theta[..., k, m, 1, None, None]
            total = total + twice * scale[k, m] * (real * angle.cos() - imaginary * angle.sin())
    return low + (high - low) * torch.sigmoid(total / math.sqrt(height * width))


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-2.5, 0.5)]), st.integers(0, 99))
def test_an_image_is_what_its_coefficients_give(height, width, bounds, seed):
    low, high = bounds
    share = MARGIN + (1 - 2 * MARGIN) * torch.rand(2, 3, height, width, dtype=torch.float64)
    image = low + (high - low) * share
    theta = encode(image, bounds)
    assert theta.shape == (2, 3, height, width // 2 + 1, 2)
    torch.testing.assert_close(decode(theta, (height, width), bounds), image, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_any_coefficients_give_the_image_of_the_sum_over_frequencies(height, width, seed):
    theta = drawn(seed, 1, 2, height, width // 2 + 1, 2)
    found = decode(theta, (height, width), (-1.0, 1.0))
    assert not found.is_complex()
    torch.testing.assert_close(found, slow_decode(theta, height, width, -1.0, 1.0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(units(height, width, theta), slow_units(height, width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_pixels_stay_in_their_bounds_however_large_coefficients_are(dtype):
    image = torch.tensor([-1.0, 1.0, 0.3, -0.2], dtype=dtype).view(1, 1, 2, 2)
    theta = encode(image, (-1.0, 1.0))
    assert theta.isfinite().all()
    found = decode(theta, (2, 2), (-1.0, 1.0))
    assert (found - image).abs().max() <= 2 * MARGIN + 1e-3
    far = decode(1e4 * drawn(0, 3, 3, 9, 5, 2).float(), (9, 9), (0.2, 0.7))
    assert far.min() >= 0.2
    assert far.max() <= 0.7
    assert far.unique().numel() > 1
