"""What a classifier's logits are worth, example by example: accuracy, likelihood, Brier score, calibration."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

BINS = 15
"""Of the calibration error."""


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] float64: 1 where the greatest of the logits [N, K] is the label's, else 0."""
    return (logits.argmax(1) == labels).double()


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] float64: the negative log likelihood of the labels, in nats."""
    return F.cross_entropy(logits.double(), labels, reduction="none")


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] float64 in [0, 2]: the squared distance of the probabilities to the label's one-hot vector (Brier 1950)."""
    probabilities = logits.double().softmax(1)
    return (probabilities - F.one_hot(labels, logits.shape[1])).square().sum(1)


def ece(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error over equal bins of the confidence (arXiv 1706.04599), by torchmetrics."""
    probabilities = logits.double().softmax(1)
    return float(multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=bins, norm="l1"))


def finite(logits: Tensor) -> bool:
    """Whether all logits are numbers."""
    return bool(torch.isfinite(logits).all())
