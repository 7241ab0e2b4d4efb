"""Which class of one list is which of another: by what they are called, never by their number or order.

Ways are tried in this order, and one must do for all: the same name; the same WordNet id; the same English name; a
folder's name that is a number. A match that is partial or ambiguous is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from softgate.classes import imagenet
from softgate.errors import SoftgateError

IDENTITY, WNID, ENGLISH, INDEX = "name", "WNID", "English name", "integer index"

NAMED = 3
"""Classes that an error names."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set or a network, in order.

    Attributes:
        names: What they are called.
        folders: The names of the folders that they lie in, where they lie in folders; such a name may be a number or a
            WordNet id. None says that a number among `names` is a name.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...] | None = None

    @classmethod
    def of(cls, names: Sequence[str], folders: Sequence[str] | None = None) -> Classes:
        """From lists."""
        return cls(tuple(names), None if folders is None else tuple(folders))

    @classmethod
    def imagenet(cls) -> Classes:
        """Those of ImageNet and of the networks that torchvision publishes."""
        return cls(imagenet.names(), imagenet.wnids())

    def __len__(self) -> int:
        return len(self.names)

    def called(self, index: int) -> tuple[str, ...]:
        """All names of a class, the one that is shown first."""
        if self.folders is None or self.folders[index] == self.names[index]:
            return (self.names[index],)
        return self.names[index], self.folders[index]

    def canonical(self) -> tuple[str, ...]:
        """A name for each class that is the same however ImageNet's are called: to compare lists in any order."""
        numbers = [imagenet.index_of(*self.called(i)) for i in range(len(self))]
        return tuple(
            name if number is None else imagenet.wnids()[number]
            for name, number in zip(self.names, numbers, strict=True)
        )


@dataclass(frozen=True)
class Match:
    """Where classes stand in another list.

    Attributes:
        indexes: For each of them, its index there.
        by: What they were found by.
        total: How many the other list has.
        shown: The first of them, and what it is there.
    """

    indexes: list[int]
    by: str
    total: int
    shown: tuple[str, str]

    @property
    def whole(self) -> bool:
        """Whether the other list has no further class."""
        return len(self.indexes) == self.total

    @property
    def in_order(self) -> bool:
        """Whether both lists are the same, in the same order."""
        return self.indexes == list(range(self.total))

    def __str__(self) -> str:
        mine, there = self.shown
        example = "" if mine == there else f", such as {mine} = {there}"
        return f"{len(self.indexes)} of {len(self.indexes)} classes by {self.by}{example}"


def match(wanted: Classes, known: Classes, start: str, whose: str = "the network") -> Match:
    """Finds classes among others.

    Args:
        wanted: The classes, such as a data set's.
        known: Where they are looked for, such as a network's.
        start: What the error begins with: the option and its value.
        whose: Where the others are, for the error.

    Raises:
        SoftgateError: If a class is not there, or could be several, or several could be the same.
    """
    if wanted.names == known.names:
        by = WNID if _by_wnids(wanted, known) else IDENTITY
        return Match(list(range(len(wanted))), by, len(known), (_shown(wanted, 0, by), known.names[0]))
    best: tuple[int, str, list[list[int]]] | None = None
    for by, candidates in _ways(wanted, known):
        alone = sum(len(places) == 1 for places in candidates)
        indexes = [places[0] for places in candidates if len(places) == 1]
        if alone == len(wanted) == len(set(indexes)):
            by = WNID if by == IDENTITY and _by_wnids(wanted, known) else by
            return Match(indexes, by, len(known), (_shown(wanted, 0, by), known.names[indexes[0]]))
        found = sum(bool(places) for places in candidates)
        if found and (best is None or found > best[0]):
            best = found, by, candidates
    raise SoftgateError(f"{start}: {_refusal(wanted, known, best, whose)}")


def _by_wnids(wanted: Classes, known: Classes) -> bool:
    """Whether the names that classes share are WordNet ids."""
    theirs = {name for j in range(len(known)) for name in known.called(j)}
    mine = [wanted.called(i)[-1] for i in range(len(wanted))]
    return all(name in theirs and imagenet.wnid_in(name) for name in mine)


def _shown(classes: Classes, index: int, by: str) -> str:
    return classes.names[index] if by in (IDENTITY, ENGLISH) else classes.called(index)[-1]


def _refusal(wanted: Classes, known: Classes, best: tuple[int, str, list[list[int]]] | None, whose: str) -> str:
    total = len(wanted)
    if best is None:
        none = f"none of the {total} classes, such as '{wanted.names[0]}', is" if total > 1 else "it is not"
        return (
            f"{none} found in {whose}, with {len(known)} such as "
            f"'{known.names[0]}'; they are matched by name, WNID, English name or, where folders are numbered, index."
        )
    found, by, candidates = best
    said = f"{found} of {total} classes are found in {whose} by {by}"
    lacking = [wanted.called(i)[-1] for i, places in enumerate(candidates) if not places]
    if lacking:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        return f"{said}, and {', '.join(lacking[:NAMED])}{more} are not; data.classes=[...] picks classes."
    for i, places in enumerate(candidates):
        if len(places) > 1:
            which = " and ".join(f"{known.names[j]} ({j})" for j in places[:NAMED])
            return f"{said}, but '{wanted.called(i)[-1]}' may be {which}; call it by its WNID or its exact name."
    places = [each[0] for each in candidates]
    twice = next(place for place in places if places.count(place) > 1)
    same = [wanted.called(i)[-1] for i, place in enumerate(places) if place == twice]
    return f"{said}, but {' and '.join(same[:NAMED])} are the same one there, {known.names[twice]}."


def _ways(wanted: Classes, known: Classes) -> Iterator[tuple[str, list[list[int]]]]:
    """Each way, and for each class where it may be by it."""
    yield IDENTITY, _sharing(wanted, known, lambda name: name)
    yield WNID, _sharing(wanted, known, imagenet.wnid_in)
    yield ENGLISH, _sharing(wanted, known, lambda name: _plain(imagenet.english(name)))
    yield ENGLISH, _sharing(wanted, known, lambda name: _plain(imagenet.english(name)).casefold())
    yield INDEX, _numbered(wanted, known)


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip()))


def _sharing(wanted: Classes, known: Classes, key: Callable[[str], str | None]) -> list[list[int]]:
    places: dict[str, list[int]] = {}
    for j in range(len(known)):
        for word in _keys(known, j, key):
            places.setdefault(word, []).append(j)
    return [sorted({j for word in _keys(wanted, i, key) for j in places.get(word, ())}) for i in range(len(wanted))]


def _keys(classes: Classes, index: int, key: Callable[[str], str | None]) -> set[str]:
    return {word for name in classes.called(index) if (word := key(name)) is not None}


def _numbered(wanted: Classes, known: Classes) -> list[list[int]]:
    """By folders' names that are numbers: those of the others' names, their places, or ImageNet's indexes."""
    numbers = [_number(name) for name in wanted.folders or [""] * len(wanted)]
    if None in numbers:
        return [[] for _ in numbers]
    theirs = [
        next((n for name in known.called(j) if (n := _number(name)) is not None), None) for j in range(len(known))
    ]
    if None not in theirs:
        ways = [dict(zip(theirs, range(len(known)), strict=True))] if len(set(theirs)) == len(theirs) else []
    else:
        indexes = [imagenet.index_of(*known.called(j)) for j in range(len(known))]
        ways = [{j: j for j in range(len(known))}]
        ways += [dict(zip(indexes, range(len(known)), strict=True))] if None not in indexes else []
    whole = [way for way in ways if all(number in way for number in numbers)]
    return [sorted({way[number] for way in whole or ways if number in way}) for number in numbers]


def _number(name: str) -> int | None:
    return int(name) if re.fullmatch(r"[0-9]{1,9}", name) else None
