"""Every torchvision classifier under softgate: covered, or refused by name: `uv run benchmarks/classifiers.py`.

Each network is built with fresh weights and run on the CPU on two small images of noise, bare and attached, in train
and in eval mode, from the same buffers and the same random state: under `Surrogate()`, or where that refuses it, under
`Surrogate.semantic()`. The bare autograd graph says how much there is to cover; it does not come from softgate.
Finished networks are kept in outputs/coverage; a command that was broken off goes on from there.
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
from typing import Any

import torch
import torchvision
from coverage import (
    HARD,
    PAGE,
    SEMANTIC,
    STATE,
    affine,
    awake,
    cosine,
    listed,
    markdown,
    number,
    off_reference,
    put_on_page,
    run,
    same,
    unmatched,
)
from torch import Tensor, nn

import softgate as sg
from softgate import files
from softgate.surrogate.selection import NORMS, SMOOTH

SIZES = {"inception_v3": 299, "maxvit_t": 224}
"""Input sizes in pixels, where 64 is too small or does not fit."""
SETTINGS = {
    "googlenet": {"init_weights": False},  # the other initialisation takes a minute and goes by scipy
    "inception_v3": {"init_weights": False},
    "vit_h_14": {"image_size": 56},
}
SMALL = 320e6
"""Parameters up to which a network is also run in float64."""


@dataclass
class Row:
    """What was found for one network."""

    name: str
    size: int
    sites: Counter[str] = field(default_factory=Counter)  # covered call sites by kind, in eval mode
    refused: Counter[str] = field(default_factory=Counter)  # call sites that `Surrogate()` does not cover, by kind
    named: bool = False  # whether the refusal names every such kind and leaves the model as it was
    equal: dict[str, bool] = field(default_factory=dict)  # by mode: outputs and buffers bit-equal
    full: dict[str, bool] = field(default_factory=dict)  # by mode: as many gated as the bare graph has, none hard
    cosine: dict[str, float] = field(default_factory=dict)  # by mode: true against surrogate input gradient
    own: dict[str, None] = field(default_factory=dict)  # what selects or bends data and keeps its own gradient, by kind
    affine: str = ""  # under `semantic`: how far the affine reading is off the logit
    off: float | None = None  # under `semantic`, where small: how far the input gradient is off the reference
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        """Covered, with an equal forward and a finite gradient that is not the true one; refusals are by name."""
        sound = bool(self.cosine) and all(abs(c) < 1 - 1e-6 for c in self.cosine.values())  # false for nan
        sound = sound and all(self.equal.values()) and all(self.full.values())
        if not self.refused:
            return sound
        exact = not self.affine.startswith("no") and (self.off is None or self.off < 1e-10)
        return sound and self.named and exact


def classifiers() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def build(name: str) -> nn.Module:
    """A classifier with fresh weights; vit_* are built for 64 px (vit_h_14 for 56)."""
    settings: dict[str, object] = {"image_size": 64} if name.startswith("vit") else {}
    torch.manual_seed(0)
    return awake(torchvision.models.get_model(name, num_classes=10, **settings | SETTINGS.get(name, {})))


def input_size(name: str) -> int:
    return SETTINGS.get(name, {}).get("image_size", SIZES.get(name, 64))


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
            (row.sites if site.covered and site.kind not in SMOOTH else row.refused)[str(site.kind)] += 1
    if row.refused:
        row.named = refused_by_name(model, x, set(row.refused))
    for mode in ("eval", "train"):
        look(row, model.train(mode == "train"), x, mode, SEMANTIC if row.refused else sg.Surrogate())
    if row.refused:
        exactly(row, model.eval(), x[:1])
    row.seconds = time.perf_counter() - started
    return row


def look(row: Row, model: nn.Module, x: Tensor, mode: str, rule: sg.Surrogate) -> None:
    """Runs a network bare and attached to a rule, in its mode."""
    bare, true, there, state = run(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.SoftgateWarning)  # it is a column of the table
        with sg.attach(model, rule) as sites:
            soft, surrogate, left, soft_state = run(model, x)
            row.own |= {entry.split(" in ")[0]: None for entry in sites.unaffected}
            gated = Counter[str]()
            for site in sites.table():
                gated[str(site.kind)] += site.calls if site.covered else 0
    row.equal[mode] = same(bare, soft) and same(state, soft_state)
    row.cosine[mode] = cosine(true, surrogate)
    if row.refused:
        row.sites = gated if mode == "eval" else row.sites
        row.full[mode] = not unmatched(gated, there, left, row.own)
    else:
        row.full[mode] = number(left, HARD) == 0 and gated.total() == number(there, HARD) > 0


def exactly(row: Row, model: nn.Module, x: Tensor) -> None:
    """The affine reading, and the distance from the reference, in float64; a large network is read in float32."""
    small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    if small:
        model, x = model.double(), x.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.SoftgateWarning)
        row.affine = affine(model, x) + ("" if small else " (float32)")
        row.off = off_reference(model, x) if small else None


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


HEAD = ["model", "px", "activations", "max pools", "forward equal", "all covered", "own gradient", "cosine"]
SEMANTIC_HEAD = [
    *("model", "px", "activations", "max pools", "norms", "attention", "products", "forward equal", "all covered"),
    *("own gradient", "affine", "off the reference", "cosine"),
]


def cells(row: Row) -> list[str]:
    """One line of the table it belongs in."""
    pools = sum(count for kind, count in row.sites.items() if "pool" in kind)
    norms = sum(row.sites[kind] for kind in NORMS)
    blocks = (*NORMS, "attention", "product")
    activations = Counter({k: count for k, count in row.sites.items() if "pool" not in k and k not in blocks})
    equal, full = (
        "yes" if all(found.values()) else "NO: " + ", ".join(mode for mode, ok in found.items() if not ok)
        for found in (row.equal, row.full)
    )
    first = [row.name, str(row.size), listed(activations), str(pools)]
    own, angle = ", ".join(row.own) or "-", f"{row.cosine['train']:.2f}"
    if not row.refused:
        return [*first, equal, full, own, angle]
    counts = [str(count or "-") for count in (norms, row.sites["attention"], row.sites["product"])]
    off = "-" if row.off is None else f"{row.off:.0e}"
    return [*first, *counts, equal, full, own, row.affine, off, angle]


PAGE_TEXT = """\
# Which classifiers of torchvision are covered

Of the {all} classifiers of torchvision {torchvision}, {covered} run under `sg.Surrogate()` with every ReLU and max
pooling gated. It refuses the other {refused} by the names of the call sites that it has no rule for ({kinds}), and
`sg.Surrogate.semantic()` (`surrogate=semantic`) covers {semantic} of these: {total} of {all} in all.
Made on {date}, with torch {torch} on the CPU, by

```bash
uv run benchmarks/classifiers.py
```

and not by hand. Every network is built whole, with fresh weights and ten classes (the ViTs for images of 64 px,
vit_h_14 of 56), and sees two images of noise, bare and attached, in eval and in train mode, from the same buffers and
the same random state.

- **activations**, **max pools**, **norms**, **attention**, **products**: call sites of one forward pass in eval mode.
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

## Covered by surrogate=semantic

Under `sg.Surrogate()` the error is `sg.UnreachableSites`, raised by `attach` or, where the network cannot be traced, by
the first forward pass; it names the call sites, and the network is left as it was. Under `sg.Surrogate.semantic()`:

- **all covered**: no node of an activation, a max pooling or a normalisation is left in the attached network's graph,
  and there are as many call sites as the bare network's graph has such nodes, and nodes of softmax, attention, sigmoid
  and hardsigmoid (which stay in the graph, where they get zeros); those under own gradient apart.
- **own gradient**: in Swin v2 a clamp of the temperature, of a parameter alone.
- **affine**: in float64, how far the pullback's inner product with the image and the constants (`sg.representation`)
  are off the logit, relative to it, with SiLU at `silu=1`; "gated" where ReLUs are softened too: there the value is
  that of the network run with its gates held, which `sg.representation` checks in every call, to 1.5e-8.
- **off the reference**: in float64, the relative distance of the input gradient from that of the slow reference in
  `tests/reference_blocks.py`, which shares no code with softgate; of networks of up to {small:.0f} million parameters.

{semantic_table}
"""


def page(rows: list[Row]) -> str:
    """The part of docs/coverage.md on torchvision."""
    covered, refused = [row for row in rows if not row.refused], [row for row in rows if row.refused]
    semantic = sum(row.fine for row in refused)
    return PAGE_TEXT.format(
        all=len(rows),
        covered=len(covered),
        refused=len(refused),
        semantic=semantic if semantic < len(refused) else f"all {semantic}",
        total=semantic + len(covered),
        small=SMALL / 1e6,
        kinds=", ".join(sorted({kind for row in refused for kind in row.refused})),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        torch=torch.__version__.split("+")[0],
        torchvision=torchvision.__version__.split("+")[0],
        covered_table=markdown(HEAD, [cells(row) for row in covered]),
        semantic_table=markdown(SEMANTIC_HEAD, [cells(row) for row in refused]),
    )


def kept(name: str) -> Row | None:
    """The row of a network that was examined before."""
    path = STATE / f"{name}.json"
    if not path.exists():
        return None
    values: dict[str, Any] = files.read_json(path)
    return Row(**{**values, "sites": Counter(values["sites"]), "refused": Counter(values["refused"])})


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--models", nargs="+", choices=classifiers(), metavar="NAME", help="these only, anew; writes no page"
    )
    options.add_argument("--out", type=Path, default=PAGE, help="the page to write (default: docs/coverage.md)")
    given = options.parse_args()
    torch.set_num_threads(1)  # small layers by the thousand, on what may be a shared machine
    rows = []
    for name in given.models or classifiers():
        row = (None if given.models else kept(name)) or examine(name)
        rows.append(row)
        STATE.mkdir(parents=True, exist_ok=True)
        files.write_json(vars(row), STATE / f"{name}.json")
        print("  ".join([*cells(row), f"[{row.seconds:.1f} s]", *([] if row.fine else ["NOT FINE"])]), flush=True)
    if not given.models:
        put_on_page(page(rows), "# ", "## timm", given.out)
        print(f"written: {given.out}; to measure anew, remove {STATE}")
    return 0 if all(row.fine for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
