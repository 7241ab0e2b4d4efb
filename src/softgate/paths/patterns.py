r"""Convex combinations of recorded gate patterns, and kernel machines, as predictors of the last network.

Hypothesis 1 (paper, arXiv 2507.22832, 4.3) allows the path activity pi to be any vector over the paths. The swap tests
a single recorded pattern, pi(x) = G^(s)(x). The function of a network is linear in pi, so that a convex combination of
patterns, :math:`\pi(x) = \sum_j w_j G^{(s_j)}(x)`, gives the same combination of the outputs:

.. math:: f^{(t)}_\pi(x) = \sum_j w_j f^{(t)}_{G^{(s_j)}}(x), \qquad w_j \ge 0, \quad \sum_j w_j = 1.

The weights are fitted on one half of the images and the correlation within classes is measured on the other. Half a
claim is refuted if several early patterns together do no better than what is made of them with shuffled or mean gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.optimize import nnls
from torch import Tensor, nn

from softgate.correlation import memberships, pearson_within
from softgate.errors import require
from softgate.paths.swapping import Swaps
from softgate.surrogate.inputs import checked

PATTERNS = (1, 2, 4, 8)
"""How many recorded patterns are combined."""

RIDGES = tuple(10.0**power for power in range(-6, 3))
"""Regularisers of kernel ridge regression that are chosen from, relative to the mean of the kernel's diagonal."""


@dataclass(frozen=True)
class Combination:
    """The best convex combination of patterns.

    Attributes:
        weights: [k], none negative, their sum 1.
        within: Correlation within classes on the images that it was not fitted on.
    """

    weights: Tensor
    within: float


@checked
def halves(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The places [N / 2] of a fitting and a testing half of images with labels [N], of every class alike.

    Raises:
        SoftgateError: If a class has a single image.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    first = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = order[labels[order] == label]
        require(len(members) > 1, f"patterns: class {int(label)} has one image; at least 2 of each are needed.")
        first[members[: len(members) // 2]] = True
    return first.nonzero()[:, 0], (~first).nonzero()[:, 0]


@checked
def centred_within(values: Tensor, labels: Tensor) -> Tensor:
    """Values [..., N] minus the mean of each image's class."""
    members = memberships(labels)
    means: Tensor = (values @ members) / members.sum(0)
    return values - means @ members.T


@checked
def combine(values: Tensor, target: Tensor, labels: Tensor, fit: Tensor, test: Tensor) -> Combination:
    r"""The convex combination of outputs whose correlation with a target within classes is greatest.

    The correlation does not change with the scale, so its maximum over the simplex lies on the ray of
    :math:`\min_{w \ge 0} \| \sum_j w_j \tilde f_j - \tilde f \|^2`, with deviations from class means, scaled to sum 1.
    Where no output is positively correlated, it is the single best one.

    Args:
        values: [k, N] outputs with each pattern.
        target: [N] the network's own.
        labels: [N].
        fit: Places of the images that the weights are fitted on.
        test: Places of those that they are tested on.
    """
    columns, aim = (centred_within(each[..., fit].double(), labels[fit]) for each in (values, target))
    weights = torch.from_numpy(nnls(columns.T.numpy(), aim.numpy())[0])
    if float(weights.sum()) <= 0:
        best = (columns @ aim / columns.norm(dim=1).clamp_min(1e-300)).argmax()
        weights = torch.nn.functional.one_hot(best, len(values)).double()
    weights = weights / weights.sum()
    both = weights @ values[:, test].double(), target[test].double()
    within = pearson_within(*both, memberships(labels[test]), torch.ones(1, len(test), dtype=torch.float64))
    return Combination(weights, float(within[0]))


def combined_patterns(swaps: Swaps, kind: str, s: int, count: int, seed: int = 0) -> dict[str, Combination]:
    """So many recorded patterns up to moment s, spread evenly and s among them, combined for the last network.

    Args:
        swaps: Of `softgate.paths.swap`.
        kind: Kind of gates.
        s: The last moment that may take part; s = 0 has one pattern.
        count: How many patterns; fewer where fewer were recorded.
        seed: Splits the images.

    Returns:
        "recorded", and the controls "shuffled" (gates of another image), "same class" and "mean", each with weights of
        its own.
    """
    places = sorted({round(place) for place in np.linspace(s, 0, min(count, s + 1))})
    last = len(swaps.points) - 1
    fit, test = halves(swaps.labels, seed)
    made = {"recorded": swaps.swapped[kind][places, last]}
    made |= {name: swaps.controls[kind, name][places] for name in ("shuffled", "same class", "mean")}
    return {name: combine(values, swaps.own[last], swaps.labels, fit, test) for name, values in made.items()}


@checked
def kernel_prediction(
    kernel: Tensor, outputs: Tensor, labels: Tensor, *, ridges: Sequence[float] = RIDGES, seed: int = 0
) -> tuple[float, float]:
    r"""How well a kernel machine that sees one half of the images predicts a network's logits on the other half.

    Kernel ridge regression :math:`\hat F(x) = k(x)^T (K + \lambda I)^{-1} F`, of all logits and in the feature space
    minus their means on the fitting half, so that the intercept is free. The regulariser is the one of least
    leave-one-out error on the fitting half of n images, the intercept left out with the image:
    :math:`[(K + \lambda I)^{-1} F]_i / ([(K + \lambda I)^{-1}]_{ii} - 1 / (n \lambda))`.

    Args:
        kernel: [N, N] over the images.
        outputs: [N, classes] logits of the network.
        labels: [N].
        ridges: Regularisers to choose from, relative to the mean of the kernel's diagonal.
        seed: Splits the images.

    Returns:
        On the half that was not seen: the share of the logits' variance that is predicted (R squared), and the
        correlation within classes of the logit of the image's class, centred.
    """
    fit, test = halves(labels, seed)
    k, f = kernel.double(), outputs.double()
    k = k - k[:, fit].mean(1, keepdim=True) - k[fit].mean(0) + k[fit][:, fit].mean()
    f = f - f.mean(1, keepdim=True)
    middle = f[fit].mean(0)
    values, vectors = (torch.from_numpy(each) for each in eigh(k[fit][:, fit].numpy()))
    aim, unit = vectors.T @ (f[fit] - middle), float(k.diagonal().mean())
    found = []
    for ridge in ridges:
        inverse = 1 / (values.clamp_min(0) + ridge * unit)
        dual = vectors @ (inverse[:, None] * aim)
        diagonal = (vectors.square() * inverse).sum(1) - 1 / (len(fit) * ridge * unit)
        found.append((float((dual / diagonal[:, None]).square().sum()), dual))
    dual = min(found, key=lambda each: each[0])[1]
    guess = k[test][:, fit] @ dual + middle
    left = (f[test] - guess).square().sum() / (f[test] - f[test].mean(0)).square().sum()
    own, predicted = (each[torch.arange(len(test)), labels[test]] for each in (f[test], guess))
    each = torch.ones(1, len(test), dtype=torch.float64)
    return 1 - float(left), float(pearson_within(own, predicted, memberships(labels[test]), each)[0])


@checked
def deep_features(model: nn.Module, x: Tensor) -> Tensor:
    """What the last linear layer of a network is given for images [N, ...], [N, features]; in eval mode.

    Raises:
        SoftgateError: If it has none.
    """
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    require(bool(layers), f"patterns: {type(model).__name__} has no linear layer, whose input its deep features are.")
    seen: list[Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(x)
    finally:
        hook.remove()
        model.train(training)
    return seen[-1].flatten(1)
