"""The excitation pullback as a captum `Attribution`; importing this module needs the extra `softgate[explain]`."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from softgate.errors import require
from softgate.explainers.gradients import captum_attr
from softgate.explainers.pullback import pullback
from softgate.surrogate.inputs import check_rule
from softgate.surrogate.rule import Surrogate

_Attribution: Any = captum_attr().Attribution
_log_usage: Any = importlib.import_module("captum.log").log_usage  # captum's NoiseTunnel unwraps what it wraps


class ExcitationPullback(_Attribution):  # type: ignore[misc]  # captum may be absent when types are checked
    """Excitation pullbacks in captum's form: `ExcitationPullback(model, rule).attribute(x, target=3)`.

    Args:
        forward_func: The model, a torch.nn.Module; a plain function has no call sites to find.
        rule: The backward rule; None is the default rule, sigmoid gates and log-sum-exp pools.
    """

    def __init__(self, forward_func: nn.Module, rule: Surrogate | None = None) -> None:
        require(
            isinstance(forward_func, nn.Module),
            f"ExcitationPullback: {type(forward_func).__name__} given; a torch.nn.Module is needed.",
        )
        super().__init__(forward_func)
        check_rule(rule)
        self.rule = Surrogate() if rule is None else rule

    @_log_usage()  # type: ignore[untyped-decorator]  # captum's is untyped
    def attribute(self, inputs: Tensor, target: Any = None, **kwargs: Any) -> Tensor:
        """The pullbacks [B, C, H, W] of images [B, C, H, W]; `target` is an int or a [B] tensor."""
        require(target is not None, "ExcitationPullback: target is not set; an int or a [B] tensor is needed.")
        require(not kwargs, f"ExcitationPullback: {', '.join(kwargs)}: no such setting; it takes inputs and target.")
        return pullback(self.forward_func, inputs, target, self.rule)
