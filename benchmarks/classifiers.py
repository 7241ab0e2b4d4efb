"""Every torchvision classifier under softgate: covered or refused by name: `uv run benchmarks/classifiers.py`.

Each network is built with fresh weights and run on the CPU on two small images of noise, bare and attached to
`Surrogate()`, in train and in eval mode, from the same buffers and the same random state. The bare autograd graph says
how many activations and poolings there are to cover; it does not come from softgate.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import softgate as sg
from softgate import files
from softgate.surrogate.selection import SMOOTH
from softgate.tables import Table

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
SIZES = {"inception_v3": 299, "maxvit_t": 224}
"""Input sizes in pixels, where 64 is too small or does not fit."""
SETTINGS = {
    "googlenet": {"init_weights": False},  # the other initialisation takes a minute and goes by scipy
    "inception_v3": {"init_weights": False},
    "vit_h_14": {"image_size": 56},
}
HARD_NODES = ("ReluBackward", "Hardtanh", "LeakyRelu", "Threshold", "MaxPool2DWithIndices", "AdaptiveMaxPool2D")
"""Substrings of the names autograd gives to the backward passes of ReLU, its kin and max pooling."""


@dataclass
class Row:
    """What was found for one network."""

    name: str
    size: int
    sites: Counter[str] = field(default_factory=Counter)  # covered call sites by kind, in eval mode
    refused: Counter[str] = field(default_factory=Counter)  # call sites that no rule covers, by kind
    named: bool = False  # whether the refusal names every such kind and leaves the model as it was
    equal: dict[str, bool] = field(default_factory=dict)  # by mode: outputs and buffers bit-equal
    full: dict[str, bool] = field(default_factory=dict)  # by mode: as many gated as the bare graph has, none hard
    cosine: dict[str, float] = field(default_factory=dict)  # by mode: true against surrogate input gradient
    own: dict[str, None] = field(default_factory=dict)  # what selects or bends data and keeps its own gradient, by kind
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        """Refused by name; or covered with an equal forward and a finite gradient that is not the true one."""
        if self.refused:
            return self.named
        sound = bool(self.cosine) and all(abs(c) < 1 - 1e-6 for c in self.cosine.values())  # false for nan
        return sound and all(self.equal.values()) and all(self.full.values())


def classifiers() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def build(name: str) -> nn.Module:
    """A classifier with fresh weights; vit_* are built for 64 px (vit_h_14 for 56)."""
    settings: dict[str, object] = {"image_size": 64} if name.startswith("vit") else {}
    torch.manual_seed(0)
    return torchvision.models.get_model(name, num_classes=10, **settings | SETTINGS.get(name, {}))


def input_size(name: str) -> int:
    return SETTINGS.get(name, {}).get("image_size", SIZES.get(name, 64))


def tensors(out: object) -> list[Tensor]:
    """The outputs of a classifier: one, or in train mode of GoogLeNet and Inception several."""
    return [out] if isinstance(out, Tensor) else [part for part in out if isinstance(part, Tensor)]


def hard_nodes(outputs: list[Tensor]) -> int:
    """How many nodes of the graph behind `outputs` are hard activations or poolings."""
    seen, todo = set(), [out.grad_fn for out in outputs]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [upstream for upstream, _ in node.next_functions]
    return sum(any(name in node.name() for name in HARD_NODES) for node in seen)


def run(model: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor, int, list[Tensor]]:
    """Outputs, input gradient, number of hard nodes and buffers after one pass; buffers are then put back."""
    before = [buffer.clone() for buffer in model.buffers()]
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    outputs = tensors(model(x))
    hard = hard_nodes(outputs)
    weights = [torch.linspace(-1, 1, out.numel()).view_as(out) for out in outputs]
    (gradient,) = torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), x)
    after = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    return [out.detach() for out in outputs], gradient, hard, after


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def cosine(some: Tensor, other: Tensor) -> float:
    """Of the angle between two gradients; nan where one is zero or not finite."""
    some, other = some.double().flatten(), other.double().flatten()
    return float(some @ other / (some.norm() * other.norm()))


def examine(name: str) -> Row:
    """Builds a classifier and looks at it."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet and Inception, about their initialisation
        model = build(name).eval()
    size = input_size(name)
    row = Row(name, size)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with sg.attach(model, None) as sites, torch.no_grad():
        model(x)
        for site in sites.table():
            (row.sites if site.covered and site.kind not in SMOOTH else row.refused)[site.kind] += 1
    if row.refused:
        row.named = refused_by_name(model, x, set(row.refused))
    else:
        for mode in ("eval", "train"):
            model.train(mode == "train")
            bare, true, hard, state = run(model, x)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sg.SoftgateWarning)  # it is a column of the table
                sites = sg.attach(model, sg.Surrogate())
            with sites, warnings.catch_warnings():
                warnings.simplefilter("ignore", sg.SoftgateWarning)
                soft, surrogate, left, soft_state = run(model, x)
                row.own |= {entry.split(" in ")[0]: None for entry in sites.unaffected}
                gated = sum(site.calls for site in sites.table() if site.covered)
            row.equal[mode] = same(bare, soft) and same(state, soft_state)
            row.full[mode] = left == 0 and gated == hard > 0
            row.cosine[mode] = cosine(true, surrogate)
    row.seconds = time.perf_counter() - started
    return row


def refused_by_name(model: nn.Module, x: Tensor, kinds: set[str]) -> bool:
    """Whether attaching, or the first forward pass, is refused with all of `kinds` named, and nothing stays behind."""
    flags = [(module.training, getattr(module, "inplace", None)) for module in model.modules()]
    try:
        with sg.attach(model, sg.Surrogate()):
            model(x)
    except sg.UnreachableSites as error:
        named = all(f"({kind}" in str(error) for kind in kinds)
        after = [(module.training, getattr(module, "inplace", None)) for module in model.modules()]
        return named and flags == after and not any("forward" in module.__dict__ for module in model.modules())
    return False


def listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


HEAD = ["model", "px", "activations", "max pools", "forward equal", "all covered", "own gradient", "cosine"]
REFUSED_HEAD = ["model", "px", "not covered", "refused by name"]


def cells(row: Row) -> list[str]:
    """One line of the table it belongs in."""
    if row.refused:
        return [row.name, str(row.size), listed(row.refused), "yes" if row.named else "NO"]
    pools = sum(count for kind, count in row.sites.items() if "pool" in kind)
    activations = Counter({kind: count for kind, count in row.sites.items() if "pool" not in kind})
    equal, full = (
        "yes" if all(found.values()) else "NO: " + ", ".join(mode for mode, ok in found.items() if not ok)
        for found in (row.equal, row.full)
    )
    own = ", ".join(row.own) or "-"
    return [row.name, str(row.size), listed(activations), str(pools), equal, full, own, f"{row.cosine['train']:.2f}"]


def markdown(head: list[str], lines: list[list[str]]) -> str:
    return Table(head, lines, align="l" * len(head)).markdown()


PAGE_TEXT = """\
# Which classifiers of torchvision are covered

Of the {all} classifiers of torchvision {torchvision}, {covered} run under softgate with every ReLU and max pooling
gated, and {refused} are refused with the names of the call sites that no rule covers ({kinds}).
Made on {date}, with torch {torch} on the CPU, by

```bash
uv run benchmarks/classifiers.py
```

and not by hand. Every network is built whole, with fresh weights and ten classes (the ViTs for images of 64 px,
vit_h_14 of 56), and sees two images of noise, bare and attached to `sg.Surrogate()`, in eval and in train mode, from
the same buffers and the same random state.

- **activations**, **max pools**: call sites of one forward pass in eval mode.
- **forward equal**: all outputs, and the batch statistics afterwards, are bit-equal to the bare network's, in both
  modes.
- **all covered**: as many calls are gated as the autograd graph of the bare network has nodes of ReLU, ReLU6,
  Hardtanh, LeakyReLU and max pooling, and the attached network's graph has none of them, in both modes.
- **own gradient**: what else selects or bends data on the way and keeps its own gradient under every rule; a warning
  names the modules, and `attach(..., strict=True)` refuses such a network.
- **cosine**: of the input gradient under the surrogate with the true one, in train mode; not 1, so the rule is in
  force. (It is finite and not 1 in eval mode too, where the figure says little: the batch statistics are untrained.)

## Covered

{covered_table}

## Refused

The error is `sg.UnreachableSites`, raised by `attach` or, where the network cannot be traced, by the first forward
pass; it names the call sites, and the network is left as it was.

{refused_table}
"""


def page(rows: list[Row]) -> str:
    """The whole of docs/coverage.md."""
    covered, refused = [row for row in rows if not row.refused], [row for row in rows if row.refused]
    return PAGE_TEXT.format(
        all=len(rows),
        covered=len(covered),
        refused=len(refused),
        kinds=", ".join(sorted({kind for row in refused for kind in row.refused})),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        torch=torch.__version__.split("+")[0],
        torchvision=torchvision.__version__.split("+")[0],
        covered_table=markdown(HEAD, [cells(row) for row in covered]),
        refused_table=markdown(REFUSED_HEAD, [cells(row) for row in refused]),
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--models", nargs="+", choices=classifiers(), metavar="NAME", help="these only; writes no page"
    )
    options.add_argument("--out", type=Path, default=PAGE, help="the page to write (default: docs/coverage.md)")
    given = options.parse_args()
    rows = []
    for name in given.models or classifiers():
        row = examine(name)
        rows.append(row)
        print("  ".join([*cells(row), f"[{row.seconds:.1f} s]", *([] if row.fine else ["NOT FINE"])]), flush=True)
    if not given.models:
        files.write(page(rows), given.out)
        print(f"written: {given.out}")
    return 0 if all(row.fine for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
