"""The running forward pass: which module's forward it is in, and the mode that catches its function calls.

A `Frame` stands in for the forward of one module of an attached model; the first one entered asks its `Runner` to put
the `Mode` on, the others only say where the pass is. The `Mode` sorts every function call and hands the call sites to
a `Handler`, which decides what they return.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import checkpoint

from softgate.errors import SoftgateError
from softgate.sites.batch_norms import ONE_IMAGE, in_order
from softgate.sites.blocks import ACTIVATION_GATES, FROM_DATA, GATES, OPENED, Mark, Marks, block_of
from softgate.sites.calls import SelectingCall, SiteCall, SiteId
from softgate.sites.classification import COMPARISONS, classify
from softgate.sites.saved_tensors import CONSUMERS, ESCAPES, Outputs, current_hooks

FRAMEWORKS = ("torch", "pytorch_lightning", "lightning", "builtins", "abc", "typing")
"""Packages whose methods beside forward are no part of a network."""


class Handler(Protocol):
    """What decides on the call sites of a forward pass: a rule, a trace, given gates."""

    @property
    def blocks(self) -> frozenset[str]:
        """Which of "norm", "attention" and "product" are call sites to it."""

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

    def run_method(self, frame: Frame, name: str, args: Any, kwargs: Any) -> Any:
        """A call of a public method other than forward, outside of any forward pass."""


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
        self.fused = False  # whether attention without a graph may run as it would without a mode
        self.counts: dict[str, int] = {}
        self.missed: list[Miss] = []
        self.gated = 0
        self.known = False  # whether the model has call sites that a rule covers, in this pass or in others
        self.hard: Counter[str] = Counter()  # autograd nodes of calls that kept their true gradient, by family
        self.selected: dict[tuple[str, str], None] = {}  # module and kind of calls that keep a gradient of their own
        self.outputs = Outputs()
        self.marks = Marks()
        self.watched: list[tuple[tuple[str, bool], Tensor, int]] = []  # inputs of activations, and their versions then
        self.refusal: SoftgateError | None = None  # what a handler has raised; scripted code makes another error of it
        self.within: State | None = None  # the pass of another attached model that runs inside of this one

    @property
    def without_graph(self) -> bool:
        """Whether gradients are off here alone: in a no_grad block, or in the forward of an autograd Function."""
        inside = self.grad and not torch.compiler.is_compiling() and not torch.is_grad_enabled()
        return inside and not in_first_run()

    def select(self, call: SelectingCall) -> None:
        """Takes note of a call that selects data with a gradient of its own, where there is a gradient."""
        if torch.compiler.is_compiling() or (self.traced and (call.kind in COMPARISONS or self.without_graph)):
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


@contextmanager
def entered(runner: Runner, state: State) -> Iterator[None]:
    """Lets a forward pass be the one of its runner that runs in this thread, and the innermost of all."""
    states = running()
    outer = next(reversed(states.values()), None)
    states[id(runner)] = state
    if outer is not None:
        outer.within = state
    try:
        yield
    finally:
        del states[id(runner)]
        if outer is not None:
            outer.within = None
            outer.hard += state.hard


class Frame:
    """Stands in for one module's forward: says which module is running, and has the pass run if none is."""

    def __init__(self, runner: Runner, name: str, module: nn.Module) -> None:
        self.runner = runner
        self.name = name
        self.module = module
        self.own = module.__dict__.get("forward")  # set where another tool has put a forward on this instance
        self.activation = type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())

    def enter(self) -> None:
        """Puts this frame in the place of the module's forward, and `Method`s in that of its other public ones."""
        own = self.module.__dict__
        own["forward"] = self.forward
        own["_replicate_for_data_parallel"] = self.replicate
        kind: Any = type(self.module)
        for name in public_methods(kind):
            own.setdefault(name, Method(self, name))

    def leave(self) -> None:
        """Puts the module's forward back."""
        if self.own is not None:
            self.module.__dict__["forward"] = self.own
        else:
            self.module.__dict__.pop("forward", None)
        own = self.module.__dict__
        own.pop("_replicate_for_data_parallel", None)
        for name in [name for name, value in own.items() if isinstance(value, Method)]:
            del own[name]

    @property
    def replaced(self) -> bool:
        """Whether something else was put in the place of the module's forward since `enter`."""
        return getattr(self.module.__dict__.get("forward"), "__self__", None) is not self

    def replicate(self) -> nn.Module:
        """The module's replica for another device, with a frame of its own: this one would run the module itself."""
        replica: nn.Module = type(self.module)._replicate_for_data_parallel(self.module)  # type: ignore[no-untyped-call]  # torch's is untyped
        for name in [name for name, value in replica.__dict__.items() if isinstance(value, Method)]:
            del replica.__dict__[name]
        frame = Frame(self.runner, self.name, replica)
        frame.own = self.own
        frame.enter()
        return replica

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
            if state.fused and isinstance(self.module, nn.MultiheadAttention) and _alone(args):
                with torch._C.DisableTorchFunction():  # it has another kernel, which it takes where no mode is on
                    return self.inner(*args, **kwargs)
            return self.inner(*args, **kwargs)
        finally:
            state.frame = outer


def _alone(args: Any) -> bool:
    """Whether a call without a graph on plain tensors is seen by no mode but softgate's."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return len(_get_current_function_mode_stack()) == 1 and all(type(arg) is Tensor for arg in args)  # type: ignore[no-untyped-call]  # torch's is untyped


class Method:
    """Stands in for a public method of a module other than forward; within a forward pass it is the method itself."""

    def __init__(self, frame: Frame, name: str) -> None:
        self.frame = frame
        self.name = self.__name__ = name
        self.__doc__ = getattr(type(frame.module), name).__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the method, by way of the runner where no pass runs."""
        frame = self.frame
        if frame.runner.state() is not None or torch.compiler.is_compiling():
            return self.inner(*args, **kwargs)
        return frame.runner.run_method(frame, self.name, args, kwargs)

    def inner(self, *args: Any, **kwargs: Any) -> Any:
        """The method."""
        module = self.frame.module
        return getattr(type(module), self.name)(module, *args, **kwargs)


@functools.cache
def public_methods(kind: Any) -> tuple[str, ...]:
    """The names of the public methods that a class of modules adds to those of its framework."""
    found: dict[str, None] = {}
    for base in kind.__mro__:
        if base.__module__.split(".")[0] in FRAMEWORKS:
            continue
        for name, value in vars(base).items():
            if isinstance(value, types.FunctionType) and not name.startswith("_"):
                found[name] = None
    frameworks = [base for base in kind.__mro__ if base.__module__.split(".")[0] in FRAMEWORKS]
    return tuple(name for name in found if not any(hasattr(base, name) for base in frameworks))


def attached_frame(module: nn.Module) -> Frame | None:
    """The frame that stands in for a module's forward, or None."""
    frame = getattr(module.__dict__.get("forward"), "__self__", None)
    return frame if isinstance(frame, Frame) else None


class Mode(TorchFunctionMode):
    """Catches the function calls of one forward pass and hands those of call sites to a handler."""

    def __init__(self, handler: Handler, state: State) -> None:
        super().__init__()
        self.handler = handler
        self.state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        state = self.state
        if state.within is not None:  # a model of its own runs within this one, with sites and a rule of its own
            return func(*args, **kwargs)
        if self.handler.blocks:
            return self._with_blocks(func, args, kwargs)
        return self._run(func, args, kwargs)

    def _with_blocks(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A call where normalisations, attention and products are call sites too."""
        state, wanted = self.state, self.handler.blocks
        if func in OPENED and "attention" in wanted:
            with self:
                return OPENED[func](*args, **kwargs)
        block = block_of(func, args, kwargs, wanted)
        if block is not None:
            out = self.handler.handle(block, state.identify(block.kind), state)
        else:
            gate = func in GATES and "product" in wanted
            out = func(*args, **kwargs) if gate else self._run(func, args, kwargs)
            state.marks.watch(func, args, kwargs, out, state.frame.name or "(model)", wanted)
        if wanted & FROM_DATA:
            state.marks.follow(func, args, kwargs, out)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        state = self.state
        call = classify(func, args, kwargs)
        if isinstance(call, SelectingCall):
            state.select(call)
        elif call is not None:
            out = self.handler.handle(call, state.identify(call.kind), state)
            if call.kind in ACTIVATION_GATES and "product" in self.handler.blocks:
                state.marks.put(out, Mark("activation", state.frame.name, call.kind))
            return out
        if state.outputs and func in ESCAPES:
            state.outputs.forget(args[0])
        out = state.outputs.call(func, args, kwargs) if state.outputs and func in CONSUMERS else func(*args, **kwargs)
        return in_order(out, func, args, kwargs) if func in ONE_IMAGE else out


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


def in_first_run() -> bool:
    """Whether a re-entrant checkpoint runs the call: without gradients now, and with them in the backward pass."""
    caller = sys._getframe(1)
    while caller is not None and caller.f_code is not checkpoint.CheckpointFunction.forward.__code__:
        caller = caller.f_back  # type: ignore[assignment]  # None ends the loop
    return caller is not None
