"""Call sites: finding every ReLU and max pooling of a model, by module or by function, and gating them.

`attach` makes a model's forward pass run under a `TorchFunctionMode`, which sees `nn.ReLU`, `F.relu`,
`torch.relu`, `x.relu_()` and `F.max_pool2d` alike and puts `softgate.surrogate.functional` in their place. No module is
replaced and no parameter is added, so state dicts stay as they are. What a rule cannot cover is an error that
names the call sites: a model never runs with hard gates that its user believes to be soft.

A call site is one call in one forward pass. A module called twice has two: `layer1.0.relu` and
`layer1.0.relu#2`. A functional call is named after the module whose forward makes it: `features.norm5`'s
parent in DenseNet is the model itself, so its call is `(model).relu`.

Only `forward` is covered. A method of your own that calls `F.relu` outside of any module's forward is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from softgate.errors import SoftgateError
from softgate.sites.active_rule import Governing
from softgate.sites.calls import (
    HIDDEN_IN_COMPILE,
    Call,
    activation_call,
    adaptive_max_pool2d_arguments,
    adaptive_max_pool2d_window,
    max_pool2d_arguments,
)
from softgate.sites.checks import audit, no_sites, refuse_compiling, unreachable, watch_recomputation
from softgate.sites.discovery import avoid_inplace, opaque_parts, trace
from softgate.sites.forward import Frame, Mode, State, in_checkpoint, running
from softgate.sites.scales import Scales, channel_of, scales_of
from softgate.sites.table import Site, coverage_table
from softgate.sites.tracing import is_overwritten
from softgate.surrogate import functional
from softgate.surrogate.rule import Surrogate

Observer = Callable[[str, str, Tensor], None]


class Sites:
    """The call sites of one model, from `attach` until `detach`.

    Attributes:
        model: The model.
        observers: Called with name, kind and pre-activation (for a pooling, its input) at each call of a covered site.
    """

    def __init__(self, model: nn.Module, rule: Surrogate | None, *, discover: bool = True, share: bool = True) -> None:
        _check_attachable(model)
        self.model = model
        self.governing = Governing(rule)
        self.observers: list[Observer] = []
        self.calibrating = False  # whether forward passes feed the channel scales, each example alike
        self._share = share
        self._table: dict[str, Site] = {}
        self._compiling: State | None = None
        self._audited = False
        self._inplace: list[nn.Module] = []  # modules whose `inplace` is switched off while attached
        self._fresh: set[str] = set()  # sites whose in-place call may be an ordinary one
        self._overwritten: set[str] = set()  # sites, without #2 and so on, whose input is written to later
        self._hidden: dict[str, None] = {}  # sites that torch.compile would not show
        self.frames = [Frame(self, name, module) for name, module in model.named_modules()]
        for frame in self.frames:
            frame.module.__dict__["forward"] = frame.forward
        if discover:
            try:
                self._discover()
                self._choose(self.governing)
            except BaseException:
                self.detach()
                raise

    # -- what users call --

    def use(self, rule: Surrogate | None) -> AbstractContextManager[Sites]:
        """Puts another rule in force, at once and until further notice.

        Args:
            rule: The rule, or None for the true gradient; of a scheduled one, its beginning.

        Returns:
            A context manager; used in a `with`, it puts the former rule back at the end of the block.

        Raises:
            SoftgateError: If the rule's `sites` choose none of the model's call sites; the former rule stays.
        """
        former, new = self.governing, Governing(rule)
        self._choose(new)
        self.governing = new
        return _restoring(self, former)

    def advance(self, epoch: float, step: int) -> None:
        """Puts the rule of a moment in force, where the rule given to `attach` or `use` has a schedule.

        Args:
            epoch: Epochs done; a fraction within an epoch.
            step: Optimiser steps done.
        """
        self.governing.advance(epoch, step)

    @property
    def rule(self) -> Surrogate | None:
        """The rule in force; None means the true gradient."""
        return self.governing.rule

    @property
    def scales(self) -> Scales:
        """The per-channel scales that lie on the model; see `softgate.sites.scales`."""
        return scales_of(self.model)

    def detach(self) -> None:
        """Undoes `attach`: forwards and `inplace` flags are as they were. Calling it twice is fine."""
        for frame in self.frames:
            if frame.own is not None:
                frame.module.__dict__["forward"] = frame.own
            else:
                frame.module.__dict__.pop("forward", None)
        for module in self._inplace:
            module.inplace = True  # type: ignore[assignment]  # modules type it as Tensor or Module
        self.frames, self._inplace = [], []

    def __enter__(self) -> Sites:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    @property
    def attached(self) -> bool:
        """Whether the model still runs through these sites."""
        return bool(self.frames)

    def table(self) -> list[Site]:
        """Every call site known so far, in the order of the forward pass."""
        return list(self._table.values())

    def count(self, kind: str = "relu") -> int:
        """How many call sites of a kind are covered."""
        return sum(site.covered and site.kind == kind for site in self._table.values())

    def report(self) -> str:
        """The coverage table: name, kind, calls since `attach`, covered or not; one line each, and a sum."""
        return coverage_table(self.table())

    # -- running the model --

    def state(self) -> State | None:
        """The forward pass that runs in this thread, if one does."""
        if torch.compiler.is_compiling():
            return self._compiling
        return running().get(id(self))

    def run(self, frame: Frame, args: Any, kwargs: Any) -> Any:
        """One forward pass, of the model or of a part of it that is called by itself."""
        if torch.compiler.is_compiling():
            if self.governing.soft and (self._hidden or not self._table):
                refuse_compiling(self.model, self._hidden)
            self._compiling = State(frame)
            try:
                with Mode(self, self._compiling):
                    return frame.inner(*args, **kwargs)
            finally:
                self._compiling = None
        states, state = running(), State(frame)
        states[id(self)] = state
        try:
            with Mode(self, state):
                out = frame.inner(*args, **kwargs)
        finally:
            del states[id(self)]
        if self.governing.soft:
            self._choose(self.governing)
            self._audited |= audit(self, frame, state, (args, kwargs), out, deep=not self._audited)
            if state.checkpointed:
                watch_recomputation(self, out)
        return out

    def on_activation(self, state: State, func: Any, args: Any, kwargs: Any) -> Any:
        """Stands in for a call of ReLU, ReLU6, Hardtanh or LeakyReLU, in any spelling."""
        call = activation_call(func, args, kwargs)
        name = self.count_call(state, call.kind)
        if func in HIDDEN_IN_COMPILE:
            self._hidden[name] = None
        if state.trace is not None:
            out = func(*args, **kwargs)
            state.trace.append(Call(name, call.kind, True, call.inplace, getattr(out, "node", None)))
            return out
        rule, scale = self._law(state, name, call.kind, call.z)
        if rule is None or not rule.softens_relu:
            return func(*args, **kwargs)
        z = call.z.clone() if name.split("#")[0] in self._overwritten else call.z
        inplace = call.inplace and name not in self._fresh
        out = functional.gated(z, call.activation, call.shape, rule, inplace, scale)
        if self._share and not inplace:
            state.outputs.add(z, out, call.activation)
        return out

    def _law(self, state: State, name: str, kind: str, z: Tensor) -> tuple[Surrogate | None, Tensor | None]:
        """The rule in force at a call site and what its temperature is measured in there; observers are told."""
        for observer in self.observers:
            observer(name, kind, z)
        rule = self.governing.at_site(name)
        if rule is None:
            return None, None
        if not rule.sites.everything and not self.governing.governs(name, kind):
            state.spared += 1
            return None, None
        if rule.scale != "channel":
            return rule, None
        channel, scales = channel_of(name, z, pool="pool" in kind), self.scales
        if state.recomputing:
            return rule, scales.of(name, z, channel)
        if self.calibrating:
            scales.observe(name, z, channel, share=None)
        elif state.frame is not None and state.frame.module.training:
            scales.observe(name, z, channel)
        elif not torch.is_grad_enabled():
            return rule, None
        return rule, scales.of(name, z, channel)

    def _choose(self, governing: Governing) -> None:
        covered = [(site.name, site.kind) for site in self._table.values() if site.covered]
        governing.choose(type(self.model).__name__, covered)

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
        name = self.count_call(state, kind, covered=plain is not None)
        if state.trace is not None:
            state.trace.append(Call(name, kind, plain is not None, False, None))
        if state.trace is not None or plain is None:
            return func(*args, **kwargs)
        x, settings = plain
        rule, scale = self._law(state, name, kind, x)
        if rule is None or not rule.softens_pool:
            return state.outputs.call(func, args, kwargs)
        options = {"pool": rule.pool, "mix": rule.mix, "match": rule.matches, "scale": scale}
        y = state.outputs.call(functional.max_pool2d, (x, *settings), options)
        if not indices:
            return y
        with torch.no_grad():
            return y, func(*args, **kwargs)[1]

    def on_unsupported(self, state: State, kind: str) -> None:
        """Takes note of a call that no rule covers."""
        name = self.count_call(state, kind, covered=False)
        if self.governing.soft and state.missed and torch.compiler.is_compiling():
            raise unreachable(self.model, state.missed)
        if state.trace is not None:
            state.trace.append(Call(name, kind, False, False, None))

    def count_call(self, state: State, kind: str, covered: bool = True) -> str:
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
            self._miss(state, name, kind)
        if torch.compiler.is_compiling():
            return name
        if not frame.activation and in_checkpoint():
            why = f"{kind} in a checkpointed function; checkpoint a module instead"
            self._miss(state, name, why)
            if state.trace is not None:
                state.trace.append(Call(name, why, False, False, None))
        if state.trace is None:
            if state.recomputing:
                self._check_recomputed(name)
            else:
                self._table.setdefault(name, Site(name, kind, covered)).calls += 1
        return name

    def _check_recomputed(self, name: str) -> None:
        """A recomputation does not say which call of a module it repeats; where that matters it is an error."""
        if f"{name}#2" in self._table and not self.governing.uniform:
            raise SoftgateError(
                f"{name} is called more than once and recomputed by an activation checkpoint; a rule with "
                f"scale=channel, random gates or a choice of sites cannot tell the calls apart. Give each a module."
            )

    def _miss(self, state: State, name: str, why: str) -> None:
        """Takes note of a call site that the rule should govern and does not reach."""
        if self.governing.wants(name, why.split()[0]):
            state.missed.append(f"{name} ({why})")

    # -- before the first forward pass --

    def _discover(self) -> None:
        """Fills the table before the first forward pass, from a symbolic trace where the model allows one."""
        opaque = opaque_parts(self.model)
        if opaque:
            raise unreachable(self.model, opaque)
        calls = trace(self)
        if calls is None:
            return
        self._table = {call.name: Site(call.name, call.kind, call.covered) for call in calls}
        wants = self.governing.wants
        uncovered = [call for call in calls if not call.covered and wants(call.name, call.kind.split()[0])]
        if self.governing.soft:
            if uncovered:
                raise unreachable(self.model, [f"{call.name} ({call.kind})" for call in uncovered])
            if not calls:
                raise no_sites(self.model)
        other = trace(self, flipped=True)
        gated = [call for call in calls + (other or []) if call.covered and "pool" not in call.kind]
        self._overwritten = {call.name.split("#")[0] for call in gated if is_overwritten(call)}
        if other is not None:
            # An in-place call must copy its pre-activation to keep it, an ordinary one need not.
            self._fresh, self._inplace = avoid_inplace(self.model, [call for call in gated if call.inplace])


def attach(model: nn.Module, rule: Surrogate | None, *, share: bool = True) -> Sites:
    """Puts a rule in force at every ReLU and max-pool call site of a model.

    Args:
        model: Any module, in train or eval mode. Attach before wrapping it in DistributedDataParallel and
            before torch.compile.
        rule: The rule; None leaves the true gradient until `Sites.use` says otherwise.
        share: Keep one tensor for each ReLU, its pre-activation; the input of the layer that follows is recomputed
            from it in the backward pass, bit for bit. False keeps both.

    Returns:
        The sites; a context manager that detaches at the end of its block, also after an exception.

    Raises:
        NoCallSites: If the model has nothing to gate.
        UnreachableSites: If it has activations or max poolings that no rule covers; they are listed. Raised here
            if the model can be traced symbolically, else at the end of the first forward pass.
        SoftgateError: If the model is attached already, or is scripted or compiled.
    """
    return Sites(model, rule, share=share)


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
def _restoring(sites: Sites, former: Governing) -> Iterator[Sites]:
    try:
        yield sites
    finally:
        sites.governing = former


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
