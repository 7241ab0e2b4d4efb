"""The table of call sites: what each is, how often it ran, whether a rule covers it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from softgate.errors import SoftgateError
from softgate.sites.calls import SiteId

if TYPE_CHECKING:
    from softgate.tables import Table


@dataclass
class Site:
    """One call site.

    Attributes:
        id: Which call of which module it is.
        kind: A `softgate.surrogate.selection.Kind`, or the name of another activation or pooling.
        covered: Whether a rule governs its backward pass.
        calls: How many forward passes have run it since `attach` (not counted under torch.compile).
    """

    id: SiteId
    kind: str
    covered: bool
    calls: int = 0

    @property
    def name(self) -> str:
        """Dotted module path, with `.relu` for a functional call and `#2`, `#3` for repeated calls."""
        return self.id.name


class SiteTable:
    """The call sites known so far, in the order of the forward pass."""

    def __init__(self) -> None:
        self._sites: dict[SiteId, Site] = {}

    def fill(self, sites: Iterable[Site]) -> None:
        """Begins anew with what a trace has found; of two entries with one name the later counts."""
        self._sites = {site.id: site for site in sites}

    def note(self, site: SiteId, kind: str, covered: bool) -> None:
        """Counts one call."""
        self.add(site, kind, covered).calls += 1

    def add(self, site: SiteId, kind: str, covered: bool) -> Site:
        """The entry of a call site, made where there is none."""
        return self._sites.setdefault(site, Site(site, kind, covered))

    def copy(self) -> SiteTable:
        """The same call sites, not called yet."""
        made = SiteTable()
        made.fill(replace(site, calls=0) for site in self)
        return made

    def covered(self) -> list[tuple[str, str]]:
        """(name, kind) of every covered site."""
        return [(site.name, site.kind) for site in self if site.covered]

    def __contains__(self, site: object) -> bool:
        return site in self._sites

    def __iter__(self) -> Iterator[Site]:
        return iter(list(self._sites.values()))  # other threads may add to them

    def __len__(self) -> int:
        return len(self._sites)

    def report(self) -> str:
        """One line for each call site, and a last one with the sums."""
        if not self._sites:
            return "no call sites seen yet: the model could not be traced, run one forward pass first"
        width = max(len("call site"), *(len(site.name) for site in self))
        kinds = max(len(site.kind) for site in self)
        lines = [f"{'call site':<{width}}  {'kind':<{kinds}}  {'calls':>6}  covered"]
        for site in self:
            covered = "yes" if site.covered else "NO"
            lines.append(f"{site.name:<{width}}  {site.kind:<{kinds}}  {site.calls:>6}  {covered}")
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """How many are covered, by kind, in a line."""
        counts = Counter(str(site.kind) for site in self if site.covered)
        summed = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
        return f"{sum(counts.values())} of {len(self)} covered: {summed}"

    def listed(self) -> Table:
        """The call sites as a table."""
        from softgate.tables import Cell, Table  # rich, which no training loop needs

        covered = {True: Cell("yes"), False: Cell("NO", mark="worse")}
        rows: list[list[str | Cell]] = [
            [site.name, str(site.kind), Cell(str(site.calls), site.calls), covered[site.covered]] for site in self
        ]
        return Table(["call site", "kind", "calls", "covered"], rows, align="llrl")

    def find(self, key: str | int) -> Site:
        """The call site of a name or a place.

        Raises:
            SoftgateError: If there is none of that name.
            IndexError: If there is none at that place.
        """
        every = list(self)
        if not isinstance(key, str):
            return every[key]
        found = next((site for site in every if site.name == key), None)
        if found is None:
            near = get_close_matches(key, [site.name for site in every], n=3) or [site.name for site in every[:3]]
            raise SoftgateError(
                f"sites[{key!r}]: there is no such call site; the nearest of {len(every)} in sites.report(): "
                f"{', '.join(near)}."
            )
        return found


class SiteCollection:
    """What a table of call sites is to a user: a collection, by place and by name."""

    _table: SiteTable

    def __len__(self) -> int:
        return len(self._table)

    def __bool__(self) -> bool:
        return True  # also where no call site is known yet

    def __iter__(self) -> Iterator[Site]:
        return iter(self._table)

    def __contains__(self, site: object) -> bool:
        return any(site in (each, each.name) for each in self._table)

    def __getitem__(self, key: str | int) -> Site:
        """The call site of a name, or of a place in the order of the forward pass.

        Raises:
            SoftgateError: If there is none of that name.
            IndexError: If there is none at that place.
        """
        return self._table.find(key)
