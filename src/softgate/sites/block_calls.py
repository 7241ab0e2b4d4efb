"""What a block's call is to softgate: what of it a rule holds constant, and what is left when that is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import SoftgateError, require
from softgate.sites.calls import BlockCall
from softgate.surrogate import attentions
from softgate.surrogate.attention_paths import Attention, attend, refuse_dropout, temperature_of
from softgate.surrogate.backends import Backend
from softgate.surrogate.held_norm import Norm, mixed
from softgate.surrogate.rule import Surrogate


class Weights(Protocol):
    """A mark: attention weights that can be computed at another temperature."""

    dropout: float

    def at(self, temperature: float) -> Tensor:
        """The weights with their scores divided by a temperature."""


@dataclass(frozen=True)
class NormCall(BlockCall):
    """A normalisation by the statistics of its own input; held are [B, 2, ...] mean and 1 / standard deviation."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    norm: Norm

    @property
    def passed(self) -> Tensor:
        """The input."""
        return self.x

    def under(self, rule: Surrogate, by: Backend) -> Tensor:
        """With constant statistics."""
        out: Tensor = by.held_norm(self.x, self.weight, self.bias, self.norm, rule.mix, rule.matches)
        return out

    def held(self, rule: Surrogate) -> Tensor:
        """Mean and 1 / standard deviation."""
        return torch.stack(self.norm.statistics(self.x), 1)

    def given(self, held: Tensor) -> Tensor:
        """The normalisation with these statistics."""
        return self.norm.affine(self.x, self.weight, self.bias, *held.unbind(1))


@dataclass(frozen=True)
class AttentionCall(BlockCall):
    """`scaled_dot_product_attention`; held are the weights [..., L, S]."""

    attention: Attention

    @property
    def passed(self) -> Tensor:
        """The values."""
        return self.attention.value

    def under(self, rule: Surrogate, by: Backend) -> Tensor:
        """Along the value path, or of a second pass."""
        return attend(self.attention, rule.attention, rule.mix, by.damped, by.injected)

    def held(self, rule: Surrogate) -> Tensor:
        """The weights."""
        return self.attention.weights(_value_path(rule)).detach()

    def given(self, held: Tensor) -> Tensor:
        """The values, weighed."""
        return self.attention.weighed(held)


@dataclass(frozen=True)
class WeighedCall(BlockCall):
    """A product with attention weights that a softmax made; held are these weights.

    Attributes:
        place: Of the weights among the arguments.
        weights: What is known of them.
    """

    place: int
    weights: Weights

    @property
    def passed(self) -> Tensor:
        """The values."""
        values: Tensor = next(a for i, a in enumerate(self.args) if isinstance(a, Tensor) and i != self.place)
        return values

    def under(self, rule: Surrogate, by: Backend) -> Tensor:
        """Along the value path, or of a second pass."""
        temperature, own = temperature_of(rule.attention), self.args[self.place]
        values_only = isinstance(rule.attention, attentions.ValuePath)
        if temperature == 1:
            return self.given(by.damped(own, 1 - rule.mix)) if values_only else self._original()
        if self.weights.dropout:
            raise refuse_dropout(rule.attention, self.weights.dropout)
        warm = self.weights.at(temperature)
        true = self._original()
        second = self.given(by.damped(warm) if values_only else warm)
        out: Tensor = by.injected(true, mixed(second, true, rule.mix))
        return out

    def held(self, rule: Surrogate) -> Tensor:
        """The weights."""
        temperature = _value_path(rule)
        own: Tensor = self.args[self.place] if temperature == 1 else self.weights.at(temperature)
        return own.detach()

    def given(self, held: Tensor) -> Tensor:
        """The product with these weights."""
        like = self.args[self.place]
        args = (*self.args[: self.place], held.to(like.dtype), *self.args[self.place + 1 :])
        out: Tensor = self.func(*args, **self.kwargs)
        return out

    def _original(self) -> Tensor:
        out: Tensor = self.original()
        return out


@dataclass(frozen=True)
class ProductCall(BlockCall):
    """A product with a gate; held is the gate.

    Attributes:
        place: Of the gate among the arguments.
        mark: What is known of it.
    """

    place: int
    mark: Any

    @property
    def passed(self) -> Tensor:
        """What is gated."""
        gated: Tensor = self.args[1 - self.place]
        return gated

    def under(self, rule: Surrogate, by: Backend) -> Tensor:
        """With a constant gate."""
        return self.given(by.damped(self.args[self.place], 1 - rule.mix))

    def held(self, rule: Surrogate) -> Tensor:
        """The gate."""
        gate: Tensor = self.args[self.place].detach()
        return gate

    def given(self, held: Tensor) -> Tensor:
        """The product with this gate."""
        args = [*self.args]
        args[self.place] = held.to(args[self.place].dtype)
        out: Tensor = self.func(*args, **self.kwargs)
        return out


@dataclass(frozen=True)
class SquareCall(BlockCall):
    """The square of an activation; held is one factor, which gates the other.

    With this factor constant the square of a ReLU (StarReLU, arXiv 2210.13452) is linear in its pre-activation; its
    gradient is half of the true one.
    """

    x: Tensor

    @property
    def passed(self) -> Tensor:
        """What is squared."""
        return self.x

    def under(self, rule: Surrogate, by: Backend) -> Tensor:
        """With one factor constant."""
        out: Tensor = by.injected(self.original(), self.x * by.damped(self.x, 1 - rule.mix))
        return out

    def held(self, rule: Surrogate) -> Tensor:
        """The factor."""
        return self.x.detach()

    def given(self, held: Tensor) -> Tensor:
        """The product with this factor."""
        return self.x * held.to(self.x.dtype)


@dataclass(frozen=True)
class GLUCall(BlockCall):
    """`glu`, one half of its input times the sigmoid of the other; held is that sigmoid."""

    x: Tensor
    dim: int

    @property
    def passed(self) -> Tensor:
        """Both halves."""
        return self.x

    def under(self, rule: Surrogate, by: Backend) -> Tensor:
        """With a constant gate."""
        first, second = self.x.chunk(2, self.dim)
        gated = first * by.damped(second.sigmoid(), 1 - rule.mix)
        out: Tensor = by.injected(F.glu(self.x, self.dim), gated)
        return out

    def held(self, rule: Surrogate) -> Tensor:
        """The sigmoid."""
        return self.x.chunk(2, self.dim)[1].sigmoid().detach()

    def given(self, held: Tensor) -> Tensor:
        """The product with this gate."""
        return self.x.chunk(2, self.dim)[0] * held.to(self.x.dtype)


def _value_path(rule: Surrogate) -> float:
    """The temperature of weights that a rule holds constant.

    Raises:
        SoftgateError: If it holds none.
    """
    fits = isinstance(rule.attention, attentions.ValuePath)
    require(
        fits, f"surrogate.attention={rule.attention}: only ValuePath holds the weights, so that attention is linear."
    )
    return temperature_of(rule.attention)


def not_linear(rule: Surrogate) -> SoftgateError:
    """The error for blocks whose gradient is partly the true one, which no constant describes."""
    return SoftgateError(
        f"surrogate.mix={rule.mix}: with a rule for norm, attention or product the network is affine with what it "
        f"holds at mix=1 only."
    )
