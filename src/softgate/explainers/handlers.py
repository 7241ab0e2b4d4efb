"""What reads and sets the gates of a forward pass: a recorder of them, and one that puts given ones in their place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from softgate.errors import SoftgateError, require
from softgate.explainers.gates import Gates, SiteGates
from softgate.sites.active_rule import ActiveRule
from softgate.sites.block_calls import not_linear
from softgate.sites.calls import ActivationCall, BlockCall, PoolCall, SiteCall, SiteId
from softgate.sites.checks import unreachable
from softgate.sites.forward import State
from softgate.sites.scales import channel_of
from softgate.sites.sites import Sites
from softgate.surrogate.choices import choose, shares, take, weigh
from softgate.surrogate.functional import slope_of, smooth_factor, soft_pooling
from softgate.surrogate.numerics import wide
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import NORMS, POOLS, Kind
from softgate.surrogate.smooth import Smooth


class CallHandler(ABC):
    """Handles the calls of a network's sites: activations and poolings, and refuses all others.

    Args:
        sites: The attached sites.
    """

    blocks: frozenset[str] = frozenset()  # those that are call sites to it

    def __init__(self, sites: Sites) -> None:
        self.sites = sites

    @abstractmethod
    def activation(self, call: ActivationCall, name: str) -> Tensor:
        """What a call of an activation at the site `name` returns."""

    @abstractmethod
    def pooling(self, call: PoolCall, name: str) -> Any:
        """What a call of a max pooling at the site `name` returns."""

    @abstractmethod
    def block(self, call: BlockCall, name: str) -> Tensor:
        """What a normalisation, attention or product with a gate at the site `name` returns."""

    def handle(self, call: SiteCall, site: SiteId, state: State) -> Any:
        """What a call returns.

        Raises:
            SoftgateError: For a call that has no gates, or returns more than a function of them.
        """
        if isinstance(call, BlockCall):
            return self.block(call, site.name)
        if isinstance(call, ActivationCall):
            return self.activation(call, site.name)
        if not isinstance(call, PoolCall):
            state.refusal = unreachable(self.sites.model, [call.kind])
            raise state.refusal
        if not call.covered:
            raise unreachable(self.sites.model, ["adaptive_max_pool2d into windows of different sizes"])
        require(not call.indices, f"paths: {site.name} returns indices, which are no function of the gates.")
        return call.shaped(self.pooling(call, site.name))


class Recorder(CallHandler):
    """Keeps the gates of each call.

    Args:
        sites: The attached sites.
        active: The rule that the gates are of.
        images: How many images run, which are the rows of every call's input; None where rows may be anything.
        backward: Record what the backward pass multiplies by, also exactly on a kink and among equal elements, where
            PyTorch may open a gate halfway or differently than 1[z > 0] and the choice of one maximum say.

    Attributes:
        found: The gates, by call site.
    """

    def __init__(self, sites: Sites, active: ActiveRule, images: int | None, backward: bool = False) -> None:
        super().__init__(sites)
        self.active, self.images, self.backward = active, images, backward
        self.blocks = active.blocks
        self.found: dict[str, SiteGates] = {}

    def activation(self, call: ActivationCall, name: str) -> Tensor:
        """Keeps the gates and runs the activation."""
        self._check(name, call.gating)
        rule, scale = self._law(name, call.kind, call.gating)
        z = wide(call.gating)
        if isinstance(call.shape, Smooth):
            self.found[name] = SiteGates(name, str(call.kind), own_gate(call, call.shape, rule, scale))
            smooth: Tensor = call.original()
            return smooth
        steps = []
        for place, (_, kink) in enumerate(call.shape.kinks):
            at = z - kink if kink else z
            soft = rule if rule is not None and rule.softens_relu else None
            step = at > 0 if soft is None else soft(at if scale is None else at / scale)
            if self.backward and call.shape.on_kink[place : place + 1] == (1,):
                share = 1 if soft is None else (1 - soft.mix) / soft.rms
                step = step | (at == 0) if soft is None else step + share * (at == 0)
            steps.append(step)
        values = steps[0] if len(steps) == 1 else torch.stack(steps, 1)
        self.found[name] = SiteGates(name, str(call.kind), values)
        out: Tensor = call.original()
        return out

    def pooling(self, call: PoolCall, name: str) -> Any:
        """Keeps the choices or weights and runs the pooling."""
        x, window, kind = call.x, call.window(), str(call.kind)
        self._check(name, x)
        rule, scale = self._law(name, kind, x)
        values = choose(window, x.detach())
        if self.backward and call.kind is Kind.AMAX and not call.indices:
            values = shares(window, x.detach())
        if rule is not None and rule.softens_pool:
            soft = soft_pooling(window, rule.pool).weights(x.detach(), scale)
            if rule.mix != 1:
                soft = torch.lerp(SiteGates(name, kind, values, window).weights().to(soft.dtype), soft, rule.mix)
            values = soft
        self.found[name] = SiteGates(name, kind, values, window)
        return window.pool(x)

    def block(self, call: BlockCall, name: str) -> Tensor:
        """Keeps what the rule holds constant and runs the block."""
        self._check(name, call.passed)
        rule = self.active.of_site(name, call.kind)
        soft = rule is not None and rule.softens(call.kind)
        out: Tensor = call.original()
        if rule is not None and soft:
            if rule.mix != 1:
                raise not_linear(rule)
            self.found[name] = SiteGates(name, str(call.kind), call.held(rule))
        return out

    def _check(self, name: str, z: Tensor) -> None:
        fits = self.images is None or (z.dim() > 1 and len(z) == self.images)
        require(
            fits,
            f"paths: {name} has an input of shape {tuple(z.shape)}, whose rows are not the {self.images} image(s).",
        )

    def _law(self, name: str, kind: str, z: Tensor) -> tuple[Surrogate | None, Tensor | None]:
        rule = self.active.of_site(name, kind)
        if rule is None:
            return None, None
        if rule.scale != "channel":
            return rule, None
        return rule, self.sites.scales.of(name, z, channel_of(name, z, pool=kind in POOLS))


class Gated(CallHandler):
    """Puts given gates in the place of each call.

    Args:
        sites: The attached sites.
        gates: The gates.
        products: Multiply by hard gates instead of choosing by them: then a choice that the autograd graph shows can
            only be the model's own, which need not be linear.

    Attributes:
        used: The call sites that were met.
    """

    def __init__(self, sites: Sites, gates: Gates, products: bool = False) -> None:
        super().__init__(sites)
        self.gates, self.products = gates, products
        self.blocks = frozenset(_FAMILIES[site.kind] for site in gates.sites.values() if site.kind in _FAMILIES)
        self.used: set[str] = set()

    def activation(self, call: ActivationCall, name: str) -> Tensor:
        """Multiplies by the gates, or chooses by them."""
        if isinstance(call.shape, Smooth):
            out = self._values(name, 1, call.z.shape).to(call.z.dtype) * call.z
            return call.z.copy_(out) if call.inplace else out
        values = self._values(name, len(call.shape.kinks), call.z.shape)
        values = values.to(call.z.dtype) if self.products else values
        steps = [values] if len(call.shape.kinks) == 1 else list(values.unbind(1))
        out = gated(call, steps)
        return call.z.copy_(out) if call.inplace else out

    def pooling(self, call: PoolCall, name: str) -> Any:
        """Takes what was chosen, or sums with the weights."""
        x, window, site = call.x, call.window(), self._site(name)
        shape = tuple(window.pool(x[:1].detach()).shape[1:])
        given = tuple(site.values.shape[1:])
        given = given if site.hard else (*given[:-3], *given[-2:])
        require(site.window == window and given == shape, self._refusal(site, shape))
        if site.hard:
            return take(window, x, site.values)
        return weigh(window, x, site.values.to(x.dtype))

    def block(self, call: BlockCall, name: str) -> Tensor:
        """Puts what was held constant in its place; a block that was not recorded is run as it is."""
        if name not in self.gates.sites:
            out: Tensor = call.original()
            return out
        site = self._site(name)
        try:
            return call.given(site.values)
        except RuntimeError:
            raise SoftgateError(self._refusal(site, tuple(call.passed.shape[1:]))) from None

    def _site(self, name: str) -> SiteGates:
        require(name in self.gates.sites, f"paths.run: no gates for {name}; they are of another network.")
        self.used.add(name)
        return self.gates.sites[name]

    def _values(self, name: str, kinks: int, shape: torch.Size) -> Tensor:
        site = self._site(name)
        wanted = tuple(shape[1:]) if kinks == 1 else (kinks, *shape[1:])
        require(site.window is None and tuple(site.values.shape[1:]) == wanted, self._refusal(site, wanted))
        return site.values

    def _refusal(self, site: SiteGates, wanted: tuple[int, ...]) -> str:
        return (
            f"paths.run: {site.name} has gates of shape {tuple(site.values.shape[1:])} for each image and needs "
            f"{wanted}; they are of another network or another image size."
        )


_FAMILIES = {**dict.fromkeys(map(str, NORMS), "norm"), "attention": "attention", "product": "product"}
"""The family of each kind of block, as in `Handler.blocks`."""


def own_gate(call: ActivationCall, shape: Smooth, rule: Surrogate | None, scale: Tensor | None) -> Tensor:
    """The gate of a smooth activation under a rule, or act(z) / z, of the shape of its pre-activation."""
    z = wide(call.z)
    if rule is not None and rule.softens(call.kind):
        return smooth_factor(rule, shape, z, scale)
    return shape.gate(z, 1.0)


def gated(call: ActivationCall, steps: list[Tensor]) -> Tensor:
    """A piecewise linear activation with its steps given: affine in its input.

    Piece 0 where all steps are 0, and each step adds the difference to the next piece. Hard steps choose a piece, so
    that with the network's own ones the result is the activation's, bit for bit.
    """
    z = call.z
    assert not isinstance(call.shape, Smooth)
    if call.weight is not None:
        below = slope_of(call.weight, z) * z
        step = steps[0]
        return below + step.to(z.dtype) * (z - below) if step.is_floating_point() else torch.where(step, z, below)
    slope = call.shape.base
    first = call.shape.kinks[0][1]
    offset = float(call.activation(torch.tensor(first, dtype=torch.float64))) - slope * first
    out = _piece(z, slope, offset)
    for (more, kink), step in zip(call.shape.kinks, steps, strict=True):
        slope, offset = slope + more, offset - more * kink
        if step.is_floating_point():
            out = out + step.to(z.dtype) * (more * (z - kink) if (more, kink) != (1.0, 0.0) else z)
        else:
            out = torch.where(step, _piece(z, slope, offset), out)
    return out


def _piece(z: Tensor, slope: float, offset: float) -> Tensor:
    if abs(slope - 1) < 1e-12 and offset == 0:
        return z
    return torch.full_like(z, offset) if abs(slope) < 1e-12 else slope * z + offset
