"""Grad-CAM, which looks at the last feature map instead of the pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from softgate.errors import SoftgateError
from softgate.explainers.base import classes
from softgate.explainers.pullback import target_logits
from softgate.sites.checks import graph
from softgate.sites.inference import inner, reading_out
from softgate.surrogate.inputs import checked


@checked
def grad_cam(model: nn.Module, x: Tensor, target: Any, *, centred: bool = False) -> Tensor:
    """Grad-CAM (arXiv 1610.02391) on the last feature map of the forward pass, enlarged to the image.

    The last map is the last 4-dimensional tensor of more than one pixel that the forward pass makes on the way to the
    logits, by a module or a function: in a ResNet the output of its last block, in DenseNet that of the functional ReLU
    behind its features, which captum's layer-wise form cannot name.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        centred: Explain the logit minus the mean logit.

    Returns:
        [B, C, H, W], the same in every channel, >= 0.

    Raises:
        SoftgateError: If the model makes no feature map, or none that its logits depend on.
    """
    model = inner(model)
    wanted = classes(x, target)
    with reading_out(model, None) as sites:
        model = sites.model
        # Needs a gradient to flow also where all weights are frozen.
        image = x.detach().clone().requires_grad_()
        given = image.clone()  # which a model may normalise in place
        with _LastMap() as seen:
            out: Any = model(given)
        logits: Tensor = getattr(out, "logits", out)
        picked = target_logits(logits, wanted[:, None], centred).sum()
        features = seen.last_before(picked)
        if features is None:
            raise SoftgateError(
                f"grad_cam: {type(model).__name__} makes no feature map of more than one pixel before its logits."
            )
        (grad,) = torch.autograd.grad(picked, features)
    weighted = F.relu((grad.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True))
    large = F.interpolate(weighted, x.shape[-2:], mode="bilinear", align_corners=False)
    return large.expand_as(x).to(x.dtype).contiguous()


class _LastMap(TorchFunctionMode):
    """Remembers the feature maps that differentiable calls make."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def last_before(self, out: Tensor) -> Tensor | None:
        """The last feature map that `out` depends on."""
        nodes = set(graph((), out))
        return next((found for found in reversed(self.maps) if found.grad_fn in nodes), None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() == 4 and min(out.shape[-2:]) > 1 and out.grad_fn is not None:
            self.maps.append(out)
        return out
