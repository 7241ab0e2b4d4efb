"""Which tensors of a forward pass were computed from its data, and which are constants of it.

A gate takes the place of a derivative only where what it is multiplied by was computed from the data. A mask, a
factor, what is made of a parameter and what is cut off from the gradient are constants: there the activation that is
multiplied by one is the data. Autograd does not tell the two apart: a parameter has a gradient as well, and without
gradients nothing has one. So every result of a function call is noted as the one or the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.utils import _pytree

_NOTE = "_softgate_from_data"

CUT: frozenset[Any] = frozenset(
    getattr(place, name)
    for place in (torch, Tensor)
    for name in "detach new_empty new_zeros new_ones new_full new_tensor empty_like zeros_like ones_like full_like "
    "rand_like randn_like randint_like".split()
    if hasattr(place, name)
) | {Tensor.data.__get__}  # type: ignore[attr-defined]  # a getter
"""Functions of a tensor whose results carry nothing of its values, or no gradient."""


def begin(inputs: Any, mark: Callable[[Tensor], None]) -> None:
    """Notes what a forward pass is given as its data.

    Args:
        inputs: The arguments, nested as may be.
        mark: Is told of every tensor that gets a note.
    """
    for tensor in _pytree.tree_leaves(inputs):
        if isinstance(tensor, Tensor):
            _note(tensor, True, mark)


def follow(func: Any, args: Any, kwargs: Any, out: Any, mark: Callable[[Tensor], None]) -> None:
    """Notes of the results of a function call whether they were computed from data.

    Args:
        func: The function.
        args: Its arguments.
        kwargs: Its arguments by name.
        out: What it returned.
        mark: Is told of every tensor that gets a note.
    """
    into = func is Tensor.__setitem__
    results = (args[0],) if into else (out,) if isinstance(out, Tensor) else tuple(_tensors(out))
    if not results:
        return
    data = func not in CUT and _any_carries(args, kwargs)
    for tensor in results:
        own = type(tensor) is not Tensor and isinstance(tensor, nn.Parameter)
        if not own and (data or not into):
            _note(tensor, data and (tensor.is_floating_point() or tensor.is_complex()), mark)


def is_constant(tensor: Tensor) -> bool:
    """Whether a tensor is a constant of the pass: a parameter or made of such, a mask, a factor, or cut off."""
    known = getattr(tensor, _NOTE, None)
    if known is not None:
        return not known
    if is_parameter(tensor):
        return True
    if tensor.requires_grad or is_functorch_wrapped_tensor(tensor):
        return False
    if forward_ad._current_level < 0:
        return True
    return forward_ad.unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]  # torch's is untyped


def is_parameter(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter, or a view of one."""
    if torch.compiler.is_compiling():
        return isinstance(tensor, nn.Parameter)
    return isinstance(tensor._base if tensor._is_view() else tensor, nn.Parameter)


def forget(tensor: Tensor) -> None:
    """Takes the note off."""
    tensor.__dict__.pop(_NOTE, None)


def _note(tensor: Tensor, data: bool, mark: Callable[[Tensor], None]) -> None:
    setattr(tensor, _NOTE, data)
    mark(tensor)


def _any_carries(args: Any, kwargs: Any) -> bool:
    for arg in args:  # most often the first one: this is done for every call of a forward pass
        if isinstance(arg, Tensor) and getattr(arg, _NOTE, None):
            return True
    return any(_carries(tensor) for tensor in (*_tensors(args), *_tensors(kwargs.values())))


def _carries(tensor: Tensor) -> bool:
    """Whether what is computed of a tensor is computed from data."""
    if torch.compiler.is_compiling() and getattr(tensor, _NOTE, None) is None:  # `begin` cannot be part of a graph
        return not is_parameter(tensor)
    return not is_constant(tensor)


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among some values, and in the lists and tuples among them."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)) or hasattr(values, "__iter__"):
        for value in values:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple)):
                yield from _tensors(value)
