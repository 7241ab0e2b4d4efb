"""Call sites: finding every ReLU and max pooling of a model, by module or by function, and gating them.

`attach` makes a model's forward pass run under a `TorchFunctionMode`, which sees `nn.ReLU`, `F.relu`,
`torch.relu`, `x.relu_()` and `F.max_pool2d` alike and hands them to `softgate.sites.gating`, which puts
`softgate.surrogate.functional` in their place. No module is replaced and no parameter is added, so state dicts
stay as they are. What a rule cannot cover is an error that names the call sites: a model never runs with hard gates
that its user believes to be soft.

A call site is one call in one forward pass. A module called twice has two: `layer1.0.relu` and
`layer1.0.relu#2`. A functional call is named after the module whose forward makes it: `features.norm5`'s
parent in DenseNet is the model itself, so its call is `(model).relu`.

Only `forward` is covered. A method of your own that calls `F.relu` outside of any module's forward is not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from softgate.errors import SoftgateError, SoftgateWarning, UnreachableSites
from softgate.sites.active_rule import ActiveRule
from softgate.sites.checks import (
    audit,
    functions_between,
    no_sites,
    reads_by_hooks,
    refuse_compiling,
    refuse_missed,
    unreachable,
    watch_recomputation,
)
from softgate.sites.forward import Frame, Handler, Miss, Mode, State, running
from softgate.sites.gating import Gating, Observer
from softgate.sites.scales import Scales, scales_of
from softgate.sites.table import Site, SiteTable
from softgate.sites.tracing import avoid_inplace, is_overwritten, opaque_parts, trace
from softgate.surrogate.rule import Surrogate


class Sites:
    """The call sites of one model, from `attach` until `detach`.

    Attributes:
        model: The model.
        strict: Whether calls that keep a gradient of their own are refused rather than warned of.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Surrogate | None,
        *,
        discover: bool = True,
        share: bool = True,
        strict: bool = False,
    ) -> None:
        _check_attachable(model)
        self.model = model
        self.strict = strict
        self._unaffected: dict[tuple[str, str], None] = {}
        self._table = SiteTable()
        self._gating = Gating(model, self._table, ActiveRule(rule), share)
        self._handler: Handler = self._gating
        self._compiling: State | None = None
        self._audited = False
        self._inplace: list[nn.Module] = []  # modules whose `inplace` is switched off while attached
        self._frames = [Frame(self, name, module) for name, module in model.named_modules()]
        for frame in self._frames:
            frame.enter()
        self._gating.watched = reads_by_hooks(model.modules())
        if discover:
            try:
                self._discover()
                self._choose(self._active)
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
        former, new = self._active, ActiveRule(rule)
        self._choose(new)
        self._gating.active = new
        return self._restoring(former)

    def advance(self, epoch: float, step: int) -> None:
        """Puts the rule of a moment in force, where the rule given to `attach` or `use` has a schedule.

        Args:
            epoch: Epochs done; a fraction within an epoch.
            step: Optimiser steps done.
        """
        self._active.advance(epoch, step)

    @property
    def rule(self) -> Surrogate | None:
        """The rule in force; None means the true gradient."""
        return self._active.rule

    @property
    def scheduled(self) -> Surrogate | None:
        """The rule as it was given, with its schedule."""
        return self._active.scheduled

    @property
    def scales(self) -> Scales:
        """The per-channel scales that lie on the model; see `softgate.sites.scales`."""
        return scales_of(self.model)

    def detach(self) -> None:
        """Undoes `attach`: forwards and `inplace` flags are as they were. Calling it twice is fine."""
        for frame in self._frames:
            frame.leave()
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
        return list(self._table)

    def count(self, kind: str = "relu") -> int:
        """How many call sites of a kind are covered."""
        return sum(site.covered and site.kind == kind for site in self._table)

    def report(self) -> str:
        """The coverage table: name, kind, calls since `attach`, covered or not; one line each, and a sum.

        A last line names what selects or bends data and keeps a gradient of its own.
        """
        lines = [self._table.report()]
        if self._unaffected:
            lines.append(f"with a gradient of their own under every rule: {'; '.join(self.unaffected)}")
        return "\n".join(lines)

    @property
    def unaffected(self) -> list[str]:
        """What selects, gates or bends data and keeps a gradient of its own under every rule, as far as it is known.

        One entry for each kind, with the modules that call it: "tanh in head.act, (model)".
        """
        modules: dict[str, list[str]] = {}
        for module, kind in self._unaffected:
            modules.setdefault(kind, []).append(module)
        return [f"{kind} in {_several(names)}" for kind, names in modules.items()]

    # -- watching and handling the calls, for the time of a block --

    @contextmanager
    def observing(self, *observers: Observer) -> Iterator[Sites]:
        """Tells functions of each call of a covered site, in the place of any that were told before.

        Args:
            observers: Called with name, kind and pre-activation (for a pooling, its input), before the call is run.
        """
        former, self._gating.observers = self._gating.observers, list(observers)
        try:
            yield self
        finally:
            self._gating.observers = former

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Who is told of the calls now."""
        return tuple(self._gating.observers)

    @contextmanager
    def calibrating(self) -> Iterator[Sites]:
        """Lets forward passes feed the channel scales, each example alike."""
        self._gating.calibrating = True
        try:
            yield self
        finally:
            self._gating.calibrating = False

    @contextmanager
    def handled_by(self, handler: Handler) -> Iterator[Sites]:
        """Has another handler decide what the calls of all sites return; the rule in force plays no part."""
        former, self._handler = self._handler, handler
        try:
            yield self
        finally:
            self._handler = former

    # -- running the model --

    def state(self) -> State | None:
        """The forward pass that runs in this thread, if one does."""
        if torch.compiler.is_compiling():
            return self._compiling
        return running().get(id(self))

    def run(self, frame: Frame, args: Any, kwargs: Any) -> Any:
        """One forward pass, of the model or of a part of it that is called by itself."""
        gating = self._gating
        if torch.compiler.is_compiling():
            if gating.active.soft and (gating.hidden or not self._table):
                refuse_compiling(self.model, gating.hidden)
            self._compiling = State(frame)
            try:
                with Mode(self._handler, self._compiling):
                    return frame.inner(*args, **kwargs)
            finally:
                self._compiling = None
        states, state = running(), State(frame)
        gating.watched = reads_by_hooks(frame.module for frame in self._frames)
        states[id(self)] = state
        try:
            with Mode(self._handler, state):
                out = frame.inner(*args, **kwargs)
        finally:
            del states[id(self)]
        if self._handler is gating and gating.active.soft:
            self._check(frame, state, (args, kwargs), out)
        return out

    def _check(self, frame: Frame, state: State, inputs: Any, out: Any) -> None:
        """Raises for what a pass under a soft rule has shown; watches over what it will compute again."""
        active, rule = self._active, self.rule
        self._choose(active)
        if frame.module is self.model:
            if not self._audited and torch.is_grad_enabled():
                functions = functions_between(inputs, out)
                self._tell_unaffected({(name, "autograd.Function"): None for name in functions})
            self._audited |= audit(self.model, rule, state, inputs, out, deep=not self._audited)
        else:
            refuse_missed(self.model, state)
        self._tell_unaffected(state.selected)
        if state.checkpointed:
            watch_recomputation(self.model, lambda: self.attached and self._active is active and self.rule is rule, out)

    def _tell_unaffected(self, found: Mapping[tuple[str, str], None]) -> None:
        """Warns of calls that keep a gradient of their own, once for each; refuses them where the sites are strict."""
        new = found.keys() - self._unaffected.keys()
        if not new or not self._active.soft:
            return
        before = set(self.unaffected)
        self._unaffected |= {key: None for key in found if key in new}
        said = "; ".join(kind for kind in self.unaffected if kind not in before)
        about = (
            f"{type(self.model).__name__} selects or bends data where no rule reaches, with its own gradient as ever: "
            f"{said}."
        )
        if self.strict:
            raise UnreachableSites(f"{about} strict=True refuses it.")
        warnings.warn(f"{about} attach(..., strict=True) refuses such a model.", SoftgateWarning, stacklevel=4)

    @property
    def _active(self) -> ActiveRule:
        return self._gating.active

    def _choose(self, active: ActiveRule) -> None:
        active.choose(type(self.model).__name__, self._table.covered())

    @contextmanager
    def _restoring(self, former: ActiveRule) -> Iterator[Sites]:
        try:
            yield self
        finally:
            self._gating.active = former

    # -- before the first forward pass --

    def _discover(self) -> None:
        """Fills the table before the first forward pass, from a symbolic trace where the model allows one."""
        opaque = opaque_parts(self.model)
        if opaque:
            raise unreachable(self.model, opaque)
        first = trace(self.model, self._frames[0])
        if first is None:
            return
        calls = first.calls
        self._table.fill(Site(call.site, call.kind, call.covered) for call in calls)
        if self._active.soft:
            wants = self._active.wants
            missed = [call for call in calls if not call.reached and wants(call.site.name, call.kind)]
            if missed:
                raise unreachable(self.model, [Miss(call.site, call.kind, call.why) for call in missed])
            if not calls:
                raise no_sites(self.model)
        other = trace(self.model, self._frames[0], flipped=True)
        self._tell_unaffected(first.selected | (other.selected if other else {}))
        every = calls + (other.calls if other else [])
        self._gating.hidden = {call.site: None for call in every if call.hidden}
        activations = [call for call in every if call.activates]
        self._gating.overwritten = {call.site.module for call in activations if is_overwritten(call)}
        if other is not None:
            # An in-place call must copy its pre-activation to keep it, an ordinary one need not.
            inplace = [call for call in activations if call.inplace]
            self._gating.fresh, self._inplace = avoid_inplace(self.model, inplace)


def attach(model: nn.Module, rule: Surrogate | None, *, share: bool = True, strict: bool = False) -> Sites:
    """Puts a rule in force at every ReLU and max-pool call site of a model.

    Args:
        model: Any module, in train or eval mode. Attach before wrapping it in DistributedDataParallel and
            before torch.compile.
        rule: The rule; None leaves the true gradient until `Sites.use` says otherwise.
        share: Keep one tensor for each ReLU, its pre-activation; the input of the layer that follows is recomputed
            from it in the backward pass, bit for bit. False keeps both.
        strict: Refuse a model with calls that select, gate or bend data with a gradient of their own, such as abs,
            where, topk, sigmoid or an autograd.Function; otherwise a warning names them once.

    Returns:
        The sites; a context manager that detaches at the end of its block, also after an exception.

    Raises:
        NoCallSites: If the model has nothing to gate.
        UnreachableSites: If it has activations or max poolings that no rule covers; they are listed. Raised here
            if the model can be traced symbolically, else at the end of the first forward pass.
        SoftgateError: If the model is attached already, or is scripted or compiled.
    """
    return Sites(model, rule, share=share, strict=strict or (rule is not None and rule.strict))


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
    runner = frame.runner if isinstance(frame, Frame) else None
    return runner if isinstance(runner, Sites) else None


def _several(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more modules" if len(names) > 6 else "")


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
