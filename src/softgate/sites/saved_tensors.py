"""One tensor for each ReLU: what the next layer keeps of its input is recomputed from the pre-activation.

A gated ReLU keeps its pre-activation z. The layer after it would keep y = relu(z) as well, twice what the true ReLU
costs. While such a layer runs, saved-tensor hooks put a note in the place of y: which z it came from and how it lay
in memory. The backward pass turns the note into relu(z) again, bit for bit.

The hooks are on during the call of that one layer only, while y is alive as its argument: an address that is used
again for another tensor cannot be mistaken for it. Where hooks of others are in force, such as those of activation
checkpointing or of offloading, theirs go first and nothing is shared.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from softgate.surrogate.numerics import in_transforms

CONSUMERS: frozenset[Any] = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        *(F.linear, F.bilinear, torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__),
        *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
        *(F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d),
        *(F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices),
        *(F.batch_norm, F.group_norm, F.layer_norm, F.instance_norm),
        *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__),
    }
)
"""Functions that may keep an argument for their backward pass."""


ESCAPES: frozenset[Any] = frozenset(
    {
        *(Tensor.data.__get__, Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.__dlpack__),  # type: ignore[attr-defined]  # a getter
        *(Tensor.untyped_storage, Tensor.storage),
    }
)
"""Functions that give access to a tensor's memory past its version counter: what is written there is not noticed."""


@dataclass(frozen=True)
class Origin:
    """Where the output of an activation came from; versions tell whether a tensor was written to since."""

    output: weakref.ref[Tensor]
    output_version: int
    z: Tensor
    version: int
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Note:
    """Stands in for a saved tensor: a view, of a certain geometry, of the output of an activation."""

    origin: Origin
    geometry: tuple[tuple[int, ...], tuple[int, ...], int] | None  # size, stride, offset; None is all of it

    def tensor(self) -> Tensor:
        origin = self.origin
        if origin.z._version != origin.version:
            raise RuntimeError(
                "a pre-activation needed for the backward pass was modified by an inplace operation after its "
                "activation; softgate.attach(..., share=False) keeps the activation's output as well"
            )
        y = origin.activation(origin.z)
        return y if self.geometry is None else y.as_strided(*self.geometry)


class Outputs:
    """The outputs of gated activations that later layers of one forward pass may take as their input."""

    def __init__(self) -> None:
        self._origins: dict[int, Origin] = {}  # by the id of the output

    def add(self, z: Tensor, y: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
        """Remembers that y = activation(z); `activation` must not work in place."""
        storage = type(y) is Tensor and y.device.type != "meta"  # fake and meta tensors have no address to go by
        if not _hooks_are_free() or y.grad_fn is None or not storage:
            return
        z = z.detach()
        self._origins[id(y)] = Origin(weakref.ref(y), y._version, z, z._version, activation)

    def __bool__(self) -> bool:
        return bool(self._origins)

    def forget(self, tensor: Tensor) -> None:
        """Shares an output no longer, to whose memory somebody has got access that no version counter tells of."""
        if tensor.layout is torch.strided and tensor.device.type != "meta":
            with torch._C.DisableTorchFunction():
                address = tensor.untyped_storage().data_ptr()
                gone = [key for key, origin in self._origins.items() if _lies_at(origin.output(), address)]
            for key in gone:
                del self._origins[key]

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Calls a layer, with notes in the place of the outputs it would keep."""
        if not self._origins or not _hooks_are_free():
            return func(*args, **kwargs)
        known: dict[int, Origin] = {}
        for arg in args:
            origin = self._find(arg) if isinstance(arg, Tensor) else None
            if origin is not None:
                known[arg.untyped_storage().data_ptr()] = origin
        if not known:
            return func(*args, **kwargs)

        def pack(tensor: Tensor) -> Tensor | _Note:
            if tensor.layout is not torch.strided:  # a sparse one has no storage
                return tensor
            origin = known.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
            y = None if origin is None else origin.output()
            if origin is None or y is None or tensor.dtype != y.dtype or tensor._version != origin.output_version:
                return tensor
            if tensor.shape == y.shape and tensor.stride() == y.stride() and not tensor.storage_offset():
                return _Note(origin, None)
            return _Note(origin, (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())))

        with saved_tensors_hooks(pack, _unpack):
            return func(*args, **kwargs)

    def _find(self, arg: Tensor) -> Origin | None:
        """The origin of an argument, or of the tensor it is a view of."""
        if arg.layout is not torch.strided:
            return None
        whole = arg._base if arg._is_view() else arg
        origin = self._origins.get(id(whole))
        # Ids and addresses of freed tensors are used again; the reference says whether this is still the output.
        return origin if origin is not None and origin.output() is whole else None


def _lies_at(tensor: Tensor | None, address: int) -> bool:
    return tensor is not None and tensor.untyped_storage().data_ptr() == address


def _unpack(kept: Tensor | _Note) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept.tensor()


def current_hooks() -> Any:
    """The saved-tensor hooks in force, such as those of activation checkpointing; None if there are none."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else hooks[0]


def _hooks_are_free() -> bool:
    """Whether hooks may be set: not where others are in force (checkpoints, offloading), compiled, or in torch.func."""
    autograd: Any = torch._C._autograd
    return (
        not torch.compiler.is_compiling()
        and autograd._saved_tensors_hooks_is_enabled()
        and current_hooks() is None
        and not in_transforms()
    )
