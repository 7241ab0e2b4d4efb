"""Tensors of the path kernel: values of the network in which every path counts with the absolute value of its factors.

`Scaled` tensors run through a network's own forward. At each operation they do what the path kernel asks for: a weight
counts as one, any other constant factor as its absolute value, a minus sign as a plus, an additive constant as
zero. Which operation it is they are told by PyTorch's dispatcher, below all spellings of it: `x - y`, `x.subtract(y)`
and `torch.rsub(y, x)` are one or two entries of the table in `softgate.paths.unsigned`. What is not in it is refused.

The network of all ones multiplies its values by hundreds at each layer; after a hundred layers no float64 holds them.
So a `Scaled` tensor is value * exp(exponent). The exponent is that of the whole tensor, so that no dimension need be
that of the images; where images then are too far apart, `Range` says so, and each is run by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from softgate.errors import SoftgateError

LEAST, GREATEST = 1e-50, 1e50
"""Where the largest value of a tensor lies; else its exponent is changed."""

FAINT = 1e-150
"""A value below it may next be lost beside others."""


Work = Callable[..., Any]
"""Called with an ATen operation and its arguments, of which some are `Scaled`; returns its result."""

OPERATIONS: dict[str, Work] = {}
"""The operations that are known, by name, in-place ones without underscore; `softgate.paths.unsigned` fills it."""

VIEWS: set[str] = set()
"""Those of them that give parts of a tensor, without a copy."""


class Range:
    """Watches over the values of one run.

    Attributes:
        faint: Whether a value so small was met that, beside those of other images, digits of it may have been lost.
    """

    faint = False

    def watch(self, value: Tensor, least: float) -> None:
        """Looks for values other than zero below the least."""
        if not self.faint:
            size = value.abs()
            self.faint = bool(((size < least) & (size > 0)).any())


class Scaled(Tensor):
    """The numbers value * exp(exponent); see the module.

    Attributes:
        value: float64, of this tensor's shape. Views share its memory, as those of other tensors do.
        exponent: Of all values.
        range: Watches over the values of the run.
    """

    value: Tensor
    exponent: float
    range: Range

    @staticmethod
    def __new__(cls, value: Tensor, exponent: float, range: Range) -> Scaled:
        """The numbers value * exp(exponent)."""
        made: Scaled = Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=value.device,
        )
        made.value, made.exponent, made.range = value, exponent, range
        return made

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes options
        return f"Scaled({self.value} * exp({self.exponent}))"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What is trainable, or made of that, must be told before the dispatcher makes other tensors of it.
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            args, kwargs = tree_map(_marked, (args, kwargs or {}))
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch annotates what stands for none
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        inplace = func._schema.is_mutable
        base = name.removesuffix("_") if inplace else name
        work = OPERATIONS.get(base)
        # Those in place that end in no underscore write into `out`; those of views change a tensor's shape.
        if work is None or (inplace and (base == name or base in VIEWS)):
            raise refused(name)
        out = work(getattr(torch.ops.aten, base), *args, **kwargs)
        if not inplace:
            return out
        if not isinstance(args[0], Scaled):
            raise refused(f"writing activations into a constant ({name})")
        return args[0].overwrite(out)

    def overwrite(self, result: Scaled) -> Scaled:
        """Puts a result in the place of the values, as an in-place function does; views of them see it."""
        self.value.copy_(result.at(self.exponent))
        if not bool(self.value.isfinite().all()):
            raise SoftgateError("paths.kernel: an in-place operation adds a value that is too large for float64.")
        return self

    def at(self, exponent: float) -> Tensor:
        """The values for another exponent."""
        if exponent == self.exponent:
            return self.value
        step = self.exponent - exponent
        self.range.watch(self.value, FAINT * _exp(-step))
        return self.value * _exp(step)

    def like(self, value: Tensor) -> Scaled:
        """Other values with the same exponent, which is changed where they are very large or small."""
        largest = float(value.abs().max()) if value.numel() else 0.0
        if largest == 0 or not math.isfinite(largest) or LEAST < largest < GREATEST:
            self.range.watch(value, FAINT)
            return Scaled(value, self.exponent, self.range)
        self.range.watch(value, FAINT * largest)
        return Scaled(value / largest, self.exponent + math.log(largest), self.range)

    def part(self, value: Tensor) -> Scaled:
        """Some of the values, or all in another order."""
        return Scaled(value, self.exponent, self.range)


class Weight(Tensor):
    """A trainable tensor, or one made of trainable ones: each of its numbers counts as one."""

    ones: Tensor

    @staticmethod
    def __new__(cls, shape: Iterable[int], device: torch.device) -> Weight:
        """Ones of a shape."""
        ones = torch.ones((), dtype=torch.float64, device=device).expand(tuple(shape))
        made: Weight = Tensor._make_wrapper_subclass(
            cls, ones.shape, strides=ones.stride(), dtype=ones.dtype, device=device
        )
        made.ones = ones
        return made

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes options
        return f"Weight({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch annotates what stands for none
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, Scaled) for kind in types):
            return NotImplemented  # its turn comes next
        args, kwargs = tree_map(lambda v: v.ones if isinstance(v, Weight) else v, (args, kwargs or {}))
        out = func(*args, **kwargs)
        return tree_map(lambda v: Weight(v.shape, v.device) if isinstance(v, Tensor) else v, out)


def refused(name: str) -> SoftgateError:
    """The error for an operation that no path is known through."""
    return SoftgateError(f"paths.kernel: {name} is not known to be a sum of paths.")


def scaled(value: Tensor) -> Scaled:
    """Numbers as the input of a network; a run of its own."""
    return Scaled(value.double(), 0.0, Range())


def constant(value: Any) -> Any:
    """What a constant factor counts as, a number or a float64 tensor: ones where it is a weight."""
    if isinstance(value, Weight):
        return value.ones
    if isinstance(value, Tensor):
        return torch.ones_like(value, dtype=torch.float64) if trainable(value) else value.detach().double().abs()
    return abs(value)


def trainable(value: Any) -> bool:
    """Whether a factor is a weight."""
    return isinstance(value, Weight) or (isinstance(value, Tensor) and value.requires_grad)


def together(values: Iterable[Any]) -> tuple[list[Tensor], Callable[[Tensor], Scaled]]:
    """The values of several tensors for one exponent, constants being zero; and what gives a result that exponent."""
    every = list(values)
    mine = [v for v in every if isinstance(v, Scaled)]
    first = max(mine, key=lambda v: v.exponent)
    found = [
        v.at(first.exponent)
        if isinstance(v, Scaled)
        else torch.zeros(getattr(v, "shape", ()), dtype=torch.float64, device=first.device)
        for v in every
    ]
    return found, first.like


def count(*values: Any) -> int:
    """How many of the values depend on the image."""
    return sum(isinstance(v, Scaled) for v in tree_flatten(values)[0])


def _marked(value: Any) -> Any:
    return Weight(value.shape, value.device) if trainable(value) and not isinstance(value, Weight) else value


def _exp(power: float) -> float:
    return math.exp(power) if power < 709 else math.inf
