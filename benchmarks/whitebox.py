"""White-box semantic features on MNIST's 3 against 5: `uv run benchmarks/whitebox.py --data FILE_OR_FOLDER`.

The network of arXiv 2403.09863 beside an MLP and a small CNN, all trained alike (Adam, lr 3e-3, weight decay 3e-6,
noise as the published code adds it) and tested clean and under PGD (Linf .3, 40 steps, a random start, the true
gradient). The white box is trained with the true gradient, with soft pooling over poses (LSE weights backward), and
with soft gates too. Nothing is selected: the last step, unseen images. `--picture FILE` draws what the first seed has
learnt.
"""

import argparse
import copy
import json
import statistics
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from common import report
from torch import Tensor, nn
from torch.nn import functional as F

import softgate as sg
from softgate import files
from softgate.data import ImageData
from softgate.evaluation.generalization.attacks import PGD
from softgate.figures import style
from softgate.models.whitebox import WhiteBox
from softgate.sites.inference import reading_out

CLASSES, SIZE = [3, 5], 28


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 64), nn.ReLU(), nn.Linear(64, 2))


def cnn() -> nn.Module:
    first = nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 2))


def arms(temperature: float) -> dict[str, tuple]:
    """By name, what makes the network and the rule that it is trained with."""
    pool = sg.pools.LSE(temperature)
    return {
        "MLP": (mlp, None),
        "CNN": (cnn, None),
        "white box": (WhiteBox, None),
        "white box, soft pooling": (WhiteBox, sg.Surrogate(gate=sg.gates.Hard(), pool=pool)),
        "white box, soft pooling and gates": (WhiteBox, sg.Surrogate(sg.gates.Sigmoid(temperature), pool)),
    }


def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    """Seven batches of ten get noise of mean .05 and deviation .25, and are clipped."""
    if torch.rand((), generator=generator) > 0.7:
        return x
    return (x + 0.05 + 0.25 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def trained(make, rule, x: Tensor, labels: Tensor, seed: int, given: argparse.Namespace) -> nn.Module:
    torch.manual_seed(seed)
    net, generator = make(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=3e-6)
    order = torch.empty(0, dtype=torch.long)
    with nullcontext() if rule is None else sg.attach(net, rule):
        for _ in range(given.steps):
            if len(order) < given.batch:
                order = torch.randperm(len(x), generator=generator)
            part, order = order[: given.batch], order[given.batch :]
            loss = F.cross_entropy(net(noisy(x[part], generator)), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def tested(net: nn.Module, x: Tensor, labels: Tensor, given: argparse.Namespace) -> tuple[float, float]:
    """Clean top-1, and top-1 under attack."""
    attack, attacked = PGD("linf", 0.3, steps=40), given.attacked
    with torch.no_grad():
        clean = float((net(x).argmax(1) == labels).double().mean())
    standing = attack(net, x[:attacked], labels[:attacked], [0.0], [1.0])[0]
    for scale in given.smooth if isinstance(net, WhiteBox) else ():
        other = copy.deepcopy(net)
        with torch.no_grad():
            other.pixel.scales.fill_(scale)
        images = attack(other, x[:attacked], labels[:attacked], [0.0], [1.0])[1]
        with torch.no_grad():
            standing &= net(images).argmax(1) == labels[:attacked]
    return clean, float(standing.double().mean())


def share_of_best(net: nn.Module, x: Tensor, temperature: float) -> float:
    """The softmax weight of the best pose, averaged over affine templates and images: how soft a soft pooling is."""
    with reading_out(net, None) as sites, torch.no_grad():
        model = sites.model
        seen = model.conv(model.pixel(x))
        scores = torch.einsum("bi,fpi->bfp", seen.flatten(1), model.affine.templates().flatten(2))
        return float((scores / temperature).softmax(2).amax(2).mean())


@style.context()
def picture(net: WhiteBox, path: Path) -> None:
    """All that a network has learnt: the pixel function, kernels in eight rotations, templates, and poses of them."""
    with torch.no_grad():
        curve = net.pixel(torch.linspace(0, 1, 401))
        kernels, templates = net.conv.kernels()[:, :: net.conv.turns.shape[0] // 8], net.affine.templates()
        plain, logic = net.affine.weight.detach(), net.logical.weight.detach()
    columns, middle = len(plain), templates.mean(1)
    made = style.figure(1.15 * columns, 7.6)
    top, below = made.subfigures(2, 1, height_ratios=(1.0, 2.6))
    left, right = top.subfigures(1, 2, width_ratios=(1.0, 2.4))
    axis = left.subplots()
    axis.plot(torch.linspace(0, 1, 401), curve, color=style.ARMS[1])
    axis.set_title("pixel function", fontsize=8)
    axis.set_xlabel("pixel", fontsize=8)
    axis.tick_params(labelsize=7)
    shown = [[(one, f"kernel {k + 1}" if p == 0 else "") for p, one in enumerate(row)] for k, row in enumerate(kernels)]
    _images(right, shown)
    names = [f"of {CLASSES[f // net.logical.share]}: template {f + 1}" for f in range(columns)]
    weights = [", ".join(f"{float(w):+.2f}" for w in logic[:, f]) for f in range(columns)]
    rows = [[(plain[f], names[f]) for f in range(columns)]]
    rows += [[(middle[f], "mean of poses" if f == 0 else "") for f in range(columns)]]
    rows += [[(templates[f, p], f"pose {p + 1}" if f == 0 else "") for f in range(columns)] for p in (0, 15)]
    rows[0] = [(image, f"{words}\n{weight}") for (image, words), weight in zip(rows[0], weights, strict=True)]
    _images(below, rows)
    files.save_picture(style.picture(made), path)


def _images(figure, rows: list[list[tuple[Tensor, str]]]) -> None:
    """Rows of filters: blue is negative, white zero, red positive."""
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for place, (image, words) in zip(line, row, strict=True):
            most = float(image.abs().max())
            place.imshow(image, cmap="bwr", vmin=-most, vmax=most, interpolation="nearest")
            place.set_title(words, fontsize=7)
            place.set_axis_off()


def said(text: str) -> None:
    print(f"... {text}", file=sys.stderr)


def spread(values: list[float]) -> str:
    """Mean and the smallest and largest, in percent."""
    return f"{100 * statistics.mean(values):.1f} [{100 * min(values):.1f}, {100 * max(values):.1f}]"


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="a folder that holds MNIST/raw or mnist*.npz, or such a file")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--steps", type=int, default=200, help="866 as published")
    options.add_argument("--batch", type=int, default=50, help="200 as published")
    options.add_argument("--attacked", type=int, default=100, help="test images under attack")
    options.add_argument("--temperature", type=float, default=0.3)
    options.add_argument("--arms", nargs="*", choices=list(arms(1.0)), help="all unless named")
    options.add_argument("--smooth", nargs="*", type=float, default=[], help="also attack through smoother pixel steps")
    options.add_argument("--picture", type=Path)
    options.add_argument("--out", type=Path, default=Path("whitebox.json"))
    given = options.parse_args()
    about = {"name": "mnist", "root": given.data, "classes": CLASSES, "size": SIZE, "channels": 1}
    still = {"crop_scale": [1.0, 1.0], "flip": False}
    try:
        data = ImageData({**about, "mean": [0.0], "std": [1.0], "augment": still}, splits=("train", "val"))
        x, labels = data.sample(10**9, seed=0, split="train")
        test, wanted = data.sample(10**9, seed=0)
    except sg.SoftgateError as error:
        raise SystemExit(f"error: {error}") from None
    rows, each = [], {}
    for name, (make, rule) in arms(given.temperature).items():
        if given.arms and name not in given.arms:
            continue
        found = []
        for seed in range(given.seeds):
            net = trained(make, rule, x, labels, seed, given)
            found.append(tested(net, test, wanted, given))
            said(f"{name}, seed {seed}: clean {found[-1][0]:.3f}, PGD {found[-1][1]:.3f}")
            if seed == 0 and isinstance(net, WhiteBox):
                said(f"softmax weight of the best pose {share_of_best(net, test[:100], given.temperature):.2f}")
                if name == "white box" and given.picture:
                    picture(net, given.picture)
        clean, robust = zip(*found, strict=True)
        count = sum(p.numel() for p in net.parameters())
        rows.append({"network": name, "parameters": count, "clean": spread(clean), "PGD Linf .3": spread(robust)})
        each[name] = {"clean": clean, "pgd": robust}
    images = f"{len(x)} images to train, {len(test)} to test, {given.attacked} attacked"
    report(f"3 against 5: percent, mean [least, most] of {given.seeds} seeds; {images}", rows, given.out)
    files.write_json({**json.loads(given.out.read_text()), "each": each}, given.out)
