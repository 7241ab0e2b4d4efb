"""Alignment metrics, one file for each question: the maths as a free function, the state as a torchmetrics Metric.

Metrics of maps take maps; metrics that must look again take an explainer, any callable `(model, x, target) -> maps`.
Nothing here imports Lightning, Hydra or W&B. What games each metric is in docs/alignment.md.
"""

from softgate.metrics.base import Explainer, ProbeMetric
from softgate.metrics.counterfactual import Counterfactual, counterfactuals
from softgate.metrics.data_alignment import DataAlignment, MeanAlignment, data_alignment, mean_alignment
from softgate.metrics.grid_pointing import GridPointing, grid_pointing, mosaics
from softgate.metrics.high_frequency import HighFrequency, SpectralSlope, high_frequency, spectral_slope
from softgate.metrics.infidelity import Infidelity, infidelity
from softgate.metrics.insertion_deletion import InsertionDeletion, removal_curve
from softgate.metrics.kernel_agreement import KernelAgreement, kernel_agreement
from softgate.metrics.lpips_alignment import LpipsAlignment
from softgate.metrics.max_sensitivity import MaxSensitivity, max_sensitivity
from softgate.metrics.noise_cosine import NoiseCosine, noise_cosine
from softgate.metrics.pullback_accuracy import PullbackAccuracy, pullback_accuracy
from softgate.metrics.randomization import Randomization, randomized, spearman
from softgate.metrics.representation import RepresentationError, representation_error
from softgate.metrics.specificity import InputSpecificity, TargetSpecificity, input_specificity, target_specificity
from softgate.metrics.total_variation import TotalVariation, total_variation

__all__ = [
    "Counterfactual",
    "DataAlignment",
    "Explainer",
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
    "ProbeMetric",
    "PullbackAccuracy",
    "Randomization",
    "RepresentationError",
    "SpectralSlope",
    "TargetSpecificity",
    "TotalVariation",
    "counterfactuals",
    "data_alignment",
    "grid_pointing",
    "high_frequency",
    "infidelity",
    "input_specificity",
    "kernel_agreement",
    "max_sensitivity",
    "mean_alignment",
    "mosaics",
    "noise_cosine",
    "pullback_accuracy",
    "randomized",
    "removal_curve",
    "representation_error",
    "spearman",
    "spectral_slope",
    "target_specificity",
    "total_variation",
]
