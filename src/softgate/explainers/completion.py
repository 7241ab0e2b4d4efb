"""The rule that a network is read out with where the one that was chosen has nothing for its smooth activations."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from softgate.errors import NoCallSites, SoftgateError, UnreachableSites
from softgate.explainers.pullback import pullback
from softgate.sites.sites import attached_sites
from softgate.surrogate import activations
from softgate.surrogate.description import completed, names
from softgate.surrogate.inputs import checked
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import SMOOTH


@checked
def completed_for(model: nn.Module, rule: Surrogate, x: Tensor) -> tuple[Surrogate, str | None]:
    """A rule of read-outs, completed for a model that has smooth activations and may not be read out with it.

    A rule for ReLUs and poolings refuses SiLU, GELU and the like, and a network that has products with a gate alone.
    There `activation`, `norm`,
    `attention` and `product` become those of `Surrogate.semantic` where the rule leaves them "own"; every other field
    stays. Rules that need none of this stay what they are.

    Args:
        model: The model, attached to a rule or not.
        rule: The rule of the read-out.
        x: An image [1, C, H, W] to try it on.

    Returns:
        The rule, and a sentence on what was completed and why, or None.
    """
    if not rule.soft or not isinstance(rule.activation, activations.Own):
        return rule, None
    attached = attached_sites(model)
    if attached is not None and len(attached) and not any(site.kind in SMOOTH for site in attached):
        return rule, None
    try:
        pullback(model, x, 0, _unscaled(rule))
    except (UnreachableSites, NoCallSites):  # of a network of soft gates and no ReLU, such as a DLGN
        pass
    except SoftgateError:  # for whoever reads out to say
        return rule, None
    else:
        return rule, None
    try:
        fuller = completed(rule)
        pullback(model, x, 0, _unscaled(fuller))
    except SoftgateError:  # something else is out of reach
        return rule, None
    gate, *added = names(fuller.to_dict())
    return fuller, f"gate {gate}, and for smooth activations and gates what surrogate=semantic has: {', '.join(added)}"


def _unscaled(rule: Surrogate) -> Surrogate:
    """The rule with a global temperature, which needs no calibration."""
    return replace(rule, scale="global")
