"""Which PyTorch functions are call sites, which are refused by name, and what an autograd graph betrays.

Tables for `softgate.sites`, which does the attaching.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RELU: frozenset[Any] = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
INPLACE: frozenset[Any] = frozenset({F.relu_, torch.relu_, Tensor.relu_})
METHODS: dict[str, bool] = {"relu": False, "relu_": True}
"""Tensor methods that are call sites, and whether they work in place; a symbolic trace sees them by name only."""

MAX_POOL2D: frozenset[Any] = frozenset({F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d})

UNSUPPORTED: dict[Any, str] = {
    getattr(F, name): name.rstrip("_")
    for name in (
        "relu6 leaky_relu leaky_relu_ prelu rrelu rrelu_ elu elu_ selu selu_ celu celu_ gelu silu mish hardswish "
        "hardtanh hardtanh_ hardshrink softshrink threshold threshold_ glu "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d "
        "max_pool1d max_pool3d adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
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


def relu_arguments(input: Tensor, inplace: bool = False) -> tuple[Tensor, bool]:
    """Sorts the arguments of any relu function: input, whether in place."""
    return input, inplace


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


def nodes_between(inputs: Any, out: Any, patterns: dict[str, str]) -> list[str]:
    """What `patterns` call the nodes they match in the autograd graph between `inputs` and `out`."""
    seen = {tensor.grad_fn for tensor in _tensors(inputs)}
    todo = [tensor.grad_fn for tensor in _tensors(out)]
    found: dict[str, None] = {}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = next((kind for pattern, kind in patterns.items() if pattern in node.name()), None)
        if kind:
            found[kind] = None
        todo += [upstream for upstream, _ in node.next_functions]
    return list(found)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from _tensors(value)
