r"""The gate functions: which factor multiplies the upstream gradient at a ReLU.

A ReLU passes its gradient through the hard gate :math:`1[z>0]`. A surrogate puts a smooth function
:math:`\lambda(z)` in its place; the forward pass never sees it. A gate here is a frozen dataclass that
remembers its settings and, when called, maps pre-activations to gate values. Nothing else in softgate
contains a gate formula.

Sources: M. Satkiewicz, "Tapping into the black box" (arXiv 2507.22832), equation 21 and Listing 1.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from softgate.errors import SoftgateError, finite, is_whole, positive
from softgate.surrogate.numerics import in_transforms, wide

KNOWN: dict[str, type[Gate]] = {}
"""The gates by the names used in configs and checkpoints."""


@dataclass(frozen=True)
class Gate(ABC):
    """A gate function. Subclasses are frozen dataclasses: plain settings, hashable and picklable.

    A gate of your own is known in configs and checkpoints by the name it gives itself:

    >>> import dataclasses, torch
    >>> @dataclasses.dataclass(frozen=True)
    ... class Ramp(Gate, name="ramp"):
    ...     width: float = 1.0
    ...     def __call__(self, z):
    ...         return (z / self.width + 0.5).clamp(0, 1)
    >>> Ramp(2.0)(torch.tensor([-2.0, 0.0, 0.5])).tolist()
    [0.0, 0.5, 0.75]

    Attributes:
        local: Whether call sites have gates of their own, which `at_site` gives.
    """

    local: ClassVar[bool] = False

    def __init_subclass__(cls, name: str | None = None) -> None:
        """Makes the gate known by `name`; without one it can be used in code only.

        Raises:
            SoftgateError: If another gate has that name.
        """
        super().__init_subclass__()
        if name is None:
            return
        other = KNOWN.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SoftgateError(f"gate name={name}: {other.__module__}.{other.__qualname__} has that name already.")
        KNOWN[name] = cls

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """Gate values for pre-activations.

        Args:
            z: Pre-activations, any shape, floating point; softgate hands over float32 or float64.

        Returns:
            A new tensor of the shape and dtype of `z`.
        """

    def at_site(self, name: str) -> Gate:
        """The gate of the call site of that name: for all but random gates, the same everywhere."""
        return self

    def mixed(self, z: Tensor, share: float) -> Tensor:
        """Gate values of which `share` is this gate's and the rest the hard gate's."""
        soft = self(z)
        return soft if share == 1 else torch.lerp((z > 0).to(soft.dtype), soft, share)

    def energy(self, z: Tensor, share: float) -> Tensor:
        """The square of `mixed`, which `gain=unit_rms` averages over z ~ N(0, 1)."""
        return self.mixed(z, share).square()

    def pull(self, grad: Tensor, z: Tensor) -> Tensor:
        """The gradient through the gate, gate(z) * grad; a gate may know a faster way than these two steps.

        Args:
            grad: The upstream gradient, any shape.
            z: Pre-activations of that shape.

        Returns:
            A new tensor of the shape and dtype of `grad`.
        """
        return (grad * self(wide(z))).to(grad.dtype)


@dataclass(frozen=True)
class Hard(Gate, name="hard"):
    """The true ReLU gate, 1[z > 0] (paper, equation 1)."""

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values: 1 where `z` is positive, else 0."""
        return (z > 0).to(z.dtype)

    def pull(self, grad: Tensor, z: Tensor) -> Tensor:
        """The true gradient, in PyTorch's own kernel."""
        hard: Tensor = torch.ops.aten.threshold_backward(grad, z.detach(), 0)
        return hard


@dataclass(frozen=True)
class Sigmoid(Gate, name="sigmoid"):
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

    def pull(self, grad: Tensor, z: Tensor) -> Tensor:
        """sigmoid(z / T) * grad in one pass over memory: the sigmoid is the derivative of a softplus.

        The kernel computes in float32 for half precision, and takes the gate as 1 above 40 T, where it is 1 in
        float64 too.
        """
        soft: Tensor = torch.ops.aten.softplus_backward(grad, z.detach(), 1 / self.temperature, 40.0)
        return soft


@dataclass(frozen=True)
class NormalCDF(Gate, name="normal_cdf"):
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


@dataclass(frozen=True)
class Softsign(Gate, name="softsign"):
    """The rescaled softsign (1 + z / (T + |z|)) / 2; the paper (4.2) names it, the scaling is softgate's.

    Args:
        temperature: T > 0, in units of the pre-activation.
    """

    temperature: float = 0.3

    def __post_init__(self) -> None:
        positive("gate.temperature", self.temperature)

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values in (0, 1), 1/2 at zero; the tails fall off as T / |z|."""
        # z / (T + |z|) as a sign times a share, so that an infinite z gives its limit and not inf / inf.
        share = 1 / (1 + self.temperature / z.abs())
        return (1 + torch.copysign(share, z)) / 2


@dataclass(frozen=True)
class BSiLU(Gate, name="bsilu"):
    """The derivative of SUGAR's bounded SiLU: s + (z + a) s (1 - s), s = sigmoid(z) (arXiv 2505.22074).

    Its range is about [-0.024, 1.29] at a = 1.67: it is negative far below zero and above one around 1.

    Args:
        alpha: The shift a, a finite number.
    """

    alpha: float = 1.67

    def __post_init__(self) -> None:
        finite("gate.alpha", self.alpha)

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values; 0 and 1 at minus and plus infinity."""
        s = torch.sigmoid(z)
        # The product vanishes at both ends; clamping z keeps inf * 0 out and changes no value in float64.
        return s + (z.clamp(-1e3, 1e3) + self.alpha) * s * (1 - s)


@dataclass(frozen=True)
class NeLU(Gate, name="nelu"):
    """SUGAR's NeLU gate as published: 1 for z > 0, else 2 a z / (1 + z^2)^2, which is negative (arXiv 2505.22074).

    Args:
        alpha: a, a finite number; 0.01 to 0.1 in the source.
    """

    alpha: float = 0.05

    def __post_init__(self) -> None:
        finite("gate.alpha", self.alpha)

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values; the least is about -0.65 a, at z = -0.577."""
        # Far out the fourth power overflows; where |z| > 1e6 the value is below 1e-18 and taken at 1e6.
        near = z.clamp(-1e6, 1e6)
        return torch.where(z > 0, torch.ones_like(z), 2 * self.alpha * near / (1 + near.square()).square())


@dataclass(frozen=True)
class AbsNeLU(NeLU, name="abs_nelu"):
    """NeLU with the absolute value of its negative part: 1 for z > 0, else |2 a z| / (1 + z^2)^2.

    Args:
        alpha: a, a finite number; 0.01 to 0.1 in the source.
    """

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values, none negative for a >= 0."""
        return super().__call__(z).abs_()


@dataclass(frozen=True)
class Leaky(Gate, name="leaky"):
    """A leaky backward pass: 1 for z > 0, else a constant slope (ProxyGrad, arXiv 2410.16958; paper 6.1).

    Args:
        slope: A finite number; 0.3 in the source, 0 is the hard gate.
    """

    slope: float = 0.3

    def __post_init__(self) -> None:
        finite("gate.slope", self.slope)

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values, 1 or the slope."""
        return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, self.slope))


class _Blind(Gate):
    """A control: gates as soft as the excitation gate's that do not depend on the example whose gradient they take."""

    temperature: float

    def energy(self, z: Tensor, share: float) -> Tensor:
        """The same in the mean as where gate and pre-activation are independent, the gate's average taken first."""
        nodes = torch.special.ndtri((torch.arange(4096, dtype=z.dtype) + 0.5) / 4096)
        soft = Sigmoid(self.temperature)(nodes)
        hard = (z > 0).to(z.dtype) * (1 - share)
        return hard.square() + 2 * hard * share * soft.mean() + share**2 * soft.square().mean()


@dataclass(frozen=True)
class Random(_Blind, name="random"):
    """A control: sigmoid(u / T) with u ~ N(0, 1) drawn once for each unit of each call site, whatever the input.

    These are the values that excitation gates have at standard normal pre-activations, without what they know. A unit
    keeps its gate for the whole of training; a small T makes it 0 or 1.

    Args:
        temperature: T > 0, as of `Sigmoid`.
        seed: Of the draws; they take nothing from PyTorch's random state and are the same on every device.
    """

    temperature: float = 0.3
    seed: int = 0
    local = True

    def __post_init__(self) -> None:
        positive("gate.temperature", self.temperature)
        whole = is_whole(self.seed, 0) and self.seed < 2**32
        if not whole:
            raise SoftgateError(f"gate.seed={self.seed}: a whole number from 0 to 2^32 - 1 is needed.")

    def at_site(self, name: str) -> Gate:
        """The gate of a call site: other draws for every name."""
        return replace(self, seed=zlib.crc32(name.encode(), self.seed))

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values in (0, 1), the same for every example: all dimensions but the first are units."""
        units = z.shape[1:]
        uniform = (_scrambled(math.prod(units), self.seed, z.device).to(z.dtype) + 0.5) / 2**24
        normal: Tensor = torch.special.ndtri(uniform)
        return (normal / self.temperature).sigmoid().view(units).expand(z.shape).clone()


@dataclass(frozen=True)
class Shuffled(_Blind, name="shuffled"):
    """A control: each example gets the excitation gates of another one of its batch, sigmoid(z' / T).

    Every unit's gate has the distribution it would have, and the gates of one example still fit each other from layer
    to layer; what they lack is the example at hand. The examples are taken in turn, the first one's gates for the
    second and so on: the order of a training batch is random already.

    Args:
        temperature: T > 0, as of `Sigmoid`.
    """

    temperature: float = 0.3

    def __post_init__(self) -> None:
        positive("gate.temperature", self.temperature)

    def __call__(self, z: Tensor) -> Tensor:
        """Gate values in (0, 1) for pre-activations [B, ...], B > 1.

        Raises:
            SoftgateError: If there is no other example, or none can be seen, as within torch.func.vmap.
        """
        if z.dim() == 0 or len(z) < 2 or in_transforms():
            raise SoftgateError(
                "gate.name=shuffled: it takes the gates of another example; batches of 2, and chunks of 2, are needed."
            )
        return (z.roll(1, 0) / self.temperature).sigmoid_()


def _scrambled(count: int, seed: int, device: torch.device) -> Tensor:
    """[count] whole numbers below 2^24, as if drawn at random: a counter twice through a 32-bit hash."""
    number = torch.arange(count, device=device)
    for salt in (0, seed):
        number = number ^ salt
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):  # both below 2^31: no product overflows
            number = ((number ^ (number >> shift)) * factor) & 0xFFFFFFFF
        number = number ^ (number >> 15)
    return number >> 8
