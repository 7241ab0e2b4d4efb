"""Which images of a data set are used: some classes, and parts of every class that are cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softgate.classes import Classes, match
from softgate.data.images import Listing
from softgate.errors import require

FIFTH = 0.2
"""What is held out of every class of a data set that has no splits of its own."""


def stratified(labels: Tensor, share: float, seed: int) -> Tensor:
    """Indices, ascending, of a random share of every class, at least one image each; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    picked = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        count = min(len(members), max(1, round(share * len(members))))
        picked.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(picked).sort().values


def cut(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """What is left of every class, and a random share of it; the same for the same seed."""
    chosen = torch.zeros(len(listing), dtype=torch.bool)
    chosen[stratified(listing.labels, share, seed)] = True
    return listing.subset((~chosen).nonzero().flatten()), listing.subset(chosen.nonzero().flatten())


def held_out(listing: Listing, split: str) -> Listing:
    """A split of a data set that has none: of every class a fixed fifth is "val"."""
    return cut(listing, FIFTH, seed=0)[split == "val"]


def validation_cut(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """Training images without, and validation images with, a share of the training images of every class.

    Raises:
        SoftgateError: If a class has fewer than two images.
    """
    few = [listing.classes[c] for c, n in enumerate(listing.labels.bincount(minlength=len(listing.classes))) if n < 2]
    require(not few, f"data.val_split={share}: class '{(few or [''])[0]}' has fewer than two training images.")
    rest, part = cut(listing, share, seed)
    lost = [listing.classes[c] for c, n in enumerate(rest.labels.bincount(minlength=len(listing.classes))) if n == 0]
    require(not lost, f"data.val_split={share}: it leaves class '{(lost or [''])[0]}' without a training image.")
    return rest, part


def with_label_noise(listing: Listing, share: float, seed: int) -> Listing:
    """A listing in which a random share of the labels is drawn anew, all classes alike; the same for the same seed.

    A label that is drawn anew may come out as it was (Zhang et al. 2017, arXiv 1611.03530): of K classes about
    share (K - 1) / K of the labels are wrong afterwards.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(listing), generator=generator)[: round(share * len(listing))]
    labels = listing.labels.clone()
    labels[chosen] = torch.randint(len(listing.classes), (len(chosen),), generator=generator)
    return replace(listing, labels=labels)


def pick(listing: Listing, wanted: Sequence[str | int]) -> Listing:
    """Some classes of a data set, in the order that they are named in.

    Args:
        listing: All of it.
        wanted: Their folders' names, English names, WordNet ids or numbers.

    Raises:
        SoftgateError: If one is not there, may be several, or is named twice.
    """
    option, known = f"data.classes={list(wanted)}", Classes.of(listing.classes, listing.folders)
    numbers = []
    for name in map(str, wanted):
        (number,) = match(Classes.of([name], [name]), known, f"{option}: '{name}'", "the data set").indexes
        require(number not in numbers, f"{option}: '{name}' is {listing.classes[number]}, which is named already.")
        numbers.append(number)
    places = torch.full((len(known),), -1)
    places[numbers] = torch.arange(len(numbers))
    chosen = listing.subset((places[listing.labels] >= 0).nonzero().flatten())
    folders = None if listing.folders is None else [listing.folders[number] for number in numbers]
    names = [listing.classes[number] for number in numbers]
    return replace(chosen, labels=places[chosen.labels], classes=names, folders=folders)
