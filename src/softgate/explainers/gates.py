"""The gates of a network on some images: plain data, one entry for each call site.

At a ReLU a gate is a number for each unit, 1[z > 0] or a soft one in its place. At a max pooling it is a choice: which
element of each window is passed on, or a weight for each element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softgate.display import Brief
from softgate.errors import require
from softgate.surrogate.windows import Window


@dataclass(frozen=True, repr=False)
class SiteGates(Brief):
    """The gates of one call site; B images.

    Attributes:
        name: The call site, as in `Sites.report()`.
        kind: "relu", "max_pool2d" and so on.
        values: Of a ReLU or LeakyReLU [B, ...] as its pre-activation; of ReLU6 and Hardtanh [B, 2, ...], one for each
            kink. Of a pooling the hard choices [B, C, oH, oW], the place of the maximum in its window, or soft weights
            [B, C, window elements, oH, oW]. Bool or uint8 where hard, floating point where soft.
        window: The geometry of a pooling, else None.
    """

    name: str
    kind: str
    values: Tensor
    window: Window | None = None

    @property
    def hard(self) -> bool:
        """Whether every gate is open or shut."""
        return not self.values.is_floating_point()

    @property
    def choices(self) -> int:
        """How many elements a window has; 2 at a ReLU, whose gate is open or shut."""
        return 2 if self.window is None else self.window.kernel[0] * self.window.kernel[1]

    def weights(self) -> Tensor:
        """The gates as numbers: of a ReLU as `values`, of a pooling as weights; float32 where they are hard."""
        if not self.hard:
            return self.values
        if self.window is None:
            return self.values.float()
        places = torch.arange(self.choices, device=self.values.device).view(-1, 1, 1)
        return (self.values.unsqueeze(-3) == places).float()


@dataclass(frozen=True, repr=False)
class Gates(Brief):
    """The gates of a network on some images, which `softgate.paths.run` runs it with.

    Attributes:
        sites: Call site to its gates, in the order of the forward pass.
    """

    sites: Mapping[str, SiteGates]

    @property
    def images(self) -> int:
        """How many images the gates are of."""
        return next((len(site.values) for site in self.sites.values()), 0)

    @property
    def hard(self) -> bool:
        """Whether every gate is open or shut."""
        return all(site.hard for site in self.sites.values())

    def __getitem__(self, index: slice | Tensor) -> Gates:
        """The gates of some of the images."""
        return self.map(lambda site: replace(site, values=site.values[index]))

    def map(self, change: Callable[[SiteGates], SiteGates]) -> Gates:
        """Other gates, site by site."""
        return Gates({name: change(site) for name, site in self.sites.items()})

    def shuffled(self, seed: int = 0) -> Gates:
        """A control: the gates of another image, the same one at every site; none keeps its own."""
        count = self.images
        require(count > 1, f"shuffled: the gates are of {count} image(s); at least 2 are needed.")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # one cycle through all images
        return self[other]

    def mean(self) -> Gates:
        """A control: the mean over the images, [1, ...], which does not depend on the input."""

        def averaged(site: SiteGates) -> SiteGates:
            if site.window is None or not site.hard:
                return replace(site, values=site.weights().mean(0, keepdim=True))
            shares = [(site.values == place).float().mean(0, keepdim=True) for place in range(site.choices)]
            return replace(site, values=torch.stack(shares, -3))

        return self.map(averaged)

    def ones(self) -> Gates:
        """A control: every ReLU open, every max pooling an average of its window's elements; [1, ...].

        What remains is one affine function for all images. Elements of a window that lie in the padding count: they
        are zeros.
        """

        def opened(site: SiteGates) -> SiteGates:
            first = site.values[:1]
            if site.window is None:
                return replace(site, values=torch.ones_like(first, dtype=torch.float32))
            shape = first.shape if not site.hard else (*first.shape[:-2], site.choices, *first.shape[-2:])
            return replace(site, values=torch.full(shape, 1 / site.choices, device=first.device))

        return self.map(opened)


def joined(parts: list[Gates]) -> Gates:
    """The gates of several sets of images, one after the other."""
    first = parts[0]
    return first.map(lambda s: replace(s, values=torch.cat([part.sites[s.name].values for part in parts])))
