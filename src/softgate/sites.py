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

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import fx, nn

from softgate import functional
from softgate.callsites import (
    METHODS,
    POOL_NODES,
    RELU_NODES,
    Site,
    activation_call,
    adaptive_max_pool2d_arguments,
    adaptive_max_pool2d_window,
    coverage_table,
    max_pool2d_arguments,
    nodes_between,
)
from softgate.errors import NoCallSites, SoftgateError, UnreachableSites
from softgate.frames import Frame, Mode, State, in_checkpoint, running
from softgate.surrogate import Surrogate
from softgate.tracing import Call, CallSiteTracer, is_overwritten, reads_alone, undisturbed

SWITCHABLE = (nn.ReLU, nn.Hardtanh, nn.LeakyReLU)
"""Modules whose `inplace` flag can be switched off; nn.ReLU6 is a Hardtanh."""


class Sites:
    """The call sites of one model, from `attach` until `detach`.

    Attributes:
        model: The model.
        rule: The rule in force; None means the true gradient.
    """

    def __init__(self, model: nn.Module, rule: Surrogate | None, *, discover: bool = True) -> None:
        _check_attachable(model)
        _check_rule(rule)
        self.model = model
        self.rule = rule
        self._table: dict[str, Site] = {}
        self._compiling: State | None = None
        self._audited = False
        self._inplace: list[nn.Module] = []  # modules whose `inplace` is switched off while attached
        self._fresh: set[str] = set()  # sites whose in-place call may be an ordinary one
        self._overwritten: set[str] = set()  # sites whose input is written to later
        self._frames = [Frame(self, name, module) for name, module in model.named_modules()]
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
        _check_rule(rule)
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
            module.inplace = True  # type: ignore[assignment]  # modules type it as Tensor or Module
        self._frames, self._inplace = [], []

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
        return coverage_table(self.table())

    # -- running the model ----------------------------------------------------------------------------

    def state(self) -> State | None:
        """The forward pass that runs in this thread, if one does."""
        if torch.compiler.is_compiling():
            return self._compiling
        return running().get(id(self))

    def run(self, frame: Frame, args: Any, kwargs: Any) -> Any:
        """One forward pass, of the model or of a part of it that is called by itself."""
        state = State()
        state.frame = frame
        if torch.compiler.is_compiling():
            self._compiling = state
            try:
                with Mode(self, state):
                    return frame.inner(*args, **kwargs)
            finally:
                self._compiling = None
        states = running()
        states[id(self)] = state
        try:
            with Mode(self, state):
                out = frame.inner(*args, **kwargs)
        finally:
            del states[id(self)]
        self._verify(frame, state, (args, kwargs), out)
        return out

    def on_activation(self, state: State, func: Any, args: Any, kwargs: Any) -> Any:
        """Stands in for a call of ReLU, ReLU6, Hardtanh or LeakyReLU, in any spelling."""
        call = activation_call(func, args, kwargs)
        name = self._count(state, call.kind)
        rule = self.rule
        if state.trace is not None or rule is None or not rule.softens_relu:
            out = func(*args, **kwargs)
            if state.trace is not None:
                state.trace.append(Call(name, call.kind, True, call.inplace, getattr(out, "node", None)))
            return out
        z = call.z.clone() if name in self._overwritten else call.z
        inplace = call.inplace and name not in self._fresh
        if call.shape is None:
            return functional.relu(z, rule, inplace)
        return functional.gated(z, call.activation, call.shape, rule, inplace)

    def on_max_pool2d(self, state: State, func: Any, args: Any, kwargs: Any) -> Any:
        """Stands in for a call of any max-pool function; indices, where they are asked for, are the true ones."""
        x, settings, indices = max_pool2d_arguments(func, *args, **kwargs)
        return self._pool(state, "max_pool2d", func, args, kwargs, (x, settings), indices)

    def on_adaptive_max_pool2d(self, state: State, func: Any, args: Any, kwargs: Any) -> Any:
        """Stands in for an adaptive max pooling; covered where its windows are all of one size."""
        x, size, indices = adaptive_max_pool2d_arguments(func, *args, **kwargs)
        if isinstance(x, fx.Proxy):  # a symbol has no size yet; the first forward pass decides
            return self._pool(state, "adaptive_max_pool2d", func, args, kwargs, (x, ()), indices)
        window = adaptive_max_pool2d_window(x, size)
        plain = None if window is None else (x, (window, window, 0, 1, False))
        return self._pool(state, "adaptive_max_pool2d", func, args, kwargs, plain, indices)

    def _pool(self, state: State, kind: str, func: Any, args: Any, kwargs: Any, plain: Any, indices: bool) -> Any:
        name, rule = self._count(state, kind, covered=plain is not None), self.rule
        if state.trace is not None:
            state.trace.append(Call(name, kind, plain is not None, False, None))
        if state.trace is not None or plain is None or rule is None or not rule.softens_pool:
            return func(*args, **kwargs)
        x, settings = plain
        y = functional.max_pool2d(x, *settings, pool=rule.pool, mix=rule.mix)
        if not indices:
            return y
        with torch.no_grad():
            return y, func(*args, **kwargs)[1]

    def on_unsupported(self, state: State, kind: str) -> None:
        """Takes note of a call that no rule covers."""
        name = self._count(state, kind, covered=False)
        soft = self.rule is not None and (self.rule.softens_relu or self.rule.softens_pool)
        if soft and torch.compiler.is_compiling():
            raise _unreachable(self.model, state.missed)
        if state.trace is not None:
            state.trace.append(Call(name, kind, False, False, None))

    def _count(self, state: State, kind: str, covered: bool = True) -> str:
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
        if state.trace is None and not torch.compiler.is_compiling():
            if not frame.activation and in_checkpoint():
                state.missed.append(f"{name} ({kind} in a checkpointed function; checkpoint a module instead)")
            site = self._table.setdefault(name, Site(name, kind, covered))
            site.calls += 1
        return name

    # -- what must not go unnoticed -------------------------------------------------------------------

    def _verify(self, frame: Frame, state: State, inputs: Any, out: Any) -> None:
        """Raises if this forward pass had activations that the rule does not cover, or none that it does."""
        rule = self.rule
        if rule is None or not (rule.softens_relu or rule.softens_pool):
            return
        if state.missed:
            raise _unreachable(self.model, state.missed)
        if frame.module is not self.model:
            return
        if not state.gated:
            raise _no_sites(self.model)
        if self._audited or not torch.is_grad_enabled():
            return
        patterns = (RELU_NODES if rule.softens_relu else {}) | (POOL_NODES if rule.softens_pool else {})
        hidden = nodes_between(inputs, out, patterns)
        if hidden:
            raise UnreachableSites(
                f"{type(self.model).__name__} has activations that run outside of Python, where no rule reaches "
                f"them: {', '.join(hidden)}. Attach to the model before scripting or exporting it."
            )
        self._audited = rule.softens_relu and rule.softens_pool

    def _discover(self) -> None:
        """Fills the table before the first forward pass, from a symbolic trace where the model allows one."""
        opaque = [
            f"{name} (scripted or compiled)"
            for name, module in self.model.named_modules()
            if isinstance(module, torch.jit.ScriptModule)
            or hasattr(module, "_orig_mod")
            or getattr(module, "_compiled_call_impl", None)
        ]
        if opaque:
            raise _unreachable(self.model, opaque)
        calls = self._trace()
        if calls is None:
            return
        self._table = {call.name: Site(call.name, call.kind, call.covered) for call in calls}
        missed = [f"{call.name} ({call.kind})" for call in calls if not call.covered]
        if self.rule is not None and (self.rule.softens_relu or self.rule.softens_pool):
            if missed:
                raise _unreachable(self.model, missed)
            if not calls:
                raise _no_sites(self.model)
        other = self._trace(flipped=True)
        gated = [call for call in calls + (other or []) if call.covered and "pool" not in call.kind]
        self._overwritten = {call.name for call in gated if is_overwritten(call)}
        if other is not None:
            self._avoid_inplace([call for call in gated if call.inplace])

    def _trace(self, flipped: bool = False) -> list[Call] | None:
        """The calls of a symbolic forward pass, or of one with train and eval mode swapped; None if it fails."""
        state, states = State(), running()
        state.frame, state.trace = self._frames[0], []

        def method(name: str, node: fx.Node) -> None:
            assert state.trace is not None
            state.trace.append(Call(self._count(state, "relu"), "relu", True, METHODS[name], node))

        states[id(self)] = state
        try:
            with undisturbed(self.model), Mode(self, state):
                if flipped:
                    for module in self.model.modules():
                        module.training = not module.training
                CallSiteTracer(method).trace(self.model)
        except Exception:
            # Tracing runs the user's forward on symbols; whatever it raises means: wait for the first forward.
            return None
        finally:
            del states[id(self)]
        return state.trace

    def _avoid_inplace(self, calls: list[Call]) -> None:
        """Switches in-place off where the traces, in train and in eval mode, show that nobody needs it.

        An in-place call must copy its pre-activation to keep it, an ordinary one need not.
        """
        needed = {call.name.split("#")[0] for call in calls if not reads_alone(call, self.model)}
        self._fresh = {call.name for call in calls if call.name.split("#")[0] not in needed}
        for frame in self._frames:
            if isinstance(frame.module, SWITCHABLE) and frame.module.inplace and frame.name in self._fresh:
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
    return frame.sites if isinstance(frame, Frame) else None


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


def _check_rule(rule: Any) -> None:
    if rule is not None and not isinstance(rule, Surrogate):
        raise SoftgateError(f"rule={rule!r}: a softgate.Surrogate is needed, such as Surrogate(gate=...), or None.")


def _unreachable(model: nn.Module, missed: Iterable[str]) -> UnreachableSites:
    names = list(dict.fromkeys(missed))
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return UnreachableSites(
        f"{type(model).__name__} has {len(names)} call site(s) that no rule covers: {shown}. Covered are relu, "
        f"relu6, hardtanh, leaky_relu and max_pool2d, as modules or functions."
    )


def _no_sites(model: nn.Module) -> NoCallSites:
    return NoCallSites(
        f"{type(model).__name__} has no call site to attach a rule to: no relu or max_pool2d in its forward."
    )
