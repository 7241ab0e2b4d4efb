"""Which families of timm run through soft gates: 60 small members, fresh weights: `uv run benchmarks/timm_networks.py`.

Each is trained for one step and read out, under `Surrogate()`, or where that refuses it under `Surrogate.semantic()`.
The section of docs/coverage.md is written by this command.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from coverage import HARD, SEMANTIC, STATE, affine, awake, listed, markdown, nodes, number, put_on_page, unmatched
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import files, models

NAMES = (
    "resnet26 resnet18d resnext26ts resnetv2_50 res2net50_26w_4s regnetx_002 regnety_002 densenet121 dla34 repvgg_a0 "
    "skresnet18 selecsls42 ghostnet_100 inception_v4@299 vovnet39a hrnet_w18_small xception41@299 mobilenetv2_100 "
    "vgg11_bn hardcorenas_a efficientnet_b0 mobilenetv3_small_050 mobilenetv4_conv_small_035 nf_resnet26 nfnet_l0 "
    "resnest14d convnext_atto convnextv2_atto inception_next_atto poolformer_s12 poolformerv2_s12@224 caformer_s18@224 "
    "repvit_m0_9 fastvit_t8 edgenext_xx_small@256 pvt_v2_b0 tiny_vit_5m_224@224 efficientformer_l1@224 "
    "efficientformerv2_s0@224 levit_128s@224 davit_tiny focalnet_tiny_srf gcvit_xxtiny@224 hiera_tiny_224@224 "
    "vit_tiny_patch16_224@224 deit_tiny_distilled_patch16_224@224 swin_tiny_patch4_window7_224@224 "
    "swinv2_tiny_window8_256@256 cait_xxs24_224@224 xcit_nano_12_p16_224@224 beit_base_patch16_224@224 "
    "eva02_tiny_patch14_224@224 mixer_s32_224@224 coat_lite_tiny@224 maxxvitv2_nano_rw_256@256 mobilevit_xxs@256 "
    "gmlp_ti16_224@224 crossvit_tiny_240@240 lcnet_050 rexnet_100"
).split()
"""One member of each family, and the side of the images it takes where that is not 64."""


@dataclass
class Row:
    """What was found for one network."""

    name: str
    size: int
    rule: str = "Surrogate()"
    sites: Counter[str] = field(default_factory=Counter)
    equal: bool = False  # whether the training step's forward pass is the bare network's, bit for bit
    left: list[str] = field(default_factory=list)  # what of the network's graph is no call site
    own: list[str] = field(default_factory=list)  # what keeps its own gradient
    affine: str = ""  # as in `coverage.affine`; no: and why not
    refused: str = ""
    seconds: float = 0.0

    @property
    def covered(self) -> bool:
        return not (self.refused or self.left or self.affine.startswith("no")) and self.equal


def step(net: nn.Module, rule: sg.Surrogate, row: Row) -> None:
    """One training step of a network, attached; fills in what it was like."""
    bare = copy.deepcopy(net).train()
    x, labels = torch.randn(2, 3, row.size, row.size, requires_grad=True), torch.tensor([1, 2])
    torch.manual_seed(1)
    there = bare(x)
    with sg.attach(net.train(), rule) as sites:
        torch.manual_seed(1)
        out = net(x)
        left = nodes([out], x)
        F.cross_entropy(out, labels).backward()
        row.own = [entry.split(",")[0] for entry in sites.unaffected]
        for site in sites.table():
            row.sites[str(site.kind)] += site.calls if site.covered else 0
    row.equal = bool(torch.equal(out, there))
    if rule.blocks:
        told = {entry.split(" in ")[0]: None for entry in row.own}
        row.left = unmatched(row.sites, nodes([there], x), left, told)
    else:
        row.left = ["relu or max pool"] if number(left, HARD) else []


def examine(entry: str) -> Row:
    """Looks at a network under the rule that covers it."""
    started = time.perf_counter()
    name, _, size = entry.partition("@")
    torch.manual_seed(0)
    net = awake(models.build(f"timm/{name}", 10))
    row = Row(name, int(size or 64))
    try:
        try:
            step(net, sg.Surrogate(), row)
        except sg.UnreachableSites:
            row = Row(name, row.size, "semantic")
            step(net, SEMANTIC, row)
        torch.manual_seed(0)
        exact = awake(models.build(f"timm/{name}", 10)).double().eval()
        row.affine = affine(exact, torch.randn(1, 3, row.size, row.size, dtype=torch.float64))
    except sg.SoftgateError as error:
        row.refused = str(error).split(". Covered")[0]
    row.seconds = time.perf_counter() - started
    return row


HEAD = ["model", "px", "rule", "call sites", "forward equal", "affine", "own gradient, or why not covered"]


def cells(row: Row) -> list[str]:
    """One line of the table."""
    said = row.refused or "; ".join([*row.left, *row.own])
    reading = row.affine
    if reading.startswith("no: "):
        reading, said = "no", "; ".join(filter(None, [said, reading[4:].split("; parts of it")[0]]))
    equal = "-" if row.refused else "yes" if row.equal else "NO"
    return [f"timm/{row.name}", str(row.size), row.rule, listed(row.sites), equal, reading or "refused", said or "-"]


TEXT = """\
## timm

{covered} of {all} networks of different families of timm {timm} are covered: {plain} under `sg.Surrogate()`, the others
under `sg.Surrogate.semantic()`. Fresh weights, one training step on two images. {date}, torch {torch} on the CPU, by

```bash
uv run benchmarks/timm_networks.py
```

and not by hand; in the commands: `model=timm model.name=resnet26`, with `surrogate=semantic` where the table says so.
**forward equal** is of the training step, bit for bit; **affine** as above, in float64 under
`semantic`; a network is covered where both hold and its graph has no activation, pooling, normalisation, attention or
gate that is no call site.

Not covered are products of two layers without a gate between (FocalNet, gMLP, CoaT), and maxima over a dimension of
tokens (Hiera).

{table}
"""


def main() -> int:
    import timm

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", nargs="+", metavar="NAME[@PX]", help="these only; writes no page")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in given.models or NAMES:
        rows.append(row := examine(name))
        print("  ".join([*cells(row), f"[{row.seconds:.1f} s]"]), flush=True)
    if not given.models:
        STATE.mkdir(parents=True, exist_ok=True)
        files.write_json([vars(row) for row in rows], STATE / "timm.json")
        text = TEXT.format(
            covered=sum(row.covered for row in rows),
            all=len(rows),
            plain=sum(row.covered for row in rows if row.rule != "semantic"),
            timm=timm.__version__,
            torch=torch.__version__.split("+")[0],
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            table=markdown(HEAD, [cells(row) for row in rows]),
        )
        put_on_page(text, "## timm", None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
