"""The table of call sites: what each is, how often it ran, whether a rule covers it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from softgate.sites.calls import SiteId


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
        counts = Counter(str(site.kind) for site in self if site.covered)
        summed = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
        return "\n".join([*lines, f"{sum(counts.values())} of {len(self)} covered: {summed}"])
