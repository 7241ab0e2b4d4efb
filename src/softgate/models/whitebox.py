r"""White-box semantic features: four layers whose every weight can be looked at (arXiv 2403.09863).

A pixel function of two steps, a convolution up to rotation, templates up to an affine map and a logical layer. "Up to"
is a maximum over poses, :math:`y = \max_p \langle x, w_p \rangle`: for softgate a max pooling over the poses, whose
backward rule can be soft. Built for MNIST's 3 against 5, where the paper has 4.8 thousand parameters.

Where the published code differs: its pixel function divides by the largest value of the batch, here the outer steps end
at -1 and 1 whatever the batch; its affine maps turn about the upper left corner, here about the middle.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import require
from softgate.surrogate.inputs import checked

TINY = 1e-10
"""Added to norms."""


class Renormalised(nn.Module, ABC):
    """A layer whose parameters are put back into their range after each step of an optimiser, of whatever loop.

    That is done at the beginning of the next forward pass in train mode, before a graph exists, if the parameters have
    changed since: the optimiser sees normalised weights at every step, and two passes before one backward see the same.
    """

    _seen: tuple[tuple[int, int], ...] = ()

    @abstractmethod
    def renormalise(self) -> None:
        """Puts the parameters into their range, in place."""

    def _keep_in_range(self) -> None:
        if not self.training or not torch.is_grad_enabled():
            return
        given = [value for value in self._parameters.values() if value is not None]
        if not all(type(value) is nn.Parameter for value in given):
            return  # put in by torch.func for one pass; they are somebody else's
        if torch.compiler.is_compiling():
            self.renormalise()
        elif self._seen != tuple((id(value), value._version) for value in given):
            self.renormalise()
            self._seen = tuple((id(value), value._version) for value in given)


class TwoStep(Renormalised):
    r"""The pixel function: a learnable monotone map of [0, 1] onto [-1, 1] that is nearly a staircase of three levels.

    With :math:`u = 2x - 1`, thresholds :math:`t_0 < 0 < t_1` (of u), heights :math:`a_0, a_1` and
    :math:`\sigma_s(v) = v / (s + |v|)`, for the side of the sign :math:`\epsilon` of u

    .. math:: f = \begin{cases}
              a\,\frac{\sigma_s(u - t) + \sigma_s(t)}{\sigma_s(|t|)} & |u| < |t| \\
              \epsilon a + (1 - a)\,\frac{\sigma_{s'}(u - t)}{\sigma_{s'}(1 - |t|)} & |u| \ge |t|
              \end{cases}

    so that f(0) = -1, f(1) = 1 and the middle is 0 (arXiv 2403.09863, section 3). It goes on beyond [0, 1].

    Attributes:
        heights: a of the lower and the upper step, kept in [.01, .99].
        thresholds: In pixels of [0, 1]: kept in [.01, .49] and [.51, .99].
        scales: s of the four pieces, from black to white, kept in [.001, 2].
    """

    def __init__(self) -> None:
        super().__init__()
        self.heights = nn.Parameter(torch.tensor([0.5, 0.5]))
        self.thresholds = nn.Parameter(torch.tensor([0.25, 0.75]))
        self.scales = nn.Parameter(torch.full((4,), 0.1))

    def renormalise(self) -> None:
        """Clips heights, thresholds and scales."""
        with torch.no_grad():
            self.heights.clamp_(0.01, 0.99)
            self.thresholds[0].clamp_(0.01, 0.49)
            self.thresholds[1].clamp_(0.51, 0.99)
            self.scales.clamp_(0.001, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        """Values in [-1, 1] of pixels in [0, 1], of any shape."""
        self._keep_in_range()
        u = 2 * x - 1
        return torch.where(u < 0, self._side(u, 0), self._side(u, 1))

    def _side(self, u: Tensor, side: int) -> Tensor:
        sign, height, threshold = 2 * side - 1, self.heights[side], 2 * self.thresholds[side] - 1
        outer, inner = (self.scales[0], self.scales[1]) if side == 0 else (self.scales[3], self.scales[2])
        size = sign * threshold
        within = height * (_softsign(u - threshold, inner) + _softsign(threshold, inner)) / _softsign(size, inner)
        beyond = sign * height + (1 - height) * _softsign(u - threshold, outer) / _softsign(1 - size, outer)
        return torch.where(sign * u < size, within, beyond)


def _softsign(v: Tensor, scale: Tensor) -> Tensor:
    return v / (scale + v.abs())


class RotatedConvolution(Renormalised):
    r"""A convolution up to rotation: at each pixel the largest response over kernels and rotations, then ReLU.

    .. math:: y_{hw} = \frac{1}{k} \max_{j, p} (x * R_p w_j / \|R_p w_j\|)_{hw}

    (arXiv 2403.09863, section 3). R_p turns by 360 p / P degrees about the middle, bilinearly, with zeros around.

    Args:
        kernels: How many.
        poses: P, rotations of each.
        side: k, pixels a side of a kernel; odd.

    Raises:
        SoftgateError: For a number that is out of range.
    """

    def __init__(self, kernels: int = 2, poses: int = 32, side: int = 5) -> None:
        super().__init__()
        require(kernels >= 1, f"model.kernels={kernels}: a whole number >= 1 is needed.")
        require(poses >= 1, f"model.poses={poses}: a whole number >= 1 is needed.")
        require(side % 2 == 1, f"model.side={side}: an odd number of pixels is needed, so that there is a middle.")
        weight = 0.1 * torch.randn(kernels, side, side)
        weight[:, side // 2, side // 2] += 1.0
        self.weight, self.relu = nn.Parameter(weight), nn.ReLU()
        self.register_buffer("turns", rotations(side, poses), persistent=False)
        self.turns: Tensor
        self.renormalise()

    def renormalise(self) -> None:
        """Each kernel to norm 1."""
        with torch.no_grad():
            self.weight.copy_(_unit(self.weight.flatten(1)).view_as(self.weight))

    def kernels(self) -> Tensor:
        """All kernels in all rotations, of norm 1, [kernels, poses, side, side]."""
        turned = torch.einsum("pij,kj->kpi", self.turns.to(self.weight), self.weight.flatten(1))
        return _unit(turned).view(*turned.shape[:2], *self.weight.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] to [B, 1, H, W]."""
        self._keep_in_range()
        side = self.weight.shape[-1]
        scores = F.conv2d(x, self.kernels().flatten(0, 1)[:, None], padding=side // 2)
        best = scores.unsqueeze(1).amax(2)  # a pooling over poses: a call site of softgate's
        out: Tensor = self.relu(best / side)
        return out


@checked
def turn(image: Tensor, angle: float) -> Tensor:
    """An image [H, W] turned by an angle in degrees about its middle, bilinearly, with zeros around it."""
    height, width = image.shape
    down, across = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) - (height - 1) / 2,
        torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
        indexing="ij",
    )
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    grid = torch.stack([cosine * across - sine * down, sine * across + cosine * down], -1)
    grid = 2 * grid / torch.tensor([width - 1, height - 1], dtype=torch.float64)
    made = F.grid_sample(image.double()[None, None], grid[None], padding_mode="zeros", align_corners=True)
    return made[0, 0].to(image)


def rotations(side: int, poses: int) -> Tensor:
    """The linear maps that turn an image of side x side pixels by 360 p / poses degrees, [poses, side^2, side^2]."""
    units = torch.eye(side * side, dtype=torch.float64).view(-1, side, side)
    turned = [torch.stack([turn(unit, 360 * pose / poses).flatten() for unit in units], 1) for pose in range(poses)]
    return torch.stack(turned)


class AffineFeatures(Renormalised):
    r"""Templates up to an affine map: the largest scalar product of the image with a template in its poses, then ReLU.

    .. math:: y_f = \max_p \langle x, A_{fp} w_f / \|A_{fp} w_f\| \rangle

    (arXiv 2403.09863, section 3). A template is padded with zeros to the image's size; A reads it, bilinearly, where
    its pose sends each pixel: a 2 x 2 matrix about the middle, and a shift in pixels. Templates and poses are learnt.

    Args:
        features: Templates.
        poses: Of each.
        size: Pixels a side of the image.
        side: Pixels a side of a template.

    Raises:
        SoftgateError: For a number that is out of range.
    """

    def __init__(self, features: int = 8, poses: int = 32, size: int = 28, side: int = 20) -> None:
        super().__init__()
        require(features >= 1, f"model.features={features}: a whole number >= 1 is needed.")
        require(poses >= 1, f"model.poses={poses}: a whole number >= 1 is needed.")
        require(1 <= side <= size, f"model.side={side}: templates of 1 to {size} pixels are needed.")
        self.size, self.relu = size, nn.ReLU()
        self.weight = nn.Parameter(torch.empty(features, side, side).uniform_(-1, 1))
        shifts = torch.cat([torch.zeros(features, poses, 2, 2), torch.randn(features, poses, 2, 1)], -1)
        self.poses = nn.Parameter(torch.eye(2, 3) + 0.01 * torch.randn(features, poses, 2, 3) + shifts)
        self.renormalise()

    def renormalise(self) -> None:
        """Each template to norm 1; poses are free."""
        with torch.no_grad():
            self.weight.copy_(_unit(self.weight.flatten(1)).view_as(self.weight))

    def templates(self) -> Tensor:
        """All templates in all poses, of norm 1, [features, poses, size, size]."""
        features, poses = self.poses.shape[:2]
        before = (self.size - self.weight.shape[-1]) // 2
        after = self.size - self.weight.shape[-1] - before
        padded = F.pad(self.weight, (before, after, before, after))[:, None]
        unit = self.poses.new_tensor([1.0, 1.0, 2 / self.size])  # affine_grid counts in half images
        grid = F.affine_grid(
            (self.poses * unit).flatten(0, 1), [features * poses, 1, self.size, self.size], align_corners=False
        )
        grid = grid.view(features, poses * self.size, self.size, 2)
        moved = F.grid_sample(padded, grid, padding_mode="zeros", align_corners=False)
        return _unit(moved.view(features, poses, -1)).view(features, poses, self.size, self.size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, size, size] to [B, features]."""
        self._keep_in_range()
        scores = torch.einsum("bi,fpi->bfp", x.flatten(1), self.templates().flatten(2))
        out: Tensor = self.relu(scores.amax(2))  # a pooling over poses: a call site of softgate's
        return out


class LogicalLayer(nn.Module):
    r"""One of the class's own features, and not those of others: for each class the largest over its own features.

    .. math:: y_c = \max_r\, m_c x_{c, r} + \sum_{j \notin c} w_{cj} x_j, \quad m_c = \max_{j \in c} w_{cj}

    (arXiv 2403.09863, section 3). Each class owns as many features. Of the weights of its own only the largest counts;
    r is where it is rolled to.

    Args:
        features: How many come in.
        classes: How many there are.

    Raises:
        SoftgateError: If the classes cannot share the features evenly.
    """

    def __init__(self, features: int = 8, classes: int = 2) -> None:
        super().__init__()
        fits = classes >= 1 and features >= classes and features % classes == 0
        said = f"{classes} classes share them evenly; a multiple of {classes} is needed"
        require(fits, f"model.features={features}: {said}.")
        self.share = features // classes
        own = torch.arange(features)[None] // self.share == torch.arange(classes)[:, None]
        self.register_buffer("others", (~own).double(), persistent=False)
        self.others: Tensor
        weight = torch.full((classes, features), -0.1)
        weight[torch.arange(classes), self.share * torch.arange(classes)] = 0.4
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, features] to logits [B, classes]."""
        classes = len(self.weight)
        blocks = self.weight.view(classes, classes, self.share)
        own = blocks[torch.arange(classes), torch.arange(classes)]
        largest = own.gather(1, own.detach().argmax(1, keepdim=True))
        rest = x @ (self.weight * self.others.to(self.weight)).T
        rolled = largest * x.view(-1, classes, self.share) + rest.unsqueeze(2)
        return rolled.amax(2)  # a pooling over where it is rolled to: a call site of softgate's


class WhiteBox(nn.Module):
    """The network of arXiv 2403.09863: `TwoStep`, `RotatedConvolution`, `AffineFeatures`, `LogicalLayer`.

    With two classes, eight features and images of 28 px it has 4,810 parameters. At other sizes templates keep their
    share of the image's side, 20 of 28.

    Args:
        num_classes: Of the logical layer.
        features: Templates, as many for each class.
        kernels: Of the convolution.
        poses: Rotations of each kernel, and affine maps of each template.
        size: Pixels a side of the images.
        mean: What was subtracted from pixels in [0, 1]: one number, or the same for each channel.
        std: What they were divided by then.

    Raises:
        SoftgateError: As the layers; for images that are not grey or of another size, in a forward pass.
    """

    def __init__(
        self,
        num_classes: int = 2,
        features: int = 8,
        kernels: int = 2,
        poses: int = 32,
        size: int = 28,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        for name, value in {"features": features, "kernels": kernels, "poses": poses, "size": size}.items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and value >= 1, f"model.{name}={value}: a whole number >= 1 is needed.")
        self.size, self.mean, self.std = size, _one("mean", mean), _one("std", std)
        require(self.std > 0, f"model.std={std}: a number > 0 is needed.")
        self.pixel = TwoStep()
        self.conv = RotatedConvolution(kernels, poses)
        self.affine = AffineFeatures(features, poses, size, max(1, round(size * 20 / 28)))
        self.logical = LogicalLayer(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalised grey images [B, 1, size, size]."""
        wanted = (1, self.size, self.size)
        fits = tuple(x.shape[1:]) == wanted
        said = f"grey images [B, {', '.join(map(str, wanted))}] are needed, as of data.channels=1 data.size={self.size}"
        require(fits, f"model=whitebox: images of shape {tuple(x.shape)}: {said}.")
        logits: Tensor = self.logical(self.affine(self.conv(self.pixel(x * self.std + self.mean))))
        return logits


def _unit(x: Tensor) -> Tensor:
    """Vectors along the last dimension, of norm 1."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / (lengths + TINY)


def _one(name: str, value: float | Sequence[float]) -> float:
    """The number that all channels have."""
    values = {float(each) for each in (value if isinstance(value, Sequence) else [value])}
    require(len(values) == 1, f"model.{name}={value}: grey images have one; data.channels=1 is needed.")
    return values.pop()
