r"""Diagnostics: what a rule does to the gradient at each call site, and which units are dead.

One batch is differentiated twice with the same weights: under the rule, and truly. At each call site the two gradients
of the loss with respect to the pre-activation z (for a pooling, its input) are compared; both come through the site
itself and everything after it, so that a cosine near one means that the surrogate still points where the true
gradient does. A look changes nothing: not parameters and their `.grad`, BatchNorm's buffers, per-channel
scales, the random state, the rule in force or the train or eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import require
from softgate.sites.active_rule import ActiveRule
from softgate.sites.inference import eagerly, inner
from softgate.sites.randomness import generator_states, own_random_numbers
from softgate.sites.scales import SCALES, channel_of, scales_of
from softgate.sites.sharing_copy import sharing_copy
from softgate.sites.sites import Sites, attached_sites
from softgate.surrogate.inputs import checked
from softgate.surrogate.numerics import wide
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.schedule import Schedule

Loss = Callable[[Any], Tensor]

_KINKS: dict[str, tuple[tuple[float, float], ...]] = {"relu": ((1.0, 0.0),), "relu6": ((1.0, 0.0), (-1.0, 6.0))}
"""The kinds of call sites that have units, with slope and place of their steps."""


@dataclass(frozen=True)
class SiteDiagnosis:
    """What `diagnose` finds at one call site.

    Attributes:
        name: The call site, as in `Sites.report()`.
        kind: "relu", "max_pool2d" and so on.
        cosine: Cosine of surrogate and true gradient of the loss with respect to z, over the whole batch.
        norm_ratio: L2 norm of the surrogate gradient over that of the true one.
        gate_mean: Mean over the batch of the factor on the upstream gradient, mix and unit_rms gain included, the
            matched gain not; at ReLU and ReLU6 sites. The hard gate's where the rule does not govern the site.
        dead: Share of dead units, those with z <= 0 in every example and place; at ReLU and ReLU6 sites.
        units: Number of units: channels, the second dimension of z; features where z is [B, features].
        dead_units: Which units are dead.

    What is not defined is nan: 0 / 0, and everything where the site did not run or the gradient does not reach it.
    """

    name: str
    kind: str
    cosine: float = math.nan
    norm_ratio: float = math.nan
    gate_mean: float = math.nan
    dead: float = math.nan
    units: int = 0
    dead_units: tuple[int, ...] = ()


@checked
def diagnose(model: nn.Module, x: Tensor, target: Tensor | Loss, rule: Surrogate) -> list[SiteDiagnosis]:
    """Compares the gradient under a rule with the true gradient at every call site, on one batch.

    The model runs in the mode it is in. In train mode BatchNorm takes the batch's statistics and dropout drops, the
    same units in both passes, as a training step would, and per-channel scales take the batch in; all of it is undone.

    Args:
        model: The model, attached to a rule or not.
        x: [B, ...] a batch as the model takes it.
        target: [B] classes, for the cross entropy of the model's logits; or a function from what the model returns to
            a loss of one number.
        rule: The rule; of a scheduled one, its beginning. The rule the model is attached to plays no part.

    Returns:
        One diagnosis for each call site, in the order of the forward pass.

    Raises:
        SoftgateError: If the loss is not one number, or does not depend on `x`.
    """
    require(isinstance(rule, Surrogate), f"diagnose: rule={rule!r}: a softgate.Surrogate is needed.")
    fits = isinstance(x, Tensor) and x.dim() > 0
    require(fits, f"diagnose: x is {type(x).__name__}; a batch [B, ...] is needed.")
    require(x.numel() > 0, f"diagnose: x of shape {tuple(x.shape)} has no image.")
    model = inner(model)
    loss = target if callable(target) else _cross_entropy(target)
    rule = replace(rule.at(), schedule=Schedule())
    drawn = generator_states()
    with _looking(model, rule) as sites:
        soft = _Pass(x, loss, sites, rule, drawn)
        covered = [(site.name, str(site.kind)) for site in sites.table() if site.covered]
        active = ActiveRule(rule)
        active.choose(type(sites.model).__name__, covered)
        gates = _Gates(sites, active)
        hard = _Pass(x, loss, sites, None, drawn, gates)
        return [_diagnosis(name, kind, soft.gradients, hard.gradients, gates) for name, kind in covered]


def revived(before: Sequence[SiteDiagnosis], after: Sequence[SiteDiagnosis]) -> dict[str, int]:
    """How many units of each call site were dead before and are alive now.

    Args:
        before: An earlier diagnosis.
        after: A later one, of the same model on the same batch.

    Returns:
        Call site to number of units; sites that have no units or did not run are left out.
    """
    former = {site.name: site for site in before if site.units}
    return {
        site.name: len(set(former[site.name].dead_units) - set(site.dead_units))
        for site in after
        if site.units and site.name in former
    }


class _Pass:
    """One forward and backward pass; keeps the gradient at each call site."""

    def __init__(
        self,
        x: Tensor,
        loss: Loss,
        sites: Sites,
        rule: Surrogate | None,
        drawn: tuple[Tensor, Tensor | None],
        gates: _Gates | None = None,
    ) -> None:
        self.gradients: dict[str, Tensor] = {}
        buffers = {name: buffer.detach().clone() for name, buffer in sites.model.named_buffers()}
        watchers = [self._watch] + ([gates.watch] if gates else [])
        with own_random_numbers(drawn), sites.use(rule):
            leaf = x.detach().clone().requires_grad_()
            with sites.observing(*watchers):  # not in the backward pass, in which a checkpointed part runs again
                out = torch.func.functional_call(sites.model, buffers, (leaf.clone(),))  # a clone may be written to
            value = loss(out)
            fine = isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad
            require(fine, "diagnose: target: the loss must be one number that depends on x.")
            torch.autograd.grad(value.sum(), leaf)

    def _watch(self, name: str, kind: str, z: Tensor) -> None:
        if z.requires_grad:  # a hook, not the tensor: an in-place activation writes over it
            keep = self.gradients.__setitem__
            z.register_hook(lambda grad: keep(name, wide(grad)))  # type: ignore[no-untyped-call]  # torch's is untyped


class _Gates:
    """Gate means and dead units of one forward pass, found while the pre-activations are there."""

    def __init__(self, sites: Sites, active: ActiveRule) -> None:
        self.sites, self.active = sites, active
        self.means: dict[str, float] = {}
        self.units: dict[str, list[bool]] = {}

    def watch(self, name: str, kind: str, z: Tensor) -> None:
        if kind not in _KINKS or z.numel() == 0:
            return
        z = wide(z)
        rule = self.active.of_site(name, kind)
        soft = rule is not None and rule.softens_relu
        scale: Tensor | float = 1.0
        if rule is not None and soft and rule.scale == "channel":
            scale = self.sites.scales.of(name, z, channel_of(name, z, pool=False))
        factor = torch.zeros_like(z)
        for slope, kink in _KINKS[kind]:
            step = rule((z - kink) / scale) if rule is not None and soft else (z > kink).to(z.dtype)
            factor += slope * step
        self.means[name] = float(factor.mean())
        channel = min(1, z.dim() - 1)
        self.units[name] = (z > 0).transpose(0, channel).flatten(1).any(1).tolist()


def _diagnosis(
    name: str, kind: str, soft: Mapping[str, Tensor], hard: Mapping[str, Tensor], gates: _Gates
) -> SiteDiagnosis:
    found = SiteDiagnosis(name, kind)
    if name in soft and name in hard:
        ours, true = soft[name].flatten(), hard[name].flatten()
        norms = torch.linalg.vector_norm(ours), torch.linalg.vector_norm(true)
        # Unit vectors first: gradients are small, and the square of a small number is none.
        cosine = torch.dot(ours / norms[0], true / norms[1])
        found = replace(found, cosine=float(cosine), norm_ratio=float(norms[0] / norms[1]))
    if name in gates.means:
        alive = gates.units[name]
        dead = tuple(unit for unit, lives in enumerate(alive) if not lives)
        found = replace(
            found, gate_mean=gates.means[name], dead=len(dead) / len(alive), units=len(alive), dead_units=dead
        )
    return found


def _cross_entropy(target: Any) -> Loss:
    require(
        isinstance(target, Tensor), f"diagnose: target={target}: classes [B] or a function of the logits is needed."
    )

    def loss(out: Any) -> Tensor:
        logits = getattr(out, "logits", out)
        fits = isinstance(logits, Tensor) and logits.dim() == 2 and target.shape == logits.shape[:1]
        require(
            fits,
            f"diagnose: target of shape {tuple(target.shape)} and logits of shape {tuple(getattr(logits, 'shape', ()))}"
            f": [B] and [B, classes] are needed.",
        )
        return F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, target.to(logits.device))

    return loss


@contextmanager
def _looking(model: nn.Module, rule: Surrogate) -> Iterator[Sites]:
    """Runs the block with a copy of the model, eagerly and with gradients on; one that cannot be copied is put back."""
    attached, copy = attached_sites(model), sharing_copy(model, training=True)
    if copy is None:
        sites = Sites(model, rule) if attached is None else attached
    else:
        sites = attached.on_copy(copy, rule) if attached is not None else Sites(copy, rule)
        copy.__dict__.pop(SCALES, None)  # those of the model stay as they are
        sites.scales.load_state_dict(scales_of(model).state_dict())
    kept = sites.scales.state_dict()
    calls = {site.name: site.calls for site in sites.table()}
    try:
        with eagerly(), torch.inference_mode(False), torch.enable_grad():
            yield sites
    finally:
        sites.scales.load_state_dict(kept)
        for site in sites.table():
            site.calls = calls.get(site.name, 0)
        if sites is not attached:
            sites.detach()
