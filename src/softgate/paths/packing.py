"""Gates as bytes: one bit for a hard gate, a few bits for the choice of a pooling, eight for a soft gate.

The gates of one image are one row of bytes, site after site. A hard ReLU gate takes one bit; the choice among k
elements of a window takes ceil(log2 k) bits, as that many bit planes. Each plane begins at a whole byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from softgate.errors import is_whole, require
from softgate.explainers.gates import Gates, SiteGates
from softgate.surrogate.windows import Window

Bytes = NDArray[np.uint8]

SOFT_BITS = 8


@dataclass(frozen=True)
class SiteLayout:
    """Where and how the gates of one call site lie in a row.

    Attributes:
        name: The call site.
        kind: "relu", "max_pool2d" and so on.
        shape: Of the gates of one image, see `SiteGates.values`.
        bits: Bits for each gate, choice or soft weight.
        window: The geometry of a pooling, else None.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    window: Window | None = None

    @property
    def values(self) -> int:
        """How many gates, choices or soft weights an image has here."""
        return int(np.prod(self.shape))

    @property
    def choices(self) -> int:
        """As `SiteGates.choices`."""
        return 2 if self.window is None else self.window.kernel[0] * self.window.kernel[1]

    @property
    def size(self) -> int:
        """Bytes for one image."""
        return self.values if self.bits == SOFT_BITS else self.bits * -(-self.values // 8)

    @property
    def gates(self) -> int:
        """How many gates an image has here; a window of a pooling has one for each of its elements."""
        chosen = self.window is not None and self.bits != SOFT_BITS
        return self.values * (self.choices if chosen else 1)


class Layout:
    """How the gates of an image lie in a row of bytes.

    Args:
        sites: In the order of the forward pass.
    """

    def __init__(self, sites: Sequence[SiteLayout]) -> None:
        self.sites = list(sites)
        self.row = sum(site.size for site in self.sites)

    @classmethod
    def of(cls, gates: Gates, soft: bool) -> Layout:
        """The layout for gates such as these.

        Args:
            gates: Of any number of images.
            soft: Eight bits for each gate, and hard ones as 0 and 1; else all gates must be hard.
        """
        made = []
        smooth = [] if soft else [site.kind for site in gates.sites.values() if not site.hard]
        require(
            not smooth,
            f"paths: {', '.join(dict.fromkeys(smooth))} have no hard gates, which a recording is of: none of theirs is "
            f"open or closed.",
        )
        for site in gates.sites.values():
            values = site.weights() if soft else site.values
            bits = SOFT_BITS if soft else max(1, (site.choices - 1).bit_length())
            made.append(SiteLayout(site.name, site.kind, tuple(values.shape[1:]), bits, site.window))
        return cls(made)

    @property
    def bits_per_gate(self) -> float:
        """Bits on disk for each gate."""
        return 8 * self.row / sum(site.gates for site in self.sites)

    def pack(self, gates: Gates) -> Bytes:
        """Gates of B images as rows [B, row]; soft ones are rounded to steps of 1/255."""
        return np.concatenate([_pack(site, gates.sites[site.name]) for site in self.sites], 1)

    def unpack(self, rows: Bytes) -> Gates:
        """The gates that rows [B, row] hold; soft ones in float32."""
        found, start = {}, 0
        for site in self.sites:
            values = _unpack(site, rows[:, start : start + site.size])
            found[site.name] = SiteGates(site.name, site.kind, values, site.window)
            start += site.size
        return Gates(found)

    def columns(self, name: str) -> slice:
        """Which bytes of a row belong to a call site."""
        names = [site.name for site in self.sites]
        require(name in names, f"paths: no call site {name} in the recording.")
        start = sum(site.size for site in self.sites[: names.index(name)])
        return slice(start, start + self.sites[names.index(name)].size)

    def to_plain(self) -> list[dict[str, Any]]:
        """The layout as plain data."""
        plain: list[dict[str, Any]] = []
        for site in self.sites:
            window = None if site.window is None else {k: _plain(v) for k, v in asdict(site.window).items()}
            plain.append({**asdict(site), "shape": list(site.shape), "window": window})
        return plain

    @classmethod
    def from_plain(cls, plain: Sequence[Mapping[str, Any]]) -> Layout:
        """The layout that `to_plain` wrote.

        Raises:
            TypeError, KeyError, ValueError, AttributeError: If it did not.
        """
        made = []
        for site in plain:
            window = site["window"] and Window(**{k: _tupled(v) for k, v in site["window"].items()})
            made.append(SiteLayout(**{**site, "shape": tuple(site["shape"]), "window": window}))
            if not (all(is_whole(n, 1) for n in made[-1].shape) and made[-1].bits in range(1, SOFT_BITS + 1)):
                raise ValueError(f"{site['name']} has shape {site['shape']} and {site['bits']} bits")
        return cls(made)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _pack(layout: SiteLayout, site: SiteGates) -> Bytes:
    if layout.bits == SOFT_BITS:
        levels = (site.weights().flatten(1) * 255).round().clamp(0, 255)
        return levels.to(torch.uint8).cpu().numpy()
    values = site.values.flatten(1).cpu().numpy()
    if layout.window is None:
        return np.packbits(values, 1)
    return np.concatenate([np.packbits(values >> bit & 1, 1) for bit in range(layout.bits)], 1)


def _unpack(layout: SiteLayout, rows: Bytes) -> torch.Tensor:
    shape = (len(rows), *layout.shape)
    if layout.bits == SOFT_BITS:
        return torch.from_numpy(np.ascontiguousarray(rows)).view(shape).float() / 255
    planes = np.split(np.ascontiguousarray(rows), layout.bits, 1)
    values = sum(np.unpackbits(plane, 1, layout.values) << bit for bit, plane in enumerate(planes))
    found = torch.from_numpy(np.asarray(values, dtype=np.uint8)).view(shape)
    return found.bool() if layout.window is None else found
