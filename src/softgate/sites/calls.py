"""What a function call can be to softgate: an activation, a pooling, something no rule covers; and where it stands."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate.surrogate.backends import Backend
from softgate.surrogate.functional import PiecewiseLinear, window_of
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import Kind
from softgate.surrogate.smooth import Smooth
from softgate.surrogate.windows import Window


@dataclass(frozen=True)
class SiteId:
    """A call site: which module's forward makes the call, and the how many-th in one forward pass it is.

    Attributes:
        module: Dotted module path; with the function's name behind it where the module is not the activation itself.
        call: 1 for the first call under this name in a forward pass.
    """

    module: str
    call: int = 1

    @property
    def name(self) -> str:
        """How the site is called in tables, files and patterns: `layer1.0.relu`, `layer1.0.relu#2`."""
        return self.module if self.call == 1 else f"{self.module}#{self.call}"

    @property
    def repeated(self) -> SiteId:
        """The second call of the same module."""
        return SiteId(self.module, 2)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Call:
    """A function call: the function, its arguments, its arguments by name."""

    func: Any
    args: Any
    kwargs: Any

    def original(self) -> Any:
        """What the call returns without softgate."""
        return self.func(*self.args, **self.kwargs)


@dataclass(frozen=True)
class ActivationCall(Call):
    """A call of an activation, its arguments sorted.

    Attributes:
        kind: Which activation.
        z: The pre-activation.
        inplace: Whether `z` is overwritten with the result.
        activation: Computes the forward value and does not work in place.
        shape: Where its slope changes, and by how much; or the smooth activation that it is.
        weight: Of PReLU, the slopes below zero; its `shape` is that of the part that is open above zero.
        by: Whose sign opens the gate that `z` goes through; None where it is `z` itself, as of every activation.
    """

    kind: Kind
    z: Tensor
    inplace: bool
    activation: Callable[[Tensor], Tensor]
    shape: PiecewiseLinear | Smooth
    weight: Tensor | None = None
    by: Tensor | None = None

    @property
    def gating(self) -> Tensor:
        """The pre-activation that the gate is of."""
        return self.z if self.by is None else self.by

    @property
    def law(self) -> tuple[Callable[[Tensor], Tensor], PiecewiseLinear | Smooth]:
        """The activation and its shape, as `softgate.surrogate.functional.gated` takes them."""
        return self.activation, self.shape

    @property
    def smooth(self) -> bool:
        """Whether it has no steps that a gate could take the place of, but a gate of its own."""
        return isinstance(self.shape, Smooth)


@dataclass(frozen=True)
class PoolCall(Call):
    """A call of a max pooling, its arguments sorted.

    Attributes:
        kind: Which pooling.
        x: What is pooled.
        settings: Kernel size, stride, padding, dilation and ceil_mode as they were given; None for an adaptive pooling
            whose windows differ in size, which no rule covers; empty where `x` is a symbol, whose size is not known.
        indices: Whether indices are returned too.
        shape: The shape of the result, where it is another than that of the pooled `x`.
    """

    kind: Kind
    x: Tensor
    settings: tuple[Any, ...] | None
    indices: bool
    shape: tuple[int, ...] | None = None

    def shaped(self, pooled: Tensor) -> Tensor:
        """The pooled `x` in the shape of the result."""
        return pooled if self.shape is None else pooled.reshape(self.shape)

    def with_indices(self, values: Tensor) -> Any:
        """What the call returns, with other values in the place of its own."""
        if not self.indices:
            return values
        with torch.no_grad():
            original = self.original()
        rest = original[1]
        return type(original)((values, rest)) if self.kind is Kind.AMAX else (values, rest)

    @property
    def covered(self) -> bool:
        """Whether a rule can govern it."""
        return self.settings is not None

    def window(self) -> Window:
        """The geometry of a covered pooling.

        Raises:
            SoftgateError: For settings that no pooling has.
        """
        assert self.settings
        return window_of(*self.settings)


@dataclass(frozen=True)
class UnsupportedCall(Call):
    """A call of an activation or pooling that no rule covers.

    Attributes:
        kind: Its name.
        why: Why it is not covered, where others of its kind are.
    """

    kind: str
    why: str = ""


@dataclass(frozen=True)
class SelectingCall(Call):
    """A call that selects or gates data and keeps its own gradient under every rule.

    Attributes:
        kind: Its name.
    """

    kind: str


@dataclass(frozen=True)
class BlockCall(Call):
    """A call of a normalisation, of attention or of a product with a gate, its arguments sorted.

    Attributes:
        kind: Which of them.
    """

    kind: Kind

    @property
    @abstractmethod
    def passed(self) -> Tensor:
        """The input that the gradient goes on to, whatever is held."""

    @abstractmethod
    def under(self, rule: Surrogate, by: Backend) -> Tensor:
        """What the call returns, bit for bit, with the gradient of a rule that softens its kind, by a backend."""

    @abstractmethod
    def held(self, rule: Surrogate) -> Tensor:
        """What a rule holds constant; detached.

        Raises:
            SoftgateError: If under the rule that leaves more than a linear map of `passed`.
        """

    @abstractmethod
    def given(self, held: Tensor) -> Tensor:
        """The call with what is held given: affine in `passed`."""


SiteCall = ActivationCall | PoolCall | UnsupportedCall | BlockCall
