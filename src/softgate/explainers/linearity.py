"""Which operations are linear in the image once a network's gates are held: looked up in the autograd graph.

The graph says what was computed, however it was written: `x - c`, `x.subtract(c)` and `torch.rsub(c, x)` leave one of
two nodes. Additive constants play no part here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from softgate.errors import SoftgateError

LINEAR: frozenset[str] = frozenset(
    # sums, differences, and joining of parts
    "Add Sub Rsub Neg Sum Mean Cumsum Cat Stack IndexAdd ScatterAdd "
    # pieces, order and shape
    "Split SplitWithSizes SafeSplit UnsafeSplit Chunk Unbind Select Slice Index IndexSelect Gather Diagonal Tril Triu "
    "Unfold View UnsafeView ViewAsReal AliasBackward Alias ReshapeAlias Reshape Expand Repeat Permute Transpose T "
    "Squeeze Unsqueeze Flatten Unflatten Roll Flip Im2Col Col2Im PixelShuffle PixelUnshuffle ChannelShuffle Trace "
    # copies and writing into
    "Clone CopySlices AsStrided Copy ToCopy Contiguous AccumulateGrad Identity Fill Zero SliceScatter SelectScatter "
    # pooling, padding and resizing
    "AvgPool2D AvgPool3D MkldnnAvgPool2D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D ConstantPadNd "
    "ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D "
    "UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D "
    "UpsampleNearestExact3D UpsampleLinear1D UpsampleBilinear2D UpsampleTrilinear3D UpsampleBicubic2D "
    "UpsampleBilinear2DAa UpsampleBicubic2DAa "
    # normalisation by running statistics
    "NativeBatchNorm NativeBatchNormLegitNoTraining BatchNormNoUpdate CudnnBatchNorm MiopenBatchNorm".split()
)
"""Autograd nodes that are linear in all their inputs together.

Not among them is what may choose by the image's values where no call site is seen: where, masked_fill, `y[y < 0] = 0`.
"""

PRODUCTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Mul", "Mm", "Bmm", "Mv", "Dot", "Convolution", "MkldnnConvolution", "CudnnConvolution"), (0, 1)),
    **dict.fromkeys(("Addmm", "Addmv", "Addr", "Addbmm", "Baddbmm", "Addcmul"), (1, 2)),
    **dict.fromkeys(("Linear", "MkldnnLinear"), (0, 1)),
    "SparseAddmm": (1, 2),
}
"""Nodes that are linear while at most one of these inputs depends on the image."""

DIVISORS: dict[str, int] = {"Div": 1, "Addcdiv": 2, "Lerp": 2}
"""Nodes that are linear while this input does not depend on the image."""


def require_linear(model: nn.Module, x: Tensor, out: Tensor) -> None:
    """Raises for whatever between the image and the logits is not known to be linear with its gates held.

    Args:
        model: What to call the model.
        x: The images, a leaf that requires a gradient.
        out: What was computed from them with the gates held.

    Raises:
        SoftgateError: By name, for operations that are not known, such as LayerNorm or a sigmoid; for normalisation by
            the statistics of its own input, and for products of activations.
    """
    odd: dict[str, None] = {}
    dependent = _dependent(x, out)
    for node in dependent:
        name = _operation(node)
        factors = [upstream in dependent for upstream, _ in node.next_functions]
        products = PRODUCTS.get(name, ())
        divisor = DIVISORS.get(name)
        if name not in LINEAR and not products and divisor is None:
            odd[name.removeprefix("Native")] = None
        elif getattr(node, "_saved_training", False):
            odd["a normalisation by the statistics of its own input"] = None
        elif sum(factors[place] for place in products) > 1 or any(factors[divisor:][:1] if divisor else ()):
            odd["a product or quotient of activations"] = None
    if odd:
        raise SoftgateError(
            f"{type(model).__name__} has operations that are not known to be linear in the image with the gates held "
            f"fixed, or are not: {', '.join(odd)}."
        )


def _dependent(x: Tensor, out: Tensor) -> dict[Any, None]:
    """The nodes between `out` and the leaf `x`, from the end: those that a gradient to `x` passes through."""
    users: dict[Any, list[Any]] = {}
    order: dict[Any, None] = {}
    todo: list[Any] = [out.grad_fn]
    sources = []
    while todo:
        node = todo.pop()
        if node is None or node in order:
            continue
        order[node] = None
        if getattr(node, "variable", None) is x:
            sources.append(node)
        for upstream, _ in node.next_functions:
            users.setdefault(upstream, []).append(node)
            todo.append(upstream)
    found: set[Any] = set()
    while sources:
        node = sources.pop()
        if node not in found:
            found.add(node)
            sources += users.get(node, [])
    return {node: None for node in order if node in found}


def _operation(node: Any) -> str:
    name: str = node.name().rpartition("::")[2].rstrip("0123456789").lstrip("_")
    return name.removesuffix("s").removesuffix("Backward") if "Backward" in name else name
