r"""The rule of smooth activations: what takes the place of the derivative of SiLU, GELU and the like.

The gate of every ReLU is `softgate.gates`; a smooth activation has a gate already, which is part of its forward pass.
A rule here says whether the backward pass holds it constant, and at which temperature.

Sources: the later version of arXiv 2507.22832 for SiLU and GELU; the other gates are softgate's.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, replace

from softgate.errors import positive
from softgate.surrogate.selection import Kind


@dataclass(frozen=True)
class Activation(ABC):  # noqa: B024  (a marker base: the rules differ in their settings, not in their methods)
    """A rule for the backward pass of smooth activations."""

    def warmed(self, factor: float) -> Activation:
        """The rule with its temperatures times a factor."""
        return self


@dataclass(frozen=True)
class Own(Activation):
    """The true gradient: the activation's own derivative. A soft rule then refuses networks that have SiLU or GELU."""


@dataclass(frozen=True)
class SelfGate(Activation):
    """The activation's own gate at z / T, held constant; see `softgate.surrogate.smooth`.

    At T = 1 the gate is act(z) / z, and the network is affine in its input with its gates held.

    Args:
        temperature: T > 0 of every activation but the two below.
        silu: T of SiLU; 1.6 is published, 1 keeps the identity f = <v, x> + constants for the true logit.
        gelu: T of GELU; 1 is published.
    """

    temperature: float = 1.0
    silu: float = 1.6
    gelu: float = 1.0

    def __post_init__(self) -> None:
        for option in ("temperature", "silu", "gelu"):
            positive(f"activation.{option}", getattr(self, option))

    def of(self, kind: Kind) -> float:
        """The temperature of a kind of activation."""
        return {Kind.SILU: self.silu, Kind.GELU: self.gelu}.get(kind, self.temperature)

    def warmed(self, factor: float) -> Activation:
        """The rule with its temperatures times a factor."""
        return replace(self, temperature=self.temperature * factor, silu=self.silu * factor, gelu=self.gelu * factor)


KNOWN: dict[str, type[Activation]] = {"own": Own, "self_gate": SelfGate}
"""The rules by the names used in configs."""
