"""Symbolic traces of a model: which call sites a forward pass has, before there is one.

torch.fx runs the model's forward on symbols while the mode of `softgate.sites` watches the calls. Nothing of it
stays behind: attributes the forward sets, buffers it writes and containers it fills are put back, and users' hooks
do not run.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from softgate.sites.calls import METHODS, Call

FRESH = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
"""Modules whose output is a new tensor, never their input or a view of it."""

OPERATORS = ("relu", "hardtanh", "threshold", "max_pool", "gelu", "silu", "hardswish", "elu")
"""Parts of the names of operators that are activations or max poolings."""

IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class _Symbol(fx.Proxy):
    """A proxy that tells `a += b` from `a + b`; torch.fx's own records both as an addition."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class CallSiteTracer(fx.Tracer):
    """Traces into activations and poolings, so that a `TorchFunctionMode` around the trace sees their calls.

    Args:
        on_method: Told of tensor methods such as `x.relu_()`, which a trace records without a function call.
        on_operator: Told of operators such as `torch.ops.aten.relu`, which no mode sees.
    """

    def __init__(self, on_method: Callable[[str, fx.Node], None], on_operator: Callable[[str], None]) -> None:
        super().__init__()
        self.on_method = on_method
        self.on_operator = on_operator

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Convolutions, norms and the like are leaves; whatever may call an activation is not."""
        inside = ("activation", "pooling", "transformer", "container")
        package, _, file = type(m).__module__.rpartition(".")
        return package == "torch.nn.modules" and file not in inside

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A symbol for a node's value."""
        return _Symbol(node, self)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Reports the tensor methods that are call sites."""
        node = super().create_node(kind, target, *args, **kwargs)
        if kind == "call_method" and target in METHODS:
            self.on_method(target, node)
        if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            name = str(target)
            if any(part in name for part in OPERATORS):
                self.on_operator(name)
        return node


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts everything back that a forward pass may change in its modules; hooks are off meanwhile."""
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    containers = [(v, v.copy()) for kept in attributes for v in kept.values() if isinstance(v, (dict, list, set))]
    buffers = [(b, b.clone(), b._version) for b in model.buffers() if not b.is_inference()]
    for module in modules:
        module.__dict__ |= {"_forward_hooks": OrderedDict(), "_forward_pre_hooks": OrderedDict()}
    try:
        yield
    finally:
        for module, kept in zip(modules, attributes, strict=True):
            module.__dict__.clear()
            module.__dict__.update(kept)
        for container, contents in containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(contents)
        for buffer, value, version in buffers:
            if buffer._version != version:
                buffer.copy_(value)


def reads_alone(call: Call, root: nn.Module) -> bool:
    """Whether an activation's input is a new tensor that nothing else reads, so that in-place is not needed.

    Errs on the side of no: whatever could alias another tensor (a view, a chunk, a dropout in eval mode, the
    model's own input) counts as read by others.
    """
    source = _source(call)
    while source is not None and len(source.users) == 1:
        if source.op == "call_module":
            return isinstance(root.get_submodule(str(source.target)), FRESH)
        if source.target in (operator.add, torch.add, torch.cat):
            return True
        if source.target is not operator.iadd:
            return False
        source = source.args[0] if isinstance(source.args[0], fx.Node) else None
    return False


def is_overwritten(call: Call) -> bool:
    """Whether something else writes into an activation's input, which must then be kept in a copy."""
    source = _source(call)
    if source is None:
        return call.node is None
    return any(_writes(user, source) for user in source.users if user is not call.node)


def _source(call: Call) -> fx.Node | None:
    if call.node is None:
        return None
    source = call.node.args[0] if call.node.args else call.node.kwargs.get("input")
    return source if isinstance(source, fx.Node) else None


def _writes(node: fx.Node, target: fx.Node) -> bool:
    if not node.args or node.args[0] is not target:
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    method = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
    function = node.op == "call_function" and (node.target in IN_PLACE or name.endswith("_"))
    return method or function or bool(node.kwargs.get("inplace"))
