"""What a rule in force makes of one call: the gate at an activation, the weights at a pooling, or the true function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import SoftgateError
from softgate.sites.active_rule import ActiveRule
from softgate.sites.calls import ActivationCall, BlockCall, PoolCall, SelectingCall, SiteCall, SiteId
from softgate.sites.checks import family_of, shows, unreachable
from softgate.sites.classification import hidden_in_compile
from softgate.sites.forward import Miss, State, in_checkpoint
from softgate.sites.scales import channel_of, scales_of, tell_if_stale
from softgate.sites.table import SiteTable
from softgate.surrogate.backends import FUNCTIONS, Backend
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import POOLS, Kind

Observer = Callable[[str, str, Tensor], None]
"""Called with name, kind and pre-activation (for a pooling, its input) at each call of a covered site."""


class Gating:
    """Handles the call sites of a model's forward passes by the rule in force.

    Attributes:
        model: The model, on which the per-channel scales lie.
        table: Every call is noted in it.
        active: The rule in force.
        share: Whether the layer behind a ReLU keeps its pre-activation instead of its output.
        backend: What computes the rules.
        observers: Told of each call of a covered site, before it is run.
        calibrating: Whether forward passes feed the channel scales, each example alike.
        fresh: Sites whose in-place call may be an ordinary one.
        overwritten: Modules whose activation's input is written to later; it is kept in a copy.
        hidden: Sites that torch.compile would not show.
        traced: Modules and modes of which a trace has shown whether the inputs of their activations are written to
            later; passes will show it of the others.
        learns: Whether what a pass shows of that is of use to a later one; otherwise all inputs are kept in copies.
        watched: Whether hooks read what modules return, and may keep it, which must then be overwritten as it would be
            without softgate. Under torch.compile this is as it was at `attach`.
    """

    def __init__(
        self, model: nn.Module, table: SiteTable, active: ActiveRule, share: bool, backend: Backend = FUNCTIONS
    ) -> None:
        self.model = model
        self.table = table
        self.active = active
        self.share = share and backend is FUNCTIONS
        self.backend = backend
        self.observers: list[Observer] = []
        self.calibrating = False
        self.fresh: set[SiteId] = set()
        self.overwritten: set[str] = set()
        self.hidden: dict[SiteId, None] = {}
        self.learns = True
        self.watched = False
        self.traced: set[tuple[str, bool]] = set()
        self._seen: set[tuple[str, bool]] = set()  # those of which passes have shown it

    def on_copy(self, model: nn.Module, active: ActiveRule) -> Gating:
        """The gating of a copy of the model, under a rule of its own, with what is known of the model's call sites."""
        made = Gating(model, self.table.copy(), active, self.share, self.backend)
        made.fresh, made.overwritten, made.hidden = self.fresh, self.overwritten, self.hidden
        made.traced, made._seen = self.traced, self._seen
        return made

    @property
    def blocks(self) -> frozenset[str]:
        """Which of "norm", "attention" and "product" the rule in force is for."""
        return self.active.blocks

    def handle(self, call: SiteCall, site: SiteId, state: State) -> Any:
        """What a call returns: a gated activation or pooling, or what the true function does."""
        if state.without_graph:
            return call.original()
        if isinstance(call, BlockCall):
            return self._block(call, site, state)
        if isinstance(call, ActivationCall):
            return self._activation(call, site, state)
        if isinstance(call, PoolCall):
            return self._pool(call, site, state)
        self._note(site, call.kind, False, state, call.why)
        if self.active.soft and state.missed and torch.compiler.is_compiling():
            raise unreachable(self.model, state.missed)
        return _left_hard(call.original(), state, call.kind)

    def _activation(self, call: ActivationCall, site: SiteId, state: State) -> Any:
        if call.kind == Kind.SOFTPLUS and not self.active.softens(call.kind):
            state.select(SelectingCall(call.func, call.args, call.kwargs, call.kind))
            return call.original()
        self._note(site, call.kind, True, state)
        if self.active.refuses(call.kind):
            self.miss(state, Miss(site, call.kind))
            if self.active.soft and torch.compiler.is_compiling():
                raise unreachable(self.model, state.missed)
        if hidden_in_compile(call):
            self.hidden[site] = None
        rule, scale = self._law(state, site.name, call.kind, call.gating)
        # A site that need not work in place does so nevertheless where a hook may have kept its input.
        inplace = self.watched if site in self.fresh else call.inplace
        if rule is None or not rule.softens(call.kind):
            if inplace and not call.inplace:  # a copy goes in: most activations keep their input for the true gradient
                return call.z.copy_(_left_hard(call.activation(call.z.clone()), state, call.kind))
            return _left_hard(call.original(), state, call.kind)
        if call.by is not None:  # the rule's gate is of the one, and its gradient goes to the other
            u = self.backend.injected(call.by.to(call.z.dtype), call.z)
            return self.backend.injected(call.original(), self.backend.gated(u, *call.law, rule, False, scale))
        z = call.z.clone() if not inplace and self._may_be_overwritten(call, site, state) else call.z
        if call.weight is not None:
            return self.backend.prelu(z, call.weight, rule, scale)
        out = self.backend.gated(z, call.activation, call.shape, rule, inplace, scale)
        if self.share and not inplace and not call.smooth:  # those take longer to compute again than to read
            state.outputs.add(z, out, call.activation)
        return out

    def _may_be_overwritten(self, call: ActivationCall, site: SiteId, state: State) -> bool:
        """Whether an activation's input is written to later, as far as is known, so that a copy is to be kept."""
        if site.module in self.overwritten:
            return True
        key = site.module, state.frame.module.training
        if key in self.traced or key in self._seen or not state.grad or torch.compiler.is_compiling():
            return False
        if self.learns:
            state.watched.append((key, call.z, call.z._version))
        return True

    def learn(self, state: State) -> None:
        """Takes over from a pass that is done which inputs of activations were written to after their activation."""
        for key, z, version in state.watched:
            self._seen.add(key)
            if z._version != version:
                self.overwritten.add(key[0])
        state.watched.clear()

    def _pool(self, call: PoolCall, site: SiteId, state: State) -> Any:
        self._note(site, call.kind, call.covered, state)
        if call.settings is None:
            return _left_hard(call.original(), state, call.kind)
        rule, scale = self._law(state, site.name, call.kind, call.x)
        if rule is None or not rule.softens_pool:
            return _left_hard(state.outputs.call(call.func, call.args, call.kwargs), state, call.kind)
        options = {"pool": rule.pool, "mix": rule.mix, "match": rule.matches, "scale": scale}
        options["split_ties"] = call.kind is Kind.AMAX and not call.indices
        y = state.outputs.call(self.backend.max_pool2d, (call.x, *call.settings), options)
        return call.with_indices(call.shaped(y))

    def _block(self, call: BlockCall, site: SiteId, state: State) -> Any:
        self._note(site, call.kind, True, state)
        for observer in self.observers:
            observer(site.name, call.kind, call.passed)
        rule = self.active.of_site(site.name, call.kind)
        return call.original() if rule is None or not rule.softens(call.kind) else call.under(rule, self.backend)

    def _law(self, state: State, name: str, kind: str, z: Tensor) -> tuple[Surrogate | None, Tensor | None]:
        """The rule in force at a call site and what its temperature is measured in there; observers are told."""
        for observer in self.observers:
            observer(name, kind, z)
        rule = self.active.of_site(name, kind)
        if rule is None:
            return None, None
        if rule.scale != "channel" or z.numel() == 0:
            return rule, None
        channel, scales = channel_of(name, z, pool=kind in POOLS), scales_of(self.model)
        training = state.frame.module.training and not self.calibrating
        if state.recomputing:
            return rule, scales.of_pass(name, z, channel) if training else scales.of(name, z, channel)
        if self.calibrating:
            scales.observe(name, z, channel, share=None)
        elif training:
            scales.observe(name, z, channel)
        elif not torch.is_grad_enabled():
            return rule, None
        else:
            tell_if_stale(self.model, scales)
        scale = scales.of(name, z, channel)
        if training and state.checkpointed:
            scales.remember(name, z, channel, scale)
        return rule, scale

    def _note(self, site: SiteId, kind: str, covered: bool, state: State, why: str = "") -> None:
        """Takes note of a call, in the pass and in the table."""
        if covered:
            state.gated += 1
        else:
            self.miss(state, Miss(site, kind, why))
        if torch.compiler.is_compiling():
            return
        if not state.frame.activation and in_checkpoint():
            self.miss(state, Miss(site, kind, IN_CHECKPOINT))
        if state.recomputing:
            self._check_recomputed(site)
        else:
            self.table.note(site, kind, covered)

    def miss(self, state: State, miss: Miss) -> None:
        """Takes note of a call that no rule reaches, where the rule in force asks for it."""
        if self.active.wants(miss.site.name, miss.kind):
            state.missed.append(miss)

    def _check_recomputed(self, site: SiteId) -> None:
        """A recomputation does not say which call of a module it repeats; where that matters it is an error."""
        if site.repeated in self.table and not self.active.uniform:
            raise SoftgateError(
                f"{site.name} is called more than once and recomputed by an activation checkpoint; a rule with "
                f"scale=channel, random gates or a choice of sites cannot tell the calls apart. Give each a module."
            )


def _left_hard(out: Any, state: State, kind: str) -> Any:
    """What a call returned that kept its true gradient, which the audit must expect in the graph."""
    if not torch.compiler.is_compiling():
        family = family_of(kind)
        state.hard[family] += shows(out, family)
    return out


IN_CHECKPOINT = "in a checkpointed function; checkpoint a module instead"
"""Why a call that a rule covers is out of its reach all the same."""
