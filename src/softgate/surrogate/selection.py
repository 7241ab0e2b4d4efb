"""Site selection: which call sites a rule governs, by name pattern, by kind or by depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property

from softgate.errors import SoftgateError, is_number, require, unknown


class Kind(StrEnum):
    """Every kind of call site that a rule can govern; equal to its name as a string."""

    RELU = "relu"
    RELU6 = "relu6"
    HARDTANH = "hardtanh"
    LEAKY_RELU = "leaky_relu"
    MAX_POOL2D = "max_pool2d"
    ADAPTIVE_MAX_POOL2D = "adaptive_max_pool2d"
    AMAX = "amax"
    PRELU = "prelu"
    SILU = "silu"
    GELU = "gelu"
    HARDSWISH = "hardswish"
    MISH = "mish"
    ELU = "elu"
    SELU = "selu"
    CELU = "celu"
    SOFTPLUS = "softplus"
    LAYER_NORM = "layer_norm"
    GROUP_NORM = "group_norm"
    INSTANCE_NORM = "instance_norm"
    RMS_NORM = "rms_norm"
    ATTENTION = "attention"
    PRODUCT = "product"


KINDS = tuple(Kind)
POOLS = frozenset({Kind.MAX_POOL2D, Kind.ADAPTIVE_MAX_POOL2D, Kind.AMAX})
"""The kinds that are poolings."""

SMOOTH = frozenset(map(Kind, "silu gelu hardswish mish elu selu celu softplus".split()))
"""The kinds that are smooth activations, which `Surrogate.activation` is for."""

NORMS = frozenset(map(Kind, "layer_norm group_norm instance_norm rms_norm".split()))
"""The kinds that are normalisations by statistics of their own input, which `Surrogate.norm` is for."""

BLOCKS = NORMS | {Kind.ATTENTION, Kind.PRODUCT}
"""The kinds that are call sites only where a rule is for them; all that are in none of these sets are piecewise linear
activations."""


@dataclass(frozen=True)
class Select:
    """The call sites a rule governs; the others keep their true gradient. A site must pass all four tests.

    Args:
        names: Shell patterns for the names of `Sites.report()`, such as "layer1.*"; one must match.
        exclude: Shell patterns of which none may match.
        kinds: "relu", "max_pool2d" and so on; empty means every kind.
        depth: (least, greatest) position in the forward pass, both included: 0 is the first call site of the
            network, 1 the last.

    Raises:
        SoftgateError: If an option is out of range.
    """

    names: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    depth: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for option in ("names", "exclude", "kinds"):
            given = getattr(self, option)
            fine = isinstance(given, (list, tuple)) and all(isinstance(item, str) for item in given)
            require(fine, f"surrogate.sites.{option}={given}: a list of strings is needed.")
            object.__setattr__(self, option, tuple(given))
        require(bool(self.names), "surrogate.sites.names=[]: at least one pattern is needed; '*' is every site.")
        for kind in self.kinds:
            if kind not in KINDS:
                raise unknown("surrogate.sites.kinds", kind, KINDS)
        fine = isinstance(self.depth, (list, tuple)) and len(self.depth) == 2
        fine = fine and all(is_number(d) for d in self.depth)
        require(
            fine and 0 <= self.depth[0] <= self.depth[1] <= 1,
            f"surrogate.sites.depth={self.depth}: two numbers, 0 <= least <= greatest <= 1, are needed.",
        )
        object.__setattr__(self, "depth", (float(self.depth[0]), float(self.depth[1])))

    @cached_property
    def everything(self) -> bool:
        """Whether no call site is left out."""
        return self == Select()

    @property
    def needs_order(self) -> bool:
        """Whether the network's call sites must be known before the choice can be made."""
        return self.depth != (0.0, 1.0)

    def choose(self, sites: Sequence[tuple[str, str]]) -> set[str]:
        """The names of the chosen sites.

        Args:
            sites: (name, kind) of every call site, in the order of the forward pass.

        Raises:
            SoftgateError: If a pattern matches no site, or nothing is chosen.
        """
        for option in ("names", "exclude"):
            for pattern in getattr(self, option):
                if not any(fnmatchcase(name, pattern) for name, _ in sites):
                    shown = ", ".join(name for name, _ in sites[:6]) + (", ..." if len(sites) > 6 else "")
                    raise SoftgateError(f"surrogate.sites.{option}={pattern}: no call site matches; there are {shown}.")
        last = max(1, len(sites) - 1)
        chosen = {name for i, (name, kind) in enumerate(sites) if self.admits(name, kind, i / last)}
        require(bool(chosen), f"surrogate.sites: {self} chooses none of the {len(sites)} call sites.")
        return chosen

    def admits(self, name: str, kind: str, depth: float = 0.0) -> bool:
        """Whether one call site passes the four tests."""
        return (
            any(fnmatchcase(name, pattern) for pattern in self.names)
            and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
            and (not self.kinds or kind in self.kinds)
            and self.depth[0] <= depth <= self.depth[1]
        )
