r"""Feature accentuation: feature visualisation that begins at an image (Hamblin et al., arXiv 2402.10039).

The image is given by its Fourier coefficients :math:`\theta` in units of 1 / frequency (`softgate.explainers.fourier`),
and Adam climbs :math:`E[r(t(x_\theta))] - w\, b\, E[d(t(x_\theta), t'(x_0))]`. r is the target logit, or a unit's
response; t a random crop of the image, resized and with noise added; d the distance to the same crop of the seed image
in an early layer, the mean over positions of the L2 norm over units; and b makes the gradients of both, in the
coefficients, of the same L1 norm at the first step, so that the weight w is free of scale. The source's default is 100
steps of 16 crops, each with its crop of the seed: more than 3,000 passes of the network for a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.display import Brief
from softgate.errors import is_number, is_whole, require
from softgate.explainers import fourier, noise
from softgate.explainers.layers import Outputs, listening, require_layer, units_second, with_weights
from softgate.explainers.pullback import (
    CHUNK,
    PAPER_PIXELS,
    Target,
    _in_chunks,
    _logits,
    _targets,
    pictured,
    require_classes,
)
from softgate.sites.inference import inner, reading_out
from softgate.surrogate.inputs import checked
from softgate.surrogate.rule import Surrogate


@dataclass(frozen=True)
class AccentuationSettings:
    """How an image is accentuated.

    Attributes:
        steps: Steps of Adam.
        crops: Random crops of each image that a step's gradient is the mean over.
        crop: Least and greatest side of a crop, as a share of the image's; (1, 1) crops nothing.
        noise: Standard deviation of the noise added to a crop, as a share of the range of pixels.
        learning_rate: Of Adam, in coefficients in units of 1 / frequency, of the logit of a pixel's place in its range.
            The source's 0.05 for a phase, and 0.05 / 5 for these coefficients.
        weight: Of the distance to the seed image; 0 looks at the feature alone, and takes half the passes.
        layer: The layer that the distance is measured in, as `model.named_modules()` names it. None is the one a
            quarter of the way: of the layers with weights, in the order in which they are called.
        unit_of: The layer whose units targets count, in place of the model's classes; its response is the mean over
            positions.
        seed: Of crops and noise, beside the pixels of the image.

    Raises:
        SoftgateError: For settings out of range.
    """

    steps: int = 100
    crops: int = 16
    crop: tuple[float, float] = (0.05, 0.99)
    noise: float = 0.02
    learning_rate: float = 0.01
    weight: float = 1.0
    layer: str | None = None
    unit_of: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for key, least in (("steps", 1), ("crops", 1), ("seed", 0)):
            value = getattr(self, key)
            whole = is_whole(value, least)
            require(whole, f"accentuate: {key}={value}: a whole number >= {least} is needed.")
        require(self.seed < 2**32, f"accentuate: seed={self.seed}: a whole number below 2^32 is needed.")
        for key in ("weight", "noise"):
            value = getattr(self, key)
            fits = is_number(value) and 0 <= value <= 1e30
            require(fits, f"accentuate: {key}={value}: a number >= 0 is needed.")
        fits = is_number(self.learning_rate) and 0 < self.learning_rate <= 1e30
        require(fits, f"accentuate: learning_rate={self.learning_rate}: a number > 0 is needed.")
        sides = self.crop if isinstance(self.crop, (tuple, list)) else ()
        fits = len(sides) == 2 and all(map(is_number, sides)) and 0 < sides[0] <= sides[1] <= 1
        require(fits, f"accentuate: crop={self.crop}: (least, greatest) with 0 < least <= greatest <= 1 is needed.")

        idle = self.weight == 0 and self.layer is not None
        require(not idle, f"accentuate: layer={self.layer}: with weight=0 no distance is measured; leave layer out.")

    @property
    def passes(self) -> int:
        """How many images the network is run on for one picture, the two that measure its logit included."""
        return self.steps * self.crops * (2 if self.weight else 1) + 2


@dataclass(frozen=True, repr=False)
class Accentuation(Brief):
    """What `accentuate` returns. K is absent where one target per image was given.

    A notebook shows it as a picture: the first images, each accentuated and what was added to it.

    Attributes:
        image: [B, (K,) C, H, W] the accentuated images.
        difference: [B, (K,) C, H, W] accentuated minus original.
        logits: [B, (K,) 2] the target logit, or the unit's response, of the whole image before and after.
        predicted: [B, (K,) 2] the class the model predicts before and after.
        responses: [B, (K,) steps] the mean over a step's crops of what is climbed, before the step.
        layer: The layer in which the distance to the seed image was measured; None where its weight is 0.
        passes: Images that the network was run on for each picture: crops, crops of the seed, and the two of `logits`.
        bounds: Least and greatest pixel value.
    """

    image: Tensor
    difference: Tensor
    logits: Tensor
    predicted: Tensor
    responses: Tensor
    layer: str | None
    passes: int
    bounds: tuple[float, float] = (-1.0, 1.0)

    def _repr_png_(self) -> bytes:
        return pictured(self, "accentuated")


@checked
def accentuate(
    model: nn.Module,
    x: Tensor,
    target: Target,
    rule: Surrogate | None = None,
    settings: AccentuationSettings | None = None,
    *,
    bounds: tuple[float, float] = (-1.0, 1.0),
    normalize: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
) -> Accentuation:
    """Changes images until they excite a feature and are still like themselves in an early layer (arXiv 2402.10039).

    Crops and noise are drawn from the seed and each image's own pixels: a picture does not depend on the images beside
    it, and nobody else's random numbers move. Pixels nearer to a bound than half of one of 255 grey levels are moved
    there first, as a sigmoid reaches no bound. What the source does and this does not: its colours are decorrelated
    first, and its library's default parameters are phases, with one factor for each amplitude.

    Args:
        model: A classifier as in `pullback`.
        x: [B, C, H, W] images within `bounds`.
        target: As in `pullback`; with `settings.unit_of`, units of that layer in place of classes.
        rule: As in `pullback`; the source's is None, the gradient.
        settings: How; None is the source's 100 steps of 16 crops.
        bounds: Least and greatest pixel value.
        normalize: Applied to the images before the model, where the model takes another scale than `bounds`.
        chunk: As in `pullback`; each crop counts as one.

    Returns:
        The accentuated images, the differences, the logits before and after, and what it took.

    Raises:
        SoftgateError: As `pullback`; for a layer that does not exist or does not come before the target.
    """
    low, high = bounds
    require(low < high, f"accentuate: bounds={bounds}: (least, greatest) is needed.")
    outside = bool(((x < low) | (x > high)).any())
    require(
        not outside, f"accentuate: x has pixels outside of bounds={bounds}; pass images in that range, or set bounds."
    )
    how = AccentuationSettings() if settings is None else settings
    model = inner(model)
    with reading_out(model, rule) as sites, listening(sites.model, set()) as outputs:
        targets, many = _targets(x, target)
        count = targets.shape[1]
        cells = torch.arange(len(x), device=x.device).repeat_interleave(count)
        flat = targets.reshape(-1, 1)
        origin = x.detach()
        climb = _Climb(sites.model, outputs, how, (float(low), float(high)), normalize, x.dtype)
        begun = _in_chunks(lambda part: climb.look(origin[part], targets[part]), x, len(x), chunk)
        before, was = (torch.cat(part) for part in zip(*begun, strict=True))
        climb.choose_layer()
        size = max(1, CHUNK * PAPER_PIXELS // max(1, origin[0].numel())) if chunk is None else chunk

        def work(part: slice) -> tuple[Tensor, ...]:
            image, responses = climb.run(origin[cells[part]], flat[part], size)
            return image, responses, *climb.look(image, flat[part])

        parts = zip(*_in_chunks(work, x, len(flat), max(1, size // how.crops)), strict=True)
        image, responses, after, now = (torch.cat(part) for part in parts)
    shape = (x.shape[0], count) if many else (x.shape[0],)
    return Accentuation(
        image.view(*shape, *x.shape[1:]),
        (image - origin[cells]).view(*shape, *x.shape[1:]),
        torch.stack((before.flatten(), after[:, 0]), 1).view(*shape, 2),
        torch.stack((was[cells], now), 1).view(*shape, 2),
        responses.view(*shape, how.steps),
        climb.layer,
        how.passes,
        (float(low), float(high)),
    )


class _Climb:
    """A network that is listened to, and how images are changed for it."""

    def __init__(
        self,
        model: nn.Module,
        outputs: Outputs,
        how: AccentuationSettings,
        bounds: tuple[float, float],
        normalize: Callable[[Tensor], Tensor] | None,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.outputs, self.how, self.bounds, self.normalize = model, outputs, how, bounds, normalize
        self.dtype = dtype
        self.layer: str | None = None
        for option in ("layer", "unit_of"):
            name = getattr(how, option)
            if name is not None:
                require_layer(f"accentuate: {option}", name, model)
        if how.unit_of is not None:
            outputs.names.add(how.unit_of)

    def look(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The responses [B, K] of whole images to their targets [B, K], and the classes [B] predicted."""
        with torch.no_grad():
            logits = self._forward(x)
            return self._responses(logits, targets), logits.argmax(1)

    def choose_layer(self) -> None:
        """Settles in which layer the distance is measured, by the order of the pass that was run."""
        if not self.how.weight:
            return
        order, of = self.outputs.order, self.how.unit_of
        there = order if of is None else order[: order.index(of)]
        if self.how.layer is not None:
            name = self.how.layer
            require(name in order, f"accentuate: layer={name}: the model does not call this layer.")
            words = f"it comes after unit_of={of}, or is the same; a layer before it is needed"
            require(name in there, f"accentuate: layer={name}: {words}.")
        else:
            known = with_weights(self.model, there)
            words = "the model calls no layer with weights before the target; name one, or set weight=0"
            require(bool(known), f"accentuate: layer=None: {words}.")
            name = known[len(known) // 4]
        self.layer = name
        self.outputs.names.add(name)

    def run(self, seeds: Tensor, wanted: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """The images [B, C, H, W] after all steps from seeds, for targets [B, 1]; the responses [B, steps] on the way.

        Args:
            seeds: [B, C, H, W].
            wanted: [B, 1].
            most: Crops that may run at once.
        """
        size = (seeds.shape[-2], seeds.shape[-1])
        theta = fourier.encode(seeds, self.bounds).requires_grad_()
        adam = torch.optim.Adam([theta], lr=self.how.learning_rate)
        generators = noise.generators(seeds, self.how.seed)
        balance = theta.new_zeros(len(seeds))
        path = []
        for _ in range(self.how.steps):
            image = fourier.decode(theta, size, self.bounds)
            response, up, away = self._slopes(image.detach(), seeds.to(image), wanted, generators, most)
            (climbing,) = torch.autograd.grad(image, theta, up, retain_graph=self.layer is not None)
            if self.layer is None:
                theta.grad = -climbing
            else:
                (leaving,) = torch.autograd.grad(image, theta, away)
                balance = torch.where(balance > 0, balance, _ratio(climbing, leaving))
                theta.grad = self.how.weight * balance.view(-1, 1, 1, 1, 1) * leaving - climbing
            adam.step()
            path.append(response)
        with torch.no_grad():
            return fourier.decode(theta, size, self.bounds).to(seeds.dtype), torch.stack(path, 1)

    def _slopes(
        self, image: Tensor, seeds: Tensor, wanted: Tensor, generators: list[torch.Generator], most: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mean response [B] over crops, and the gradients to the image of it and of the distance to the seed."""
        crops, at_once = self.how.crops, max(1, most // len(image))
        image.requires_grad_()
        total, up, away = image.new_zeros(len(image)), torch.zeros_like(image), torch.zeros_like(image)
        for start in range(0, crops, at_once):
            count = min(at_once, crops - start)
            changed, same = self._views(image, seeds, generators, count)
            logits = self._forward(changed)
            found = self._responses(logits, wanted.repeat_interleave(count, 0)).view(len(image), count).sum(1) / crops
            up += torch.autograd.grad(found.sum(), image, retain_graph=self.layer is not None)[0]
            total += found.detach()
            if self.layer is not None:
                here = units_second(self.outputs.kept[self.layer])
                with torch.no_grad():
                    self._forward(same)
                    there = units_second(self.outputs.kept[self.layer])
                apart = torch.linalg.vector_norm(here - there, dim=1).mean(1)
                away += torch.autograd.grad(apart.sum() / crops, image)[0]
        return total, up, away

    def _views(
        self, image: Tensor, seeds: Tensor, generators: list[torch.Generator], count: int
    ) -> tuple[Tensor, Tensor]:
        """The next crops [B * count, C, H, W] of the images, with noise, and the same ones of the seeds."""
        spread = self.how.noise * (self.bounds[1] - self.bounds[0])
        changed: list[Tensor] = []
        same: list[Tensor] = []
        for each, seed, generator in zip(image, seeds, generators, strict=True):
            for _ in range(count):
                box = _box(torch.rand(3, generator=generator).tolist(), self.how.crop, each.shape)
                for of, into in ((each, changed), (seed, same))[: 1 if self.layer is None else 2]:
                    into.append(_resized(of, box) + spread * torch.randn(of.shape, generator=generator).to(of))
        return torch.stack(changed), torch.stack(same) if same else image

    def _forward(self, x: Tensor) -> Tensor:
        self.outputs.clear()
        given = x.to(self.dtype, copy=True)
        return _logits(self.model, self.normalize(given) if self.normalize else given)

    def _responses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B, K], of the pass that gave the logits."""
        of = self.how.unit_of
        if of is None:
            require_classes(logits, targets)
            return logits.gather(1, targets)
        require(of in self.outputs.kept, f"accentuate: unit_of={of}: the model does not call this layer.")
        units = units_second(self.outputs.kept[of]).mean(2)
        most, wrong = units.shape[1], targets[(targets < 0) | (targets >= units.shape[1])]
        require(not len(wrong), f"target={(wrong.tolist() or [0])[0]}: the layer {of} has the units 0 to {most - 1}.")
        return units.gather(1, targets)


def _ratio(climbing: Tensor, leaving: Tensor) -> Tensor:
    """L1 norm of one gradient over that of the other, for each image; 0 where the other is zero."""
    one, other = climbing.abs().flatten(1).sum(1), leaving.abs().flatten(1).sum(1)
    return torch.where(other > 0, one / other, torch.zeros_like(one))


def _box(draws: list[float], sides: tuple[float, float], shape: torch.Size) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of a crop of images of a shape, from three numbers in [0, 1)."""
    side = sides[0] + draws[0] * (sides[1] - sides[0])
    height, width = (max(1, round(side * length)) for length in shape[-2:])
    return int(draws[1] * (shape[-2] - height + 1)), int(draws[2] * (shape[-1] - width + 1)), height, width


def _resized(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """A crop of an image [C, H, W], as large as the image."""
    top, left, height, width = box
    part = image[:, top : top + height, left : left + width]
    if part.shape == image.shape:
        return part
    return F.interpolate(part[None], image.shape[-2:], mode="bilinear", antialias=True)[0]
