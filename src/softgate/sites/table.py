"""The table of call sites: what each is, how often it ran, whether a rule covers it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Site:
    """One call site.

    Attributes:
        name: Dotted module path, with `.relu` for a functional call and `#2`, `#3` for repeated calls.
        kind: "relu", "max_pool2d", or the name of another activation or pooling.
        covered: Whether a rule governs its backward pass.
        calls: How many forward passes have run it since `attach` (not counted under torch.compile).
    """

    name: str
    kind: str
    covered: bool
    calls: int = 0


def coverage_table(sites: Sequence[Site]) -> str:
    """One line for each call site, and a last one with the sums."""
    if not sites:
        return "no call sites seen yet: the model could not be traced, run one forward pass first"
    width = max(len("call site"), *(len(site.name) for site in sites))
    kinds = max(len(site.kind) for site in sites)
    lines = [f"{'call site':<{width}}  {'kind':<{kinds}}  {'calls':>6}  covered"]
    for site in sites:
        covered = "yes" if site.covered else "NO"
        lines.append(f"{site.name:<{width}}  {site.kind:<{kinds}}  {site.calls:>6}  {covered}")
    counts = Counter(site.kind for site in sites if site.covered)
    summed = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
    return "\n".join([*lines, f"{sum(counts.values())} of {len(sites)} covered: {summed}"])
