r"""Does a distance between images see what people see? Two-alternative forced choice (2AFC).

Of two distortions of a reference, which one is nearer to it? A perceptual distance gives the answer that people give
(Zhang et al., arXiv 1801.03924, section 3.1). Where nobody was asked, one corruption at two severities has an answer
all the same: the milder one. The paper (arXiv 2507.22832, section 4.3.2) supposes that the path kernel explains why
deep features are good at this: `softgate.paths.kernel_distance` is a distance to put to the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from softgate.errors import require
from softgate.metrics import corruptions
from softgate.metrics.base import ProbeMetric, finite
from softgate.metrics.distances import ImageDistance
from softgate.surrogate.inputs import checked

ALL = "all"
"""The agreement over the triplets of all families."""


@checked
def choice_agreement(d0: Tensor, d1: Tensor, judge: Tensor) -> Tensor:
    r"""The share of judges that agree with a distance's choice (arXiv 1801.03924, section 3.1).

    .. math:: s = j\,1[d_1 < d_0] + (1 - j)\,1[d_0 < d_1] + \tfrac12\,1[d_0 = d_1]

    Args:
        d0: Distances of the first distortions from the reference, of any shape.
        d1: Of the second ones.
        judge: The share of judges who found the second one nearer, in [0, 1].

    Returns:
        Of that shape, float64; NaN where a distance is.

    Raises:
        SoftgateError: For other shapes, or a judge out of range.
    """
    shapes = [tuple(each.shape) for each in (d0, d1, judge)]
    require(len(set(shapes)) == 1, f"choice_agreement: shapes {shapes}: three that are the same are needed.")
    fine = bool(((judge >= 0) & (judge <= 1)).all())
    require(fine, "choice_agreement: judge: shares of judges in [0, 1] are needed.")
    share = judge.double()
    found = torch.where(d1 < d0, share, torch.where(d0 < d1, 1 - share, 0.5))
    return found.masked_fill(d0.isnan() | d1.isnan(), torch.nan)


class PerceptualChoice(ProbeMetric):
    """Mean agreement of a distance with judges, over triplets of each family and over all.

    A row is a photograph with all its triplets, so that intervals are over photographs: triplets of one photograph are
    not independent. Source: Zhang et al., arXiv 1801.03924, section 3.1.

    Args:
        families: Names of the kinds of distortions.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        SoftgateError: For families without a name of their own each.

    >>> import torch
    >>> metric = PerceptualChoice(["blur", "noise"])
    >>> near, far = torch.tensor([[0.1, 0.4]]), torch.tensor([[0.2, 0.3]])
    >>> metric.update(near, far, torch.zeros(1, 2), torch.tensor([[0, 1]]))
    >>> {name: float(value) for name, value in metric.compute().items()}
    {'blur': 1.0, 'noise': 0.0, 'all': 0.5}
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    reason = "there is no triplet"

    def __init__(self, families: Sequence[str], **kwargs: Any) -> None:
        fine = bool(families) and ALL not in families and len(set(families)) == len(families)
        require(fine, f"PerceptualChoice: families={list(families)}: names, all different and none 'all', are needed.")
        super().__init__(**kwargs)
        self.outputs = (*families, ALL)

    def update(self, d0: Tensor, d1: Tensor, judge: Tensor, family: Tensor) -> None:
        """Takes T triplets of each of B photographs.

        Args:
            d0: [B, T] distances of the first distortions from their references.
            d1: [B, T] of the second ones.
            judge: [B, T] shares of judges who found the second one nearer.
            family: [B, T] whole numbers, which family each triplet is of.

        Raises:
            SoftgateError: As `choice_agreement`; for a family out of range.
        """
        shapes = tuple(d0.shape), tuple(family.shape)
        require(
            d0.dim() == 2 and shapes[0] == shapes[1], f"PerceptualChoice: shapes {shapes}: [B, T] twice are needed."
        )
        count = len(self.outputs) - 1
        fine = not family.is_floating_point() and bool(((family >= 0) & (family < count)).all())
        require(fine, f"PerceptualChoice: family: whole numbers from 0 to {count - 1} are needed.")
        found = choice_agreement(d0, d1, judge).nan_to_num()
        member = torch.nn.functional.one_hot(family.long(), count).double()
        each = torch.einsum("bt,btf->bf", found, member) / member.sum(1)  # 0 / 0 where there is none of a family
        self.add(torch.cat([each, found.mean(1, keepdim=True)], 1), finite(d0, d1))


@checked
def severity_ladder(
    distances: Mapping[str, ImageDistance],
    images: Tensor,
    families: Sequence[str] = tuple(corruptions.FAMILIES),
    severities: Sequence[int] = corruptions.SEVERITIES,
    seed: int = 0,
    told: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    """Distances of photographs from themselves under common corruptions, at rising severities.

    Args:
        distances: By name, of pixels in [0, 1].
        images: [N, C, H, W] pixels in [0, 1].
        families: Of `softgate.metrics.corruptions.FAMILIES`, the families of ImageNet-C (arXiv 1903.12261) but frost.
        severities: Rising, of 1 to 5.
        seed: Of the corruptions' noise.
        told: Called after each photograph with how many are done.

    Returns:
        By name, [N, families, severities] float64.

    Raises:
        SoftgateError: For an unknown family, or severities that do not rise or are out of range.
    """
    rising = len(severities) >= 2 and all(a < b for a, b in pairwise(severities))
    require(rising, f"severity_ladder: severities={list(severities)}: two or more that rise are needed.")
    found: dict[str, list[Tensor]] = {name: [] for name in distances}
    for done, image in enumerate(torch.split(images, 1), start=1):
        steps = [corruptions.corrupt(image, family, severity, seed) for family in families for severity in severities]
        ladder = torch.cat(steps)
        for name, distance in distances.items():
            found[name].append(distance(image.to(ladder), ladder).double().view(len(families), len(severities)))
        told(done)
    return {name: torch.stack(each) for name, each in found.items()}


@checked
def milder_or_stronger(ladder: Tensor, neighbours: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Triplets of a reference, a mild and a strong distortion of one family, as `PerceptualChoice.update` takes them.

    Args:
        ladder: [N, families, severities] distances, as of `severity_ladder`.
        neighbours: Only severities next to each other, not every two.

    Returns:
        Distances of the mild ones and of the strong ones, the judges' answer (the mild one is nearer: 0) and the
        families, [N, T] each.

    Raises:
        SoftgateError: For a ladder of another shape.
    """
    fits = ladder.dim() == 3 and ladder.shape[2] >= 2
    require(fits, f"milder_or_stronger: shape {tuple(ladder.shape)}: [N, families, severities >= 2] is needed.")
    every = range(ladder.shape[2])
    pairs = [(a, b) for a, b in combinations(every, 2) if not neighbours or b == a + 1]
    mild, strong = (ladder[:, :, [pair[end] for pair in pairs]].flatten(1) for end in (0, 1))
    family = torch.arange(ladder.shape[1], device=ladder.device).repeat_interleave(len(pairs))
    return mild, strong, torch.zeros_like(mild), family.expand(len(ladder), -1)


@checked
def milder_of_another(ladder: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Triplets of a reference, one family at its least severity and another at its greatest.

    Harder than severities of one family, which nearly any distance tells apart: a metric must weigh what is done to an
    image against something else. What the answer is rests on how ImageNet-C's families were graded.

    Args:
        ladder: [N, families, severities] distances, as of `severity_ladder`; two families or more.

    Returns:
        As `milder_or_stronger`; the family is that of the mild one.

    Raises:
        SoftgateError: For a ladder of another shape.
    """
    fits = ladder.dim() == 3 and min(ladder.shape[1:]) >= 2
    require(fits, f"milder_of_another: shape {tuple(ladder.shape)}: [N, families >= 2, severities >= 2] is needed.")
    first, second = (~torch.eye(ladder.shape[1], dtype=torch.bool, device=ladder.device)).nonzero().T
    mild, strong = ladder[:, first, 0], ladder[:, second, -1]
    return mild, strong, torch.zeros_like(mild), first.expand(len(ladder), -1)
