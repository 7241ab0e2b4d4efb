"""What each forward pass under a soft rule shows: whether anything ran hard that should not have.

The calls that Python sees are known from the pass itself. What it does not see (scripted code, C++ modules, operators)
is looked for in the autograd graph: at the first pass with gradients of every combination of train and eval modes and
of trainable parameters, since each can lead through another branch.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from softgate.errors import SoftgateError, SoftgateWarning, UnreachableSites
from softgate.sites.calls import SiteCall, SiteId
from softgate.sites.checks import audit, functions_between, refuse_missed, watch_recomputation
from softgate.sites.forward import Frame, State
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import BLOCKS, Kind

FX_FILE = "<eval_with_key>"
"""What torch.fx calls the file of code that it generates."""


class Audit:
    """Looks at the forward passes of one model.

    Attributes:
        model: The model.
        strict: Whether calls that keep a gradient of their own are refused rather than warned of.
        selected: Module and kind of the calls that select or bend data with a gradient of their own.
    """

    def __init__(self, model: nn.Module, strict: bool) -> None:
        self.model = model
        self.strict = strict
        self.selected: dict[tuple[str, str], None] = {}
        self._looked: set[tuple[bytes, ...]] = set()
        self._told: set[str] = set()

    def of_copy(self, copy: nn.Module) -> Audit:
        """The audit of a copy of the model, which knows and learns what this one does."""
        made = Audit(copy, self.strict)
        made.selected, made._looked, made._told = self.selected, self._looked, self._told
        return made

    def begin(self, frames: Sequence[Frame], rule: Surrogate | None) -> int | None:
        """Where a pass of the whole model begins in the order of autograd nodes; None where the graph was seen."""
        if not torch.is_grad_enabled() or _combination(frames, rule) in self._looked:
            return None
        return int(torch.ones((), requires_grad=True).neg().grad_fn._sequence_nr())  # type: ignore[union-attr]  # it has one

    def check(
        self,
        frames: Sequence[Frame],
        state: State,
        rule: Surrogate | None,
        unchanged: Callable[[], bool],
        inputs: Any,
        out: Any,
        *,
        whole: bool,
        begun: int | None,
    ) -> None:
        """Raises for what a pass under a soft rule has shown; watches over what it will compute again.

        Args:
            frames: All frames of the model.
            state: The pass, which is over.
            rule: The rule that was in force.
            unchanged: Whether it still is.
            inputs: What the pass was given.
            out: What it returned.
            whole: Whether it was a pass of the whole model.
            begun: What `begin` said before it.
        """
        if whole:
            if begun is not None:
                functions = functions_between(inputs, out, begun)
                self.tell({(name, "autograd.Function"): None for name in functions}, soft=True)
            audit(self.model, rule, state, inputs, out, begun)
            if begun is not None:
                self._looked.add(_combination(frames, rule))
        else:
            refuse_missed(self.model, state)
            self._refuse_bypassing(frames[0])
        self.tell(state.selected, soft=True)
        if state.checkpointed:
            watch_recomputation(self.model, unchanged, out)

    def _refuse_bypassing(self, whole: Frame) -> None:
        """Raises where a part ran by itself because something else runs in the place of the model's forward."""
        kind = type(self.model).__name__
        caller = sys._getframe(1)
        while caller is not None:
            if caller.f_code.co_filename.startswith(FX_FILE):
                raise SoftgateError(
                    f"{kind}: a torch.fx trace of it runs its modules, without the rule at calls of functions; "
                    f"detach, trace, and attach to what the trace gives."
                )
            called = whole.replaced and caller.f_code is nn.Module._call_impl.__code__
            if called and caller.f_locals.get("self") is self.model:
                raise SoftgateError(
                    f"{kind}: its forward was replaced after attach by one that leaves the attached one out, and with "
                    f"it the rule at calls of functions; replace it first, then attach."
                )
            caller = caller.f_back  # type: ignore[assignment]  # None ends the loop

    def tell(self, found: Mapping[tuple[str, str], None], *, soft: bool) -> None:
        """Warns of calls that keep a gradient of their own, once for each; refuses them where the audit is strict.

        Args:
            found: Module and kind of each.
            soft: Whether the rule in force is soft; otherwise there is nothing to tell.
        """
        new = found.keys() - self.selected.keys()
        if not new or not soft:
            return
        before = set(self.unaffected)
        self.selected.update({key: None for key in found if key in new})
        said = "; ".join(kind for kind in self.unaffected if kind not in before)
        about = (
            f"{type(self.model).__name__} selects or bends data where no rule reaches, with its own gradient as ever: "
            f"{said}."
        )
        if self.strict:
            raise UnreachableSites(f"{about} strict=True refuses it.")
        warnings.warn(f"{about} attach(..., strict=True) refuses such a model.", SoftgateWarning, stacklevel=5)

    def tell_of_method(self, module: str, method: str, kinds: Iterable[str]) -> None:
        """Warns, once, of a method beside forward whose own calls no rule reaches; refuses it where strict.

        Args:
            module: The module's path.
            method: The method's name.
            kinds: What it called.
        """
        place = f"{module}.{method}" if module else method
        if place in self._told:
            return
        self._told.add(place)
        about = (
            f"{type(self.model).__name__}.{place} calls {', '.join(dict.fromkeys(kinds))} outside of any forward, with "
            f"the true gradient; attach(..., methods=['{method}']) covers it."
        )
        if self.strict:
            raise UnreachableSites(f"{about} strict=True refuses it.")
        warnings.warn(about, SoftgateWarning, stacklevel=4)

    @property
    def unaffected(self) -> list[str]:
        """One entry for each kind of `selected`, with the modules that call it: "tanh in head.act, (model)"."""
        modules: dict[str, list[str]] = {}
        for module, kind in self.selected:
            modules.setdefault(kind, []).append(module)
        return [f"{kind} in {_several(names)}" for kind, names in modules.items()]


class Watching:
    """Handles the calls that a method beside forward makes itself: takes note of them; forwards it calls are governed.

    Args:
        running: What gives the forward pass that runs, if one does.
    """

    blocks: frozenset[str] = frozenset()

    def __init__(self, running: Callable[[], State | None]) -> None:
        self.running = running
        self.kinds: list[str] = []

    def handle(self, call: SiteCall, site: SiteId, state: State) -> Any:
        """What the call returns anyway."""
        if self.running() is None:
            self.kinds.append(call.kind)
        return call.original()


def _combination(frames: Sequence[Frame], rule: Surrogate | None) -> tuple[bytes, ...]:
    """The modes, trainable parameters and kinds of softening that a pass through the graph was looked at with."""
    kinds = (Kind.RELU, Kind.MAX_POOL2D, Kind.SILU, *sorted(BLOCKS))
    softens = bytes(rule is not None and rule.softens(kind) for kind in kinds)
    modes = bytes(frame.module.training for frame in frames)
    parameters = (p for frame in frames for p in frame.module._parameters.values() if p is not None)
    return softens, modes, bytes(p.requires_grad for p in parameters)


def _several(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more modules" if len(names) > 6 else "")
