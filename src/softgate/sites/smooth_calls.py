"""Which PyTorch functions are smooth activations, and which settings they are called with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.sites.calls import ActivationCall, SelectingCall
from softgate.surrogate import smooth
from softgate.surrogate.functional import RELU
from softgate.surrogate.selection import Kind

SELU_ALPHA, SELU_HEIGHT = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
"""The constants of SELU (arXiv 1706.02515, equation 14), as PyTorch has them."""

Arguments = tuple[Tensor, bool, Callable[[Tensor], Tensor], smooth.Smooth]


def _silu(input: Tensor, inplace: bool = False) -> Arguments:
    return input, inplace, F.silu, smooth.SiLU()


def _gelu(input: Tensor, *, approximate: str = "none") -> Arguments:
    return input, False, partial(F.gelu, approximate=approximate), smooth.GELU(approximate)


def _hardswish(input: Tensor, inplace: bool = False) -> Arguments:
    return input, inplace, F.hardswish, smooth.Hardswish()


def _mish(input: Tensor, inplace: bool = False) -> Arguments:
    return input, inplace, F.mish, smooth.Mish()


def _elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Arguments:
    return input, inplace, partial(F.elu, alpha=alpha), smooth.ELU("elu", float(alpha))


def _selu(input: Tensor, inplace: bool = False) -> Arguments:
    return input, inplace, F.selu, smooth.ELU("selu", SELU_ALPHA, SELU_HEIGHT)


def _celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Arguments:
    shape = smooth.ELU("celu", float(alpha), 1.0, 1 / float(alpha))
    return input, inplace, partial(F.celu, alpha=alpha), shape


def _softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Arguments:
    activation = partial(F.softplus, beta=beta, threshold=threshold)
    return input, False, activation, smooth.Softplus(float(beta), float(threshold))


def _smooth(arguments: Callable[..., Arguments], func: Any, args: Any, kwargs: Any) -> ActivationCall:
    z, inplace, activation, shape = arguments(*args, **kwargs)
    inplace = inplace or func.__name__.endswith("_")
    return ActivationCall(func, args, kwargs, shape.kind, z, inplace, activation, shape)


def _prelu(func: Any, args: Any, kwargs: Any) -> ActivationCall | SelectingCall:
    z, weight = _prelu_arguments(*args, **kwargs)
    return ActivationCall(func, args, kwargs, Kind.PRELU, z, False, partial(F.prelu, weight=weight), RELU, weight)


def _prelu_arguments(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return input, weight


SMOOTH_SORTERS: dict[Any, Callable[[Any, Any, Any], ActivationCall | SelectingCall]] = {
    F.silu: partial(_smooth, _silu),
    F.gelu: partial(_smooth, _gelu),
    F.hardswish: partial(_smooth, _hardswish),
    F.mish: partial(_smooth, _mish),
    **dict.fromkeys((F.elu, F.elu_), partial(_smooth, _elu)),
    **dict.fromkeys((F.selu, torch.selu, torch.selu_), partial(_smooth, _selu)),
    **dict.fromkeys((F.celu, torch.celu, torch.celu_), partial(_smooth, _celu)),
    F.softplus: partial(_smooth, _softplus),
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), _prelu),
}
"""The sorter of each function, as in `softgate.sites.classification`."""
