"""`attach` and `detach`: putting a model under a rule, and taking it out again."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from softgate.errors import SoftgateError
from softgate.sites.sites import Sites, attached_sites
from softgate.surrogate.inputs import checked
from softgate.surrogate.rule import Surrogate


@checked
def attach(
    model: nn.Module,
    rule: Surrogate | None,
    *,
    share: bool = True,
    strict: bool = False,
    methods: Sequence[str] = (),
    backend: str = "functions",
) -> Sites:
    """Puts a rule in force at every ReLU and max-pool call site of a model.

    Args:
        model: Any module, in train or eval mode. Attach before wrapping it in DistributedDataParallel and
            before torch.compile.
        rule: The rule; None leaves the true gradient until `Sites.use` says otherwise.
        share: Keep one tensor for each ReLU, its pre-activation; the input of the layer that follows is recomputed
            from it in the backward pass, bit for bit. False keeps both.
        strict: Refuse a model with calls that select, gate or bend data with a gradient of their own, such as abs,
            where, topk, sigmoid or an autograd.Function; otherwise a warning names them once.
        methods: Names of methods beside forward, of the model or its parts, that are governed too where they are
            called by themselves, such as "encode"; those called "forward_..." are without being named. For others
            that call activations a warning says so once.
        backend: "functions": autograd Functions, fast and small. "fgi": forward gradient injection, y = m - sg(m) +
            sg(f) of ordinary operations, with the same gradients, for torch.export and forward-mode differentiation.

    Returns:
        The sites; a context manager that detaches at the end of its block, also after an exception.

    Raises:
        NoCallSites: If the model has nothing to gate.
        UnreachableSites: If it has activations or max poolings that no rule covers; they are listed. Raised here
            if the model can be traced symbolically, else at the end of the first forward pass.
        SoftgateError: If the model is attached already, or is scripted or compiled, or has none of the `methods`.
    """
    strict = strict or (rule is not None and rule.strict)
    return Sites(model, rule, share=share, strict=strict, methods=methods, backend=backend)


@checked
def detach(model: nn.Module) -> None:
    """Undoes `attach` on a model whose `Sites` are not at hand, for example on a deep copy.

    Raises:
        SoftgateError: If the model is not attached.
    """
    sites = attached_sites(model)
    if sites is None:
        raise SoftgateError(f"detach: {type(model).__name__} is not attached to a rule.")
    sites.detach()
