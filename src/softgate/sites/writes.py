"""What a trace says of writes: which activations need not work in place, and whose input is written to later."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from softgate.sites.calls import SiteId
from softgate.sites.tracing import TracedCall

FRESH = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
"""Modules whose output is a new tensor, never their input or a view of it."""

SWITCHABLE = (
    *(nn.ReLU, nn.Hardtanh, nn.LeakyReLU),
    *(nn.SiLU, nn.Hardswish, nn.Mish, nn.ELU, nn.SELU, nn.CELU),
)
"""Modules whose `inplace` flag can be switched off; nn.ReLU6 is a Hardtanh."""

IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)

VIEWS = frozenset(
    "view view_as reshape reshape_as flatten ravel unflatten squeeze unsqueeze transpose t permute movedim moveaxis "
    "swapaxes swapdims expand expand_as broadcast_to narrow select chunk split tensor_split unbind unfold diagonal "
    "detach contiguous as_strided getitem getattr".split()
)
"""Functions and methods whose result may lie in the memory of their first argument."""

VIEWING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
"""Modules of which that is true."""


def reads_alone(call: TracedCall, root: nn.Module) -> bool:
    """Whether an activation's input is a new tensor that nothing else reads, so that in-place is not needed.

    Errs on the side of no: whatever could alias another tensor (a view, a chunk, a dropout in eval mode, the
    model's own input) counts as read by others.
    """
    source = None if call.kept else call.source
    while source is not None and len(source.users) == 1:
        if source.op == "call_module":
            return isinstance(root.get_submodule(str(source.target)), FRESH)
        if source.target in (operator.add, torch.add, torch.cat):
            return True
        if source.target is not operator.iadd:
            return False
        source = source.args[0] if isinstance(source.args[0], fx.Node) else None
    return False


def overwritten(calls: Iterable[TracedCall], root: nn.Module) -> set[str]:
    """The modules of activations whose input something writes into afterwards: it must be kept in a copy.

    Args:
        calls: Of one trace or of several.
        root: The model that was traced.
    """
    calls = list(calls)
    writers = {call.node for call in calls if call.inplace}
    return {call.site.module for call in calls if call.activates and _is_overwritten(call, writers, root)}


def _is_overwritten(call: TracedCall, writers: set[fx.Node | None], root: nn.Module) -> bool:
    source = call.source
    if source is None or call.node is None:
        return call.node is None
    seen, todo = {source}, [source]
    while todo:  # the input, what it is a view of, and the views of that
        alias = todo.pop()
        if any(call.node < user and (user in writers or _writes(user, alias, root)) for user in alias.users):
            return True
        near = [alias.args[0]] if _may_view(alias, root) and alias.args else []
        for node in (*near, *(user for user in alias.users if _may_view(user, root) and user.args[:1] == (alias,))):
            if isinstance(node, fx.Node) and node not in seen:
                seen.add(node)
                todo.append(node)
    return False


def _called(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _may_view(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node's value may lie in the memory of its first argument."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), VIEWING)
    return _called(node) in VIEWS or bool(node.args and _writes(node, node.args[0], root))


def _writes(node: fx.Node, target: Any, root: nn.Module) -> bool:
    if not node.args or node.args[0] is not target:
        return False
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = _called(node)
    method = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
    function = node.op == "call_function" and (node.target in IN_PLACE or name.endswith("_"))
    return method or function or bool(node.kwargs.get("inplace"))


def avoid_inplace(model: nn.Module, calls: Iterable[TracedCall]) -> tuple[set[SiteId], list[nn.Module]]:
    """Switches in-place off where the traces, in train and in eval mode, show that nobody needs it.

    Args:
        model: The model that was traced.
        calls: Its in-place calls.

    Returns:
        The call sites that need not work in place, and the modules whose `inplace` was switched off.
    """
    calls = list(calls)
    needed = {call.site.module for call in calls if not reads_alone(call, model)}
    fresh = {call.site for call in calls if call.site.module not in needed}
    switched: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, SWITCHABLE) and module.inplace and SiteId(name) in fresh:
            module.inplace = False
            switched.append(module)
    return fresh, switched
