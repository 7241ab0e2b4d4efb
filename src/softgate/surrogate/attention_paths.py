r"""Attention with its true forward pass, and the gradient by another way.

:math:`y = W v, W = softmax(s)`, s the scaled scores, masks included. Along the value path W is a constant,
softmax(s / T), as a gate is at a ReLU; with two passes the gradient is the whole one of softmax(s / T) v.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import SoftgateError
from softgate.surrogate import attentions
from softgate.surrogate.functional import injected
from softgate.surrogate.held_norm import mixed


class _Damped(torch.autograd.Function):
    """The same tensor, of whose gradient a share arrives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, share: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        """Keeps the share."""
        ctx.share = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad * ctx.share if ctx.share else torch.zeros_like(grad)), None


def damped(x: Tensor, share: float = 0.0) -> Tensor:
    """`x` as it is, with a share of its gradient; 0 gives zeros, not none, so that all parameters have a grad."""
    if not x.requires_grad and not torch._C._are_functorch_transforms_active():
        return x
    out: Tensor = _Damped.apply(x, share)
    return out


@dataclass(frozen=True, eq=False)
class Attention:
    """The arguments of `torch.nn.functional.scaled_dot_product_attention`.

    Attributes:
        query: [..., L, E].
        key: [..., S, E].
        value: [..., S, Ev].
        mask: Bool, True where attended to, or added to the scores; broadcast to [..., L, S].
        dropout: Probability at which weights are dropped.
        causal: Whether scores above the diagonal are masked.
        scale: Factor on the scores; None is 1 / sqrt(E).
        grouped: Whether several queries share a head of keys and values.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    dropout: float = 0.0
    causal: bool = False
    scale: float | None = None
    grouped: bool = False

    def run(self) -> Tensor:
        """What the function returns."""
        more: dict[str, Any] = {"enable_gqa": True} if self.grouped else {}
        return F.scaled_dot_product_attention(
            *(self.query, self.key, self.value, self.mask, self.dropout, self.causal), scale=self.scale, **more
        )

    def at(self, temperature: float) -> Attention:
        """The same with its scores divided by a temperature."""
        if temperature == 1:
            return self
        mask = self.mask if self.mask is None or self.mask.dtype == torch.bool else self.mask / temperature
        return replace(self, scale=self._scale / temperature, mask=mask)

    def weights(self, temperature: float = 1.0) -> Tensor:
        """softmax(scores / temperature), [..., L, S], with nothing dropped."""
        query, key = self.query, self.key
        if self.grouped:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        scores = query @ key.transpose(-2, -1) * self._scale
        if self.causal:
            shown = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~shown, -math.inf)
        if self.mask is not None:
            is_bool = self.mask.dtype == torch.bool
            scores = scores.masked_fill(~self.mask, -math.inf) if is_bool else scores + self.mask
        return (scores / temperature).softmax(-1)

    def weighed(self, weights: Tensor) -> Tensor:
        """The values, weighed by given weights: linear in them."""
        value = self.value
        if self.grouped:
            value = value.repeat_interleave(self.query.shape[-3] // value.shape[-3], -3)
        return weights.to(value.dtype) @ value

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale


def attend(
    call: Attention,
    rule: attentions.Attention,
    mix: float = 1.0,
    damp: Callable[..., Tensor] = damped,
    inject: Callable[[Tensor, Tensor], Tensor] = injected,
) -> Tensor:
    """Attention forward, the gradient of a rule backward.

    Args:
        call: The attention.
        rule: A `ValuePath` or a `TwoPass`.
        mix: Share of the rule in the gradient; the rest, 1 - mix, is the true gradient.
        damp: What lets a share of a tensor's gradient through, as `damped`.
        inject: What gives a value another one's gradient, as `softgate.surrogate.functional.injected`.

    Returns:
        What the function returns, bit for bit.

    Raises:
        SoftgateError: For a rule of another kind, and where weights are dropped that a second pass would not share.
    """
    temperature = temperature_of(rule)
    if isinstance(rule, attentions.ValuePath) and temperature == 1:
        share = 1 - mix
        return replace(call, query=damp(call.query, share), key=damp(call.key, share)).run()
    if isinstance(rule, attentions.TwoPass) and temperature == 1:
        return call.run()
    if call.dropout:
        raise refuse_dropout(rule, call.dropout)
    warm = call.at(temperature)
    if isinstance(rule, attentions.ValuePath):
        warm = replace(warm, query=damp(call.query), key=damp(call.key))
    true = call.run()
    return inject(true, mixed(warm.run(), true, mix))


def temperature_of(rule: attentions.Attention) -> float:
    """The temperature of a rule that changes the gradient.

    Raises:
        SoftgateError: For one that does not.
    """
    if isinstance(rule, (attentions.ValuePath, attentions.TwoPass)):
        return rule.temperature
    raise SoftgateError(f"surrogate.attention={rule}: attention has a backward pass under ValuePath and TwoPass.")


def refuse_dropout(rule: attentions.Attention, dropout: float) -> SoftgateError:
    """The error for dropped attention weights under a rule that needs a second pass."""
    return SoftgateError(
        f"surrogate.attention={rule}: weights are dropped with probability {dropout:.3g}, which a pass at another "
        f"temperature would not share; set the network's attention dropout to 0, or take ValuePath(temperature=1)."
    )
