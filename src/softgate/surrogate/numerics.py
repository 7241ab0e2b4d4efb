"""Arithmetic that gates and poolings share: precision, transforms, matched norms."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` detached, in float32 if it is a half-precision tensor: what gate and softmax arithmetic is done in."""
    x = x.detach()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`; there is none for some devices, such as meta."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def in_transforms() -> bool:
    """Whether a transform of torch.func runs, such as grad or vmap."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def matched(soft: Tensor, hard: Tensor, batched: bool = True) -> Tensor:
    """`soft`, each example rescaled to the L2 norm that `hard` has there.

    No example reads another, so the result does not depend on how a batch is put together, and norms match over
    the batch too. The factor counts as a constant when differentiated; where `soft` is zero it stays zero.

    Args:
        soft: [B, ...]; of a single example, [...].
        hard: Of the same shape.
        batched: Whether the first dimension is that of the examples.
    """
    if soft.numel() == 0:
        return soft
    if batched and soft.dim() == 1:  # an example is one number
        return matched(soft[:, None], hard[:, None])[:, 0]
    dims = tuple(range(1 if batched else 0, soft.dim()))
    with torch.no_grad():
        (most_wanted, wanted), (most_found, found) = (_norm(wide(t), dims) for t in (hard, soft))
        factor = torch.where(found > 0, (most_wanted / most_found) * (wanted / found), torch.ones_like(found))
    return soft * factor.to(soft.dtype)


def _norm(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The L2 norm as a product: of the largest absolute value, and of what is left, whose squares can be summed."""
    most = x.abs().amax(dims, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    left: Tensor = torch.linalg.vector_norm(x / most, dim=dims, keepdim=True)
    return most, left
