"""Explainers by name, and in the form that Quantus takes. For captum see `softgate.explainers.captum`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from softgate.errors import unknown
from softgate.explainers.base import Explainer
from softgate.explainers.cam import grad_cam
from softgate.explainers.gradients import (
    Pullback,
    gradient,
    input_x_gradient,
    integrated_gradients,
    leaky_backward,
    smoothgrad,
)
from softgate.explainers.guided import guided_backprop
from softgate.explainers.semantic import SemanticPullback

KNOWN: dict[str, Explainer] = {
    "gradient": gradient,
    "input_x_gradient": input_x_gradient,
    "smoothgrad": smoothgrad,
    "guided_backprop": guided_backprop,
    "leaky_backward": leaky_backward,
    "integrated_gradients": integrated_gradients,
    "grad_cam": grad_cam,
    "excitation_pullback": Pullback(),
    "semantic_pullback": SemanticPullback(),
}
"""The explainers by the names used in configs."""


def by_name(name: str) -> Explainer:
    """The explainer of a name.

    Raises:
        SoftgateError: If there is none.
    """
    if name not in KNOWN:
        raise unknown("explainers", name, KNOWN)
    return KNOWN[name]


def for_quantus(explainer: Explainer) -> Callable[..., npt.NDArray[Any]]:
    """The explainer as Quantus calls it: `explain_func(model, inputs, targets, **kwargs)`, numpy in and out.

    Args:
        explainer: Any explainer.

    Returns:
        A function of a model, inputs [B, C, H, W] and targets [B], both arrays or tensors; further keywords, such as
        `device`, play no part: the inputs go where the model's weights are.
    """

    def explain(model: nn.Module, inputs: Any, targets: Any, **kwargs: Any) -> npt.NDArray[Any]:
        like = next(model.parameters())
        x = torch.as_tensor(np.asarray(inputs)).to(like)
        wanted = torch.as_tensor(np.asarray(targets)).to(like.device, torch.int64)
        return explainer(model, x, wanted).cpu().numpy()

    return explain
