r"""The gate functions: which factor multiplies the upstream gradient at a ReLU.

A ReLU passes its gradient through the hard gate :math:`1[z>0]`. A surrogate puts a smooth function
:math:`\lambda(z)` in its place; the forward pass never sees it. A gate here is a frozen dataclass that
remembers its settings and, when called, maps pre-activations to gate values. Nothing else in softgate
contains a gate formula.

Sources: M. Satkiewicz, "Tapping into the black box" (arXiv 2507.22832), equation 21 and Listing 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from softgate.errors import SoftgateError


def positive(option: str, value: float) -> None:
    """Raises `SoftgateError` unless `value` is a number above zero that float32 arithmetic can divide by."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 1e-30 <= value <= 1e30:
        raise SoftgateError(f"{option}={value}: a finite number > 0 (from 1e-30 to 1e30) is needed.")


@dataclass(frozen=True)
class Gate(ABC):
    """A gate function. Subclasses are frozen dataclasses: plain settings, hashable and picklable."""

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """Gate values for pre-activations.

        Args:
            z: Pre-activations, any shape, floating point; softgate hands over float32 or float64.

        Returns:
            A new tensor of the shape and dtype of `z`.
        """


@dataclass(frozen=True)
class Hard(Gate):
    """The true ReLU gate, 1[z > 0] (paper, equation 1)."""

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values: 1 where `z` is positive, else 0."""
        return (z > 0).to(z.dtype)


@dataclass(frozen=True)
class Sigmoid(Gate):
    """The excitation gate sigmoid(z / T) (paper, equation 21 and Listing 1).

    Args:
        temperature: T > 0, in units of the pre-activation. The paper uses 0.3 and finds 0.15 to 0.5 alike.
    """

    temperature: float = 0.3

    def __post_init__(self) -> None:
        positive("gate.temperature", self.temperature)

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values in (0, 1), 1/2 at zero."""
        return (z / self.temperature).sigmoid_()


@dataclass(frozen=True)
class NormalCDF(Gate):
    """The probit gate Phi(z / T), Phi the standard normal distribution function (paper 4.2; later versions).

    Args:
        temperature: T > 0, in units of the pre-activation. Phi(z / 0.51) is close to sigmoid(z / 0.3).
    """

    temperature: float = 0.6

    def __post_init__(self) -> None:
        positive("gate.temperature", self.temperature)

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values in (0, 1), 1/2 at zero."""
        cdf: Tensor = torch.special.ndtr(z / self.temperature)
        return cdf


KNOWN: dict[str, type[Gate]] = {"hard": Hard, "sigmoid": Sigmoid, "normal_cdf": NormalCDF}
"""The gates by the names used in configs."""
