"""The running forward pass: which module's forward it is in, and the mode that catches its function calls.

A `Frame` stands in for the forward of one module of an attached model; the first one entered asks its `Runner` to put
the `Mode` on, the others only say where the pass is. The `Mode` sorts every function call and hands the call sites to
a `Handler`, which decides what they return.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from softgate.sites.calls import SelectingCall, SiteCall, SiteId
from softgate.sites.classification import COMPARISONS, classify
from softgate.sites.saved_tensors import CONSUMERS, Outputs, current_hooks


class Handler(Protocol):
    """What decides on the call sites of a forward pass: a rule, a trace, given gates."""

    def handle(self, call: SiteCall, site: SiteId, state: State) -> Any:
        """What a call returns.

        Args:
            call: The call, sorted.
            site: Which call site makes it.
            state: The forward pass.
        """


class Runner(Protocol):
    """What runs the forward passes of the frames of one model."""

    def state(self) -> State | None:
        """The forward pass that runs in this thread, if one does."""

    def run(self, frame: Frame, args: Any, kwargs: Any) -> Any:
        """One forward pass, of the model or of a part of it that is called by itself."""


class Miss(NamedTuple):
    """A call that the rule should govern and does not reach."""

    site: SiteId
    kind: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.site.name} ({self.kind}{self.why and f' {self.why}'})"


class State:
    """What is known while a forward pass runs: the module it is in, and how often each name was called."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        compiling = torch.compiler.is_compiling()
        self.recomputing = not compiling and torch._C._current_graph_task_id() != -1  # within a backward pass
        self.grad = compiling or torch.is_grad_enabled()
        self.hooks = None if compiling else current_hooks()
        self.checkpointed = False  # whether a part of the pass will be run again in the backward pass
        self.traced = False  # whether this is a symbolic trace
        self.counts: dict[str, int] = {}
        self.missed: list[Miss] = []
        self.gated = 0
        self.spared = 0  # calls of sites that the rule does not choose
        self.selected: dict[tuple[str, str], None] = {}  # module and kind of calls that keep a gradient of their own
        self.outputs = Outputs()

    def select(self, call: SelectingCall) -> None:
        """Takes note of a call that selects data with a gradient of its own, where there is a gradient."""
        if torch.compiler.is_compiling() or (self.traced and call.kind in COMPARISONS):
            return
        if self.traced or (
            torch.is_grad_enabled() and any(_has_gradient(arg) for arg in (*call.args, *call.kwargs.values()))
        ):
            self.selected[self.frame.name or "(model)", call.kind] = None

    def identify(self, kind: str) -> SiteId:
        """The site of a call that is made now; counts it."""
        frame = self.frame
        module = frame.name or "(model)"
        if not frame.activation:
            module = f"{module}.{kind}"
        count = self.counts[module] = self.counts.get(module, 0) + 1
        return SiteId(module, count)

    def looks_checkpointed(self) -> bool:
        """Whether gradients or saved tensors are handled otherwise than where the pass began; a cheap first look."""
        if torch.compiler.is_compiling() or self.traced:
            return False
        return torch.is_grad_enabled() != self.grad or current_hooks() is not self.hooks


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


_RUNNING = threading.local()


def running() -> dict[int, State]:
    """The forward passes running in this thread, by the id of their `Runner`."""
    try:
        return _RUNNING.states  # type: ignore[no-any-return]  # a thread-local is untyped
    except AttributeError:
        _RUNNING.states = {}
        return _RUNNING.states  # type: ignore[no-any-return]  # a thread-local is untyped


class Frame:
    """Stands in for one module's forward: says which module is running, and has the pass run if none is."""

    def __init__(self, runner: Runner, name: str, module: nn.Module) -> None:
        self.runner = runner
        self.name = name
        self.module = module
        self.own = module.__dict__.get("forward")  # set where another tool has put a forward on this instance
        self.activation = type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())

    def enter(self) -> None:
        """Puts this frame in the place of the module's forward."""
        self.module.__dict__["forward"] = self.forward

    def leave(self) -> None:
        """Puts the module's forward back."""
        if self.own is not None:
            self.module.__dict__["forward"] = self.own
        else:
            self.module.__dict__.pop("forward", None)

    def inner(self, *args: Any, **kwargs: Any) -> Any:
        """The forward this frame stands in for; looked up by class, so that copies and pickles find their own."""
        if self.own is not None:
            return self.own(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module runs as its forward while attached."""
        state = self.runner.state()
        if state is None:
            return self.runner.run(self, args, kwargs)
        outer, state.frame = state.frame, self
        if not state.checkpointed and state.looks_checkpointed():
            state.checkpointed = in_checkpoint()
        try:
            return self.inner(*args, **kwargs)
        finally:
            state.frame = outer


class Mode(TorchFunctionMode):
    """Catches the function calls of one forward pass and hands those of call sites to a handler."""

    def __init__(self, handler: Handler, state: State) -> None:
        super().__init__()
        self.handler = handler
        self.state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        state = self.state
        call = classify(func, args, kwargs)
        if isinstance(call, SelectingCall):
            state.select(call)
        elif call is not None:
            return self.handler.handle(call, state.identify(call.kind), state)
        if state.outputs and func in CONSUMERS:
            return state.outputs.call(func, args, kwargs)
        return func(*args, **kwargs)


def in_checkpoint() -> bool:
    """Whether the call comes from a function that torch.utils.checkpoint runs inside the current module's forward.

    It will be run again in the backward pass, by itself, where no mode is on: its gates would be hard. A
    checkpointed module is run through its own frame and is fine.
    """
    caller = sys._getframe(1)
    while caller is not None and caller.f_code is not Frame.inner.__code__:
        if caller.f_code.co_filename == checkpoint.__file__:
            return True
        caller = caller.f_back  # type: ignore[assignment]  # None ends the loop
    return False
