"""Batch normalisation of one image, whose gradient PyTorch gets wrong on the CPU, gets it right.

The kernel of PyTorch (seen in 2.15) reads the upstream gradient in the order of the input. Of one image the order of
a tensor may be told from its strides in two ways, and where the two tensors are told apart (the output goes through
`flatten(2).transpose(1, 2)`, as in networks of convolutions and tokens) input, weight and bias get the gradient of
other pixels. The gradient in the order of the input, which costs nothing where it has it, is right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BATCH_NORMS = frozenset((F.batch_norm, torch.batch_norm))
INSTANCE_NORMS = frozenset((F.instance_norm, torch.instance_norm))
"""Batch normalisation of one image of all channels of all images, which are in order."""
ONE_IMAGE = BATCH_NORMS | INSTANCE_NORMS
"""The functions with this gradient."""
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def in_order(out: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:
    """The result of one of the functions `ONE_IMAGE`, with the gradient that it should have.

    Args:
        out: What the function returned.
        func: The function.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    if torch.compiler.is_compiling() or not out.requires_grad:  # compiled code has a backward pass of its own
        return out
    x = args[0] if args else kwargs["input"]
    last = CHANNELS_LAST.get(x.dim())
    if last is None or x.shape[0] != 1 or x.device.type != "cpu":
        return out
    order = last if func in BATCH_NORMS and x.is_contiguous(memory_format=last) else torch.contiguous_format

    def arrange(grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=order)

    out.register_hook(arrange)  # type: ignore[no-untyped-call]  # torch's is untyped
    return out
