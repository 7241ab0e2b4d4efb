"""The slow reference for any network: a mode that computes activations and max poolings by the formulas of `reference`.

It sorts calls by the names of functions, counts sites and finds their names by itself, and imports nothing of softgate.
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

import reference

POOLS = {"lse": reference.max_pool2d, "softmax_full": reference.softmax_pool2d}


@dataclass
class Law:
    """What governs a network: gate(z), the pooling's name ("lse", "softmax_full", "hard"), its temperature, the mix.

    `chosen` are the names of the governed sites; None is all.
    """

    gate: Any
    pool: str = "lse"
    temperature: float = 0.3
    mix: float = 1.0
    chosen: Any = None


@dataclass
class Activation:
    """base * z + sum of slope * relu(z - kink), up to a constant."""

    kind: str
    data: Tensor
    base: float = 0.0
    kinks: tuple = ((1.0, 0.0),)
    inplace: bool = False


@dataclass
class Pooling:
    """A max pooling; where it is over dimensions and not by windows, `planes` has them last."""

    kind: str
    data: Tensor
    geometry: tuple
    indices: bool = False
    planes: Any = None


def _relu(input, inplace=False):
    return Activation("relu", input, inplace=inplace)


def _relu6(input, inplace=False):
    return _hardtanh(input, 0.0, 6.0, inplace)


def _hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    kind = "relu6" if (min_val, max_val) == (0, 6) else "hardtanh"
    return Activation(kind, input, 0.0, ((1.0, min_val), (-1.0, max_val)), inplace)


def _leaky_relu(input, negative_slope=0.01, inplace=False):
    return Activation("leaky_relu", input, negative_slope, ((1 - negative_slope, 0.0),), inplace)


def _clamp(input, min=None, max=None):
    return Activation("relu", input) if max is None and not isinstance(min, Tensor) and min == 0 else None


def _threshold(input, threshold, value, inplace=False):
    return Activation("relu", input, inplace=inplace)


def _maximum(input, other):
    for z, zeros in ((input, other), (other, input)):
        if not zeros.requires_grad and not zeros.any() and torch.broadcast_shapes(z.shape, zeros.shape) == z.shape:
            return Activation("relu", z)
    return None


def _max(input, dim=None, keepdim=False):
    if isinstance(dim, Tensor):
        return _maximum(input, dim)
    return None if dim is None else _amax(input, dim, keepdim, indices=True)


def _amax(input, dim=(), keepdim=False, indices=False):
    dims = {d % input.dim() for d in ((dim,) if isinstance(dim, int) else dim)}
    if not dims or min(dims) < 2:
        return None
    kept = [d for d in range(input.dim()) if d not in dims]
    planes = input.permute(*kept, *sorted(dims)).flatten(len(kept)).unsqueeze(-1)
    return Pooling("amax", input, ((planes.shape[-2], 1),), indices, planes)


def _max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    return Pooling("max_pool2d", x, (kernel_size, stride, padding, dilation, ceil_mode), return_indices)


def _adaptive_max_pool2d(x, output_size, return_indices=False):
    wanted = [
        have if want is None else want for have, want in zip(x.shape[-2:], reference.pair(output_size), strict=True)
    ]
    window = tuple(have // want for have, want in zip(x.shape[-2:], wanted, strict=True))
    return Pooling("adaptive_max_pool2d", x, (window,), return_indices)


SORTERS = {
    **dict.fromkeys(("relu", "relu_"), _relu),
    "relu6": _relu6,
    **dict.fromkeys(("hardtanh", "hardtanh_"), _hardtanh),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), _leaky_relu),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"), _clamp),
    **dict.fromkeys(("threshold", "threshold_", "_threshold"), _threshold),
    "maximum": _maximum,
    "max": _max,
    "amax": _amax,
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _max_pool2d),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool2d_with_indices"), _adaptive_max_pool2d),
}


class Reference(TorchFunctionMode):
    """While it is on, a model's activations and poolings have the gradients that a law gives them.

    Checkpoints run their functions as they are: the gradients are the same.

    Attributes:
        sites: (name, kind) of the calls, in their order.
    """

    def __init__(self, model, law):
        super().__init__()
        self.model, self.law = model, law
        self.sites = []
        self._counts = Counter()
        self._path = [("(model)", False)]

    def __enter__(self):
        self._undo = ExitStack()
        for name, module in self.model.named_modules():
            own = module.__dict__.get("forward")
            module.forward = self._following(name or "(model)", module, module.forward)
            self._undo.callback(module.__dict__.pop, "forward") if own is None else self._undo.callback(
                setattr, module, "forward", own
            )
        direct = mock.patch.object(checkpoint, "checkpoint", lambda function, *args, use_reentrant: function(*args))
        self._undo.enter_context(direct)
        return super().__enter__()

    def __exit__(self, *exception):
        self._undo.close()
        return super().__exit__(*exception)

    def _following(self, name, module, forward):
        alone = type(module).__module__.startswith("torch.nn.modules") and not any(module.children())

        def followed(*args, **kwargs):
            self._path.append((name, alone))
            try:
                return forward(*args, **kwargs)
            finally:
                self._path.pop()

        return followed

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "")
        call = SORTERS[called](*args, **kwargs) if called in SORTERS else None
        if call is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        module, alone = self._path[-1]
        name = module if alone else f"{module}.{call.kind}"
        self._counts[name] += 1
        if self._counts[name] > 1:
            name = f"{name}#{self._counts[name]}"
        self.sites.append((name, call.kind))
        if not call.data.is_floating_point() or (self.law.chosen is not None and name not in self.law.chosen):
            return func(*args, **kwargs)
        if isinstance(call, Activation):
            return self._activated(call, func, args, kwargs)
        return self._pooled(call, func(*args, **kwargs))

    def _activated(self, call, func, args, kwargs):
        z = call.data
        fresh = (
            [z.clone() if value is z else value for value in args],
            {key: z.clone() if value is z else value for key, value in kwargs.items()},
        )
        true = func(*fresh[0], **fresh[1])
        injected = call.base * z
        for slope, kink in call.kinks:
            injected = injected + slope * z * self.law.gate(z - kink).detach()
        out = self._mixed(injected, true)
        return z.copy_(out) if call.inplace or func.__name__.endswith("_") else out

    def _pooled(self, call, found):
        true = found[0] if call.indices or isinstance(found, tuple) else found
        if self.law.pool == "hard":
            return found
        x = call.data if call.planes is None else call.planes
        soft = POOLS[self.law.pool](x, *call.geometry, temperature=self.law.temperature)
        out = self._mixed(soft.reshape(true.shape), true)
        if not isinstance(found, tuple):
            return out
        return type(found)((out, found[1])) if call.kind == "amax" else (out, found[1])

    def _mixed(self, soft, true):
        """The true value with the gradient of the mix."""
        mixed = soft if self.law.mix == 1 else self.law.mix * soft + (1 - self.law.mix) * true
        return mixed - mixed.detach() + true.detach()
