r"""The pooling rules: how the gradient at a max pooling is spread over its window.

The forward value is always the true maximum. A rule says which share :math:`w_i` of the upstream gradient
each element of the window receives. Only the settings live here; the arithmetic, a loop over the strided
slices of the window, is in `softgate.surrogate.functional`.

Sources: M. Satkiewicz (arXiv 2507.22832), section 5.3 and Listing 2; the log-sum-exp form is its later version's.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from softgate.errors import positive


@dataclass(frozen=True)
class Pool(ABC):  # noqa: B024  (a marker base: the rules differ in their settings, not in their methods)
    """A rule for the backward pass of max pooling."""


@dataclass(frozen=True)
class Hard(Pool):
    """The true gradient: everything to the maximum (PyTorch's choice among ties)."""


@dataclass(frozen=True)
class LSE(Pool):
    r"""Softmax weights held constant: :math:`\partial y/\partial x_i = w_i = softmax(x/T)_i`.

    This is the exact gradient of :math:`T \log\sum_i \exp(x_i/T)`, and the partner of the sigmoid gate:
    sigmoid(z/T) is the same weight over the window {0, z}. The weights of a window sum to one, so no
    gradient is lost or made.

    Args:
        temperature: T > 0, in units of the pooled activation.
    """

    temperature: float = 0.3

    def __post_init__(self) -> None:
        positive("pool.temperature", self.temperature)


@dataclass(frozen=True)
class SoftmaxFull(Pool):
    r"""The whole gradient of softmax pooling, :math:`s = \sum_i w_i x_i` with :math:`w = softmax(x/T)` (Listing 2).

    :math:`\partial y/\partial x_i = w_i (1 + (x_i - s)/T)`. Sums to one over the window as `LSE` does, but is negative
    for most elements of a window after a ReLU, and breaks the identity f = <v, x> + biases that `LSE` keeps.

    Args:
        temperature: T > 0, in units of the pooled activation.
    """

    temperature: float = 0.3

    def __post_init__(self) -> None:
        positive("pool.temperature", self.temperature)


KNOWN: dict[str, type[Pool]] = {"hard": Hard, "lse": LSE, "softmax_full": SoftmaxFull}
"""The pooling rules by the names used in configs."""
