"""Does the map depend on the weights? Its rank correlation with the map of a network with randomised ones."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require, unknown
from softgate.explainers.base import Explainer
from softgate.metrics.base import ProbeMetric, cosine, finite, flat, logits
from softgate.sites.calibration import calibrate
from softgate.sites.inference import inner
from softgate.sites.scales import scales_of
from softgate.sites.sites import attached_sites
from softgate.surrogate.inputs import checked

LEVELS = ("head", "top", "all")
_Norm = nn.modules.batchnorm._BatchNorm


def ranks(values: Tensor) -> Tensor:
    """Ranks 0 to d - 1 along the last dimension of [B, d]; equal values share the mean of their ranks."""
    found = [values.new_empty(0, values.shape[1], dtype=torch.float64)]
    for row in values:
        _, where, counts = row.unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(0).double()
        found.append((last - (counts + 1) / 2)[where][None])
    return torch.cat(found)


@checked
def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of absolute maps, for each image.

    Args:
        a: [B, C, H, W].
        b: [B, C, H, W].

    Returns:
        [B] in [-1, 1]; NaN where the absolute values of a map are all the same, as a zero map's are.
    """
    ra, rb = (ranks(flat(maps).abs()) for maps in (a, b))
    da, db = (r - r.mean(1, keepdim=True) for r in (ra, rb))
    return cosine(da, db)


@checked
def randomized(model: nn.Module, level: str, images: Tensor, seed: int = 0) -> nn.Module:
    """A copy of a network with some of its weights drawn anew, its BatchNorm statistics and scales re-estimated.

    Weights of convolutions and linear layers are He-normal (variance 2 / fan-in, 1 / fan-in at the head), biases zero,
    norms one and zero; the entries of any other parameter are shuffled. Statistics of the trained weights would keep
    the randomised network's activations far from zero and hide the effect, so those of `images` take their place; so
    they do for per-channel scales, where the network has them.

    Args:
        model: The trained network; it stays as it is.
        level: "head": the last layer with weights that runs. "top": the upper half of those layers. "all".
        images: [N, C, H, W] to take BatchNorm's statistics of.
        seed: Of the new weights.

    Returns:
        The copy, in eval mode, attached to no rule.

    Raises:
        SoftgateError: For another level, or a single image for BatchNorm's statistics.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    made = copy.deepcopy(inner(model))
    sites = attached_sites(made)
    if sites is not None:
        sites.detach()
    layers = _in_order(made, images)
    weighted = [i for i, module in enumerate(layers) if not isinstance(module, _Norm)]
    first = {"head": weighted[-1], "top": weighted[len(weighted) // 2], "all": 0}[level]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for index, module in enumerate(layers[first:], start=first):
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(_fresh(module, name, parameter, index == weighted[-1], generator))
    _reestimate(made, images)
    if scales_of(made):
        calibrate(made, [images])
    return made.eval()


def _in_order(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """The modules with weights of their own, in the order in which they first run; before them those that do not."""
    layers = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    turns: dict[nn.Module, int] = {}

    def note(module: nn.Module, args: Any) -> None:
        turns.setdefault(module, len(turns))

    hooks = [module.register_forward_pre_hook(note) for module in layers]
    try:
        with torch.no_grad():
            model.eval()(images[:1].clone())  # which a model may normalise in place
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(layers, key=lambda module: turns.get(module, -1))


def _fresh(module: nn.Module, name: str, old: Tensor, head: bool, generator: torch.Generator) -> Tensor:
    if isinstance(module, _Norm):
        return torch.ones_like(old) if name == "weight" else torch.zeros_like(old)
    if name == "bias":
        return torch.zeros_like(old)
    if old.dim() < 2:
        return old.flatten()[torch.randperm(old.numel(), generator=generator).to(old.device)].view_as(old)
    spread = math.sqrt((1 if head else 2) / old[0].numel())
    return spread * torch.randn(old.shape, generator=generator).to(old)


def _reestimate(model: nn.Module, images: Tensor) -> None:
    norms = [module for module in model.modules() if isinstance(module, _Norm) and module.track_running_stats]
    if not norms:
        return
    require(len(images) > 1, "randomization: images: 1 image; at least 2 are needed for BatchNorm's statistics.")
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    with torch.no_grad():
        model(images.clone())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Randomization(ProbeMetric):
    """Mean Spearman correlation of absolute maps, of the trained network and of one with randomised weights.

    A map that stays the same when the weights go says nothing about them: edge filters and guided backprop do.

    Source: Adebayo et al., arXiv 1810.03292 (model parameter randomisation), with BatchNorm re-estimated.

    Args:
        explainer: Gives the maps.
        images: [N, C, H, W] to re-estimate BatchNorm with; the same in every process.
        level: "head", "top" or "all" of the layers.
        seed: Of the new weights.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    >>> x = torch.randn(4, 3, 2, 2)
    >>> metric = Randomization(lambda model, x, target: x, x)  # a "map" that copies the image
    >>> metric.update(net, x, torch.tensor([0, 1, 2, 0]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    reason = "the absolute values of a map are all the same, as a zero map's are"

    def __init__(self, explainer: Explainer, images: Tensor, level: str = "head", seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if level not in LEVELS:
            raise unknown("randomization: level", level, LEVELS)
        self.explainer, self.images, self.level, self.seed = explainer, images, level, seed

    def update(self, model: nn.Module, x: Tensor, target: Tensor) -> None:
        """Takes the trained network, images [B, C, H, W] and targets [B]."""
        other = randomized(model, self.level, self.images.to(x), self.seed)
        maps, random = self.explainer(model, x, target), self.explainer(other, x, target)
        self.add(spearman(maps, random), finite(maps, random, logits(model, x)))
