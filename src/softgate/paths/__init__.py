"""Gate patterns: recorded, compared over training, and run with.

The first test of the paper's Hypothesis 1 (arXiv 2507.22832, 4.3): do the paths of a network settle early?
"""

from softgate.explainers.gated import record, run
from softgate.explainers.gates import Gates, SiteGates
from softgate.paths.agreement import Agreement, compare, gate_agreement, path_cosine
from softgate.paths.frozen import FrozenGates
from softgate.paths.kernels import kernel, kernel_distance, paired_kernel, product_kernel
from softgate.paths.patterns import Combination, combine, combined_patterns, deep_features, kernel_prediction
from softgate.paths.recording import Point, Recording
from softgate.paths.similarity import cka, kernel_accuracy, label_alignment
from softgate.paths.swapping import Swaps, swap

__all__ = [
    "Agreement",
    "Combination",
    "FrozenGates",
    "Gates",
    "Point",
    "Recording",
    "SiteGates",
    "Swaps",
    "cka",
    "combine",
    "combined_patterns",
    "compare",
    "deep_features",
    "gate_agreement",
    "kernel",
    "kernel_accuracy",
    "kernel_distance",
    "kernel_prediction",
    "label_alignment",
    "paired_kernel",
    "path_cosine",
    "product_kernel",
    "record",
    "run",
    "swap",
]
