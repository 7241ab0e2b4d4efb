r"""The rule of attention: by which way the gradient passes softmax(q k^T / sqrt(d)) v.

Sources: the later version of arXiv 2507.22832, which has the value path for one network and the second pass for
`nn.MultiheadAttention`. Here each is a choice for all of them.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, replace

from softgate.errors import positive


@dataclass(frozen=True)
class Attention(ABC):  # noqa: B024  (a marker base: the rules differ in their settings, not in their methods)
    """A rule for the backward pass of attention."""

    def warmed(self, factor: float) -> Attention:
        """The rule with its temperature times a factor."""
        return self


@dataclass(frozen=True)
class Own(Attention):
    """The true gradient, through queries, keys and values."""


@dataclass(frozen=True)
class _AtTemperature(Attention):
    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive("attention.temperature", self.temperature)

    def warmed(self, factor: float) -> Attention:
        """The rule with its temperature times a factor."""
        return replace(self, temperature=self.temperature * factor)


@dataclass(frozen=True)
class ValuePath(_AtTemperature):
    """Through the values alone, with the weights softmax(scores / T) held constant.

    It makes attention linear in the values, as a gate makes a ReLU, so that a transformer is affine in its input with
    all it selects held. Queries and keys get a gradient of zero: in training they learn only by what `mix` leaves of
    the true gradient.

    Args:
        temperature: T > 0, a factor on the softmax's own; 1 takes the weights of the forward pass.
    """


@dataclass(frozen=True)
class TwoPass(_AtTemperature):
    """The gradient of a second pass at softmax(scores / T), through queries, keys and values.

    At T = 1 it is the true gradient. No dropout of attention weights may be on, which the two passes would not share.

    Args:
        temperature: T > 0.
    """


KNOWN: dict[str, type[Attention]] = {"own": Own, "value_path": ValuePath, "two_pass": TwoPass}
"""The rules by the names used in configs."""
