r"""Recording the gates of a network, and running it with given ones (paper, equations 3 and 4).

With its gates given a ReLU network is affine in its input: :math:`M_\Lambda(x) = \Lambda_L W_L \cdots \Lambda_1 W_1 x`,
plus what its biases and BatchNorms add. The call sites are those of `softgate.attach`: its mode counts and names every
call and hands it to a handler of this module, which puts the gated one in its place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require
from softgate.explainers.gates import Gates, SiteGates, joined
from softgate.explainers.linearity import require_linear
from softgate.explainers.pullback import _in_chunks
from softgate.explainers.windows import choose, shares, take, weigh
from softgate.sites.active_rule import ActiveRule
from softgate.sites.calls import ActivationCall, PoolCall, SiteCall, SiteId
from softgate.sites.checks import POOL_NODES, RELU_NODES, no_sites, nodes_between, unreachable
from softgate.sites.forward import State
from softgate.sites.inference import inner, reading_out
from softgate.sites.scales import channel_of
from softgate.sites.sites import Sites
from softgate.surrogate.functional import soft_pooling
from softgate.surrogate.inputs import checked
from softgate.surrogate.numerics import wide
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import POOLS, Kind

CHUNK = 64
"""Images that run at once where `chunk` is None."""


class CallHandler(ABC):
    """Handles the calls of a network's sites: activations and poolings, and refuses all others.

    Args:
        sites: The attached sites.
    """

    def __init__(self, sites: Sites) -> None:
        self.sites = sites

    @abstractmethod
    def activation(self, call: ActivationCall, name: str) -> Tensor:
        """What a call of an activation at the site `name` returns."""

    @abstractmethod
    def pooling(self, call: PoolCall, name: str) -> Any:
        """What a call of a max pooling at the site `name` returns."""

    def handle(self, call: SiteCall, site: SiteId, state: State) -> Any:
        """What a call returns.

        Raises:
            SoftgateError: For a call that has no gates, or returns more than a function of them.
        """
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
        self.found: dict[str, SiteGates] = {}

    def activation(self, call: ActivationCall, name: str) -> Tensor:
        """Keeps the gates and runs the activation."""
        self._check(name, call.z)
        rule, scale = self._law(name, call.kind, call.z)
        z = wide(call.z)
        steps = []
        for place, (_, kink) in enumerate(call.shape.kinks):
            at = z - kink if kink else z
            soft = rule if rule is not None and rule.softens_relu else None
            step = at > 0 if soft is None else soft(at if scale is None else at / scale)
            if self.backward and call.shape.on_kink[place : place + 1] == (1,):
                share = 1 if soft is None else (1 - soft.mix) / soft.norm
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
        self.used: set[str] = set()

    def activation(self, call: ActivationCall, name: str) -> Tensor:
        """Multiplies by the gates, or chooses by them."""
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


def gated(call: ActivationCall, steps: list[Tensor]) -> Tensor:
    """A piecewise linear activation with its steps given: affine in its input.

    Piece 0 where all steps are 0, and each step adds the difference to the next piece. Hard steps choose a piece, so
    that with the network's own ones the result is the activation's, bit for bit.
    """
    z = call.z
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


@checked
def record(model: nn.Module, x: Tensor, rule: Surrogate | None = None, *, chunk: int | None = None) -> Gates:
    r"""The gates of every call site of a network on some images (paper, equations 1 and 21).

    The model runs in eval mode and is afterwards as it was.

    Args:
        model: The model, attached to a rule or not. Each call of a module that is called repeatedly is a site.
        x: [B, ...] images as the model takes them.
        rule: None for the hard gates 1[z > 0] and choices of the maximum; a rule for its soft gates and pooling
            weights, at the sites that it governs. Its schedule plays no part.
        chunk: At most so many images at once; None is 64.

    Returns:
        The gates, hard or soft, on the device of `x`.

    Raises:
        SoftgateError: If the model has activations or poolings that no rule covers, no call site at all, a site whose
            rows are not the images, or the rule is gain=matched, which is no gate.
    """
    _check_images("record", x)
    matches = rule is not None and rule.matches
    require(not matches, "paths.record: surrogate.gain=matched rescales gradients; there is no gate that does so.")
    model = inner(model)
    with reading_out(model, None) as sites, torch.no_grad():
        model = sites.model
        active = chosen(model, sites, x, rule)

        def look(part: slice, active: ActiveRule = active) -> Gates:
            images = x[part].detach().clone()
            recorder = Recorder(sites, active, len(images))
            with sites.handled_by(recorder):
                model(images)
            return Gates(recorder.found)

        # Rows that are not images can be as many as the images by chance, but not as few as one. Hard gates do: those
        # of other examples need another one.
        look(slice(0, 1), ActiveRule(None))
        parts = _in_chunks(look, x, len(x), CHUNK if chunk is None else chunk)
        if not parts[0].sites:
            raise no_sites(model)
    return parts[0] if len(parts) == 1 else joined(parts)


def chosen(model: nn.Module, sites: Sites, x: Tensor, rule: Surrogate | None) -> ActiveRule:
    """A rule in force, with the call sites that it governs; runs one image where it does not govern all."""
    active = ActiveRule(None if rule is None else rule.at())
    if rule is not None and not rule.sites.everything:
        model(x[:1].detach().clone())
        covered = [(site.name, site.kind) for site in sites.table() if site.covered]
        active.choose(type(model).__name__, covered)
    return active


@checked
def run(model: nn.Module, x: Tensor, gates: Gates, *, chunk: int | None = None) -> Tensor:
    r"""The network with given gates, :math:`M_\Lambda(x)` (paper, equation 4), biases and BatchNorm included.

    Affine in `x`, and differentiable: the gradient of a logit is its pullback. With the model's own hard gates the
    result is the model's own, bit for bit, run in the same chunks. The model runs in eval mode.

    Args:
        model: A model with the call sites that the gates are of.
        x: [B, ...] images as the model takes them.
        gates: From `record`, of the same or of other images, of this or of another epoch's weights; or any in their
            place. Gates of one image are those of all images.
        chunk: As in `record`.

    Returns:
        What the model returns for `x`, logits [B, classes].

    Raises:
        SoftgateError: If the gates do not fit the model or the images, or the model has operations that are not linear
            with the gates held fixed.
    """
    _check_images("run", x)
    model = inner(model)
    fits = gates.images in (1, len(x))
    require(fits, f"paths.run: gates of {gates.images} images for {len(x)}; as many are needed, or of one.")
    with reading_out(model, None) as sites:
        model = sites.model
        check_affine(model, sites, x, gates)
        with torch.set_grad_enabled(x.requires_grad):
            return run_attached(model, sites, x, gates, chunk)


def run_attached(model: nn.Module, sites: Sites, x: Tensor, gates: Gates, chunk: int | None = None) -> Tensor:
    """`run` without its checks, for a model that is attached and in eval mode."""

    def go(part: slice) -> Tensor:
        mode = Gated(sites, gates if gates.images == 1 else gates[part])
        with sites.handled_by(mode):
            images = x[part].clone()
            out: Any = model(images)
        missing = gates.sites.keys() - mode.used
        require(not missing, f"paths.run: gates for {', '.join(sorted(missing))}; the network has no such call site.")
        logits: Tensor = getattr(out, "logits", out)
        rows = logits.shape[:1]
        require(
            rows == images.shape[:1],
            f"paths.run: the model returns {tuple(logits.shape)} for {len(images)} image(s); a row for each is needed.",
        )
        return logits

    return torch.cat(_in_chunks(go, x, len(x), CHUNK if chunk is None else chunk))


def check_affine(model: nn.Module, sites: Sites, x: Tensor, gates: Gates) -> None:
    """Raises unless the gated network is affine in its input; runs one image."""
    run_affine(model, sites, x[:1], Gated(sites, gates[:1], products=True))


def run_affine(model: nn.Module, sites: Sites, x: Tensor, handler: Gated) -> Tensor:
    """What a model returns for `x` with given gates, [B, classes], for a model that is attached and in eval mode.

    Raises:
        SoftgateError: If there are activations that no handler sees, or operations that are not linear.
    """
    leaf = x.detach().clone().requires_grad_()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with torch.enable_grad(), sites.handled_by(handler):
        out: Any = torch.func.functional_call(model, parameters, (leaf.clone(),))
    logits: Tensor = getattr(out, "logits", out)
    hidden = nodes_between(leaf, logits, RELU_NODES | POOL_NODES)
    if hidden:
        raise unreachable(model, [f"{kind} outside of Python" for kind in hidden])
    require_linear(model, leaf, logits)
    return logits.detach()


def _check_images(function: str, x: Tensor) -> None:
    fine = isinstance(x, Tensor) and x.dim() > 1 and len(x) > 0
    shape = tuple(getattr(x, "shape", ()))
    require(fine, f"paths.{function}: x of shape {shape}: images [B, ...] with B >= 1 are needed.")
