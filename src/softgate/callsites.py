"""Which PyTorch functions are call sites, which are refused by name, and what an autograd graph betrays.

Tables for `softgate.sites`, which does the attaching.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate import functional
from softgate.errors import NoCallSites, UnreachableSites
from softgate.functional import PiecewiseLinear

RELU: frozenset[Any] = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
INPLACE: frozenset[Any] = frozenset({F.relu_, torch.relu_, Tensor.relu_, F.hardtanh_, F.leaky_relu_})
HIDDEN_IN_COMPILE: frozenset[Any] = frozenset({torch.relu_, F.hardtanh_, F.leaky_relu_})
"""In-place functions that torch.compile runs without asking any mode."""

METHODS: dict[str, bool] = {"relu": False, "relu_": True}
"""Tensor methods that are call sites, and whether they work in place; a symbolic trace sees them by name only."""

MAX_POOL2D: frozenset[Any] = frozenset({F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d})
ADAPTIVE_MAX_POOL2D: frozenset[Any] = frozenset({F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices})

PIECEWISE: dict[Any, str] = {
    F.relu6: "relu6",
    F.hardtanh: "hardtanh",
    F.hardtanh_: "hardtanh",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
}
"""Piecewise linear activations besides ReLU; each of their kinks gets the gate of the rule."""

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

RELU_NODES: dict[str, str] = {
    "DifferentiableGraph": "scripted code",
    "ReluBackward": "relu",
    "Hardtanh": "hardtanh or relu6",
    "LeakyRelu": "leaky_relu",
    "Threshold": "threshold",
}
"""Substrings of autograd node names that betray an activation which Python never saw."""

POOL_NODES: dict[str, str] = {"DifferentiableGraph": "scripted code", "MaxPool2DWithIndices": "max_pool2d"}
"""The same for max pooling."""


@dataclass
class Site:
    """One call site.

    Attributes:
        name: Dotted module path, with `.relu` for a functional call and `#2`, `#3` for repeated calls.
        kind: "relu", "max_pool2d", or the name of another activation or pooling.
        covered: Whether a rule governs its backward pass.
        calls: How many forward passes have run it since `attach` (not counted under torch.compile).
    """

    name: str
    kind: str
    covered: bool
    calls: int = 0


def coverage_table(sites: Sequence[Site]) -> str:
    """One line for each call site, and a last one with the sums."""
    if not sites:
        return "no call sites seen yet: the model could not be traced, run one forward pass first"
    width = max(len("call site"), *(len(site.name) for site in sites))
    kinds = max(len(site.kind) for site in sites)
    lines = [f"{'call site':<{width}}  {'kind':<{kinds}}  {'calls':>6}  covered"]
    for site in sites:
        covered = "yes" if site.covered else "NO"
        lines.append(f"{site.name:<{width}}  {site.kind:<{kinds}}  {site.calls:>6}  {covered}")
    counts = Counter(site.kind for site in sites if site.covered)
    summed = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
    return "\n".join([*lines, f"{sum(counts.values())} of {len(sites)} covered: {summed}"])


@dataclass(frozen=True)
class ActivationCall:
    """A call of an activation, its arguments sorted; `activation` does not work in place."""

    kind: str
    z: Tensor
    inplace: bool
    activation: Any
    shape: PiecewiseLinear


def activation_call(func: Any, args: Any, kwargs: Any) -> ActivationCall:
    """Sorts the arguments of a function in `RELU` or `PIECEWISE`."""
    call = _SORTERS[PIECEWISE.get(func, "relu")](*args, **kwargs)
    return replace(call, inplace=True) if func in INPLACE else call


def _relu(input: Tensor, inplace: bool = False) -> ActivationCall:
    return ActivationCall("relu", input, inplace, F.relu, functional.RELU)


def _relu6(input: Tensor, inplace: bool = False) -> ActivationCall:
    return ActivationCall("relu6", input, inplace, F.relu6, PiecewiseLinear(0.0, ((1.0, 0.0), (-1.0, 6.0))))


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> ActivationCall:
    shape = PiecewiseLinear(0.0, ((1.0, float(min_val)), (-1.0, float(max_val))))
    kind = "relu6" if (min_val, max_val) == (0, 6) else "hardtanh"  # nn.ReLU6 calls hardtanh
    return ActivationCall(kind, input, inplace, partial(F.hardtanh, min_val=min_val, max_val=max_val), shape)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> ActivationCall:
    shape = PiecewiseLinear(float(negative_slope), ((1.0 - float(negative_slope), 0.0),))
    return ActivationCall("leaky_relu", input, inplace, partial(F.leaky_relu, negative_slope=negative_slope), shape)


_SORTERS: dict[str, Callable[..., ActivationCall]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
}


def adaptive_max_pool2d_arguments(
    func: Any, input: Tensor, output_size: Any, return_indices: bool = False
) -> tuple[Any, Any, bool]:
    """Sorts the arguments of any adaptive max pooling: input, output size, whether indices are returned."""
    return input, output_size, return_indices or func is F.adaptive_max_pool2d_with_indices


def adaptive_max_pool2d_window(input: Tensor, output_size: Any) -> tuple[int, int] | None:
    """The window, also its stride, of an adaptive max pooling; None where its windows differ in size."""
    wanted = (output_size, output_size) if isinstance(output_size, int) or output_size is None else tuple(output_size)
    sizes = [(have, have if want is None else want) for have, want in zip(input.shape[-2:], wanted, strict=True)]
    if any(have % want for have, want in sizes):
        return None
    (height, out_height), (width, out_width) = sizes
    return height // out_height, width // out_width


def max_pool2d_arguments(
    func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, tuple[Any, ...], bool]:
    """Sorts the arguments of any max-pool function: input, the five settings, whether indices are returned."""
    indices = return_indices or func is F.max_pool2d_with_indices
    return input, (kernel_size, stride, padding, dilation, ceil_mode), indices


def nodes_between(inputs: Any, out: Any, patterns: dict[str, str]) -> Counter[str]:
    """How often nodes that `patterns` match stand in the autograd graph between `inputs` and `out`."""
    seen = {tensor.grad_fn for tensor in tensors_in(inputs)}
    todo = [tensor.grad_fn for tensor in tensors_in(out)]
    found: Counter[str] = Counter()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = next((kind for pattern, kind in patterns.items() if pattern in node.name()), None)
        if kind and "BackwardBackward" not in node.name():  # a derivative's derivative is no activation
            found[kind] += 1
        todo += [upstream for upstream, _ in node.next_functions]
    return found


def unreachable(model: nn.Module, missed: Iterable[str]) -> UnreachableSites:
    """The error for call sites that no rule covers."""
    names = list(dict.fromkeys(missed))
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return UnreachableSites(
        f"{type(model).__name__} has {len(names)} call site(s) that no rule covers: {shown}. Covered are relu, "
        f"relu6, hardtanh, leaky_relu and max_pool2d, as modules or functions."
    )


def no_sites(model: nn.Module) -> NoCallSites:
    """The error for a model in which nothing can be gated."""
    return NoCallSites(
        f"{type(model).__name__} has no call site to attach a rule to: no relu or max_pool2d in its forward."
    )


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested dicts, tuples and lists."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from tensors_in(value)
