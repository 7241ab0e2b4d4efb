r"""Semantic pullbacks: what a few steps along the pullback add to the image (arXiv 2507.22832, its later version).

:math:`x_{k+1} = x_k + s\, v(x_k) / \|v(x_k)\|`, and the explanation is :math:`x_n - x_0`. There is no ball to stay in,
and the published figures do not clip: clipped after each step the image stays legal, clipped once at the end the path
is free. Beside it, `softgate.ascend` is the earlier version's: it stays in a ball and in the box at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require, unknown
from softgate.explainers.base import classes
from softgate.explainers.pullback import Target, _in_chunks, _targets, pull, size_factor, unit
from softgate.sites.inference import inner, reading_out
from softgate.surrogate.inputs import check_rule, checked
from softgate.surrogate.rule import Surrogate

CLIPS = ("never", "each", "last")
"""When the image is put back into its bounds."""


@checked
def semantic_pullback(
    model: nn.Module,
    x: Tensor,
    target: Target,
    rule: Surrogate | None = None,
    *,
    steps: int = 5,
    step_size: float = 20.0,
    clip: str = "never",
    bounds: tuple[float, float] = (-1.0, 1.0),
    centred: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """What `steps` steps of ascent along the pullbacks of target logits add to images.

    Args:
        model: A classifier as in `pullback`.
        x: [B, C, H, W] images as the model takes them.
        target: As in `pullback`.
        rule: As in `pullback`; the source's is `Surrogate.semantic()`.
        steps: Number of steps; 5 in the source.
        step_size: L2 norm of a step at d = 150528 numbers (3 x 224 x 224), in units of `x`; scaled by sqrt(d / 150528).
        clip: When the image is clipped to `bounds`: "never" as in the source's tables, after "each" step as in its
            counterfactual pictures, or after the "last".
        bounds: Least and greatest value of `x`, where it is clipped.
        centred: Ascend the logit minus the mean logit.
        chunk: As in `pullback`; each target of each image counts as one.

    Returns:
        [B, C, H, W], or [B, K, C, H, W] for K targets; detached.

    Raises:
        SoftgateError: As `pullback`, and for settings out of range.
    """
    low, high = bounds
    require(steps >= 1, f"semantic_pullback: steps={steps}: at least 1 is needed.")
    require(step_size > 0, f"semantic_pullback: step_size={step_size}: it must be > 0.")
    require(low < high, f"semantic_pullback: bounds={bounds}: (least, greatest) is needed.")
    if clip not in CLIPS:
        raise unknown("semantic_pullback: clip", clip, CLIPS)
    model, size = inner(model), step_size * size_factor(x)

    with reading_out(model, rule) as sites:
        model = sites.model
        targets, many = _targets(x, target)
        count = targets.shape[1]
        cells = torch.arange(len(x), device=x.device).repeat_interleave(count)
        flat = targets.reshape(-1, 1)

        def climb(part: slice) -> Tensor:
            origin = x.detach()[cells[part]]
            image = origin
            for step in range(1, steps + 1):
                image = image + size * unit(pull(model, image, flat[part], centred=centred)[1][:, 0])
                if clip == "each" or (clip == "last" and step == steps):
                    image = image.clamp(low, high)
            return image - origin

        found = torch.cat(_in_chunks(climb, x, len(flat), chunk))
    return found.view(*((len(x), count) if many else (len(x),)), *x.shape[1:])


@dataclass(frozen=True)
class SemanticPullback:
    """The semantic pullback, as an explainer.

    Args:
        rule: The backward rule; None is the gradient.
        steps: As in `semantic_pullback`.
        step_size: As in `semantic_pullback`.
        clip: As in `semantic_pullback`.
        bounds: As in `semantic_pullback`.
        centred: As in `semantic_pullback`.
    """

    rule: Surrogate | None = field(default_factory=Surrogate.semantic)
    steps: int = 5
    step_size: float = 20.0
    clip: str = "never"
    bounds: tuple[float, float] = (-1.0, 1.0)
    centred: bool = False

    def __post_init__(self) -> None:
        check_rule(self.rule)

    @checked
    def __call__(self, model: nn.Module, x: Tensor, target: Any) -> Tensor:
        """The semantic pullback [B, C, H, W]."""
        way = {key: getattr(self, key) for key in ("steps", "step_size", "clip", "bounds", "centred")}
        return semantic_pullback(model, x, classes(x, target), self.rule, **way)
