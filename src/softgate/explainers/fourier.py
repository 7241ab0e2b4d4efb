"""Images by their Fourier coefficients in units of 1 / frequency, which is what feature visualisation optimises.

Natural images have amplitudes that fall like 1 / frequency. In these units they are alike, so that steps of one size
in every coefficient change coarse and fine structure alike (Olah, Mordvintsev and Schubert, Feature Visualization,
Distill 2017; here as in arXiv 2402.10039). A sigmoid keeps pixels within their bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 1 / 512
"""How near to a bound a pixel can come, as a share of the range: half of one of 255 grey levels."""


def units(height: int, width: int, like: Tensor) -> Tensor:
    """1 / frequency in cycles per pixel, [H, W // 2 + 1]; the constant's is that of the lowest frequency.

    Args:
        height: H in pixels.
        width: W in pixels.
        like: Has the dtype and the device.
    """
    down = torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)[:, None]
    across = torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)[None]
    frequency: Tensor = (down.square() + across.square()).sqrt()
    return frequency.clamp_min(1 / max(height, width)).reciprocal()


def encode(image: Tensor, bounds: tuple[float, float]) -> Tensor:
    r"""The coefficients :math:`\theta` of images: :math:`\theta_k = f_k \, F(logit((x - low) / (high - low)))_k`.

    F is the orthonormal two-dimensional transform and :math:`f_k` a coefficient's frequency, at least 1 / max(H, W).

    Args:
        image: [B, C, H, W] images within `bounds`; pixels nearer to a bound than `MARGIN` of the range are moved there.
        bounds: Least and greatest pixel value.

    Returns:
        [B, C, H, W // 2 + 1, 2] real and imaginary parts, in float32 at least.
    """
    low, high = bounds
    wide = image.to(torch.promote_types(image.dtype, torch.float32))
    share = ((wide - low) / (high - low)).clamp(MARGIN, 1 - MARGIN)
    spectrum = torch.fft.rfft2(share.logit(), norm="ortho")
    return torch.view_as_real(spectrum / units(image.shape[-2], image.shape[-1], wide))


def decode(coefficients: Tensor, size: tuple[int, int], bounds: tuple[float, float]) -> Tensor:
    """The images of coefficients: what `encode` gave them for, real and within `bounds` whatever they are.

    Args:
        coefficients: [B, C, H, W // 2 + 1, 2].
        size: H and W, which the coefficients do not tell where W is odd.
        bounds: Least and greatest pixel value.

    Returns:
        [B, C, H, W].
    """
    low, high = bounds
    spectrum = torch.view_as_complex(coefficients) * units(*size, coefficients)
    share = torch.fft.irfft2(spectrum, s=size, norm="ortho").sigmoid()
    return torch.lerp(torch.full_like(share, low), torch.full_like(share, high), share).clamp(low, high)
