r"""Pullbacks of output units to the input, and projected gradient ascent along them.

The pullback of logit c under a rule is its input gradient with soft gates in the backward pass (paper,
equations 6 and 21). Without a rule it is the gradient. These functions leave no trace: train or eval mode, the
rule in force, parameters' `.grad` and the random state are afterwards what they were before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from softgate import memory
from softgate.display import Brief, png
from softgate.errors import is_whole, require
from softgate.sites.inference import inner, reading_out
from softgate.surrogate.inputs import checked
from softgate.surrogate.rule import Surrogate

Target = int | Sequence[int] | Tensor

PAPER_PIXELS = 3 * 224 * 224
"""Numbers in the paper's images; its step size and radius belong to them."""

CHUNK = 32
"""Images of the paper's size that run at once where `chunk` is None; of smaller ones so many more."""

NO_IMAGE = "x has no image: images [B, C, H, W] with B >= 1 are needed."

_Part = TypeVar("_Part")


@dataclass(frozen=True, repr=False)
class Ascent(Brief):
    """What `ascend` returns. K is absent where one target per image was given.

    A notebook shows it as a picture: the first images, each perturbed and what was added to it.

    Attributes:
        image: [B, (K,) C, H, W] the perturbed images.
        difference: [B, (K,) C, H, W] perturbed minus original.
        logits: [B, (K,) steps + 1] the target logit before each step and at the end.
        predicted: [B, (K,) 2] the class the model predicts before the first step and at the end.
        bounds: Least and greatest pixel value.
    """

    image: Tensor
    difference: Tensor
    logits: Tensor
    predicted: Tensor
    bounds: tuple[float, float] = (-1.0, 1.0)

    def _repr_png_(self) -> bytes:
        return pictured(self, "ascent")


def pictured(found: Any, called: str) -> bytes:
    """A PNG of the first images, each changed and what was added to it.

    Args:
        found: Has `image`, `difference`, `logits`, `predicted` and `bounds`, as `Ascent`.
        called: What stands above the changed images.
    """
    from softgate.figures.ascent import ascent  # matplotlib, which nothing else here needs

    def drawn(part: Tensor) -> Any:
        return (part if found.image.dim() == 5 else part[:, None]).detach().float().cpu().numpy()

    shown = drawn(found.image), drawn(found.difference), drawn(found.logits), drawn(found.predicted)
    return png(ascent(*shown, found.bounds, called))


@checked
def pullback(
    model: nn.Module,
    x: Tensor,
    target: Target,
    rule: Surrogate | None = None,
    *,
    centred: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """The pullback of the target logits to the input, v = dL f_target / dx under a rule (paper, equation 6).

    All targets share one forward pass. The model runs in eval mode, whatever mode it is in.

    Args:
        model: A classifier, attached to a rule or not; returns logits [B, classes].
        x: [B, C, H, W] images as the model takes them.
        target: A class for all images (int); one per image ([B] tensor); or K per image ([B, K] tensor, or a list
            of K classes for all images).
        rule: The backward rule; None is the gradient. The rule the model is attached to plays no part.
        centred: Of the logit minus the mean logit, which is free in a softmax.
        chunk: At most so many images at once, which bounds the memory; None is as many as hold the numbers of 32
            images of 224 px. Where memory runs out nevertheless the chunk is halved, down to one image.

    Returns:
        [B, C, H, W], or [B, K, C, H, W] for K targets; in the dtype of `x`, detached.

    Raises:
        SoftgateError: If `x` or `target` has the wrong shape or a class the model does not have, or the model returns
            something else than one row of logits for each image.
    """
    model = inner(model)
    with reading_out(model, rule) as sites:
        model = sites.model
        targets, many = _targets(x, target)
        parts = _in_chunks(lambda part: pull(model, x[part], targets[part], centred=centred)[1], x, len(x), chunk)
        rows = torch.cat(parts)
    return rows if many else rows[:, 0]


@checked
def ascend(
    model: nn.Module,
    x: Tensor,
    target: Target,
    rule: Surrogate | None = None,
    *,
    steps: int = 10,
    step_size: float = 20.0,
    radius: float = 100.0,
    bounds: tuple[float, float] = (-1.0, 1.0),
    normalize: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
) -> Ascent:
    """Projected gradient ascent on the target logit along its pullback (paper 5.1).

    Each step has L2 norm `step_size` per image; the image is then projected on the L2 ball around the original
    and on the box of legal pixels. An image whose pullback is zero stays where it is.

    Args:
        model: A classifier as in `pullback`.
        x: [B, C, H, W] images within `bounds`.
        target: As in `pullback`.
        rule: As in `pullback`.
        steps: Number of steps.
        step_size: L2 norm of a step. 20 belongs to d = 150528 numbers (3 x 224 x 224); scale by sqrt(d / 150528).
        radius: Radius of the L2 ball; scales likewise.
        bounds: Least and greatest pixel value.
        normalize: Applied to the images before the model, where the model takes another scale than `bounds`.
        chunk: As in `pullback`; each target of each image counts as one.

    Returns:
        The perturbed images, the differences, the target logits along the way and what is predicted.

    Raises:
        SoftgateError: As `pullback`, and for settings out of range.
    """
    low, high = bounds
    require(steps >= 1, f"ascend: steps={steps}: at least 1 is needed.")
    require(step_size > 0 and radius > 0, f"ascend: step_size={step_size}, radius={radius}: both must be > 0.")
    require(low < high, f"ascend: bounds={bounds}: (least, greatest) is needed.")
    outside = bool(((x < low) | (x > high)).any())
    require(
        not outside,
        f"ascend: x has pixels outside of bounds={bounds}; pass images in that range, or set bounds.",
    )
    model = inner(model)

    def climb(part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        origin, logits, direction = x.detach()[cells[part]], start[cells[part]], first[part]
        image, path, predicted = origin, [_pick(logits, flat[part])], [logits.argmax(1)]
        for step in range(1, steps + 1):
            image = project(image + step_size * unit(direction), origin, radius).clamp(low, high)
            if step < steps:
                logits, rows = pull(model, image, flat[part], normalize)
                direction = rows[:, 0]
            else:
                with torch.no_grad():
                    logits = _logits(model, normalize(image.clone()) if normalize else image.clone())
            path.append(_pick(logits, flat[part]))
        predicted.append(logits.argmax(1))
        return image, image - origin, torch.cat(path, 1), torch.stack(predicted, 1)

    with reading_out(model, rule) as sites:
        model = sites.model
        targets, many = _targets(x, target)
        count = targets.shape[1]
        cells = torch.arange(len(x), device=x.device).repeat_interleave(count)
        flat = targets.reshape(-1, 1)
        # At the first step the targets of an image still share its forward pass.
        begun = _in_chunks(lambda part: pull(model, x[part], targets[part], normalize), x, len(x), chunk)
        start, first = (torch.cat(part) for part in zip(*begun, strict=True))
        first = first.flatten(0, 1)
        parts = zip(*_in_chunks(climb, x, len(flat), chunk), strict=True)
    image, difference, path, predicted = (torch.cat(part) for part in parts)
    shape = (x.shape[0], count) if many else (x.shape[0],)
    return Ascent(
        image.view(*shape, *x.shape[1:]),
        difference.view(*shape, *x.shape[1:]),
        path.view(*shape, steps + 1),
        predicted.view(*shape, 2),
        (float(low), float(high)),
    )


@checked
def predict(model: nn.Module, x: Tensor, *, chunk: int | None = None) -> Tensor:
    """The logits [B, classes] of images, in eval mode, without a graph; in chunks as in `pullback`."""
    model = inner(model)
    with reading_out(model, None) as sites, torch.no_grad():
        model = sites.model
        return torch.cat(_in_chunks(lambda part: _logits(model, x[part].detach().clone()), x, len(x), chunk))


def size_factor(x: Tensor) -> float:
    """sqrt(d / 150528) for images of d numbers: scales the paper's step size and radius to other sizes.

    Args:
        x: [B, C, H, W].
    """
    return math.sqrt(math.prod(x.shape[1:]) / PAPER_PIXELS)


def _in_chunks(work: Callable[[slice], _Part], x: Tensor, count: int, chunk: int | None) -> list[_Part]:
    """Runs `work` on slices of `count` items until all are done; smaller slices where memory runs out.

    No single item is left for the end where that can be helped: gates of other examples need one.
    """
    require(count > 0, NO_IMAGE)
    whole = is_whole(chunk, 1)
    require(chunk is None or whole, f"chunk={chunk}: a whole number >= 1 is needed, or None.")
    size = max(1, CHUNK * PAPER_PIXELS // max(1, math.prod(x.shape[1:]))) if chunk is None else chunk
    return memory.in_chunks(work, count, size)


def pull(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    normalize: Callable[[Tensor], Tensor] | None = None,
    centred: bool = False,
) -> tuple[Tensor, Tensor]:
    """The logits [B, classes] of images and the pullbacks [B, K, C, H, W] of targets [B, K], of one forward pass."""
    images = x.detach().clone().requires_grad_()
    given = images.clone()  # a model may normalise its input in place, which a leaf does not allow
    logits = _logits(model, normalize(given) if normalize else given)
    picked = target_logits(logits, targets, centred=True) if centred else _pick(logits, targets)
    columns = picked.unbind(1)
    rows = []
    for k, column in enumerate(columns):
        rows.append(torch.autograd.grad(column.sum(), images, retain_graph=k + 1 < len(columns))[0])
    return logits.detach(), torch.stack(rows, 1)


def _norm(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.view(-1, *[1] * (x.dim() - 1))


def unit(x: Tensor) -> Tensor:
    """Each image [B, ...] scaled to L2 norm 1; one that is zero stays zero."""
    norm = _norm(x)
    return torch.where(norm > 0, x / norm, torch.zeros_like(x))


def project(image: Tensor, origin: Tensor, radius: float) -> Tensor:
    """Each image [B, ...] moved onto the L2 ball of `radius` around its origin where it is outside of it."""
    offset = image - origin
    return origin + offset * (radius / _norm(offset).clamp_min(radius))


def _targets(x: Tensor, target: Target) -> tuple[Tensor, bool]:
    """The targets as [B, K], and whether several per image were asked for."""
    require(x.dim() == 4, f"x of shape {tuple(x.shape)}: images [B, C, H, W] are needed.")
    require(x.is_floating_point(), f"x of {x.dtype}: floating-point images, as the model takes them, are needed.")
    size = x.shape[0]
    kind = "an int, a [B] tensor, a [B, K] tensor or a list of classes"
    require(size > 0, NO_IMAGE)
    try:
        given = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        given = torch.empty(())
    whole = given.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    require(whole, f"target={target}: {kind} is needed.")
    wanted = given.to(x.device, torch.int64, copy=True)
    if wanted.dim() == 0:
        return wanted.expand(size, 1), False
    if isinstance(target, Tensor) and wanted.dim() == 1:
        require(len(wanted) == size, f"target has {len(wanted)} classes for {size} images; {kind} is needed.")
        return wanted[:, None], False
    if wanted.dim() == 1:
        require(len(wanted) > 0, f"target={target}: at least one class is needed.")
        return wanted.expand(size, -1), True
    fits = wanted.dim() == 2 and wanted.shape[0] == size and wanted.shape[1] > 0
    require(fits, f"target of shape {tuple(wanted.shape)} for {size} images: {kind} is needed.")
    return wanted, True


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """The logits [B, classes], in float32 at least."""
    out: Any = model(x)
    logits: Any = getattr(out, "logits", out)
    require_logits(logits, len(x))
    wide: Tensor = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return wide


def _pick(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits [B, K] of the targets."""
    require_classes(logits, targets)
    return logits.gather(1, targets)


def target_logits(outputs: Tensor, targets: Tensor, centred: bool = False) -> Tensor:
    """The logits [B, K] of the targets [B, K], in float32 at least; minus the mean over classes if centred.

    Raises:
        SoftgateError: If the outputs are no logits [B, classes] of as many images, or a target is no class.
    """
    require_classes(outputs, targets)
    wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    picked = wide.gather(1, targets)
    return picked - wide.mean(1, keepdim=True) if centred else picked


def require_classes(outputs: Tensor, targets: Tensor, images: int | None = None) -> None:
    """Raises `SoftgateError` unless outputs are logits [B, classes] and every target is one of the classes.

    Args:
        outputs: What a model returns.
        targets: [B, ...] classes, of as many images unless `images` says otherwise.
        images: How many images the model was given.
    """
    require_logits(outputs, len(targets) if images is None else images)
    classes = outputs.shape[1]
    least, greatest = int(targets.min()), int(targets.max())
    wrong = greatest if greatest >= classes else least
    require(least >= 0 and greatest < classes, f"target={wrong}: the model has the classes 0 to {classes - 1}.")


def require_logits(outputs: Any, images: int) -> None:
    """Raises `SoftgateError` unless outputs are logits [B, classes], one row for each of so many images."""
    shape = tuple(getattr(outputs, "shape", ()))
    require(
        len(shape) == 2 and shape[0] == images,
        f"the model returns {type(outputs).__name__} {shape} for {images} image(s); logits [B, classes], one row for "
        f"each image, are needed.",
    )
