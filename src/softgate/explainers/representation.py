r"""The affine reading of a network: a logit as the inner product with its pullback plus what the constants add.

A ReLU network with its gates held fixed is affine in its input. Its value is then

.. math:: f_\Lambda(x) = \langle v, x \rangle + \sum_k \langle \partial_\Lambda f / \partial c_k, c_k \rangle

over every additive constant c_k: the biases, and BatchNorm's :math:`\beta - \gamma \mu / \sqrt{var + \epsilon}`
(FullGrad, Srinivas and Fleuret, arXiv 1905.00780). With the true gates this is the logit itself; with soft gates it is
:math:`f_\Gamma`, the network whose gates are the excitations (paper, equation 7). One forward and one backward pass
give both terms: each constant is given a factor per image, whose gradient is its share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from softgate.errors import SoftgateError, require
from softgate.explainers.pullback import Target, _targets, target_logits
from softgate.sites.inference import inner, reading_out
from softgate.surrogate.rule import Surrogate

LINEAR: frozenset[str] = frozenset(
    "Add Sub Rsub Mul Div Neg Mm Addmm Bmm Convolution MkldnnConvolution CudnnConvolution NativeBatchNorm "
    "CudnnBatchNorm MiopenBatchNorm Relu LeakyRelu MaxPool2DWithIndices AdaptiveMaxPool2D AvgPool2D MkldnnAvgPool2D "
    "AdaptiveAvgPool2D MkldnnAdaptiveAvgPool2D Mean Sum Cat Stack Split SplitWithSizes SafeSplit Chunk Unbind Select "
    "Slice Index IndexSelect Gather View UnsafeView AliasBackward Alias ReshapeAlias Reshape Expand Repeat Permute "
    "Transpose T Squeeze Unsqueeze Flatten Unflatten Clone CopySlices AsStrided Copy ToCopy ConstantPadNd "
    "ReflectionPad2D ReplicationPad2D UpsampleNearest2D UpsampleBilinear2D UpsampleBicubic2D UpsampleBilinear2DAa "
    "PixelShuffle PixelUnshuffle Roll Flip Contiguous AccumulateGrad Identity".split()
)
"""Autograd nodes that are linear in their input once gates and pooling weights are held fixed, constants aside."""

PRODUCTS: frozenset[str] = frozenset({"Mul", "Mm", "Bmm", "Addmm", "Div", "Convolution"})
"""Nodes that are linear only while all but one of their factors are constants."""


@dataclass(frozen=True)
class Readout:
    """What one forward pass and K backward passes say about a network. K is absent for one target per image.

    Attributes:
        outputs: [B, classes] all logits, as the model returns them.
        logit: [B(, K)] the target logits, centred if asked to.
        pullback: [B(, K), C, H, W] their pullbacks to the input.
        represented: [B(, K)] f_Lambda: the pullback's inner product with the image plus the constants' share.
    """

    outputs: Tensor
    logit: Tensor
    pullback: Tensor
    represented: Tensor


def representation(
    model: nn.Module, x: Tensor, target: Target, rule: Surrogate | None = None, *, centred: bool = False
) -> Tensor:
    r"""The value :math:`f_\Lambda(x)` of the target logits' affine reading under a rule (paper, equation 7).

    Args:
        model: A classifier as in `pullback`: convolutions, linear layers, BatchNorm, ReLU and pooling, called as
            modules or as functions, as often as they like.
        x: [B, C, H, W] images as the model takes them.
        target: As in `pullback`.
        rule: The backward rule; None is the true gates, for which the value is the logit itself.
        centred: Read out the logit minus the mean logit, which is all that a softmax sees.

    Returns:
        [B], or [B, K] for K targets; at least float32, detached.

    Raises:
        SoftgateError: As `pullback`; and, by name, for operations whose additive constants are not known, such as
            LayerNorm, or that are not linear with the gates held fixed, such as a sigmoid.
    """
    return read(model, x, target, rule, centred=centred).represented


def read(
    model: nn.Module, x: Tensor, target: Target, rule: Surrogate | None = None, *, centred: bool = False
) -> Readout:
    """Logits, pullbacks and representation at the price of the pullbacks alone; arguments as `representation`."""
    model = inner(model)
    norms = rule is not None and rule.matches
    require(
        not norms, f"representation: surrogate.gain={getattr(rule, 'gain', None)}: the gradient is no sum of paths."
    )
    with reading_out(model, rule) as sites:
        model = sites.model
        targets, many = _targets(x, target)
        x = x.detach().clone().requires_grad_()
        share = torch.zeros(len(x), dtype=x.dtype, device=x.device, requires_grad=True)
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        with _Constants(share):
            out: Any = torch.func.functional_call(model, parameters, (x,))
            outputs = getattr(out, "logits", out)
            picked = target_logits(outputs, targets, centred)
        require_linear(model, picked)
        logits = picked.detach()
        pullbacks, values = [], []
        for k in range(picked.shape[1]):
            last = k + 1 == picked.shape[1]
            v, constants = torch.autograd.grad(picked[:, k].sum(), (x, share), retain_graph=not last)
            pullbacks.append(v)
            wide = torch.promote_types(x.dtype, torch.float32)
            values.append((v.to(wide) * x.detach().to(wide)).flatten(1).sum(1) + constants)
    if many:
        return Readout(outputs.detach(), logits, torch.stack(pullbacks, 1), torch.stack(values, 1))
    return Readout(outputs.detach(), logits[:, 0], pullbacks[0], values[0])


class _Constants(TorchFunctionMode):
    """Adds share * c to every result that has an additive constant c; `share` is zero, one number per image.

    The forward pass keeps its values, and the gradient to `share` is the sum over constants of <df/dc, c>. The
    parameters are detached, so a tensor requires a gradient exactly where it depends on the image.
    """

    def __init__(self, share: Tensor) -> None:
        super().__init__()
        self.share = share

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__setitem__ and torch.is_grad_enabled():
            return self._assign(func, *args)
        # Taken before the call: an in-place one overwrites its operands.
        constant = _constant(func, args, kwargs) if torch.is_grad_enabled() else None
        out = func(*args, **kwargs)
        if constant is None or not (isinstance(out, Tensor) and out.requires_grad):
            return out
        return self._add(out, constant)

    def _assign(self, func: Any, into: Tensor, index: Any, value: Any) -> None:
        """`into[index] = value`, in which either may be a constant: it is where the other has not been put."""
        constant = torch.zeros_like(into) if _depends(into) else into.detach().clone()
        constant[index] = 0.0 if _depends(value) else value
        func(into, index, value)
        if _depends(into) and into.is_floating_point() and bool(constant.any()):
            self._add(into, constant)

    def _add(self, out: Tensor, constant: Any) -> Tensor:
        if out.shape[:1] != self.share.shape and len(self.share) > 1:
            raise SoftgateError(
                f"representation: a constant is added to a tensor of shape {tuple(out.shape)}, whose rows are not "
                f"the {len(self.share)} images; pass one image at a time."
            )
        factor = self.share.view(-1, *[1] * (out.dim() - 1)) if out.shape[:1] == self.share.shape else self.share
        addend = factor * torch.as_tensor(constant, dtype=self.share.dtype, device=out.device)
        return out.add_(addend)  # in place: none of these functions keeps its result for the backward pass


Finder = Callable[..., Any]


def _constant(func: Any, args: Any, kwargs: Any) -> Any:
    finder = FINDERS.get(func)
    return finder(*args, **kwargs) if finder else None


def _of_convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **others: Any) -> Any:
    return None if bias is None else bias.view(-1, *[1] * (weight.dim() - 2))


def _of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return bias


def _of_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None or running_var is None:
        raise SoftgateError(
            "representation: a BatchNorm without running statistics normalises by the batch, which is not linear."
        )
    gain = (running_var + eps).rsqrt()
    gain = gain if weight is None else gain * weight
    constant = -gain * running_mean if bias is None else bias - gain * running_mean
    return constant.view(-1, *[1] * (input.dim() - 2))


def _depends(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _of_sum(sign_first: int, sign_second: int) -> Finder:
    def find(first: Any, second: Any, *, alpha: float = 1, out: Any = None) -> Any:
        if not _depends(first):
            return sign_first * first if _depends(second) else None
        return None if _depends(second) else sign_second * alpha * second

    return find


def _of_joined(tensors: Any, *args: Any, join: Any, **kwargs: Any) -> Any:
    if all(map(_depends, tensors)) or not any(map(_depends, tensors)):
        return None
    return join([torch.zeros_like(t) if _depends(t) else t for t in tensors], *args, **kwargs)


def _of_copy(into: Tensor, value: Any, *rest: Any) -> Any:
    return None if _depends(value) else value


def _of_instance_norm(input: Tensor, *args: Any, **kwargs: Any) -> Any:
    raise SoftgateError("representation: InstanceNorm normalises by the image, or has constants that are not known.")


def _of_addmm(first: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    return None if _depends(first) else beta * first


_ADDITIONS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
_SUBTRACTIONS = (torch.sub, torch.subtract, Tensor.sub, Tensor.sub_, Tensor.__sub__, Tensor.__isub__)
_JOINS = (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

FINDERS: dict[Any, Finder] = {
    F.linear: _of_linear,
    F.batch_norm: _of_batch_norm,
    F.instance_norm: _of_instance_norm,
    torch.addmm: _of_addmm,
    **dict.fromkeys((Tensor.copy_, Tensor.fill_), _of_copy),
    **{join: partial(_of_joined, join=join) for join in _JOINS},
    **dict.fromkeys(_CONVOLUTIONS, _of_convolution),
    **{func: _of_sum(1, 1) for func in _ADDITIONS},
    **{func: _of_sum(1, -1) for func in _SUBTRACTIONS},
    **{func: _of_sum(-1, 1) for func in (torch.rsub, Tensor.__rsub__)},
}
"""Functions that add constants, and what finds the constant among their arguments."""


def require_linear(model: nn.Module, out: Tensor) -> None:
    """Raises for whatever between the image and the logits is not known to be linear with its gates held fixed."""
    seen: set[Any] = set()
    odd: dict[str, None] = {}
    todo: list[Any] = [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [upstream for upstream, _ in node.next_functions]
        adds_constant = getattr(node, "adds_constant", None)  # softgate's own functions say it
        if adds_constant is not None:
            odd |= {"ReLU6 or Hardtanh": None} if adds_constant else {}
            continue
        name = _operation(node)
        if name == "ConstantPadNd" and getattr(node, "_saved_value", None):
            name = "padding with a value other than 0"
        if name not in LINEAR:
            odd[name.removeprefix("Native")] = None
        elif getattr(node, "_saved_training", False):
            odd["a normalisation by the statistics of its own input"] = None
        elif name in PRODUCTS and _activations(node, name) > 1:
            odd["a product or quotient of activations"] = None
    if odd:
        raise SoftgateError(
            f"representation: {type(model).__name__} has operations whose additive constants are not known or which "
            f"are not linear with the gates held fixed: {', '.join(odd)}."
        )


def _operation(node: Any) -> str:
    name: str = node.name().rpartition("::")[2].rstrip("0123456789").lstrip("_")
    return name.removesuffix("s").removesuffix("Backward") if "Backward" in name else name


def _activations(node: Any, name: str) -> int:
    """How many factors of a product depend on the image; a sum within it may."""
    factors = [upstream for upstream, _ in node.next_functions]
    if name == "Addmm":
        factors = factors[1:]
    if name == "Div":  # a quotient is linear in its numerator only
        return 2 if len(factors) > 1 and factors[1] is not None else 1
    if name == "Convolution":
        factors = factors[:2]
    return sum(upstream is not None for upstream in factors)
