"""What must not go unnoticed: activations that no rule reaches, and recomputation under another rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from softgate.errors import NoCallSites, SoftgateError, UnreachableSites
from softgate.sites.forward import State, attached_frame, public_methods
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import POOLS, SMOOTH, Kind


def audit(model: nn.Module, rule: Surrogate | None, counts: State, inputs: Any, out: Any, begun: int | None) -> None:
    """Raises if a forward pass of a whole model had activations that the rule does not cover, or none that it does.

    Args:
        model: The model.
        rule: The rule that was in force.
        counts: The state of the pass, which is over: what was gated, left hard and missed.
        inputs: What the pass was given.
        out: What it returned.
        begun: Where the pass began in the order of autograd nodes, to look through its graph too.

    Raises:
        UnreachableSites: For activations out of reach.
        NoCallSites: If there was nothing to gate, in this pass or in any other.
    """
    refuse_missed(model, counts)
    if not counts.gated and not counts.known:
        raise no_sites(model)
    if begun is None or rule is None:
        return
    for family, kind in ((RELU_NODES, Kind.RELU), (POOL_NODES, Kind.MAX_POOL2D), (SMOOTH_NODES, Kind.SILU)):
        hidden = nodes_between(inputs, out, family, begun) if rule.softens(kind) else Counter()
        if hidden.total() > counts.hard[family_of(kind)]:
            raise UnreachableSites(
                f"{type(model).__name__} has activations that run outside of Python, where no rule reaches them: "
                f"{', '.join(hidden)}. Write them with torch.nn.functional, in modules that are not scripted."
            )


def refuse_missed(model: nn.Module, counts: State) -> None:
    """Raises `UnreachableSites` if a pass met call sites that no rule covers."""
    if counts.missed:
        raise unreachable(model, counts.missed)


def watch_recomputation(model: nn.Module, unchanged: Callable[[], bool], out: Any) -> None:
    """Makes the backward pass of a checkpointed forward pass an error once another rule is in force.

    What a checkpoint dropped is computed again in the backward pass, under the rule that is in force by then.

    Args:
        model: The model.
        unchanged: Whether the rule is in force that was in force in the forward pass.
        out: What the forward pass returned.
    """

    def check(grad: Tensor) -> None:
        if not unchanged():
            raise SoftgateError(
                f"{type(model).__name__} has activation checkpoints, and its rule was changed or detached "
                f"between the forward and the backward pass; keep the rule in force until the backward pass is done."
            )

    for tensor in tensors_in(out):
        if tensor.requires_grad:
            tensor.register_hook(check)  # type: ignore[no-untyped-call]  # torch does not annotate it


def refuse_compiling(model: nn.Module, missed: Iterable[object], hidden: Iterable[object]) -> None:
    """Raises where a compiled forward pass could have gates that stay hard without anyone noticing.

    Args:
        model: The model.
        missed: Known call sites that no rule covers.
        hidden: Call sites that torch.compile would not show; where neither are any, no call site is known at all.

    Raises:
        UnreachableSites: For such call sites.
        SoftgateError: If nothing is known about the model's call sites.
    """
    name = type(model).__name__
    if missed:
        raise unreachable(model, missed)
    if hidden:
        raise UnreachableSites(
            f"{name} calls functions that torch.compile hides from every rule: {', '.join(map(str, hidden))}. "
            f"Write torch.nn.functional.relu(x), or relu(x, inplace=True), in their place."
        )
    raise SoftgateError(
        f"{name} cannot be traced, so its call sites are not known; run one forward pass before the compiled one."
    )


# What torch.compiler.disable sets, which would import the compiler: five seconds that `import softgate` need not take.
refuse_compiling._torchdynamo_disable = True  # type: ignore[attr-defined]  # a mark on a function


RELU_NODES: dict[str, str] = {
    "DifferentiableGraph": "scripted code",
    "ReluBackward": "relu",
    "Hardtanh": "hardtanh or relu6",
    "LeakyRelu": "leaky_relu",
    "Threshold": "threshold",
}
"""Substrings of autograd node names that betray an activation which Python never saw."""


POOL_NODES: dict[str, str] = {"DifferentiableGraph": "scripted code", "MaxPool2DWithIndices": "max_pool2d"}
"""The same for max pooling."""


SMOOTH_NODES: dict[str, str] = {
    "DifferentiableGraph": "scripted code",
    **{name: name.lower() for name in ("Silu", "Gelu", "Hardswish", "Mish", "Elu")},
}
"""The same for smooth activations."""

_FAMILIES = {"relu": RELU_NODES, "pool": POOL_NODES, "smooth": SMOOTH_NODES}


def family_of(kind: str) -> str:
    """Under which name `State.hard` counts the calls of a kind: "pool", "smooth" or "relu"."""
    return "pool" if kind in POOLS else "smooth" if kind in SMOOTH else "relu"


def shows(out: Any, family: str) -> bool:
    """Whether what a call returned has an autograd node of the kinds of a family, which `audit` looks for."""
    node = next((tensor.grad_fn for tensor in tensors_in(out)), None)
    return node is not None and any(pattern in node.name() for pattern in _FAMILIES[family])


def nodes_between(inputs: Any, out: Any, patterns: dict[str, str], begun: int = 0) -> Counter[str]:
    """How often nodes that `patterns` match stand in the autograd graph between `inputs` and `out`, made since then."""
    found: Counter[str] = Counter()
    for node in graph(inputs, out, begun):
        kind = next((kind for pattern, kind in patterns.items() if pattern in node.name()), None)
        if kind and "BackwardBackward" not in node.name():  # a derivative's derivative is no activation
            found[kind] += 1
    return found


def graph(inputs: Any, out: Any, begun: int = 0) -> Iterator[Any]:
    """The nodes of the autograd graph between `inputs` and `out` that are not older than the number `begun`."""
    seen: set[Any] = {tensor.grad_fn for tensor in tensors_in(inputs)}
    todo: list[Any] = [tensor.grad_fn for tensor in tensors_in(out)]
    while todo:
        node = todo.pop()
        if node is None or node in seen or node._sequence_nr() < begun:
            continue
        seen.add(node)
        yield node
        todo += [upstream for upstream, _ in node.next_functions]


def functions_between(inputs: Any, out: Any, begun: int = 0) -> list[str]:
    """The names of other people's autograd Functions in the graph between `inputs` and `out`, made since then."""
    found: dict[str, None] = {}
    for node in graph(inputs, out, begun):
        function = getattr(node, "_forward_cls", None)
        if function is not None and function.__module__.split(".")[0] not in ("torch", "softgate"):
            found[function.__name__] = None
    return list(found)


def reads_by_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether forward hooks, of modules or of all, may read and keep what modules are given or return."""
    registered = (torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks)
    for hooks in (*registered, *(h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks))):
        # Those of weight normalisation and the like look at weights only.
        if any(not str(getattr(hook, "__module__", "")).startswith("torch.nn.utils.") for hook in hooks.values()):
            return True
    return False


def unreachable(model: nn.Module, missed: Iterable[object]) -> UnreachableSites:
    """The error for call sites that no rule covers."""
    missed = list(missed)
    names = list(dict.fromkeys(map(str, missed)))
    if names and all(getattr(each, "kind", None) in SMOOTH for each in missed):
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return UnreachableSites(
            f"{type(model).__name__} has {len(names)} smooth activation(s) that this rule has nothing for: {shown}; "
            f"surrogate=semantic is for networks that have them, and surrogate.activation=self_gate covers silu, gelu, "
            f"hardswish, mish, elu, selu and celu under any rule."
        )
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return UnreachableSites(
        f"{type(model).__name__} has {len(names)} call site(s) that no rule covers: {shown}. Covered are relu, "
        f"relu6, hardtanh, leaky_relu, prelu and max_pool2d, as modules or functions; "
        f"surrogate.activation=self_gate covers silu, gelu, hardswish, mish, elu, selu and celu too."
    )


def no_sites(model: nn.Module, whole: bool = False) -> NoCallSites:
    """The error for a model in which nothing can be gated: in both modes, or else in the one that it is in."""
    where = "" if whole else f" in {'train' if model.training else 'eval'} mode"
    why = "" if whole or model.training else " A look at a network runs it in eval mode; rule=None gives its gradient."
    name = type(model).__name__
    return NoCallSites(
        f"{name} has no call site to attach a rule to{where}: no relu or max_pool2d in its forward.{why}"
    )


def tensors_in(tree: Any, depth: int = 8) -> Iterator[Tensor]:
    """The tensors in nested mappings, sequences, dataclasses and other objects with attributes."""
    if isinstance(tree, Tensor):
        yield tree
        return
    if isinstance(tree, (str, bytes, int, float, complex, type, nn.Module)) or tree is None or not depth:
        return
    if isinstance(tree, Mapping):
        parts: Iterable[Any] = tree.values()
    elif isinstance(tree, (tuple, list, set, frozenset)):
        parts = tree
    else:
        slots = [name for kind in type(tree).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [*getattr(tree, "__dict__", {}).values(), *(getattr(tree, n, None) for n in slots if n != "__dict__")]
    for part in parts:
        yield from tensors_in(part, depth - 1)


def check_methods(model: nn.Module, methods: Sequence[str]) -> None:
    """Raises `SoftgateError` for names of methods that no module of the model has."""
    kinds: set[Any] = {type(module) for module in model.modules()}
    known = {name for kind in kinds for name in public_methods(kind)}
    for name in methods:
        shown = ", ".join(sorted(known)) or "none"
        if name not in known:
            raise SoftgateError(f"attach: methods: no module has a method '{name}' of its own; there are: {shown}.")


def refuse_exporting(model: nn.Module, soft: bool, args: Any, backend: str) -> None:
    """Raises `SoftgateError` in torch.export, torch.jit.trace and torch.fx: what they make would silently be hard.

    Args:
        model: The model.
        soft: Whether the rule in force is soft.
        args: What the pass is given.
        backend: The name of what computes the rules: "fgi" is in the exported program.
    """
    if not soft:
        return
    kind = type(model).__name__
    if (torch.compiler.is_exporting() and backend != "fgi") or torch._C._is_tracing():
        raise SoftgateError(
            f"{kind}: an exported or traced program has no backward rule; detach first, or export under use(None), or "
            f"attach(..., backend='fgi'), which puts it into what torch.export makes."
        )
    if any(isinstance(arg, fx.Proxy) for arg in args):
        raise SoftgateError(
            f"{kind}: a torch.fx trace has no rule at calls of functions; detach, trace, and attach to what it gives."
        )


def check_attachable(model: nn.Module) -> None:
    """Raises `SoftgateError` for what cannot be attached: no module, scripted, compiled, or attached already."""
    if not isinstance(model, nn.Module):
        raise SoftgateError(f"attach: {type(model).__name__} given; a torch.nn.Module is needed.")
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise SoftgateError(
            f"attach: {kind} is scripted, its activations run outside of Python; attach to the module it was made of."
        )
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise SoftgateError(f"attach: {kind} is compiled already; attach to the model first, then compile it.")
    for name, module in model.named_modules():
        if attached_frame(module) is not None:
            where = f"its part '{name}'" if name else "it"
            raise SoftgateError(f"attach: {kind}: {where} is attached already; detach() first, or use(rule).")
