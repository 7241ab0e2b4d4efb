"""How much the gate patterns of two moments agree: gate by gate, and path by path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softgate.display import Brief
from softgate.errors import require
from softgate.explainers.gates import Gates, SiteGates
from softgate.paths.packing import Bytes, SiteLayout
from softgate.paths.recording import Point, Recording

ALL = "all sites"
"""Where the values over all call sites stand."""

UNIFORM = 1e-6
"""Units that agree by chance up to this much of 1 have no kappa: they never change."""

BLOCK = 1024
"""Bytes of each bit plane that are unpacked at once; bounds the memory."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of two gate patterns at a call site.

    Attributes:
        hamming: Share of gates that differ; of a pooling, of windows with another choice. 0 is the same pattern.
        kappa: Cohen's kappa of each unit over the images, averaged over the units for which it is defined: 1 is the
            same pattern, 0 what is expected of independent ones of the same activity. NaN where it is defined for none.
    """

    hamming: float
    kappa: float


@dataclass(frozen=True, repr=False)
class Comparison(Brief):
    """Every pair of moments of a recording; S moments, N images.

    Attributes:
        points: The moments.
        sites: Names of the call sites.
        hamming: [sites, S, S], as in `Agreement`.
        kappa: [sites, S, S], as in `Agreement`.
        overall: `hamming` and `kappa` over all gates and all units, [S, S] each.
        log_cosine: [N, S, S], the logarithm of the product over sites of the cosine of the gates.
    """

    points: list[Point]
    sites: list[str]
    hamming: Tensor
    kappa: Tensor
    overall: tuple[Tensor, Tensor]
    log_cosine: Tensor


def gate_agreement(first: Gates, second: Gates) -> dict[str, Agreement]:
    """Hamming share and Cohen's kappa at every call site, and over all of them under `ALL`.

    Args:
        first: Hard gates of some images.
        second: Hard gates of the same images and call sites, at another time or of another network.

    Raises:
        SoftgateError: If the gates are soft, or of other sites or shapes.
    """
    _check(first, second)
    require(first.hard and second.hard, "gate_agreement: soft gates neither agree nor differ; path_cosine takes them.")
    sums = {name: _sums_of_two(site, second.sites[name]) for name, site in first.sites.items()}
    each = {ALL: torch.stack(list(sums.values())).sum(0), **sums}
    return {name: Agreement(float(one[0] / one[1]), float(one[2] / one[3])) for name, one in each.items()}


def path_cosine(first: Gates, second: Gates) -> Tensor:
    r"""The logarithm of :math:`\prod_\ell \cos(\lambda_\ell, \lambda_\ell')` for each image.

    That is the cosine of the two path activities as tensor products (paper, equation 13).

    Args:
        first: Gates of B images, hard or soft.
        second: Gates of the same images and call sites.

    Returns:
        [B] float64; -inf where a site has no gate open in common.
    """
    _check(first, second)
    total = torch.zeros(first.images, dtype=torch.float64)
    for name, site in first.sites.items():
        a, b = (_flat(one) for one in (site, second.sites[name]))
        total += _log_cosine((a * b).sum(1).double(), a.square().sum(1).double(), b.square().sum(1).double())
    return total


def compare(recording: Recording) -> Comparison:
    """Compares the hard gates of every pair of moments of a recording, a part of a site at a time."""
    layout, points = recording.layout(), recording.points
    rows = [recording.rows(point) for point in points]
    sums = _Sums(len(points))
    for site in layout.sites:
        columns = layout.columns(site.name)
        for block in _blocks(site, [each[:, columns] for each in rows]):
            sums.add(site.name, block, site.choices, pooled=site.window is not None)
    return Comparison(points, list(sums.sites), *sums.agreement(), sums.log_cosine())


def _sums_of_two(first: SiteGates, second: SiteGates) -> Tensor:
    """[4] in float64: differing gates, gates, sum of kappas, units with a kappa."""
    a, b = first.values.flatten(1), second.values.flatten(1)
    chance = torch.zeros(a.shape[1], dtype=torch.float64, device=a.device)
    for choice in range(first.choices):
        chance += (a == choice).sum(0).double() * (b == choice).sum(0) / len(a) ** 2
    differ = (a != b).sum(0).double()
    defined = chance < 1 - UNIFORM
    kappa = (1 - differ / len(a) - chance)[defined] / (1 - chance)[defined]
    return torch.stack([differ.sum(), differ.new_tensor(a.numel()), kappa.sum(), defined.sum()]).double()


def _check(first: Gates, second: Gates) -> None:
    same = list(first.sites) == list(second.sites) and first.images == second.images
    require(same, "paths: the gates are of different call sites or numbers of images and cannot be compared.")


def _flat(site: SiteGates) -> Tensor:
    return site.weights().flatten(1).double()


def _log_cosine(dot: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Log of dot / sqrt(first * second); two patterns with every gate shut are the same."""
    cosine = torch.where((first == 0) & (second == 0), 1.0, dot / (first * second).sqrt()).nan_to_num(0.0)
    return cosine.clamp(max=1.0).log()


def _blocks(site: SiteLayout, rows: list[Bytes]) -> Iterator[Tensor]:
    """The gates of a site, [S, N, some units] in uint8."""
    planes = site.size // site.bits
    for start in range(0, planes, BLOCK):
        stop = min(start + BLOCK, planes)
        count = min(8 * stop, site.values) - 8 * start
        parts = []
        for each in rows:
            bits = (
                np.unpackbits(np.ascontiguousarray(each[:, plane * planes + start : plane * planes + stop]), 1, count)
                << plane
                for plane in range(site.bits)
            )
            parts.append(torch.from_numpy(np.asarray(sum(bits), dtype=np.uint8)))
        yield torch.stack(parts)


class _Sums:
    """What is summed over units to compare S moments."""

    def __init__(self, moments: int) -> None:
        self.moments = moments
        self.sites: dict[str, list[Tensor]] = {}  # differing gates, gates, sum of kappas, units with a kappa
        self.dots: dict[str, Tensor] = {}  # [N, S, S] inner products

    def add(self, name: str, gates: Tensor, choices: int, pooled: bool) -> None:
        """Takes units in: gates [S, N, units], each one of `choices`; of a ReLU 0 or 1."""
        images, units = gates.shape[1:]
        same = torch.zeros(units, self.moments, self.moments)
        chance = torch.zeros(units, self.moments, self.moments)
        dots = torch.zeros(images, self.moments, self.moments)
        for choice in range(choices):
            one = (gates == choice).float()
            by_unit, by_image = one.permute(2, 0, 1), one.permute(1, 0, 2)
            same += by_unit @ by_unit.transpose(1, 2)
            share = by_unit.mean(2)
            chance += share[:, :, None] * share[:, None, :]
            if pooled or choice == 1:
                dots += by_image @ by_image.transpose(1, 2)
        share_same = same.double() / images
        kappa = (share_same - chance) / (1 - chance)
        defined = chance < 1 - UNIFORM
        sums = [
            (images - same.double()).sum(0),
            torch.full((self.moments,) * 2, float(images * units), dtype=torch.float64),
            torch.where(defined, kappa, 0.0).sum(0),
            defined.double().sum(0),
        ]
        before = self.sites.get(name)
        self.sites[name] = sums if before is None else [a + b for a, b in zip(before, sums, strict=True)]
        self.dots[name] = self.dots.get(name, torch.zeros(())) + dots.double()

    def agreement(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Hamming share and kappa, [sites, S, S] each, and over all sites, [S, S] each."""
        differ, total, kappas, units = (torch.stack(parts) for parts in zip(*self.sites.values(), strict=True))
        overall = differ.sum(0) / total.sum(0), kappas.sum(0) / units.sum(0)
        return differ / total, kappas / units, overall

    def log_cosine(self) -> Tensor:
        """[N, S, S], summed over sites."""
        found = torch.zeros((), dtype=torch.float64)
        for dots in self.dots.values():
            norms = dots.diagonal(dim1=1, dim2=2)
            found = found + _log_cosine(dots, norms[:, :, None].expand_as(dots), norms[:, None, :].expand_as(dots))
        return found
