"""Arithmetic that gates and poolings share: precision, transforms, matched norms."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` detached, in float32 if it is a half-precision tensor: what gate and softmax arithmetic is done in."""
    x = x.detach()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def in_transforms() -> bool:
    """Whether a transform of torch.func runs, such as grad or vmap."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def matched(soft: Tensor, hard: Tensor) -> Tensor:
    """`soft`, each example (first dimension) rescaled to the L2 norm that `hard` has there.

    No example reads another, so the result does not depend on how a batch is put together, and norms match over
    the batch too. The factor counts as a constant when differentiated; where `soft` is zero it stays zero.
    """
    dims = tuple(range(1, soft.dim())) or None
    with torch.no_grad():
        wanted, found = (torch.linalg.vector_norm(wide(t), dim=dims, keepdim=True) for t in (hard, soft))
        factor = torch.where(found > 0, wanted / found, torch.ones_like(found))
    return soft * factor.to(soft.dtype)
