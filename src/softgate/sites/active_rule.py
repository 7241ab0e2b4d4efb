"""The rule in force: which moment of its schedule it is, and which call sites it has chosen.

The machinery of `softgate.sites`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from softgate.errors import SoftgateError
from softgate.surrogate import activations
from softgate.surrogate.inputs import check_rule
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import SMOOTH, Kind

LATER: dict[str, frozenset[str]] = {
    "norm": frozenset(),
    "attention": frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"}),
    "product": frozenset({"sigmoid", "tanh", "hardsigmoid", "glu"}),
}
"""The kinds of calls that may turn out to be a part of a block where a trace has seen them."""


class ActiveRule:
    """What decides, at a call site, whether and by which rule it is governed.

    Attributes:
        rule: The rule of this moment; None means the true gradient.
        scheduled: The rule as it was given, with its schedule.
        blocks: Which of "norm", "attention" and "product" it is for, now or at another moment of its schedule.
    """

    def __init__(self, rule: Surrogate | None) -> None:
        self.put(rule)

    def put(self, rule: Surrogate | None) -> None:
        """Puts a rule in force; of a scheduled one, its beginning.

        Raises:
            SoftgateError: If it is no rule.
        """
        check_rule(rule)
        self.scheduled = rule
        self.rule = None if rule is None else rule.at()
        self.blocks: frozenset[str] = frozenset() if rule is None else replace(rule, mix=1.0).blocks
        self._known: set[str] = set()
        self._chosen: set[str] = set()
        self._local: dict[str, Surrogate] = {}

    def advance(self, epoch: float, step: int) -> None:
        """Goes on to another moment of the schedule."""
        if self.scheduled is not None and not self.scheduled.schedule.constant:
            self.rule = self.scheduled.at(epoch, step)
            self._local = {}

    def of_site(self, name: str, kind: str) -> Surrogate | None:
        """The rule of a call site at this moment, with the gates that are its own; None where the gradient is true.

        Whoever needs the rule of a site asks here: gradients, recordings of gates, diagnostics.
        """
        rule = self.rule
        if rule is None or not (rule.sites.everything or self.governs(name, kind)):
            return None
        return self._local_rule(name)

    def _local_rule(self, name: str) -> Surrogate | None:
        rule = self.rule
        if rule is None or not rule.gate.local:
            return rule
        if name not in self._local:
            self._local[name] = rule.at_site(name)
        return self._local[name]

    @property
    def soft(self) -> bool:
        """Whether any gradient differs from the true one."""
        return self.rule is not None and self.rule.soft

    @property
    def ever_soft(self) -> bool:
        """Whether any gradient differs from the true one now or at any other moment of the schedule."""
        given = self.scheduled
        if given is None or self.soft:
            return given is not None
        return (given.mix > 0 or given.schedule.mix is not None) and replace(given, mix=1.0).soft

    def softens(self, kind: str) -> bool:
        """Whether sites of a kind differ from the true gradient, now or at another moment of the schedule."""
        given = self.scheduled
        return given is not None and replace(given, mix=1.0).softens(kind)

    @property
    def later(self) -> set[str]:
        """The kinds of calls of which a trace does not show whether a rule for blocks reaches them; a pass does."""
        return set().union(*(LATER[family] for family in self.blocks))

    def refuses(self, kind: str) -> bool:
        """Whether the rule has nothing for smooth activations and may not leave those of a kind as they are."""
        given = self.scheduled
        off = given is not None and isinstance(given.activation, activations.Own)
        return off and kind in SMOOTH and kind != Kind.SOFTPLUS

    @property
    def uniform(self) -> bool:
        """Whether every call site is treated alike, so that their names do not matter."""
        rule = self.rule
        return rule is None or (rule.sites.everything and rule.scale == "global" and not rule.gate.local)

    def choose(self, model: str, covered: list[tuple[str, str]]) -> None:
        """Finds out, once for each rule, which call sites it governs.

        Args:
            model: What to call the model in errors.
            covered: (name, kind) of the call sites known so far, in the order of the forward pass; where there are
                none, the rule goes by names alone.

        Raises:
            SoftgateError: If it governs none, a pattern matches none, or the order matters and is not known.
        """
        rule = self.rule
        if rule is not None and rule.gate.local:
            for name, _ in covered:  # now: a compiled forward pass makes no rule
                self._local_rule(name)
        if rule is None or rule.sites.everything or self._known:
            return
        if not covered and rule.sites.needs_order:
            raise SoftgateError(
                f"surrogate.sites.depth={rule.sites.depth}: {model} cannot be traced, so the order of its call sites "
                f"is not known; run one forward pass with rule None first, then use(rule)."
            )
        if covered:
            self._known, self._chosen = {name for name, _ in covered}, rule.sites.choose(covered)

    def governs(self, name: str, kind: str) -> bool:
        """Whether the rule in force governs a covered call site; one not known before is taken by its name."""
        if name in self._known:
            return name in self._chosen
        if self.rule is not None and self.rule.sites.needs_order and self._known:
            if not torch.is_grad_enabled():  # then it does not matter, as in a branch that never has a gradient
                return False
            raise SoftgateError(
                f"surrogate.sites.depth={self.rule.sites.depth}: {name} was not called in the pass that showed the "
                f"order of the call sites; choose by names."
            )
        return self.wants(name, kind)

    def wants(self, name: str, kind: str) -> bool:
        """Whether the rule in force asks for a call site, wherever it stands in the forward pass."""
        select = None if self.rule is None else self.rule.sites
        return select is None or select.everything or select.admits(name, kind, select.depth[0])
