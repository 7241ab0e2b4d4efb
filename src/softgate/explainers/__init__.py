"""Explainers: what the pullback is compared with, and the pullback itself, as plain functions of one shape.

An explainer takes (model, x [B, C, H, W], target) and returns [B, C, H, W]; target is a class for all images or a [B]
tensor. The model runs in eval mode with its true gradient, whatever mode it is in and whatever rule it is attached to,
and is left as it was. `centred=True` explains the target logit minus the mean logit instead, which is what alignment
metrics are of. Where captum has a method it does the work; it comes with the extra `softgate[explain]`.
"""

from softgate.explainers.base import Explainer
from softgate.explainers.bridges import KNOWN, by_name, for_quantus
from softgate.explainers.cam import grad_cam
from softgate.explainers.gradients import (
    ExcitationPullback,
    Pullback,
    gradient,
    input_x_gradient,
    integrated_gradients,
    leaky_backward,
    smoothgrad,
)
from softgate.explainers.guided import guided_backprop
from softgate.explainers.semantic import SemanticPullback, semantic_pullback

__all__ = [
    "KNOWN",
    "ExcitationPullback",
    "Explainer",
    "Pullback",
    "SemanticPullback",
    "by_name",
    "for_quantus",
    "grad_cam",
    "gradient",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "leaky_backward",
    "semantic_pullback",
    "smoothgrad",
]
