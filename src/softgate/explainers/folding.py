"""A copy of a network for reading it out: BatchNorm folded into the convolutions, weights frozen, channels last.

Activations work out of place in it, and the first convolution gives its input gradient the fast way.

In eval mode a BatchNorm is an affine map with constants, and a convolution before it can do its work. The copy gives
the logits and pullbacks of the original up to rounding, in less time and memory; it is not for training.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from softgate.explainers.input_gradient import Stem
from softgate.sites.sites import attached_sites
from softgate.sites.writes import SWITCHABLE

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit, at which the folded copy is trusted."""


@contextmanager
def folding(model: nn.Module, x: Tensor) -> Iterator[nn.Module]:
    """`fold` for the time of a block; what the copy took is given back as the block ends, however it ends."""
    made = fold(model, x)
    try:
        yield made
    finally:
        if made is not model:
            _let_go(made)


def fold(model: nn.Module, x: Tensor) -> nn.Module:
    """A frozen copy in eval mode with every BatchNorm folded that directly follows a convolution.

    What follows what is seen in one forward pass, so functional code is understood too; the copy's logits are then
    compared with the original's. A network that cannot be copied or folded is returned frozen but unfolded, or, if
    it cannot be copied, as it is.

    Args:
        model: A network, attached to a rule or not; it is left as it was. A copy of an attached model is attached.
        x: [B, C, H, W] images as the model takes them; the first one is used.

    Returns:
        The copy, or `model` itself.
    """
    try:
        plain = copy.deepcopy(model)
    except (RuntimeError, TypeError, NotImplementedError):  # non-leaf tensors, locks and the like in a module
        return model
    plain.eval().requires_grad_(False)
    folded = copy.deepcopy(plain)
    with torch.no_grad(), torch.random.fork_rng([]):
        try:
            expected = _logits(folded, x[:1])
            pairs = _pairs(folded, x[:1])
            for conv, norm in pairs:
                _fold(folded, conv, norm)
            for name, module in list(folded.named_modules()):
                if isinstance(module, SWITCHABLE):
                    module.inplace = False  # under a rule it would cost two copies
                elif Stem.fits(module) and not module._forward_hooks and not module._forward_pre_hooks:
                    folded.set_submodule(name, Stem(module).eval())
            folded.to(memory_format=torch.channels_last)
            found = _logits(folded, x[:1])
        except Exception:  # the network's own code, run in a way it did not expect: read it out unfolded
            _let_go(folded)
            return plain
    close = expected.shape == found.shape and bool(
        (expected - found).abs().max() <= TOLERANCE * expected.abs().max().clamp_min(1e-6)
    )
    kept, other = (folded, plain) if close else (plain, folded)
    _let_go(other)
    return kept


def _let_go(copied: nn.Module) -> None:
    """Detaches a copy that is not needed any more.

    Attached, it holds itself, and its memory waits for Python's collector of cycles, which in a process with as many
    objects as PyTorch makes comes late.
    """
    sites = attached_sites(copied)
    if sites is not None:
        sites.detach()


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    sites = attached_sites(model)
    with sites.use(None) if sites is not None else nullcontext():
        out: Any = model(x.clone())  # which may normalise its input in place
    logits: Tensor = getattr(out, "logits", out)
    return logits


def _pairs(model: nn.Module, x: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Each convolution whose output one BatchNorm reads and nothing else does, with that BatchNorm's name."""
    made: dict[int, list[nn.Conv2d]] = {}
    read: dict[str, list[int]] = {}
    calls: Counter[int] = Counter()
    kept: list[Any] = []  # while tensors live, no other one gets their id
    handles: list[RemovableHandle] = []

    def convolved(conv: nn.Conv2d, inputs: Any, out: Tensor) -> None:
        kept.append(out)
        calls[id(conv)] += 1
        made.setdefault(id(out), []).append(conv)

    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            continue
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(convolved))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:

            def normalized(norm: nn.Module, inputs: Any, name: str = name) -> None:
                read.setdefault(name, []).append(id(inputs[0]))

            handles.append(module.register_forward_pre_hook(normalized))
    reads = _Reads()
    try:
        with reads:
            _logits(model, x)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, tensors in read.items():
        convs = made.get(tensors[0], [])
        once = len(tensors) == 1 and len(convs) == 1 and calls[id(convs[0])] == 1
        if once and reads.count[tensors[0]] == 1:
            found.append((convs[0], name))
    return found


class _Reads(TorchFunctionMode):
    """Counts how many calls that make tensors each tensor is an argument of."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self._kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(out, (Tensor, tuple, list)) and not isinstance(out, torch.Size):
            for value in (*args, *kwargs.values()):
                for tensor in value if isinstance(value, (tuple, list)) else (value,):
                    if isinstance(tensor, Tensor):
                        self.count[id(tensor)] += 1
                        self._kept.append(tensor)
        return out


def _fold(model: nn.Module, conv: nn.Conv2d, name: str) -> None:
    norm: Any = model.get_submodule(name)
    conv.weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.bias = bias
    model.set_submodule(name, nn.Identity().eval())
    conv.requires_grad_(False)
