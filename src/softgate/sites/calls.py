"""Which PyTorch functions are call sites: `classify` sorts every function call into what softgate knows of it.

One table for all that reads or gates call sites: rules in force, symbolic traces, given gates, guided backprop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from softgate.surrogate import functional
from softgate.surrogate.functional import PiecewiseLinear, window_of
from softgate.surrogate.selection import Kind
from softgate.surrogate.soft_pooling import Window


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
class _Call:
    func: Any
    args: Any
    kwargs: Any

    def original(self) -> Any:
        """What the call returns without softgate."""
        return self.func(*self.args, **self.kwargs)


@dataclass(frozen=True)
class ActivationCall(_Call):
    """A call of a piecewise linear activation, its arguments sorted.

    Attributes:
        kind: Which activation.
        z: The pre-activation.
        inplace: Whether `z` is overwritten with the result.
        activation: Computes the forward value and does not work in place.
        shape: Where its slope changes, and by how much.
    """

    kind: Kind
    z: Tensor
    inplace: bool
    activation: Callable[[Tensor], Tensor]
    shape: PiecewiseLinear


@dataclass(frozen=True)
class PoolCall(_Call):
    """A call of a max pooling, its arguments sorted.

    Attributes:
        kind: Which pooling.
        x: What is pooled.
        settings: Kernel size, stride, padding, dilation and ceil_mode as they were given; None for an adaptive pooling
            whose windows differ in size, which no rule covers; empty where `x` is a symbol, whose size is not known.
        indices: Whether indices are returned too.
    """

    kind: Kind
    x: Tensor
    settings: tuple[Any, ...] | None
    indices: bool

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
class UnsupportedCall(_Call):
    """A call of an activation or pooling with gates of its own, for which there is no rule.

    Attributes:
        kind: Its name.
    """

    kind: str


SiteCall = ActivationCall | PoolCall | UnsupportedCall

RELU: frozenset[Any] = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
INPLACE: frozenset[Any] = frozenset({F.relu_, torch.relu_, Tensor.relu_, F.hardtanh_, F.leaky_relu_})
HIDDEN_IN_COMPILE: frozenset[Any] = frozenset({torch.relu_, F.hardtanh_, F.leaky_relu_})
"""In-place functions that torch.compile runs without asking any mode."""

METHODS: dict[str, bool] = {"relu": False, "relu_": True}
"""Tensor methods that are call sites, and whether they work in place; a symbolic trace sees them by name only."""

MAX_POOL2D: frozenset[Any] = frozenset({F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d})
ADAPTIVE_MAX_POOL2D: frozenset[Any] = frozenset({F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices})

UNSUPPORTED: dict[Any, str] = {
    getattr(F, name): name.rstrip("_")
    for name in (
        "prelu rrelu rrelu_ elu elu_ selu selu_ celu celu_ gelu silu mish hardswish "
        "hardshrink softshrink threshold threshold_ glu "
        "adaptive_max_pool1d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d "
        "max_pool1d max_pool3d adaptive_max_pool1d_with_indices "
        "adaptive_max_pool3d_with_indices max_pool1d_with_indices max_pool3d_with_indices"
    ).split()
} | {
    torch.max_pool1d: "max_pool1d",
    torch.max_pool3d: "max_pool3d",
    torch.prelu: "prelu",
    torch.rrelu: "rrelu",
    torch.selu: "selu",
    torch.celu: "celu",
    torch.threshold: "threshold",
    torch.adaptive_max_pool1d: "adaptive_max_pool1d",
    Tensor.prelu: "prelu",
}
"""Activations and poolings with gates of their own, for which there is no rule: met in a model, an error."""


def classify(func: Any, args: Any, kwargs: Any) -> SiteCall | None:
    """What a function call is to softgate; None for one that is no call site.

    Args:
        func: The function, in the spelling that a `TorchFunctionMode` sees.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    sorter = _SORTERS.get(func)
    return None if sorter is None else sorter(func, args, kwargs)


def _activation(kind: Kind, arguments: Callable[..., Any], func: Any, args: Any, kwargs: Any) -> ActivationCall:
    z, inplace, activation, shape = arguments(*args, **kwargs)
    if kind is Kind.HARDTANH and shape.kinks == _RELU6.kinks:  # nn.ReLU6 calls hardtanh
        kind = Kind.RELU6
    return ActivationCall(func, args, kwargs, kind, z, inplace or func in INPLACE, activation, shape)


_RELU6 = PiecewiseLinear(0.0, ((1.0, 0.0), (-1.0, 6.0)))


def _relu(input: Tensor, inplace: bool = False) -> Any:
    return input, inplace, F.relu, functional.RELU


def _relu6(input: Tensor, inplace: bool = False) -> Any:
    return input, inplace, F.relu6, _RELU6


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    shape = PiecewiseLinear(0.0, ((1.0, float(min_val)), (-1.0, float(max_val))))
    return input, inplace, partial(F.hardtanh, min_val=min_val, max_val=max_val), shape


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    shape = PiecewiseLinear(float(negative_slope), ((1.0 - float(negative_slope), 0.0),))
    return input, inplace, partial(F.leaky_relu, negative_slope=negative_slope), shape


def _max_pool2d(func: Any, args: Any, kwargs: Any) -> PoolCall:
    x, settings, indices = _pool_arguments(*args, **kwargs)
    return PoolCall(func, args, kwargs, Kind.MAX_POOL2D, x, settings, indices or func is F.max_pool2d_with_indices)


def _pool_arguments(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, tuple[Any, ...], bool]:
    return input, (kernel_size, stride, padding, dilation, ceil_mode), return_indices


def _adaptive_max_pool2d(func: Any, args: Any, kwargs: Any) -> PoolCall:
    x, size, indices = _adaptive_arguments(*args, **kwargs)
    indices = indices or func is F.adaptive_max_pool2d_with_indices
    settings: tuple[Any, ...] | None = ()  # a symbol has no size yet; the first forward pass decides
    symbolic: Any = x
    if not isinstance(symbolic, fx.Proxy):
        window = _adaptive_window(x, size)
        settings = None if window is None else (window, window, 0, 1, False)
    return PoolCall(func, args, kwargs, Kind.ADAPTIVE_MAX_POOL2D, x, settings, indices)


def _adaptive_arguments(input: Tensor, output_size: Any, return_indices: bool = False) -> tuple[Tensor, Any, bool]:
    return input, output_size, return_indices


def _adaptive_window(input: Tensor, output_size: Any) -> tuple[int, int] | None:
    """The window, also its stride, of an adaptive max pooling; None where its windows differ in size."""
    wanted = (output_size, output_size) if isinstance(output_size, int) or output_size is None else tuple(output_size)
    sizes = [(have, have if want is None else want) for have, want in zip(input.shape[-2:], wanted, strict=True)]
    if any(have % want for have, want in sizes):
        return None
    (height, out_height), (width, out_width) = sizes
    return height // out_height, width // out_width


def _unsupported(func: Any, args: Any, kwargs: Any) -> UnsupportedCall:
    return UnsupportedCall(func, args, kwargs, UNSUPPORTED[func])


_SORTERS: dict[Any, Callable[[Any, Any, Any], SiteCall]] = {
    **dict.fromkeys(RELU, partial(_activation, Kind.RELU, _relu)),
    F.relu6: partial(_activation, Kind.RELU6, _relu6),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), partial(_activation, Kind.HARDTANH, _hardtanh)),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), partial(_activation, Kind.LEAKY_RELU, _leaky_relu)),
    **dict.fromkeys(MAX_POOL2D, _max_pool2d),
    **dict.fromkeys(ADAPTIVE_MAX_POOL2D, _adaptive_max_pool2d),
    **dict.fromkeys(UNSUPPORTED, _unsupported),
}
