"""Call sites: finding every ReLU and max pooling of a model, by module or by function, and gating them.

`attach` makes a model's forward pass run under a `TorchFunctionMode`, which sees `nn.ReLU`, `F.relu`,
`torch.relu`, `x.relu_()` and `F.max_pool2d` alike and puts `softgate.functional` in their place. No module is
replaced and no parameter is added, so state dicts stay as they are. What a rule cannot cover is an error that
names the call sites: a model never runs with hard gates that its user believes to be soft.

A call site is one call in one forward pass. A module called twice has two: `layer1.0.relu` and
`layer1.0.relu#2`. A functional call is named after the module whose forward makes it: `features.norm5`'s
parent in DenseNet is the model itself, so its call is `(model).relu`.

Only `forward` is covered. A method of your own that calls `F.relu` outside of any module's forward is not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from softgate import functional
from softgate.callsites import (
    INPLACE,
    MAX_POOL2D,
    RELU,
    UNSUPPORTED,
    CallSiteTracer,
    activation_nodes,
    is_sole_reader,
    max_pool2d_arguments,
)
from softgate.errors import NoCallSites, SoftgateError, UnreachableSites
from softgate.surrogate import Surrogate


@dataclass
class Site:
    """One call site.

    Attributes:
        name: Dotted module path, with `.relu` for a functional call and `#2`, `#3` for repeated calls.
        kind: "relu", "max_pool2d", or the name of an activation or pooling that no rule covers.
        covered: Whether a rule governs its backward pass.
        calls: How many forward passes have run it since `attach` (not counted under torch.compile).
    """

    name: str
    kind: str
    covered: bool
    calls: int = 0


class _State:
    """What is known while a forward pass runs: the module it is in, and how often each name was called."""

    def __init__(self) -> None:
        self.frame: _Frame | None = None
        self.counts: dict[str, int] = {}
        self.missed: list[str] = []
        self.gated = 0
        self.inplace: dict[str, Any] = {}  # while tracing: in-place calls, by the name of their site


_RUNNING = threading.local()


def _states() -> dict[int, _State]:
    """The forward passes running in this thread, by the id of their `Sites`."""
    try:
        return _RUNNING.states  # type: ignore[no-any-return]
    except AttributeError:
        _RUNNING.states = {}
        return _RUNNING.states  # type: ignore[no-any-return]


class _Frame:
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
        state = self.sites._running()
        if state is None:
            return self.sites._run(self, args, kwargs)
        outer, state.frame = state.frame, self
        try:
            return self.inner(*args, **kwargs)
        finally:
            state.frame = outer


class _Mode(TorchFunctionMode):
    def __init__(self, sites: Sites, state: _State) -> None:
        super().__init__()
        self.sites = sites
        self.state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in RELU:
            return self.sites._relu(self.state, func, args, kwargs)
        if func in MAX_POOL2D:
            return self.sites._max_pool2d(self.state, func, args, kwargs)
        if func in UNSUPPORTED:
            self.sites._count(self.state, UNSUPPORTED[func], covered=False)
        return func(*args, **kwargs)


class Sites:
    """The call sites of one model, from `attach` until `detach`.

    Attributes:
        model: The model.
        rule: The rule in force; None means the true gradient.
    """

    def __init__(self, model: nn.Module, rule: Surrogate | None, *, discover: bool = True) -> None:
        _check_attachable(model)
        self.model = model
        self.rule = rule
        self._table: dict[str, Site] = {}
        self._compiling: _State | None = None
        self._audited = False
        self._inplace: list[nn.Module] = []  # modules whose `inplace` is switched off while attached
        self._fresh: set[str] = set()  # functional sites whose in-place call may be an ordinary one
        self._frames = [_Frame(self, name, module) for name, module in model.named_modules()]
        for frame in self._frames:
            frame.module.__dict__["forward"] = frame.forward
        if discover:
            try:
                self._discover()
            except BaseException:
                self.detach()
                raise

    # -- what users call ------------------------------------------------------------------------------

    def use(self, rule: Surrogate | None) -> AbstractContextManager[Sites]:
        """Puts another rule in force, at once and until further notice.

        Args:
            rule: The rule, or None for the true gradient.

        Returns:
            A context manager; used in a `with`, it puts the former rule back at the end of the block.
        """
        former, self.rule = self.rule, rule
        return _restoring(self, former)

    def detach(self) -> None:
        """Undoes `attach`: forwards and `inplace` flags are as they were. Calling it twice is fine."""
        for frame in self._frames:
            if frame.own is not None:
                frame.module.__dict__["forward"] = frame.own
            else:
                frame.module.__dict__.pop("forward", None)
        for module in self._inplace:
            module.inplace = True  # type: ignore[assignment]
        self._frames, self._inplace, self._fresh = [], [], set()

    def __enter__(self) -> Sites:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    @property
    def attached(self) -> bool:
        """Whether the model still runs through these sites."""
        return bool(self._frames)

    def table(self) -> list[Site]:
        """Every call site known so far, in the order of the forward pass."""
        return list(self._table.values())

    def count(self, kind: str = "relu") -> int:
        """How many call sites of a kind are covered."""
        return sum(site.covered and site.kind == kind for site in self._table.values())

    def report(self) -> str:
        """The coverage table: name, kind, calls since `attach`, covered or not; one line each, and a sum."""
        sites = self.table()
        if not sites:
            return "no call sites seen yet: the model could not be traced, run one forward pass first"
        width = max(len("call site"), *(len(site.name) for site in sites))
        lines = [f"{'call site':<{width}}  {'kind':<12}  {'calls':>6}  covered"]
        lines += [
            f"{site.name:<{width}}  {site.kind:<12}  {site.calls:>6}  {'yes' if site.covered else 'NO'}"
            for site in sites
        ]
        covered = sum(site.covered for site in sites)
        lines.append(f"{covered} of {len(sites)} covered: {self.count()} relu, {self.count('max_pool2d')} max_pool2d")
        return "\n".join(lines)

    # -- running the model ----------------------------------------------------------------------------

    def _running(self) -> _State | None:
        if torch.compiler.is_compiling():
            return self._compiling
        return _states().get(id(self))

    def _run(self, frame: _Frame, args: Any, kwargs: Any) -> Any:
        """One forward pass, of the model or of a part of it that is called by itself."""
        state = _State()
        state.frame = frame
        if torch.compiler.is_compiling():
            self._compiling = state
            try:
                with _Mode(self, state):
                    return frame.inner(*args, **kwargs)
            finally:
                self._compiling = None
        states = _states()
        states[id(self)] = state
        try:
            with _Mode(self, state):
                out = frame.inner(*args, **kwargs)
        finally:
            del states[id(self)]
        if self.rule is not None:
            self._verify(frame, state, (args, kwargs), out)
        return out

    def _relu(self, state: _State, func: Any, args: Any, kwargs: Any) -> Any:
        name = self._count(state, "relu")
        z, inplace = _relu_arguments(*args, **kwargs)
        inplace = inplace or func in INPLACE
        rule = self.rule
        if rule is None or not rule.softens_relu:
            out = func(*args, **kwargs)
            if inplace and isinstance(out, fx.Proxy):
                state.inplace[name] = out.node
            return out
        return functional.relu(z, rule, inplace=inplace and name not in self._fresh)

    def _max_pool2d(self, state: _State, func: Any, args: Any, kwargs: Any) -> Any:
        x, settings, indices = max_pool2d_arguments(func, *args, **kwargs)
        self._count(state, "max_pool2d", covered=not indices)
        rule = self.rule
        if rule is None or indices or not rule.softens_pool:
            return func(*args, **kwargs)
        return functional.max_pool2d(x, *settings, pool=rule.pool, mix=rule.mix)

    def _count(self, state: _State, kind: str, covered: bool = True) -> str:
        """Registers a call and returns the name of its site."""
        frame = state.frame
        assert frame is not None
        name = frame.name or "(model)"
        if not frame.activation:
            name = f"{name}.{kind}"
        count = state.counts[name] = state.counts.get(name, 0) + 1
        if count > 1:
            name = f"{name}#{count}"
        if covered:
            state.gated += 1
        else:
            state.missed.append(f"{name} ({kind})")
        if not torch.compiler.is_compiling():
            site = self._table.setdefault(name, Site(name, kind, covered))
            site.calls += 1
        return name

    # -- what must not go unnoticed -------------------------------------------------------------------

    def _verify(self, frame: _Frame, state: _State, inputs: Any, out: Any) -> None:
        """Raises if this forward pass had activations that the rule does not cover, or none that it does."""
        if state.missed:
            raise _unreachable(self.model, state.missed)
        if frame.module is not self.model:
            return
        if not state.gated:
            raise _no_sites(self.model)
        if not self._audited and torch.is_grad_enabled():
            self._audited = True
            soft = self.rule is not None and self.rule.softens_relu and self.rule.softens_pool
            hidden = activation_nodes(inputs, out) if soft else []
            if hidden:
                raise UnreachableSites(
                    f"{type(self.model).__name__} has activations that run outside of Python, where no rule reaches "
                    f"them: {', '.join(hidden)}. Attach to the model before scripting or exporting it."
                )

    def _discover(self) -> None:
        """Fills the table before the first forward pass, from a symbolic trace where the model allows one."""
        scripted = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, torch.jit.ScriptModule) or getattr(module, "_compiled_call_impl", None)
        ]
        if scripted:
            raise _unreachable(self.model, [f"{name} (scripted or compiled)" for name in scripted])
        tracer, state = CallSiteTracer(), _State()
        state.frame = self._frames[0]
        rule, self.rule = self.rule, None
        states = _states()
        states[id(self)] = state
        try:
            with _Mode(self, state):
                tracer.trace(self.model)
        except Exception:
            # Tracing runs the user's forward on symbols; whatever it raises means: wait for the first forward.
            self._table = {}
            return
        finally:
            self.rule = rule
            del states[id(self)]
        for site in self._table.values():
            site.calls = 0
        if state.missed and rule is not None:
            raise _unreachable(self.model, state.missed)
        if not state.gated:
            raise _no_sites(self.model)
        self._avoid_inplace(state.inplace)

    def _avoid_inplace(self, calls: dict[str, Any]) -> None:
        """Switches in-place off where the trace shows that nobody needs it.

        An in-place call must copy its pre-activation to keep it, an ordinary one need not.
        """
        needed = {name.split("#")[0] for name, node in calls.items() if not is_sole_reader(node, self.model)}
        self._fresh = {name for name in calls if name.split("#")[0] not in needed}
        for frame in self._frames:
            if isinstance(frame.module, nn.ReLU) and frame.module.inplace and frame.name in self._fresh:
                frame.module.inplace = False
                self._inplace.append(frame.module)


def attach(model: nn.Module, rule: Surrogate | None) -> Sites:
    """Puts a rule in force at every ReLU and max-pool call site of a model.

    Args:
        model: Any module, in train or eval mode. Attach before wrapping it in DistributedDataParallel and
            before torch.compile.
        rule: The rule; None leaves the true gradient until `Sites.use` says otherwise.

    Returns:
        The sites; a context manager that detaches at the end of its block, also after an exception.

    Raises:
        NoCallSites: If the model has nothing to gate.
        UnreachableSites: If it has activations or max poolings that no rule covers; they are listed. Raised here
            if the model can be traced symbolically, else at the end of the first forward pass.
        SoftgateError: If the model is attached already, or is scripted or compiled.
    """
    return Sites(model, rule)


def detach(model: nn.Module) -> None:
    """Undoes `attach` on a model whose `Sites` are not at hand, for example on a deep copy.

    Raises:
        SoftgateError: If the model is not attached.
    """
    sites = attached_sites(model)
    if sites is None:
        raise SoftgateError(f"detach: {type(model).__name__} is not attached to a rule.")
    sites.detach()


def attached_sites(model: nn.Module) -> Sites | None:
    """The sites a model is attached to, or None."""
    frame = getattr(model.__dict__.get("forward"), "__self__", None)
    return frame.sites if isinstance(frame, _Frame) else None


@contextmanager
def _restoring(sites: Sites, former: Surrogate | None) -> Iterator[Sites]:
    try:
        yield sites
    finally:
        sites.rule = former


def _check_attachable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise SoftgateError(f"attach: {type(model).__name__} given; a torch.nn.Module is needed.")
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise SoftgateError(
            f"attach: {kind} is scripted, its activations run outside of Python; attach first, then script."
        )
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise SoftgateError(f"attach: {kind} is compiled already; attach to the model first, then compile it.")
    for name, module in model.named_modules():
        if attached_sites(module) is not None:
            where = f"its part '{name}'" if name else "it"
            raise SoftgateError(f"attach: {kind}: {where} is attached already; detach() first, or use(rule).")


def _relu_arguments(input: Tensor, inplace: bool = False) -> tuple[Tensor, bool]:
    return input, inplace


def _unreachable(model: nn.Module, missed: Iterable[str]) -> UnreachableSites:
    names = list(dict.fromkeys(missed))
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return UnreachableSites(
        f"{type(model).__name__} has {len(names)} call site(s) that no rule covers: {shown}. Covered are relu and "
        f"max_pool2d, as modules or functions."
    )


def _no_sites(model: nn.Module) -> NoCallSites:
    return NoCallSites(
        f"{type(model).__name__} has no call site to attach a rule to: no relu or max_pool2d in its forward."
    )
