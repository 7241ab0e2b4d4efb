"""Alignment metrics, one file for each question: the maths as a free function, the state as a torchmetrics Metric.

Metrics of maps take maps; metrics that must look again take an explainer, any callable `(model, x, target) -> maps`.
Nothing here imports Lightning, Hydra or W&B. What games each metric is in docs/alignment.md.
"""

from softgate.explainers.base import Explainer
from softgate.metrics.base import ProbeMetric
from softgate.metrics.corruptions import corrupt
from softgate.metrics.counterfactual import Counterfactual, counterfactuals
from softgate.metrics.data_likeness import DataAlignment, MeanAlignment, data_alignment, mean_alignment
from softgate.metrics.distances import FeatureDistance, of_network, pixel_distance, ssim_distance
from softgate.metrics.faithfulness import (
    Infidelity,
    InsertionDeletion,
    PullbackAccuracy,
    infidelity,
    pullback_accuracy,
    removal_curve,
)
from softgate.metrics.localisation import GridPointing, grid_pointing, mosaics
from softgate.metrics.perceptual_choice import (
    PerceptualChoice,
    choice_agreement,
    milder_of_another,
    milder_or_stronger,
    severity_ladder,
)
from softgate.metrics.perceptual_likeness import LpipsAlignment
from softgate.metrics.quantus_forms import Focus, RandomLogit, flat_similarity, focus, paired_mosaics
from softgate.metrics.randomization import Randomization, randomized, spearman
from softgate.metrics.representation import KernelAgreement, RepresentationError, kernel_agreement, representation_error
from softgate.metrics.smoothness import (
    HighFrequency,
    SpectralSlope,
    TotalVariation,
    high_frequency,
    spectral_slope,
    total_variation,
)
from softgate.metrics.specificity import InputSpecificity, TargetSpecificity, input_specificity, target_specificity
from softgate.metrics.stability import MaxSensitivity, NoiseCosine, max_sensitivity, noise_cosine

__all__ = [
    "Counterfactual",
    "DataAlignment",
    "Explainer",
    "FeatureDistance",
    "Focus",
    "GridPointing",
    "HighFrequency",
    "Infidelity",
    "InputSpecificity",
    "InsertionDeletion",
    "KernelAgreement",
    "LpipsAlignment",
    "MaxSensitivity",
    "MeanAlignment",
    "NoiseCosine",
    "PerceptualChoice",
    "ProbeMetric",
    "PullbackAccuracy",
    "RandomLogit",
    "Randomization",
    "RepresentationError",
    "SpectralSlope",
    "TargetSpecificity",
    "TotalVariation",
    "choice_agreement",
    "corrupt",
    "counterfactuals",
    "data_alignment",
    "flat_similarity",
    "focus",
    "grid_pointing",
    "high_frequency",
    "infidelity",
    "input_specificity",
    "kernel_agreement",
    "max_sensitivity",
    "mean_alignment",
    "milder_of_another",
    "milder_or_stronger",
    "mosaics",
    "noise_cosine",
    "of_network",
    "paired_mosaics",
    "pixel_distance",
    "pullback_accuracy",
    "randomized",
    "removal_curve",
    "representation_error",
    "severity_ladder",
    "spearman",
    "spectral_slope",
    "ssim_distance",
    "target_specificity",
    "total_variation",
]
