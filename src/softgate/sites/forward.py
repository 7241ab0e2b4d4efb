"""The running forward pass: which module's forward it is in, and the mode that catches its function calls.

The machinery of `softgate.sites`. A `Frame` stands in for the forward of one module of an attached model; the first
one entered puts the `Mode` on, the others only say where the pass is.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from softgate.sites.calls import ADAPTIVE_MAX_POOL2D, MAX_POOL2D, PIECEWISE, RELU, UNSUPPORTED, Call
from softgate.sites.saved_tensors import CONSUMERS, Outputs, current_hooks

if TYPE_CHECKING:
    from softgate.sites.sites import Sites


class State:
    """What is known while a forward pass runs: the module it is in, and how often each name was called."""

    def __init__(self, frame: Frame | None = None) -> None:
        self.frame = frame
        compiling = torch.compiler.is_compiling()
        self.recomputing = not compiling and torch._C._current_graph_task_id() != -1  # within a backward pass
        self.grad = compiling or torch.is_grad_enabled()
        self.hooks = None if compiling else current_hooks()
        self.checkpointed = False  # whether a part of the pass will be run again in the backward pass
        self.counts: dict[str, int] = {}
        self.missed: list[str] = []
        self.gated = 0
        self.spared = 0  # calls of sites that the rule does not choose
        self.outputs = Outputs()
        self.trace: list[Call] | None = None  # while tracing: the calls seen

    def looks_checkpointed(self) -> bool:
        """Whether gradients or saved tensors are handled otherwise than where the pass began; a cheap first look."""
        if torch.compiler.is_compiling() or self.trace is not None:
            return False
        return torch.is_grad_enabled() != self.grad or current_hooks() is not self.hooks


_RUNNING = threading.local()


def running() -> dict[int, State]:
    """The forward passes running in this thread, by the id of their `Sites`."""
    try:
        return _RUNNING.states  # type: ignore[no-any-return]  # a thread-local is untyped
    except AttributeError:
        _RUNNING.states = {}
        return _RUNNING.states  # type: ignore[no-any-return]  # a thread-local is untyped


class Frame:
    """Stands in for one module's forward: says which module is running, and enters the mode if none is."""

    def __init__(self, sites: Sites, name: str, module: nn.Module) -> None:
        self.sites = sites
        self.name = name
        self.module = module
        self.own = module.__dict__.get("forward")  # set where another tool has put a forward on this instance
        self.activation = type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())

    def inner(self, *args: Any, **kwargs: Any) -> Any:
        """The forward this frame stands in for; looked up by class, so that copies and pickles find their own."""
        if self.own is not None:
            return self.own(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module runs as its forward while attached."""
        state = self.sites.state()
        if state is None:
            return self.sites.run(self, args, kwargs)
        outer, state.frame = state.frame, self
        if not state.checkpointed and state.looks_checkpointed():
            state.checkpointed = in_checkpoint()
        try:
            return self.inner(*args, **kwargs)
        finally:
            state.frame = outer


class Mode(TorchFunctionMode):
    """Catches the function calls of one forward pass and hands the call sites to the `Sites`."""

    def __init__(self, sites: Sites, state: State) -> None:
        super().__init__()
        self.sites = sites
        self.state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in RELU or func in PIECEWISE:
            return self.sites.on_activation(self.state, func, args, kwargs)
        if func in MAX_POOL2D:
            return self.sites.on_max_pool2d(self.state, func, args, kwargs)
        if func in ADAPTIVE_MAX_POOL2D:
            return self.sites.on_adaptive_max_pool2d(self.state, func, args, kwargs)
        if func in UNSUPPORTED:
            self.sites.on_unsupported(self.state, UNSUPPORTED[func])
        elif self.state.outputs and func in CONSUMERS:
            return self.state.outputs.call(func, args, kwargs)
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
