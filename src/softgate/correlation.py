"""Pearson's correlation, over all images or within classes, of images that count several times; and bootstrap draws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SAME = 1e-6
"""Spread, relative to the largest absolute value, up to which numbers count as all the same."""


def pearson(a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
    """The Pearson correlation of a [N] and b [N], each pair counted `weights` times.

    Args:
        a: [N].
        b: [N].
        weights: [R, N]; None counts each pair once.

    Returns:
        [R], or a scalar without weights; NaN where a or b is constant.
    """
    each = torch.ones(1, len(a), dtype=a.dtype, device=a.device) if weights is None else weights
    total = each.sum(1, keepdim=True)
    da, db = (v - (each @ v)[:, None] / total for v in (a, b))
    found = _correlation(da, db, (a, b), each)
    return found[0] if weights is None else found


def pearson_within(a: Tensor, b: Tensor, members: Tensor, weights: Tensor) -> Tensor:
    """Pearson of the deviations from class means.

    Args:
        a: [N].
        b: [N].
        members: [N, classes], 1 where an image is of a class, see `memberships`.
        weights: [R, N].

    Returns:
        [R]; NaN where nothing varies within classes.
    """
    sizes = (weights @ members).clamp_min(1)
    da, db = (v - ((weights @ (members * v[:, None])) / sizes) @ members.T for v in (a, b))
    return _correlation(da, db, (a, b), weights)


def _correlation(da: Tensor, db: Tensor, values: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    va, vb = ((weights * d.square()).sum(1) for d in (da, db))
    found = (weights * da * db).sum(1) / (va * vb).sqrt()
    for v, spread in zip(values, (va, vb), strict=True):
        found = found.where((spread / weights.sum(1)).sqrt() > SAME * v.abs().max(), torch.nan)
    return found


def memberships(labels: Tensor) -> Tensor:
    """[N, classes] in float64: 1 where an image is of a class."""
    _, numbered = torch.unique(labels, return_inverse=True)
    return F.one_hot(numbered).double()


def bootstrap_weights(count: int, resamples: int, seed: int) -> Tensor:
    """How often each of `count` images is drawn, [resamples, count] in float64."""
    picks = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(resamples, count, dtype=torch.float64)
    return weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
