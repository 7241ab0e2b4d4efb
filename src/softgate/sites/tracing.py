"""Symbolic traces of a model: which call sites a forward pass has, before there is one.

torch.fx runs the model's forward on symbols while a mode watches the calls, in train and in eval mode. Nothing of it
stays behind: attributes the forward sets, buffers it writes and containers it fills are put back, and users' hooks
do not run.
"""

from __future__ import annotations

import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from softgate.sites.calls import ActivationCall, PoolCall, SelectingCall, SiteCall, SiteId, UnsupportedCall
from softgate.sites.classification import METHODS, SELECTING, classify, hidden_in_compile
from softgate.sites.forward import Frame, Mode, State, entered, in_checkpoint
from softgate.sites.gating import IN_CHECKPOINT
from softgate.sites.randomness import own_random_numbers
from softgate.surrogate.selection import POOLS

SEEN = METHODS | {kind for kind in SELECTING.values() if hasattr(Tensor, kind)}
"""Tensor methods that are call sites or select data."""


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


@dataclass(frozen=True)
class TracedCall:
    """One call as a trace sees it.

    Attributes:
        site: Which call site makes it.
        kind: Of which kind it is.
        covered: Whether a rule can govern it.
        inplace: Whether its input is overwritten.
        node: The symbol of its result; None where the call was not symbolic.
        why: Why no rule reaches it where it stands; empty where one does.
        hidden: Whether torch.compile would not show it.
        kept: Whether the forward pass keeps its input elsewhere, where it must hold what it holds without softgate.
        training: Whether the module that makes it is in train mode.
    """

    site: SiteId
    kind: str
    covered: bool
    inplace: bool = False
    node: fx.Node | None = None
    why: str = ""
    hidden: bool = False
    kept: bool = False
    training: bool = False

    @property
    def reached(self) -> bool:
        """Whether a rule would govern it."""
        return self.covered and not self.why

    @property
    def source(self) -> fx.Node | None:
        """The symbol of its input."""
        if self.node is None:
            return None
        found = self.node.args[0] if self.node.args else self.node.kwargs.get("input")
        return found if isinstance(found, fx.Node) else None

    @property
    def activates(self) -> bool:
        """Whether it is an activation that a rule can govern, and no pooling."""
        return self.covered and self.kind not in POOLS


class _Tracing:
    """Handles the calls of a trace: notes them, and runs the true function on the symbols."""

    blocks: frozenset[str] = frozenset()  # symbols carry no marks: the first forward pass shows them

    def __init__(self) -> None:
        self.calls: list[TracedCall] = []

    def handle(self, call: SiteCall, site: SiteId, state: State) -> Any:
        """What the true function returns."""
        out = call.original()
        if state.without_graph:
            return out
        why = _why_not(state)
        if isinstance(call, ActivationCall):
            node, hidden = getattr(out, "node", None), hidden_in_compile(call)
            training = state.frame.module.training
            self.calls.append(TracedCall(site, call.kind, True, call.inplace, node, why, hidden, training=training))
        else:
            covered = isinstance(call, PoolCall) and call.covered
            why = call.why if isinstance(call, UnsupportedCall) and call.why else why
            self.calls.append(TracedCall(site, call.kind, covered, why=why))
        return out


def _why_not(state: State) -> str:
    return IN_CHECKPOINT if not state.frame.activation and in_checkpoint() else ""


class CallSiteTracer(fx.Tracer):
    """Traces into activations and poolings, so that a `TorchFunctionMode` around the trace sees their calls.

    Args:
        on_method: Told of tensor methods such as `x.relu_()`, which a trace records without a function call, and of
            those that select data.
    """

    def __init__(self, on_method: Callable[[str, fx.Node], None]) -> None:
        super().__init__()
        self.on_method = on_method

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
        if kind == "call_method" and target in SEEN:
            self.on_method(target, node)
        return node


def _containers(values: Iterable[Any], depth: int) -> Iterator[Any]:
    """The dicts, lists and sets among values, and those within them."""
    for value in values:
        if isinstance(value, (dict, list, set)):
            yield value
            if depth:
                yield from _containers(list(value.values()) if isinstance(value, dict) else list(value), depth - 1)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts everything back that a forward pass may change in its modules; hooks are off meanwhile."""
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    containers = [(v, v.copy()) for kept in attributes for v in _containers(kept.values(), 4)]
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


def opaque_parts(model: nn.Module) -> list[str]:
    """The parts of a model whose calls Python does not see."""
    return [
        f"{name} (scripted or compiled)"
        for name, module in model.named_modules()
        if isinstance(module, torch.jit.ScriptModule)
        or hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None)
    ]


@dataclass(frozen=True)
class Trace:
    """What a symbolic forward pass has shown.

    Attributes:
        calls: The calls of call sites, in order.
        selected: Module and kind of calls that select data with a gradient of their own.
    """

    calls: list[TracedCall]
    selected: dict[tuple[str, str], None]


def trace(model: nn.Module, frame: Frame, flipped: bool = False) -> Trace | None:
    """Runs a symbolic forward pass, or one with train and eval mode swapped; None if it fails.

    Args:
        model: The model; its modules run through their frames.
        frame: The model's own.
        flipped: Swap train and eval mode for the time of the trace.
    """
    if frame.own is not None:  # torch.fx would trace the class's forward in its place
        return None
    state, tracing = State(frame), _Tracing()
    state.traced = True

    def method(name: str, node: fx.Node) -> None:
        if state.without_graph:
            return
        why, call = _why_not(state), classify(getattr(Tensor, name), node.args, node.kwargs)
        if isinstance(call, SelectingCall):
            state.select(call)
        elif call is not None:
            site, training = state.identify(call.kind), state.frame.module.training
            inplace, hidden = False, False
            if isinstance(call, ActivationCall):
                inplace, hidden = call.inplace, hidden_in_compile(call)
            tracing.calls.append(TracedCall(site, call.kind, True, inplace, node, why, hidden, training=training))

    try:
        with (
            warnings.catch_warnings(),
            undisturbed(model),
            own_random_numbers(),
            entered(frame.runner, state),
            Mode(tracing, state),
        ):
            warnings.simplefilter("ignore")  # about symbols where users' hooks and checkpoints expect tensors
            if flipped:
                for module in model.modules():
                    module.training = not module.training
            CallSiteTracer(method).trace(model)
            kept = _kept(model)
    except Exception:
        # Tracing runs the user's forward on symbols; whatever it raises means: wait for the first forward.
        return None
    calls = [replace(call, kept=call.source in kept) for call in tracing.calls]
    return Trace(calls, state.selected)


def in_order(calls: Sequence[TracedCall], others: Sequence[TracedCall]) -> list[tuple[str, str]]:
    """(name, kind) of the covered sites of two traces; those of the second alone stand behind what they follow there.

    Args:
        calls: Of the trace in the model's mode.
        others: Of the trace in the other one.
    """
    found = [(call.site.name, str(call.kind)) for call in calls if call.covered]
    place = 0
    for call in others:
        entry = (call.site.name, str(call.kind))
        if entry in found:
            place = found.index(entry) + 1
        elif call.covered:
            found.insert(place, entry)
            place += 1
    return found


def _kept(model: nn.Module) -> set[fx.Node]:
    """The symbols that a forward pass has put into attributes of its modules, or into containers there."""
    found: set[fx.Node] = set()

    def collect(value: Any, depth: int) -> None:
        if isinstance(value, fx.Proxy):
            found.add(value.node)
        elif depth and isinstance(value, dict):
            for part in list(value.values()):
                collect(part, depth - 1)
        elif depth and isinstance(value, (list, tuple, set)):
            for part in list(value):
                collect(part, depth - 1)

    for module in model.modules():
        collect(module.__dict__, 4)
    return found
