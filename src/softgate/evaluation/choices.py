"""What options of `evaluate.py` may name, for them to be checked by; nothing that these stand for is imported here."""

from __future__ import annotations

EXPLAINERS = (
    "gradient",
    "input_x_gradient",
    "smoothgrad",
    "guided_backprop",
    "leaky_backward",
    "integrated_gradients",
    "grad_cam",
    "excitation_pullback",
    "semantic_pullback",
)
"""Those of `softgate.explainers.KNOWN`."""

KINDS = ("raw", "ascent", "accentuation")
SCALES = ("cell", "shared", "seismic")
"""Kinds of grids and how they are coloured: those of `softgate.grids`."""

ALIGNMENT = (
    "randomization_head",
    "randomization_top",
    "randomization_all",
    "target_specificity",
    "input_specificity",
    "representation",
    "kernel_agreement",
    "kernel_agreement_within",
    "pullback_accuracy",
    "noise_cosine",
    "max_sensitivity",
    "total_variation",
    "high_frequency",
    "spectral_slope",
    "data_alignment",
    "mean_alignment",
    "counterfactual_flip",
    "counterfactual_transfer",
    "counterfactual_gain",
    "grid_pointing",
    "deletion",
    "insertion",
    "infidelity",
)
"""Keys of a control table, `softgate.metrics.control_table.BETTER`."""

FAMILIES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
"""Common corruptions: those of `softgate.metrics.corruptions`."""
