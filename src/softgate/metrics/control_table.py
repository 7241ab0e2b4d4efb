"""All alignment metrics on one network: the control table, and the sanity gate that a claim must pass first.

`control_table` runs every metric with every explainer on a probe set. `failures` says which explainers' scores mean
nothing: those whose maps stay what they are when the weights or the target change.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate import memory, metrics
from softgate.display import Brief
from softgate.errors import NoCallSites, SoftgateError, SoftgateWarning, UnreachableSites, require
from softgate.explainers.gradients import Pullback
from softgate.explainers.pullback import predict
from softgate.explainers.representation import read
from softgate.metrics import Explainer, ProbeMetric
from softgate.metrics.base import logits
from softgate.rounding import rounded

SANITY = ("randomization_head", "target_specificity")
"""The two scores that catch what the others reward."""

TOLERANCE = 0.1
"""By how much a map may look less sane than the gradient, which depends on all weights and the target."""

CHUNK = 32
"""Images per pass, where all of a probe set are read out."""

_KINDS: dict[str, type[ProbeMetric]] = {
    "randomization_head": metrics.Randomization,
    "randomization_top": metrics.Randomization,
    "randomization_all": metrics.Randomization,
    "target_specificity": metrics.TargetSpecificity,
    "input_specificity": metrics.InputSpecificity,
    "representation": metrics.RepresentationError,
    "kernel_agreement": metrics.KernelAgreement,
    "kernel_agreement_within": metrics.KernelAgreement,
    "pullback_accuracy": metrics.PullbackAccuracy,
    "noise_cosine": metrics.NoiseCosine,
    "max_sensitivity": metrics.MaxSensitivity,
    "total_variation": metrics.TotalVariation,
    "high_frequency": metrics.HighFrequency,
    "spectral_slope": metrics.SpectralSlope,
    "data_alignment": metrics.DataAlignment,
    "mean_alignment": metrics.MeanAlignment,
    "counterfactual_flip": metrics.Counterfactual,
    "counterfactual_transfer": metrics.Counterfactual,
    "counterfactual_gain": metrics.Counterfactual,
    "grid_pointing": metrics.GridPointing,
    "deletion": metrics.InsertionDeletion,
    "insertion": metrics.InsertionDeletion,
    "infidelity": metrics.Infidelity,
}

BETTER: dict[str, bool | None] = {key: kind.higher_is_better for key, kind in _KINDS.items()}
"""Every key of a control table, in the order of docs/alignment.md, to whether more is better; None: zero is best."""

POSSIBLE: dict[str, tuple[float | None, float | None]] = {
    key: (None, None) if key == "counterfactual_gain" else (kind.plot_lower_bound, kind.plot_upper_bound)
    for key, kind in _KINDS.items()
}
"""Every key to the least and the greatest value that there can be; None where there is no limit."""


def titled(key: str) -> str:
    """A key with an arrow: ↑ more is better, ↓ less is better, →0 zero is best; other names stay as they are."""
    return f"{key} {({True: '↑', False: '↓', None: '→0'})[BETTER[key]]}" if key in BETTER else key


class Score(NamedTuple):
    """A value and the ends of its 95 % bootstrap interval over images; NaN where there is none."""

    value: float
    low: float
    high: float


NONE = Score(math.nan, math.nan, math.nan)


@dataclass(frozen=True, repr=False)
class Probe(Brief):
    """The images that a network is measured on.

    Args:
        images: [N, C, H, W] as the network takes them.
        labels: [N] their classes, numbered as the network's outputs.
        means: [classes, C, H, W] mean images of the classes; None leaves out what needs them.
        classes: The classes that are compared with each other; None is all of them.
        mean: [C], or one number for all channels, subtracted from pixels in [0, 1].
        std: [C] or one number, then divided by.
        numbers: The classes that `means` are of; None is all, in their order.
    """

    images: Tensor
    labels: Tensor
    means: Tensor | None = None
    classes: Sequence[int] | None = None
    mean: Sequence[float] = (0.5,)
    std: Sequence[float] = (0.5,)
    numbers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        fits = self.images.dim() == 4 and self.labels.shape == self.images.shape[:1]
        shapes = f"images {tuple(self.images.shape)}, labels {tuple(self.labels.shape)}"
        require(fits and len(self.images) > 0, f"probe: {shapes}: [N, C, H, W] and [N] with N >= 1 are needed.")

    def first(self, count: int) -> Probe:
        """The same with the first `count` images only."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])


def control_table(
    model: nn.Module,
    explainers: Mapping[str, Explainer],
    probe: Probe,
    evaluator: nn.Module | None = None,
    *,
    dear: int | None = None,
    draws: int = 10,
    told: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, Score]]:
    """Every metric of every explainer.

    Args:
        model: The network.
        explainers: Such as `controls.standard` gives.
        probe: The images.
        evaluator: An independently trained network for the same classes, to judge counterfactuals.
        dear: How many of the images the metrics of many passes take; None is all.
        draws: Noisy copies of each of these, for `noise_cosine` and `max_sensitivity`.
        told: Called with the name of each explainer before its turn.

    Returns:
        Explainer to metric to score. `representation` and `kernel_agreement` are those of pullbacks only, and left out
        with a warning where a network's logit is no such sum; so is an explainer that does not cover the network.
    """
    few = probe if dear is None else probe.first(dear)
    found = {}
    for name, explainer in explainers.items():
        told(name)
        try:
            scores = _of_maps(model, explainer, probe, few)
        except (NoCallSites, UnreachableSites) as error:
            if isinstance(explainer, Pullback):
                raise
            warnings.warn(f"left out: {error}", SoftgateWarning, stacklevel=2)
            continue
        if isinstance(explainer, Pullback):
            try:
                scores |= _of_readout(model, explainer, probe)
            except SoftgateError as error:
                warnings.warn(f"no representation: {error}", SoftgateWarning, stacklevel=2)
        found[name] = scores | of_passes(model, explainer, few, probe.images, evaluator, draws=draws)
    return found


def score(metric: ProbeMetric, key: str) -> dict[str, Score]:
    """The value and interval of a metric under its key, or under several where it has several outputs.

    This process has seen the whole probe set: where several train, the others are not asked for theirs.
    """
    metric.distributed_available_fn = _alone
    value, ends = metric.compute(), metric.interval()
    if not metric.outputs:
        return {key: Score(float(value), *map(float, ends))}
    prefix = "" if key == "insertion_deletion" else f"{key}_"
    return {f"{prefix}{name}": Score(float(value[name]), *map(float, ends[name])) for name in metric.outputs}


def _alone() -> bool:
    return False


def _scored(*cases: tuple[str, ProbeMetric, tuple[object, ...]]) -> dict[str, Score]:
    """Scores by key; a metric that memory is too short for is left out with a warning."""
    found: dict[str, Score] = {}
    for key, metric, arguments in cases:
        with memory.spared(partial(_left_out, key)):
            metric.update(*arguments)
            found |= score(metric, key)
    return found


def _left_out(key: str, why: str) -> None:
    warnings.warn(f"no {key}: {why}", SoftgateWarning, stacklevel=4)


def _of_maps(model: nn.Module, explainer: Explainer, probe: Probe, few: Probe) -> dict[str, Score]:
    x, labels = probe.images, probe.labels
    maps = torch.cat([explainer(model, part, mine) for part, mine in _parts(probe)])
    outputs = logits(model, few.images)
    classes = list(range(outputs.shape[1])) if probe.classes is None else list(probe.classes)
    every = torch.stack([explainer(model, few.images, torch.full_like(few.labels, c)) for c in classes], 1)
    cases: list[tuple[str, ProbeMetric, tuple[object, ...]]] = [
        ("total_variation", metrics.TotalVariation(), (maps,)),
        ("high_frequency", metrics.HighFrequency(), (maps,)),
        ("spectral_slope", metrics.SpectralSlope(), (maps, x)),
        ("data_alignment", metrics.DataAlignment(), (maps, x)),
        ("target_specificity", metrics.TargetSpecificity(), (every,)),
        ("input_specificity", metrics.InputSpecificity(), (maps, labels)),
        ("pullback_accuracy", metrics.PullbackAccuracy(), (every, few.images, outputs[:, classes])),
    ]
    if probe.means is not None:
        rows = labels if probe.numbers is None else _positions(labels, probe.numbers)
        cases.append(("mean_alignment", metrics.MeanAlignment(probe.means), (maps, x, rows)))
    return _scored(*cases)


def _of_readout(model: nn.Module, explainer: Pullback, probe: Probe) -> dict[str, Score]:
    read_out = [read(model, part, mine, explainer.rule, centred=explainer.centred) for part, mine in _parts(probe)]
    pair = torch.cat([out.logit for out in read_out]), torch.cat([out.represented for out in read_out])
    return _scored(
        ("representation", metrics.RepresentationError(), pair),
        ("kernel_agreement", metrics.KernelAgreement(), (*pair, probe.labels)),
        ("kernel_agreement_within", metrics.KernelAgreement(within_class=True), (*pair, probe.labels)),
    )


def of_passes(
    model: nn.Module,
    explainer: Explainer,
    few: Probe,
    images: Tensor,
    evaluator: nn.Module | None,
    but: Sequence[str] = (),
    draws: int = 10,
) -> dict[str, Score]:
    """The metrics that take many passes.

    Args:
        model: The network.
        explainer: Gives the maps.
        few: The images.
        images: [N, C, H, W] to re-estimate BatchNorm with.
        evaluator: Judges the counterfactuals.
        but: Metrics that are left out.
        draws: Noisy copies of each image.

    Returns:
        Metric to score.
    """
    x, labels = few.images, few.labels
    arguments = model, x, labels
    tiles, named = metrics.mosaics(x, labels, 2, max(1, len(x) // 4))
    if len(tiles) and not _takes(model, tiles[:1]):
        tiles = F.interpolate(tiles, x.shape[-2:], mode="area")
    others = _other_classes(few)
    cases: list[tuple[str, ProbeMetric, tuple[object, ...]]] = [
        ("noise_cosine", metrics.NoiseCosine(explainer, count=draws), arguments),
        ("max_sensitivity", metrics.MaxSensitivity(explainer, count=draws), arguments),
        ("randomization_head", metrics.Randomization(explainer, images, "head"), arguments),
        ("randomization_top", metrics.Randomization(explainer, images, "top"), arguments),
        ("randomization_all", metrics.Randomization(explainer, images, "all"), arguments),
        ("grid_pointing", metrics.GridPointing(explainer), (model, tiles, named)),
        ("insertion_deletion", metrics.InsertionDeletion(explainer), arguments),
        ("infidelity", metrics.Infidelity(explainer), arguments),
        (
            "counterfactual",
            metrics.Counterfactual(explainer, evaluator, mean=few.mean, std=few.std),
            (model, x, others),
        ),
    ]
    return _scored(*[case for case in cases if case[0] not in but])


def _takes(model: nn.Module, image: Tensor) -> bool:
    """Whether a network runs on an image of that size: a ViT, for one, has positions for one size alone."""
    try:
        predict(model, image)
    except (RuntimeError, AssertionError, ValueError) as error:
        if memory.ran_out(error):
            raise
        return False
    return True


def _other_classes(probe: Probe) -> Tensor:
    """For each image the next of the compared classes after its own."""
    classes = sorted(set(probe.labels.tolist() if probe.classes is None else probe.classes))
    after = [classes[bisect_right(classes, c) % len(classes)] for c in probe.labels.tolist()]
    return torch.tensor(after, device=probe.labels.device)


def _parts(probe: Probe) -> Iterable[tuple[Tensor, Tensor]]:
    """A part of one image would be none for gates of other examples: where there are several, they are even."""
    count = -(-len(probe.images) // CHUNK)
    return zip(probe.images.tensor_split(count), probe.labels.tensor_split(count), strict=True)


def _positions(labels: Tensor, numbers: Sequence[int]) -> Tensor:
    where = {number: place for place, number in enumerate(numbers)}
    return torch.tensor([where[label] for label in labels.tolist()], device=labels.device)


def failures(table: Mapping[str, Mapping[str, Score]], reference: str = "gradient") -> dict[str, list[str]]:
    """Which explainers fail the sanity gate, and at what.

    A map fails where its score is undefined or missing, or greater than the gradient's by more than `TOLERANCE`.

    Args:
        table: As `control_table` makes it.
        reference: The row of the gradient.

    Returns:
        Explainer to the metrics it fails; an empty list is a pass.
    """
    limits = {key: table[reference].get(key, NONE).value + TOLERANCE for key in SANITY}
    return {
        name: [key for key, limit in limits.items() if not scores.get(key, NONE).value <= limit]
        for name, scores in table.items()
    }


def verdict(key: str, better: bool, table: Mapping[str, Mapping[str, Score]], failed: Mapping[str, list[str]]) -> str:
    """One sentence on the pullback against the gradient and against whoever passes the gate.

    Args:
        key: The metric.
        better: Whether more of it is better.
        table: As `control_table` makes it.
        failed: As `failures` makes it.

    Returns:
        The sentence; that the pullback fails the gate, if it does.
    """
    if failed["pullback"]:
        return f"{key}: no verdict; the pullback fails {' and '.join(failed['pullback'])}."
    ours, theirs = table["pullback"].get(key), table["gradient"].get(key)
    if ours is None or theirs is None or math.isnan(ours.value) or math.isnan(theirs.value):
        return f"{key}: no verdict; there is no value."
    apart = ours.low > theirs.high or ours.high < theirs.low
    wins = (ours.value > theirs.value) == better
    word = ("better than" if wins else "worse than") if apart else "not told apart from"
    above = [name for name in _ahead(key, better, table, ours.value) if not failed[name] and name != "pullback"]
    tail = f"; ahead of it, and sane: {', '.join(above)}" if above else ""
    return f"{key}: the pullback is {word} the gradient ({rounded(ours.value)} and {rounded(theirs.value)}){tail}."


def _ahead(key: str, better: bool, table: Mapping[str, Mapping[str, Score]], value: float) -> Iterable[str]:
    for name, scores in table.items():
        if key in scores and ((scores[key].value > value) if better else (scores[key].value < value)):
            yield name
