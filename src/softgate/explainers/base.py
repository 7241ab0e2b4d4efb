"""What every explainer takes, and the classes that it is asked about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import SoftgateError, require

Explainer = Callable[[nn.Module, Tensor, Any], Tensor]
"""(model, x [B, C, H, W], target: int or [B]) -> [B, C, H, W]."""


def classes(x: Tensor, target: Any) -> Tensor:
    """The target of each image, [B], from an int or a [B] tensor."""
    require(len(x) > 0, "x has no image: images [B, C, H, W] with B >= 1 are needed.")
    kind = "an int or a [B] tensor is needed"
    try:
        given = torch.as_tensor(target, device=x.device)
    except (TypeError, ValueError, RuntimeError):
        raise SoftgateError(f"target={target}: {kind}.") from None
    fits = given.dim() == 0 or tuple(given.shape) == (len(x),)
    require(fits and not given.is_floating_point() and given.dtype != torch.bool, f"target={target}: {kind}.")
    return given.long().expand(len(x)).contiguous()
