"""Which networks of timm train through soft gates: one step each, forward against the bare network; prints a table.

uv run benchmarks/timm_networks.py
"""

import copy
import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import softgate as sg
from softgate import models

NAMES = (
    "resnet26 resnet18d resnext26ts resnetv2_50 res2net50_26w_4s regnetx_002 regnety_002 densenet121 dla34 repvgg_a0 "
    "skresnet18 selecsls42 ghostnet_100 inception_v4 vovnet39a hrnet_w18_small xception41 mobilenetv2_100 vgg11_bn "
    "hardcorenas_a efficientnet_b0 convnext_atto vit_tiny_patch16_224 mixer_s32_224"
).split()


def step(name: str, size: int) -> dict[str, object]:
    """One training step of a network, attached; whether its forward pass is the bare one's, or why it is refused."""
    torch.manual_seed(0)
    net = models.build(f"timm/{name}", 10).train()
    bare = copy.deepcopy(net)
    x, labels = torch.randn(2, 3, size, size), torch.tensor([1, 2])
    try:
        with sg.attach(net, sg.Surrogate()) as sites:
            torch.manual_seed(1)
            out = net(x)
            F.cross_entropy(out, labels).backward()
            found = {"relus": sites.count("relu"), "pools": sites.count("max_pool2d"), "own": sites.unaffected}
    except sg.SoftgateError as error:
        return {"name": name, "refused": str(error).split(": ", 1)[-1].split(". Covered")[0][:90]}
    torch.manual_seed(1)
    return {"name": name, "forward": bool(torch.equal(out, bare(x))), **found}


def main() -> None:
    """Prints the table and writes it beside the command's other results."""
    import warnings

    warnings.simplefilter("ignore")
    rows = []
    for name in sys.argv[1:] or NAMES:
        size = 299 if "inception" in name or "xception" in name else 224 if "224" in name else 64
        rows.append(row := step(name, size))
        if "refused" in row:
            print(f"| {name} | {size} | refused: {row['refused']} |", flush=True)
        else:
            equal = "forward equal" if row["forward"] else "FORWARD DIFFERS"
            own = "; ".join(map(str, row["own"])) or "-"  # type: ignore[call-overload]  # a row holds several types
            print(
                f"| {name} | {size} | {equal}, {row['relus']} relu, {row['pools']} max pools; own gradient: {own} |",
                flush=True,
            )
    Path("timm_networks.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
