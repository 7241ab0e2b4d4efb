r"""The smooth activations: SiLU, GELU and their kin, read as a gate times the pre-activation.

Each is close to :math:`z\,\lambda(z)` with a gate :math:`\lambda` of its own, between a half-open and an open one:
sigmoid for SiLU, the normal distribution function for GELU. Held constant in the backward pass, at a temperature, the
gate takes the place of the derivative and the derivative of the gate itself is dropped (paper 6.3 leaves these
activations open; its later version has the rules for SiLU and GELU, those of the others are softgate's).

At temperature 1 the gate is act(z) / z exactly, so that the activation is its pre-activation times what the backward
pass multiplies by, and a network of such activations is affine in its input with its gates held. Softplus is not: its
gate is its derivative.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from softgate.surrogate import gates
from softgate.surrogate.numerics import wide
from softgate.surrogate.selection import Kind


@dataclass(frozen=True)
class Smooth(ABC):
    """A smooth activation as its settings make it.

    Attributes:
        kind: Which activation.
        adds_constant: Whether it is more than its gate times the pre-activation: what is left is a constant.
    """

    kind: ClassVar[Kind]
    adds_constant: ClassVar[bool] = False

    @abstractmethod
    def gate(self, z: Tensor, temperature: float) -> Tensor:
        """The gate at z / temperature.

        Args:
            z: Pre-activations, any shape, float32 or float64.
            temperature: > 0.

        Returns:
            A new tensor of the shape and dtype of `z`.
        """

    @abstractmethod
    def derivative(self, grad: Tensor, z: Tensor) -> Tensor:
        """The true gradient, in PyTorch's own kernel.

        Args:
            grad: The upstream gradient.
            z: Pre-activations of its shape and dtype.
        """

    def pull(self, grad: Tensor, z: Tensor, temperature: float) -> Tensor:
        """gate(z / temperature) * grad, in the dtype of `grad`."""
        return (grad * self.gate(wide(z), temperature)).to(grad.dtype)


@dataclass(frozen=True)
class SiLU(Smooth):
    """z sigmoid(z), whose gate is sigmoid(z / T)."""

    kind = Kind.SILU

    def gate(self, z: Tensor, temperature: float) -> Tensor:
        """sigmoid(z / T)."""
        return gates.Sigmoid(temperature)(z)

    def derivative(self, grad: Tensor, z: Tensor) -> Tensor:
        """The true gradient."""
        true: Tensor = torch.ops.aten.silu_backward(grad, z.detach())
        return true

    def pull(self, grad: Tensor, z: Tensor, temperature: float) -> Tensor:
        """sigmoid(z / T) * grad in one pass over memory."""
        return gates.Sigmoid(temperature).pull(grad, z)


@dataclass(frozen=True)
class GELU(Smooth):
    """z Phi(z), or its tanh approximation; the gate is Phi(z / T), or the approximation's.

    Args:
        approximate: "none" or "tanh", as of torch.nn.functional.gelu.
    """

    kind = Kind.GELU
    approximate: str = "none"

    def gate(self, z: Tensor, temperature: float) -> Tensor:
        """Phi(z / T), Phi the normal distribution function."""
        if self.approximate == "none":
            return gates.NormalCDF(temperature)(z)
        u = z / temperature
        inner = math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)
        return (1 + torch.tanh(inner)) / 2

    def pull(self, grad: Tensor, z: Tensor, temperature: float) -> Tensor:
        """Phi(z / T) * grad by the error function, of which PyTorch's kernel is twice as fast; to 1e-16 absolute."""
        if self.approximate != "none":
            return super().pull(grad, z, temperature)
        gate = (wide(z) * (math.sqrt(0.5) / temperature)).erf_().add_(1).mul_(0.5)
        return (grad * gate).to(grad.dtype)

    def derivative(self, grad: Tensor, z: Tensor) -> Tensor:
        """The true gradient."""
        true: Tensor = torch.ops.aten.gelu_backward(grad, z.detach(), approximate=self.approximate)
        return true


@dataclass(frozen=True)
class Hardswish(Smooth):
    """z relu6(z + 3) / 6, whose gate is relu6(z / T + 3) / 6."""

    kind = Kind.HARDSWISH

    def gate(self, z: Tensor, temperature: float) -> Tensor:
        """relu6(z / T + 3) / 6."""
        return (z / temperature + 3).clamp_(0, 6) / 6

    def derivative(self, grad: Tensor, z: Tensor) -> Tensor:
        """The true gradient."""
        true: Tensor = torch.ops.aten.hardswish_backward(grad, z.detach())
        return true


@dataclass(frozen=True)
class Mish(Smooth):
    """z tanh(softplus(z)), whose gate is tanh(softplus(z / T))."""

    kind = Kind.MISH

    def gate(self, z: Tensor, temperature: float) -> Tensor:
        """tanh(softplus(z / T))."""
        return torch.nn.functional.softplus(z / temperature).tanh_()

    def derivative(self, grad: Tensor, z: Tensor) -> Tensor:
        """The true gradient."""
        true: Tensor = torch.ops.aten.mish_backward(grad, z.detach())
        return true


@dataclass(frozen=True)
class ELU(Smooth):
    """height z above zero, height alpha (exp(steepness z) - 1) below: ELU, and SELU and CELU at other settings.

    The gate is the activation divided by its pre-activation: `height` above zero, falling to 0 far below.

    Args:
        name: "elu", "selu" or "celu".
        alpha: How far below zero it goes, in units of `height`.
        height: The slope above zero.
        steepness: Of the exponential.
    """

    name: str = "elu"
    alpha: float = 1.0
    height: float = 1.0
    steepness: float = 1.0

    @property
    def kind(self) -> Kind:  # type: ignore[override]  # by its settings
        """Which of the three it is."""
        return Kind(self.name)

    def gate(self, z: Tensor, temperature: float) -> Tensor:
        """act(u) / u at u = z / T, and its limit at zero."""
        below = (z / temperature).clamp(max=0)
        ratio = torch.where(below == 0, self.steepness, torch.expm1(self.steepness * below) / below)
        return torch.where(z > 0, self.height, self.height * self.alpha * ratio)

    def derivative(self, grad: Tensor, z: Tensor) -> Tensor:
        """The true gradient."""
        true: Tensor = torch.ops.aten.elu_backward(grad, self.alpha, self.height, self.steepness, False, z.detach())
        return true


@dataclass(frozen=True)
class Softplus(Smooth):
    """log(1 + exp(beta z)) / beta, whose gate is sigmoid(beta z / T): its derivative, which softens nothing at T = 1.

    Args:
        beta: > 0.
        threshold: Above which beta z counts as the value, as of torch.nn.functional.softplus.
    """

    kind = Kind.SOFTPLUS
    adds_constant = True
    beta: float = 1.0
    threshold: float = 20.0

    def gate(self, z: Tensor, temperature: float) -> Tensor:
        """sigmoid(beta z / T)."""
        return torch.sigmoid(z * (self.beta / temperature))

    def derivative(self, grad: Tensor, z: Tensor) -> Tensor:
        """The true gradient."""
        true: Tensor = torch.ops.aten.softplus_backward(grad, z.detach(), self.beta, self.threshold)
        return true
