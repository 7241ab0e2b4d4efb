"""Call sites: finding every ReLU and max pooling of a model, by module or by function, and gating them.

`attach` makes a model's forward pass run under a `TorchFunctionMode`, which sees `nn.ReLU`, `F.relu`,
`torch.relu`, `x.relu_()` and `F.max_pool2d` alike and hands them to `softgate.sites.gating`, which puts
`softgate.surrogate.functional` in their place. No module is replaced and no parameter is added, so state dicts
stay as they are. What a rule cannot cover is an error that names the call sites: a model never runs with hard gates
that its user believes to be soft.

A call site is one call in one forward pass. A module called twice has two: `layer1.0.relu` and
`layer1.0.relu#2`. A functional call is named after the module whose forward makes it: `features.norm5`'s
parent in DenseNet is the model itself, so its call is `(model).relu`.

What is covered begins with a module's forward, or with a method named to `attach`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from html import escape
from typing import Any

import torch
from torch import nn

from softgate.sites.active_rule import ActiveRule
from softgate.sites.auditing import Audit, Watching
from softgate.sites.checks import (
    check_attachable,
    check_methods,
    no_sites,
    reads_by_hooks,
    refuse_compiling,
    refuse_exporting,
    unreachable,
)
from softgate.sites.forward import Frame, Handler, Method, Miss, Mode, State, attached_frame, entered, running
from softgate.sites.gating import Gating, Observer
from softgate.sites.scales import Scales, scales_of
from softgate.sites.table import Site, SiteCollection, SiteTable
from softgate.sites.tracing import in_order, opaque_parts, trace
from softgate.sites.writes import avoid_inplace, overwritten
from softgate.surrogate.backends import backend_of
from softgate.surrogate.rule import Surrogate


class Sites(SiteCollection):
    """The call sites of one model, from `attach` until `detach`: a collection of `Site`, by place and by name.

    `len(sites)`, `for site in sites`, `sites["layer1.0.relu"]`, `sites[0]`; a notebook shows the coverage table.

    Attributes:
        model: The model.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Surrogate | None,
        *,
        discover: bool = True,
        share: bool = True,
        strict: bool = False,
        methods: Sequence[str] = (),
        backend: str = "functions",
    ) -> None:
        check_attachable(model)
        check_methods(model, methods)
        gating = Gating(model, SiteTable(), ActiveRule(rule), share, backend_of(backend))
        gating.learns = discover
        self._begin(model, gating, Audit(model, strict), tuple(methods))
        if discover:
            try:
                self._discover()
                self._choose(self._active)
            except BaseException:
                self.detach()
                raise

    def _begin(self, model: nn.Module, gating: Gating, audit: Audit, methods: tuple[str, ...]) -> None:
        self.model = model
        self._gating = gating
        self._table = gating.table
        self._audit = audit
        self._methods = methods
        self._handler: Handler = gating
        self._compiling: State | None = None
        self._passed = False  # whether a pass has shown the call sites that no trace does
        self._order: list[tuple[str, str]] = []  # covered sites of train and eval mode, where both could be traced
        self._inplace: list[nn.Module] = []  # modules whose `inplace` is switched off while attached
        self._frames = [Frame(self, name, module) for name, module in model.named_modules()]
        for frame in self._frames:
            frame.enter()
        gating.watched = reads_by_hooks(model.modules())

    def on_copy(self, copy: nn.Module, rule: Surrogate | None) -> Sites:
        """The call sites of a copy of the model, under a rule of their own, with all that is known of the model's.

        Args:
            copy: A copy that is not attached.
            rule: The rule, which these sites need not be under.

        Raises:
            SoftgateError: If the rule's `sites` choose none of the call sites.
        """
        made = object.__new__(type(self))
        made._begin(copy, self._gating.on_copy(copy, ActiveRule(rule)), self._audit.of_copy(copy), self._methods)
        made._order, made._passed = self._order, self._passed
        made._choose(made._active)
        return made

    def learn(self, copy: Sites) -> None:
        """Takes over the call sites that passes of a copy have shown and no pass of the model has."""
        for site in copy.table():
            if site.id not in self._table:
                self._table.add(site.id, site.kind, site.covered)

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

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        return f"Sites({type(self.model).__name__}, {state}, {self._table.summary()}, rule={self.rule!r})"

    def _repr_html_(self) -> str:
        rule = "none: the true gradient" if self.rule is None else repr(self.rule)
        words = [f"rule: {rule}"] + [f"with a gradient of its own under every rule: {each}" for each in self.unaffected]
        lines = "".join(f"<br>{escape(each)}" for each in [self._table.summary(), *words])
        return f"{self._table.listed().html()}<p>{escape(type(self.model).__name__)}{lines}</p>"

    def count(self, kind: str = "relu") -> int:
        """How many call sites of a kind are covered."""
        return sum(site.covered and site.kind == kind for site in self._table)

    def report(self) -> str:
        """The coverage table: name, kind, calls since `attach`, covered or not; one line each, and a sum.

        A last line names what selects or bends data and keeps a gradient of its own.
        """
        lines = [self._table.report()]
        if self.unaffected:
            lines.append(f"with a gradient of their own under every rule: {'; '.join(self.unaffected)}")
        return "\n".join(lines)

    @property
    def unaffected(self) -> list[str]:
        """What selects, gates or bends data and keeps a gradient of its own under every rule, as far as it is known.

        One entry for each kind, with the modules that call it: "tanh in head.act, (model)".
        """
        return self._audit.unaffected

    @property
    def strict(self) -> bool:
        """Whether calls that keep a gradient of their own are refused rather than warned of."""
        return self._audit.strict

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
        refuse_exporting(self.model, self._active.soft, args, self._gating.backend.name)
        if torch.compiler.is_compiling():
            return self._run_compiled(frame, args, kwargs)
        return self._run(frame, frame.inner, args, kwargs, whole=frame.module is self.model)

    def run_method(self, frame: Frame, name: str, args: Any, kwargs: Any) -> Any:
        """A call of a public method other than forward, outside of any forward pass.

        Under the rule where it is named in `methods` or "forward_...", otherwise watched for calls out of reach.
        """
        refuse_exporting(self.model, self._active.soft, args, self._gating.backend.name)
        inner = functools.partial(Method.inner, Method(frame, name))
        if name.startswith("forward_") or name in self._methods:
            return self._run(frame, inner, args, kwargs, whole=False)
        if not self._active.soft or self._handler is not self._gating or not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        watching = Watching(self.state)
        with Mode(watching, State(frame)):
            out = inner(*args, **kwargs)
        if watching.kinds:
            self._audit.tell_of_method(frame.name, name, watching.kinds)
        return out

    def _run(self, frame: Frame, inner: Callable[..., Any], args: Any, kwargs: Any, *, whole: bool) -> Any:
        gating, state = self._gating, State(frame)
        state.fused = self._handler is gating
        audited = self._handler is gating and gating.active.ever_soft
        begun = self._audit.begin(self._frames, self.rule) if audited and whole and gating.active.soft else None
        gating.watched = reads_by_hooks(frame.module for frame in self._frames)
        try:
            state.marks.begin((args, kwargs), self._handler.blocks)
            with entered(self, state), Mode(self._handler, state):
                out = inner(*args, **kwargs)
        except RuntimeError:
            if state.refusal is None:
                raise
            raise state.refusal from None
        gating.learn(state)
        for found in state.marks.clear():
            state.selected[found] = None
        if audited:
            self._passed = True
            state.known = bool(self._order or self._table.covered())
            active, rule = gating.active, gating.active.rule
            self._choose(active)

            def unchanged() -> bool:
                return self.attached and self._active is active and self.rule is rule

            self._audit.check(self._frames, state, rule, unchanged, (args, kwargs), out, whole=whole, begun=begun)
        return out

    def _run_compiled(self, frame: Frame, args: Any, kwargs: Any) -> Any:
        gating = self._gating
        if gating.active.soft:
            missed = [
                Miss(s.id, s.kind, "out of reach")
                for s in self._table
                if (not s.covered or gating.active.refuses(s.kind)) and gating.active.wants(s.name, s.kind)
            ]
            if missed or gating.hidden or not self._table:
                refuse_compiling(self.model, missed, gating.hidden)
        self._compiling = State(frame)
        try:
            with Mode(self._handler, self._compiling):
                return frame.inner(*args, **kwargs)
        finally:
            self._compiling = None

    @property
    def _active(self) -> ActiveRule:
        return self._gating.active

    def _choose(self, active: ActiveRule) -> None:
        covered = self._order or self._table.covered()
        if active.blocks:  # which a trace does not show: names are checked against what a pass has called
            covered = [(site.name, site.kind) for site in self._table if site.covered] if self._passed else []
        active.choose(type(self.model).__name__, covered)

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
        calls = [call for call in first.calls if call.kind not in self._active.later]
        self._table.fill(Site(call.site, call.kind, call.covered) for call in calls)
        if self._active.ever_soft:
            wants, refuses = self._active.wants, self._active.refuses
            missed = [
                Miss(call.site, call.kind, call.why)
                for call in calls
                if (not call.reached or refuses(call.kind)) and wants(call.site.name, call.kind)
            ]
            if missed:
                raise unreachable(self.model, missed)
        other = trace(self.model, self._frames[0], flipped=True)
        shown = calls or (other is not None and other.calls) or self._active.blocks
        if self._active.ever_soft and not shown:
            raise no_sites(self.model, whole=other is not None)
        selected = first.selected | (other.selected if other else {})
        told = {found: None for found in selected if found[1] not in self._active.later}
        self._audit.tell(told, soft=self._active.ever_soft)
        every = calls + (other.calls if other else [])
        self._order = in_order(calls, other.calls if other else [])
        self._gating.hidden = {call.site: None for call in every if call.hidden}
        activations = [call for call in every if call.activates]
        self._gating.overwritten = overwritten(activations, self.model)
        self._gating.traced = {(call.site.module, call.training) for call in activations}
        if other is not None:
            # An in-place call must copy its pre-activation to keep it, an ordinary one need not.
            inplace = [call for call in activations if call.inplace]
            self._gating.fresh, self._inplace = avoid_inplace(self.model, inplace)


def attached_sites(model: nn.Module) -> Sites | None:
    """The sites a model is attached to, or None."""
    frame = attached_frame(model)
    runner = None if frame is None else frame.runner
    return runner if isinstance(runner, Sites) else None
