"""Common corruptions at five severities: the families of ImageNet-C that need no further files.

Hendrycks and Dietterich, arXiv 1903.12261; fourteen of their fifteen families, all but frost, which pastes photographs.
Strengths are theirs for 224 px; lengths, such as the radius of a blur, scale with the image. The code is our own and
works on batches: figures can be compared among networks that were tested here, not with published ones.

Every image meets the same noise in whatever batch or run it is tested: it is drawn from its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from softgate.errors import require, unknown
from softgate.explainers.noise import draws, generators
from softgate.files import encoded
from softgate.metrics.blur import blur
from softgate.surrogate.inputs import checked

SIZE = 224
"""Of the images that lengths are given for."""

SEVERITIES = (1, 2, 3, 4, 5)


@checked
def corrupt(images: Tensor, family: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupts images.

    Args:
        images: [B, C, H, W], C 1 or 3, pixels in [0, 1].
        family: One of `FAMILIES`.
        severity: From 1 to 5.
        seed: Of the noise.

    Returns:
        Pixels in [0, 1], rounded to the 256 steps of an image file.

    Raises:
        SoftgateError: For an unknown family or a severity out of range.
    """
    if family not in FAMILIES:
        raise unknown("corruptions", family, FAMILIES)
    require(severity in SEVERITIES, f"corruptions: severity={severity}: a whole number from 1 to 5 is needed.")
    found = FAMILIES[family](images.float(), severity - 1, seed)
    return (found.clamp(0, 1) * 255).round() / 255


def gaussian_noise(x: Tensor, level: int, seed: int) -> Tensor:
    """Independent normal noise."""
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * draws(x, 1, seed)[0]


def shot_noise(x: Tensor, level: int, seed: int) -> Tensor:
    """Poisson noise of a light so faint that so many photons make white."""
    photons = (60, 25, 12, 5, 3)[level]
    rates = (x.clamp(0, 1) * photons).cpu()
    counted = [torch.poisson(rate, generator=one) for rate, one in zip(rates, generators(x, seed), strict=True)]
    return torch.stack(counted).to(x) / photons


def impulse_noise(x: Tensor, level: int, seed: int) -> Tensor:
    """A share of all values black or white."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    noise = draws(x, 1, seed, "uniform")[0]  # in [-1, 1]
    return torch.where(noise.abs() < share, (noise > 0).to(x), x)


def defocus_blur(x: Tensor, level: int, seed: int) -> Tensor:
    """A disk, as of a lens out of focus."""
    radius, soft = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    return blur(_filter(x, _disk(radius * _unit(x))), soft * _unit(x))


def glass_blur(x: Tensor, level: int, seed: int) -> Tensor:
    """Pixels change places with their neighbours, between two blurs."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    sigma, reach = sigma * _unit(x), max(1, round(reach * _unit(x)))
    x = blur(x, sigma)
    for turn in range(rounds):
        steps = (draws(_pair(x), 1, seed + turn, "uniform")[0] * (reach + 0.5)).round().clamp(-reach, reach)
        x = _moved(x, steps, mode="nearest")
    return blur(x, sigma)


def motion_blur(x: Tensor, level: int, seed: int) -> Tensor:
    """A smear in a random direction within 45 degrees of the horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    angles = math.pi / 4 * _uniform(x, 1, seed)[:, 0]
    return _smear(x, radius * _unit(x), sigma * _unit(x), angles)


def zoom_blur(x: Tensor, level: int, seed: int) -> Tensor:
    """The mean of the image and of zooms into it."""
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    zooms = [1 + step * i for i in range(math.ceil((most - 1) / step - 1e-9))]
    still = torch.zeros(len(x), 2, *x.shape[-2:], device=x.device, dtype=x.dtype)
    return torch.stack([x, *[_moved(x, still, scale=1 / zoom) for zoom in zooms]]).mean(0)


def snow(x: Tensor, level: int, seed: int) -> Tensor:
    """Flakes that fall over a whitened image."""
    loc, spread, zoom, least, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    flakes = loc + spread * draws(x[:, :1], 1, seed)[0]
    still = torch.zeros(len(x), 2, *x.shape[-2:], device=x.device, dtype=x.dtype)
    flakes = _moved(flakes, still, scale=1 / zoom)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    angles = -math.pi / 2 + math.pi / 4 * _uniform(x, 1, seed)[:, 0]
    flakes = _smear(flakes, radius * _unit(x), sigma * _unit(x), angles)
    grey = TF.rgb_to_grayscale(x)
    return keep * x + (1 - keep) * torch.maximum(x, grey * 1.5 + 0.5) + flakes + flakes.rot90(2, (-2, -1))


def fog(x: Tensor, level: int, seed: int) -> Tensor:
    """A bright cloud whose patches halve in size, and fall off in strength, from octave to octave."""
    strength, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[level]
    brightest = x.amax((1, 2, 3), keepdim=True)
    noise = draws(x[:, :1], 1, seed, "uniform")[0]
    cloud, cells, weight = torch.zeros_like(noise), 2, 1.0
    while cells < min(x.shape[-2:]):
        octave = F.interpolate(noise[..., :cells, :cells], x.shape[-2:], mode="bicubic", align_corners=True)
        cloud, cells, weight = cloud + weight * octave, 2 * cells, weight / decay
    low, high = cloud.amin((1, 2, 3), keepdim=True), cloud.amax((1, 2, 3), keepdim=True)
    cloud = (cloud - low) / (high - low).clamp_min(1e-6)
    return (x + strength * cloud) * brightest / (brightest + strength)


def brightness(x: Tensor, level: int, seed: int) -> Tensor:
    """More of HSV's value."""
    value = x.amax(1, keepdim=True)
    lighter = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clamp(max=1)
    return torch.where(value > 0, x * lighter / value.clamp_min(1e-6), lighter)


def contrast(x: Tensor, level: int, seed: int) -> Tensor:
    """Everything nearer to each channel's mean."""
    means = x.mean((-2, -1), keepdim=True)
    return means + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (x - means)


def elastic_transform(x: Tensor, level: int, seed: int) -> Tensor:
    """A random shear, and pixels drawn away along a smooth random field."""
    side = min(x.shape[-2:])
    pull, smooth, shear = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))[
        level
    ]
    field = blur(draws(_pair(x), 1, seed, "uniform")[0], smooth * side) * pull * side * _unit(x)
    # Three corners of the central square, which spans two thirds of the image, are moved by up to `shear` of its side.
    corners = _uniform(x, 6, seed).view(-1, 3, 2) * shear * 1.5
    height, width = x.shape[-2:]
    down, across = torch.meshgrid(torch.linspace(-0.5, 0.5, height), torch.linspace(-0.5, 0.5, width), indexing="ij")
    plane = torch.stack([down, across]).to(x)
    affine = torch.einsum("bij,ihw->bjhw", corners[:, :2], plane) + corners[:, 2, :, None, None] / 1.5
    return _moved(x, field + affine * side)


def pixelate(x: Tensor, level: int, seed: int) -> Tensor:
    """Fewer, larger pixels."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    small = [max(1, int(n * share)) for n in x.shape[-2:]]
    return F.interpolate(F.interpolate(x, small, mode="area"), x.shape[-2:], mode="nearest")


def jpeg_compression(x: Tensor, level: int, seed: int) -> Tensor:
    """JPEG of a low quality."""
    quality = (25, 18, 15, 10, 7)[level]
    stored = (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    found = []
    for one in stored:
        file = BytesIO(encoded(TF.to_pil_image(one), "JPEG", quality=quality))
        found.append(TF.pil_to_tensor(Image.open(file)))
    return torch.stack(found).to(x) / 255


FAMILIES: Mapping[str, Callable[[Tensor, int, int], Tensor]] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, fog, brightness, contrast),
        *(elastic_transform, pixelate, jpeg_compression),
    )
}
"""By their names in ImageNet-C: noise, blur, weather, digital."""


def _pair(x: Tensor) -> Tensor:
    """[B, 2, H, W] to draw a field of steps down and across for."""
    return x[:, :2] if x.shape[1] > 1 else x.expand(-1, 2, -1, -1)


def _unit(x: Tensor) -> float:
    """What a length of one pixel at 224 px is here."""
    return min(x.shape[-2:]) / SIZE


def _uniform(x: Tensor, count: int, seed: int) -> Tensor:
    """[B, count] uniform in [-1, 1], for each image its own."""
    drawn = [2 * torch.rand(count, generator=one) - 1 for one in generators(x, seed + 7919)]
    return torch.stack(drawn).to(x)


def _disk(radius: float) -> Tensor:
    """A kernel: a disk whose edge is smooth over one pixel."""
    reach = max(1, math.ceil(radius))
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    away = torch.hypot(steps[:, None], steps[None])
    disk = (radius + 0.5 - away).clamp(0, 1)
    return disk / disk.sum()


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    reach = len(kernel) // 2
    weight = kernel.to(x).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (reach,) * 4, mode="replicate"), weight, groups=x.shape[1])


def _smear(x: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """The mean of copies shifted by 0 to `radius` pixels along each image's angle, the near ones counting most."""
    count = max(2, math.ceil(radius) + 1)
    total, out = 0.0, torch.zeros_like(x)
    for place in range(count):
        way = radius * place / (count - 1)
        weight = math.exp(-(way**2) / (2 * sigma**2))
        shift = torch.stack([-angles.sin(), angles.cos()], 1) * way  # rows count downwards
        out += weight * _moved(x, shift[:, :, None, None].expand(-1, -1, *x.shape[-2:]))
        total += weight
    return out / total


def _moved(x: Tensor, steps: Tensor, scale: float = 1.0, mode: str = "bilinear") -> Tensor:
    """Each pixel read `steps` [B, 2, H, W] (down, across) pixels away, in an image zoomed about its centre."""
    height, width = x.shape[-2:]
    down, across = (_centres(n, x) for n in (height, width))
    rows = down[:, None] * scale + steps[:, 0] * 2 / height
    columns = across[None] * scale + steps[:, 1] * 2 / width
    grid = torch.stack([columns, rows], -1)
    return F.grid_sample(x, grid, mode=mode, padding_mode="reflection", align_corners=False)


def _centres(count: int, like: Tensor) -> Tensor:
    steps: Sequence[float] = [(2 * i + 1) / count - 1 for i in range(count)]
    return torch.tensor(steps, dtype=like.dtype, device=like.device)
