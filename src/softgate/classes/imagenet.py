"""ImageNet's thousand classes: their WordNet ids, and their English names as torchvision has them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_WNID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?![0-9])")


@cache
def names() -> tuple[str, ...]:
    """English names, in the order in which published networks have them; all differ, some in their capitals alone."""
    from torchvision.models import ResNet50_Weights  # takes seconds, which a command that is refused need not wait

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


@cache
def wnids() -> tuple[str, ...]:
    """WordNet ids of `names()`, in its order, which is theirs."""
    return tuple((Path(__file__).parent / "imagenet.txt").read_text(encoding="ascii").split())


@cache
def by_wnid() -> dict[str, int]:
    """WordNet id to index."""
    return {wnid: number for number, wnid in enumerate(wnids())}


@cache
def by_name() -> dict[str, int]:
    """English name to index."""
    return {name: number for number, name in enumerate(names())}


def wnid_in(name: str) -> str | None:
    """The WordNet id that a folder's name is or contains, such as `n02085620-Chihuahua`; None where there is none."""
    found = _WNID.findall(name)
    return found[0] if len(found) == 1 else None


def english(name: str) -> str:
    """The English name of a class that is called by its WordNet id; every other name as it is."""
    index = by_wnid().get(wnid_in(name) or "")
    return name if index is None else names()[index]


def index_of(*names: str) -> int | None:
    """The index of the class of such names, by WordNet id or English name; None where it is none of ImageNet's."""
    for name in names:
        found = by_wnid().get(wnid_in(name) or "", by_name().get(name))
        if found is not None:
            return found
    return None
