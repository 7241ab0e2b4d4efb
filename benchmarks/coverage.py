"""What the two tables of docs/coverage.md share: a pass, bare and attached, the affine reading, the page."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

import softgate as sg
from softgate import files
from softgate.explainers.representation import read
from softgate.surrogate.selection import NORMS, SMOOTH
from softgate.tables import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import reference  # noqa: E402  (the tests' formulas, which share no code with softgate)
import reference_blocks  # noqa: E402  (likewise)

PAGE = ROOT / "docs" / "coverage.md"
STATE = ROOT / "outputs" / "coverage"
"""Where finished rows lie, so that a command that was broken off goes on from there."""
SEMANTIC = sg.Surrogate.semantic()
EXACT = sg.Surrogate.semantic(activation=sg.activations.SelfGate(silu=1.0))
"""Under which a network without ReLUs and poolings is its own affine reading."""
HARD = ("ReluBackward", "Hardtanh", "LeakyRelu", "Threshold", "MaxPool2DWithIndices", "AdaptiveMaxPool2D")
"""Substrings of the names autograd gives to the backward passes of ReLU, its kin and max pooling."""
BENT = ("SiluBackward", "GeluBackward", "HardswishBackward", "MishBackward", "EluBackward")
NORMALISED = ("LayerNormBackward", "GroupNormBackward", "RmsNorm", "RMSNorm")
WEIGHED = ("ScaledDotProduct", "SoftmaxBackward")
GATING = ("SigmoidBackward", "HardsigmoidBackward", "TanhBackward")


def awake(model: nn.Module) -> nn.Module:
    """Gives a value to what is initialised to nothing: heads and norms of zeros, layer scales of 1e-6 and the like.

    Otherwise whole layers would play no part in what is looked at.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" not in name and float(parameter.abs().max()) <= 1e-4:
                parameter.normal_(0.0, 0.1) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.0)
    return model


def tensors(out: object) -> list[Tensor]:
    """The outputs of a classifier: one, or in train mode of GoogLeNet and Inception several."""
    return [out] if isinstance(out, Tensor) else [part for part in out if isinstance(part, Tensor)]


def nodes(outputs: list[Tensor], x: Tensor) -> Counter[str]:
    """The nodes of the autograd graph between `outputs` and the images, by name; not those of parameters alone."""
    order, followers, todo = [], {}, [out.grad_fn for out in outputs]
    while todo:
        node = todo.pop()
        if node is not None and node not in followers:
            order.append(node)
            followers[node] = [upstream for upstream, _ in node.next_functions if upstream is not None]
            todo += followers[node]
    behind = {node: [] for node in order}
    for node in order:
        for upstream in followers[node]:
            behind[upstream].append(node)
    found, todo = set(), [node for node in order if getattr(node, "variable", None) is x]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += behind[node]
    return Counter(node.name() for node in found)


def number(found: Counter[str], names: tuple[str, ...]) -> int:
    """How many nodes have one of `names` in theirs."""
    return sum(count for node, count in found.items() if any(name in node for name in names))


def run(model: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor, Counter[str], list[Tensor]]:
    """Outputs, input gradient, the graph's nodes and buffers after one pass; buffers are then put back."""
    before = [buffer.clone() for buffer in model.buffers()]
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    outputs = tensors(model(x))
    found = nodes(outputs, x)
    weights = [torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) for out in outputs]
    (gradient,) = torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), x)
    after = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    return [out.detach() for out in outputs], gradient, found, after


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def cosine(some: Tensor, other: Tensor) -> float:
    """Of the angle between two gradients; nan where one is zero or not finite."""
    some, other = some.double().flatten(), other.double().flatten()
    return float(some @ other / (some.norm() * other.norm()))


def unmatched(sites: Counter[str], bare: Counter[str], left: Counter[str], own: dict[str, None]) -> list[str]:
    """What of a network is no call site under `semantic`, judged by the graphs of two passes.

    Args:
        sites: Covered calls by kind.
        bare: The nodes of the bare network.
        left: Those of the attached one.
        own: Kinds that are told of as keeping their own gradient.
    """
    pools = sum(count for kind, count in sites.items() if "pool" in kind or kind == "amax")
    smooth, norms = (sum(sites[kind] for kind in kinds) for kinds in (SMOOTH, NORMS))
    relus = sites.total() - pools - smooth - norms - sites["attention"] - sites["product"]
    found = {
        "relu and max pool": (relus + pools, number(bare, HARD), number(left, HARD)),
        "smooth": (smooth, number(bare, BENT), number(left, BENT)),
        "norm": (norms, number(bare, NORMALISED), number(left, NORMALISED)),
    }
    wrong = [
        f"{what}: {gated} of {there}, {hard} left"
        for what, (gated, there, hard) in found.items()
        if gated < there or hard
    ]
    # a held softmax or gate stays in the graph, where it gets zeros
    told = any(name in own for name in ("sigmoid", "tanh", "hardsigmoid"))
    gates = sites["attention"] + sites["product"], number(bare, WEIGHED) + number(bare, GATING)
    return wrong if gates[0] >= gates[1] or told else [*wrong, f"attention and product: {gates[0]} of {gates[1]}"]


def affine(model: nn.Module, x: Tensor) -> str:
    """How far <pullback, image> + constants is off the logit; "gated" where ReLUs or poolings make it another value."""
    with sg.attach(model, EXACT, strict=False) as sites, torch.no_grad():
        model(x)
        hard = any(site.kind not in (*SMOOTH, *NORMS, "attention", "product") for site in sites.table())
    try:
        found = read(model, x, 0, EXACT)  # it checks itself against the network with its gates held
    except sg.SoftgateError as error:
        return f"no: {str(error).removeprefix('representation: ')}"
    return "gated" if hard else f"{reference.distance(found.represented, found.logit):.0e}"


def off_reference(model: nn.Module, x: Tensor) -> float:
    """Relative distance of the input gradient from that of the tests' slow reference."""
    with sg.attach(model, SEMANTIC):
        _, soft, _, _ = run(model, x)
    with reference_blocks.patched(), reference.patched(lambda z: reference.normal_cdf(z, 0.6), 0.3):
        _, slow, _, _ = run(model, x)
    return float(reference.distance(soft, slow))


def listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "-"


def markdown(head: list[str], lines: list[list[str]]) -> str:
    return Table(head, lines, align="l" * len(head)).markdown()


def put_on_page(text: str, first: str, behind: str | None, path: Path = PAGE) -> None:
    """Puts a part of the page in the place of what stands there.

    Args:
        text: The part.
        first: How its first line begins.
        behind: How the first line behind it begins; None where it is the last part.
        path: The page.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    start = next((i for i, line in enumerate(lines) if line.startswith(first)), len(lines))
    end = next((i for i, line in enumerate(lines) if behind and line.startswith(behind)), len(lines))
    parts = ["\n".join(lines[:start]).strip(), text.strip(), "\n".join(lines[end:]).strip() if behind else ""]
    files.write("\n\n".join(part for part in parts if part) + "\n", path)
