"""What a kernel says about images: how alike two kernels are, how well it knows the labels, how well it classifies."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import require
from softgate.surrogate.inputs import checked


@checked
def cosine_kernel(sign: Tensor, log: Tensor) -> Tensor:
    """K(x, x') / sqrt(K(x, x) K(x', x')) of a kernel [N, N] in log space; an image with no path is like itself only."""
    half = log.diagonal() / 2
    cosine = sign * (log - half[:, None] - half[None, :]).exp()
    dead = half.isneginf()
    cosine = cosine.masked_fill(dead[:, None] | dead[None, :], 0.0)
    return cosine.fill_diagonal_(1.0)


def centred(kernel: Tensor) -> Tensor:
    """The kernel [N, N] of features minus their mean."""
    rows = kernel - kernel.mean(0, keepdim=True)
    return rows - rows.mean(1, keepdim=True)


@checked
def cka(a: Tensor, b: Tensor, debiased: bool = False) -> float:
    """Centred kernel alignment of two kernels [N, N] (Cortes et al. 2012; Kornblith et al., arXiv 1905.00414).

    Args:
        a: A kernel over N images.
        b: Another over the same images.
        debiased: Leave the diagonals out by the unbiased estimator (Song et al. 2012). A deep path kernel has small
            values beside its diagonal, and any two such kernels are alike by their diagonals alone. Needs N >= 4.

    Returns:
        In [0, 1], debiased also a little below 0; NaN where a kernel says the same of all images.
    """
    first, second = a.double(), b.double()
    if debiased:
        inner = [_unbiased(*pair) for pair in ((first, second), (first, first), (second, second))]
        return inner[0] / math.sqrt(inner[1] * inner[2]) if inner[1] > 0 and inner[2] > 0 else math.nan
    first, second = centred(first), centred(second)
    size = torch.linalg.matrix_norm(first) * torch.linalg.matrix_norm(second)
    return float((first * second).sum() / size)


def _unbiased(a: Tensor, b: Tensor) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion, times N (N - 3)."""
    n = len(a)
    require(n >= 4, f"cka: {n} images; at least 4 are needed.")
    a, b = (k - torch.diag(k.diagonal()) for k in (a, b))
    mixed = (a.sum(0) * b.sum(0)).sum() * 2 / (n - 2)
    return float((a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - mixed)


@checked
def label_alignment(kernel: Tensor, labels: Tensor, debiased: bool = False) -> float:
    """`cka` of a kernel [N, N] with the one that says whether two images [N] are of one class."""
    return cka(kernel, (labels[:, None] == labels[None, :]).double(), debiased)


@checked
def kernel_accuracy(kernel: Tensor, labels: Tensor, folds: int = 5, ridge: float = 1e-3, seed: int = 0) -> float:
    """Cross-validated accuracy of kernel ridge regression on the classes.

    Args:
        kernel: [N, N] over the images.
        labels: [N].
        folds: Stratified folds; each image is classified once, by a machine that has not seen it.
        ridge: Added to the diagonal, relative to the mean of the diagonal.
        seed: Splits the images.

    Raises:
        SoftgateError: If a class has fewer images than there are folds.
    """
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import StratifiedKFold

    _, names = torch.unique(labels, return_inverse=True)
    least = int(torch.bincount(names).min())
    require(least >= folds, f"kernel_accuracy: a class has {least} images; at least one for each of {folds} folds.")
    k, targets = kernel.double().numpy(), F.one_hot(names).double().numpy()
    right = 0
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(k, names.numpy()):
        machine = KernelRidge(alpha=ridge * float(kernel.diagonal().mean()), kernel="precomputed")
        # The mean is not put back: beside a deep kernel's small values the larger class would always win.
        machine.fit(k[train][:, train], targets[train] - targets[train].mean(0))
        guess = machine.predict(k[test][:, train]).argmax(1)
        right += int((guess == names.numpy()[test]).sum())
    return right / len(labels)
