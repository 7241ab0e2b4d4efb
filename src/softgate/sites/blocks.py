"""Normalisations, attention and products with a gate: what is a call site only where a rule is for it.

A normalisation and `scaled_dot_product_attention` are one function each. Attention that a model writes by hand is a
softmax, then a product with it; a gate is a sigmoid, then a product with it. So the results of such functions are
marked, the mark follows them through dropout and changes of shape, and the product is the call site.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.sites import data_dependence
from softgate.sites.block_calls import AttentionCall, GLUCall, NormCall, ProductCall, SquareCall, WeighedCall
from softgate.sites.calls import BlockCall
from softgate.surrogate.attention_paths import Attention
from softgate.surrogate.held_norm import Norm
from softgate.surrogate.selection import Kind

_MARK = "_softgate_mark"

FROM_DATA = frozenset(("attention", "product"))
"""The families that hold what they find constant only where it meets data."""


def functions(names: str, *places: Any) -> frozenset[Any]:
    """The functions of these names in modules or classes, where they have them."""
    return frozenset(getattr(place, name) for place in places for name in names.split() if hasattr(place, name))


SOFTMAX = functions("softmax", F, torch, Tensor)
GATES = functions("sigmoid sigmoid_ tanh tanh_ hardsigmoid", F, torch, Tensor)
"""Functions whose results gate what they are multiplied by."""
ROOTS = functions("norm rsqrt sqrt std", torch, Tensor) | functions("norm vector_norm", torch.linalg)
"""What a normalisation written by hand multiplies or divides by: a gate that bends nothing by itself."""
ACTIVATION_GATES = (Kind.RELU, Kind.SILU, Kind.GELU)
"""Activations that gate what they are multiplied by where that is no gate itself: ReGLU, SwiGLU, GEGLU."""
PRODUCTS = functions("mul mul_ multiply multiply_ __mul__ __rmul__ __imul__", torch, Tensor)
QUOTIENTS = functions("div div_ divide true_divide __truediv__ __itruediv__", torch, Tensor)
SHIFTS = functions("add __add__ __radd__ clamp clamp_ clamp_min clamp_min_ clip", torch, Tensor)
"""Through which a gate's mark follows it where no other tensor takes part: std + eps, 1 + tanh."""
IN_PLACE = functions("mul_ multiply_ __imul__", torch, Tensor)
SQUARES = functions("pow square __pow__", torch, Tensor)
SUMS = functions("matmul bmm __matmul__ __rmatmul__ einsum", torch, Tensor)
"""Products of matrices, with attention weights a weighed sum."""
DROPOUT = functions("dropout alpha_dropout", F, torch)
FOLLOWED = DROPOUT | functions(
    "view reshape expand expand_as view_as to type_as float half bfloat16 double unsqueeze squeeze transpose permute "
    "contiguous flatten repeat_interleave __getitem__ reciprocal __rtruediv__ __rdiv__",
    torch,
    Tensor,
)
"""Functions through which a mark follows a tensor."""
MIXED = functions("linear conv2d", F) | functions("conv2d", torch)
"""Functions through which the mark of attention weights follows them: they mix heads."""


def _opened(function: Any) -> types.FunctionType:
    """A function of torch.nn.functional that does not hand itself to a mode, so that the mode sees what it calls."""
    inside = {**function.__globals__, "has_torch_function": lambda arguments: False}
    made = types.FunctionType(function.__code__, inside, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


OPENED: dict[Any, Any] = {F.multi_head_attention_forward: _opened(F.multi_head_attention_forward)}
"""Functions that are made of call sites."""


@dataclass
class Mark:
    """What a tensor is: attention weights, a gate, or an activation that may be one.

    Attributes:
        role: "weights", "gate" or "activation".
        frame: The module whose forward made it.
        kind: The function's name.
        bends: Whether it bends data by itself where no product takes it.
        chain: Of weights what computes them at a temperature, and what was done to them since.
        dropout: The probability at which some of it was dropped.
        origin: The mark that this one follows.
        taken: Whether a product took it.
    """

    role: str
    frame: str
    kind: str
    bends: bool = False
    chain: tuple[Callable[[Any], Any], ...] = ()
    dropout: float = 0.0
    origin: Mark | None = None
    taken: bool = False

    def take(self) -> None:
        """Takes note that a product took it."""
        root = self
        while root.origin is not None:
            root = root.origin
        root.taken = True

    def at(self, temperature: float) -> Tensor:
        """The weights with their scores divided by a temperature."""
        found: Any = temperature
        for step in self.chain:
            found = step(found)
        return found  # type: ignore[no-any-return]  # the first step makes a tensor of the temperature


class Marks:
    """The marked tensors of one forward pass."""

    def __init__(self) -> None:
        self._marked: list[weakref.ref[Tensor]] = []
        self._gates: list[Mark] = []

    def begin(self, inputs: Any, wanted: frozenset[str]) -> None:
        """Takes note of the data of the pass, where a family that is wanted needs that."""
        if wanted & FROM_DATA and not torch.compiler.is_compiling():
            data_dependence.begin(inputs, self._remember)

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Takes note of what a call returned."""
        data_dependence.follow(func, args, kwargs, out, self._remember)

    def _remember(self, tensor: Tensor) -> None:
        if not torch.compiler.is_compiling():
            self._marked.append(weakref.ref(tensor))

    def put(self, out: Any, mark: Mark) -> None:
        """Marks a tensor."""
        if not isinstance(out, Tensor):
            return
        setattr(out, _MARK, mark)
        self._remember(out)
        if mark.bends:
            self._gates.append(mark)

    def clear(self) -> list[tuple[str, str]]:
        """Takes all marks off; module and kind of the gates that no product took, which bend data by themselves."""
        for reference in self._marked:
            tensor = reference()
            if tensor is not None:
                tensor.__dict__.pop(_MARK, None)
                data_dependence.forget(tensor)
        left = [(mark.frame, mark.kind) for mark in self._gates if not mark.taken]
        self._marked, self._gates = [], []
        return left

    def watch(self, func: Any, args: Any, kwargs: Any, out: Any, frame: str, wanted: frozenset[str]) -> None:
        """Marks the result of a call that is no call site, where it is one of those that are marked or followed."""
        if func in SOFTMAX:
            first = partial(_softmax_at, func, args, kwargs)
            self.put(out, Mark("weights", frame, "softmax", chain=(first,)))
        elif func in GATES and "product" in wanted and not _constant(args):
            bends = torch.is_grad_enabled() and any(_has_gradient(arg) for arg in args)
            self.put(out, Mark("gate", frame, func.__name__.strip("_"), bends))
        elif func in ROOTS and "product" in wanted and not _constant(args):
            self.put(out, Mark("gate", frame, func.__name__))
        elif args:
            place = next((place for place, arg in enumerate(args[:2]) if mark_of(arg) is not None), None)
            if place is not None and _follows(func, args, place):
                self._follow(func, args, kwargs, out, place)

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any, place: int) -> None:
        mark = mark_of(args[place])
        assert mark is not None
        dropout = mark.dropout
        if func in DROPOUT:
            probability, training = _dropout_arguments(*args, **kwargs)
            dropout = probability if training and probability else dropout
        chain: Any = (*mark.chain, partial(_again, func, args, kwargs, place))
        self.put(out, Mark(mark.role, mark.frame, mark.kind, chain=chain, dropout=dropout, origin=mark))


def block_of(func: Any, args: Any, kwargs: Any, wanted: frozenset[str]) -> BlockCall | None:
    """The block that a function call is, of the wanted families; None for all others.

    Args:
        func: The function, in the spelling that a `TorchFunctionMode` sees.
        args: Its arguments.
        kwargs: Its arguments by name.
        wanted: Of norm, attention and product.
    """
    if "norm" in wanted and func in _NORMS:
        return _NORMS[func](func, args, kwargs)
    if "attention" in wanted:
        if func is F.scaled_dot_product_attention:
            return AttentionCall(func, args, kwargs, Kind.ATTENTION, Attention(*_attention_arguments(*args, **kwargs)))
        if func in SUMS:
            found = _marked(args, ("weights",))
            if found is not None:
                found[1].take()
                return WeighedCall(func, args, kwargs, Kind.ATTENTION, *found)
    if "product" in wanted:
        if func is F.glu:
            return GLUCall(func, args, kwargs, Kind.PRODUCT, *_glu_arguments(*args, **kwargs))
        if func in SQUARES or func in PRODUCTS:
            square = _square(func, args, kwargs)
            if square is not None:
                return square
        if func in PRODUCTS or func in QUOTIENTS:
            found = _marked(args, ("gate", "weights")) or _marked(args, ("activation",))
            if found is not None and (func in PRODUCTS or (found[0] == 1 and found[1].role == "gate")):
                found[1].take()
                return ProductCall(func, args, kwargs, Kind.PRODUCT, *found)
    return None


def _square(func: Any, args: Any, kwargs: Any) -> SquareCall | None:
    """The square that a call takes of an activation: one factor gates the other."""
    mark = mark_of(args[0]) if args else None
    if mark is None or mark.role != "activation" or len(args) + len(kwargs) > 2:
        return None
    other = [*args[1:], *kwargs.values()]
    by = other[0] if other else 2
    squares = by is args[0] if func in PRODUCTS else not isinstance(by, Tensor) and by == 2
    if not squares or func in IN_PLACE:  # autograd has no gradient of a tensor that is overwritten by its square
        return None
    mark.take()
    return SquareCall(func, args, kwargs, Kind.PRODUCT, args[0])


def _marked(args: Any, roles: tuple[str, ...]) -> tuple[int, Mark] | None:
    """The place of an argument with such a mark, and the mark, where what it is multiplied by is computed too."""
    tensors = [place for place, arg in enumerate(args) if isinstance(arg, Tensor)]
    for place in tensors:
        mark = mark_of(args[place])
        if mark is not None and mark.role in roles:
            others = [args[other] for other in tensors if other != place]
            if others and not any(data_dependence.is_constant(other) or other is args[place] for other in others):
                return place, mark
    return None


def _follows(func: Any, args: Any, place: int) -> bool:
    """Whether the mark of the argument at `place` holds for the result, where the call is no call site."""
    if func in PRODUCTS:
        return True
    mark = mark_of(args[place])
    if place or mark is None:
        return False
    if func in SHIFTS or func in SQUARES:
        return mark.role == "gate" and not any(isinstance(arg, Tensor) for arg in args[1:])
    return func in FOLLOWED or func in QUOTIENTS or (func in MIXED and mark.role == "weights")


def mark_of(tensor: Any) -> Mark | None:
    """The mark of a tensor, or None."""
    return getattr(tensor, _MARK, None) if isinstance(tensor, Tensor) else None


def _constant(args: Any) -> bool:
    """Whether the first argument is a tensor that was not computed from data."""
    return bool(args) and isinstance(args[0], Tensor) and data_dependence.is_constant(args[0])


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _softmax_at(func: Any, args: Any, kwargs: Any, temperature: float) -> Any:
    if args:
        return func(args[0] / temperature, *args[1:], **kwargs)
    return func(**{**kwargs, "input": kwargs["input"] / temperature})


def _again(func: Any, args: Any, kwargs: Any, place: int, tensor: Any) -> Any:
    return func(*args[:place], tensor, *args[place + 1 :], **kwargs)


def _dropout_arguments(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, train: bool = True
) -> tuple[float, bool]:
    return p, training and train  # torch.dropout calls it train


def _attention_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    return query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa


def _glu_arguments(input: Tensor, dim: int = -1) -> tuple[Tensor, int]:
    return input, dim


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *rest: Any,
    **others: Any,
) -> Any:
    return input, weight, bias, Norm(Kind.LAYER_NORM, tuple(normalized_shape), eps=eps)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    return input, weight, None, Norm(Kind.RMS_NORM, tuple(normalized_shape), eps=eps)


def _group_norm(
    input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any, **others: Any
) -> Any:
    return input, weight, bias, Norm(Kind.GROUP_NORM, groups=num_groups, eps=eps)


def _instance_norm(
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *rest: Any,
    **others: Any,
) -> Any:
    norm = Norm(Kind.INSTANCE_NORM, eps=eps, running=(running_mean, running_var, momentum))
    return None if not use_input_stats else (input, weight, bias, norm)


def _norm(arguments: Callable[..., Any], func: Any, args: Any, kwargs: Any) -> NormCall | None:
    found = arguments(*args, **kwargs)
    if found is None or not found[0].is_floating_point():  # running statistics: affine as it is
        return None
    return NormCall(func, args, kwargs, found[3].kind, *found)


_NORMS: dict[Any, Callable[[Any, Any, Any], NormCall | None]] = {
    **dict.fromkeys((F.layer_norm, torch.layer_norm), partial(_norm, _layer_norm)),
    **dict.fromkeys((F.rms_norm, torch.rms_norm), partial(_norm, _rms_norm)),
    **dict.fromkeys((F.group_norm, torch.group_norm), partial(_norm, _group_norm)),
    **dict.fromkeys((F.instance_norm, torch.instance_norm), partial(_norm, _instance_norm)),
}
"""The sorter of each normalisation."""
