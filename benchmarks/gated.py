"""What is in the gates and what in the weights: `uv run benchmarks/gated.py --data mnist.npz [--network mlp]`.

Deep gated networks (arXiv 2006.10529) and linearly gated ones (2110.03403) beside the ReLU network of the same shape,
all trained by Adam from the same images: gates of an untrained network, gates that learn together with the values,
gates of the trained ReLU network, and the ReLU network itself. Accuracy of the last epoch on images that took no part
in training: nothing is chosen by it. Rows are kept in the folder of --out and not trained again.

--data is a file with `images` uint8 [N, H, W] or [N, H, W, 3] and `labels`: the first 85 % of each class train, the
others are the unseen images; or a folder with train/CLASS/ and val/CLASS/. Networks: mlp, 6 layers of 128 units, and
gconv, four 3 x 3 convolutions, their average over the image and three layers, with the papers' 64-64-128-128 channels
and 256 units times --width.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import numpy as np
import torch
from common import report
from torch import Tensor, nn
from torch.nn import functional as F

from softgate import files
from softgate.evaluation.generalization.statistics import paired
from softgate.models import GatedNetwork, Gating, small_images

ARMS: dict[str, Gating | None] = {
    "ReLU network": None,
    "DGN, fixed random, independent": Gating(regime="fixed_random"),
    "DGN, fixed random, dependent": Gating(regime="fixed_random", value_weights="dependent"),
    "DGN, decoupled": Gating(),
    "DGN, fixed learnt": Gating(regime="fixed_learnt"),
    "DLGN, decoupled": Gating(gating="linear"),
    "DLGN, decoupled, ones": Gating(gating="linear", value_input="ones"),
}
"""The ReLU network first: the gates of fixed learnt are its own."""

PUBLISHED = {
    "mlp": (98.14, 96.02, 96.09, 98.22, 97.82),
    "gconv": (80.32, 67.09, 67.08, 77.12, 79.68),
}
"""Adam, MNIST and CIFAR-10 (arXiv 2006.10529): the best epoch by test accuracy, of the official 60,000 and 50,000."""

Images = tuple[Tensor, Tensor, Tensor, Tensor]


def convolutional(channels: int, width: float) -> nn.Module:
    """The published GCONV: four convolutions, the global average, two hidden layers."""
    a, b, c = (max(1, round(width * count)) for count in (64, 128, 256))
    layers: list[nn.Module] = []
    for before, after in ((channels, a), (a, a), (a, b), (b, b)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, c), nn.ReLU()]
    return initialised(nn.Sequential(*layers, nn.Linear(c, 10)))


def initialised(net: nn.Module) -> nn.Module:
    """Glorot's uniform weights and biases of zero, as the published code begins."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def network(given: argparse.Namespace, shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    """What builds a network for images of a shape, with fresh weights."""
    if given.network == "gconv":
        return lambda: convolutional(shape[0], given.width)
    return lambda: initialised(small_images.MLP(int(np.prod(shape)), round(128 * given.width), 6, 10))


def images(path: Path, most: int | None) -> Images:
    """Training images [N, C, H, W] in [0, 1], their labels, and the unseen ones with theirs."""
    if path.is_dir():
        train, unseen = (folder(path / split) for split in ("train", "val"))
    else:
        found = np.load(path)
        pixels, labels = torch.from_numpy(found["images"]), torch.from_numpy(found["labels"]).long()
        pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
        first = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique():
            members = (labels == label).nonzero().flatten()
            first[members[: round(0.85 * len(members))]] = True
        train, unseen = (pixels[first], labels[first]), (pixels[~first], labels[~first])
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(0))[:most]
    return train[0][order].float() / 255, train[1][order], unseen[0].float() / 255, unseen[1]


def folder(path: Path) -> tuple[Tensor, Tensor]:
    """The pictures in folders of classes."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.v2.functional import pil_to_tensor

    read = ImageFolder(path)
    pairs = [(pil_to_tensor(image), label) for image, label in read]
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def fit(net: nn.Module, data: Images, seed: int, given: argparse.Namespace) -> np.ndarray:
    """Trains a network; which of the unseen images its last epoch gets right."""
    x, labels, unseen, truth = data
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=given.lr)
    order = torch.Generator().manual_seed(seed)
    for _ in range(given.epochs):
        net.train()
        for batch in torch.randperm(len(x), generator=order).split(given.batch):
            loss = F.cross_entropy(net(x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        said = torch.cat([net(part).argmax(1) for part in unseen.split(500)])
    return (said == truth).numpy()


def twin(build: Callable[[], nn.Module], options: Gating, trained: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A gated network with fresh weights but for what its regime takes from elsewhere."""
    feature, value = build(), build()
    if options.regime == "fixed_learnt":
        feature = copy.deepcopy(trained)
    if options.value_weights == "dependent":
        value.load_state_dict(feature.state_dict())
    return GatedNetwork(feature, value, shape, options)


def run(given: argparse.Namespace, data: Images) -> dict[str, list[np.ndarray]]:
    """Which unseen images each arm gets right, for each seed; what is in the folder is read, the rest trained."""
    shape = tuple(data[0].shape[1:])
    build, found = network(given, shape), {arm: [] for arm in ARMS}
    settings = {"network": given.network, "width": given.width, "epochs": given.epochs, "lr": given.lr}
    settings |= {"batch": given.batch, "training images": len(data[0]), "unseen": len(data[2])}
    for seed in range(given.seeds):
        kept = given.out / f"relu-{seed}.pt"
        relu = build()
        for arm, options in ARMS.items():
            place = given.out / f"{arm.replace(', ', '-').replace(' ', '_')}-{seed}.json"
            row = files.read_json(place) if place.is_file() else {}
            if row.get("settings") != settings:
                torch.manual_seed(1000 * seed + list(ARMS).index(arm))
                relu.load_state_dict(build().state_dict() if options is None else files.load(kept))
                net = relu if options is None else twin(build, options, relu, shape)
                started = time.perf_counter()
                right = fit(net, data, seed, given)
                row = {"arm": arm, "seed": seed, "settings": settings, "accuracy": 100 * float(right.mean())}
                row |= {"seconds": time.perf_counter() - started, "right": np.packbits(right).tobytes().hex()}
                if options is None:
                    files.save(relu.state_dict(), kept)
                files.write_json(row, place)
                print(f"seed {seed}  {arm}: {row['accuracy']:.2f} %, {row['seconds']:.0f} s", flush=True)
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8))
            found[arm].append(bits[: len(data[2])].astype(float))
    return found


def table(found: dict[str, list[np.ndarray]], network: str) -> list[dict[str, object]]:
    """A row for each arm: accuracy, its standard deviation over seeds, and the difference to the ReLU network."""
    base, rows = 100 * np.stack(next(iter(found.values()))), []
    published = dict(zip(ARMS, PUBLISHED[network], strict=False))
    for arm, each in found.items():
        right = 100 * np.stack(each)
        seeds = right.mean(1)
        less = paired(right, base) if right is not base and arm != next(iter(found)) else None
        rows.append(
            {
                "arm": arm,
                "seeds": len(seeds),
                "accuracy %": round(float(seeds.mean()), 2),
                "sd over seeds": round(float(seeds.std(ddof=1)), 2) if len(seeds) > 1 else "",
                "minus ReLU": "" if less is None else round(less.mean, 2),
                "95 % from": "" if less is None else round(less.low, 2),
                "95 % to": "" if less is None else round(less.high, 2),
                "published (best test epoch)": published.get(arm, ""),
            }
        )
    return rows


def steps(found: dict[str, list[np.ndarray]], network: str) -> list[dict[str, object]]:
    """The published order, pair by pair: with GCONV on CIFAR-10 fixed random < decoupled < fixed learnt < ReLU."""
    published = dict(zip(ARMS, PUBLISHED[network], strict=False))
    order = sorted((arm for arm in published if not arm.endswith(", dependent")), key=published.__getitem__)
    rows = []
    for lower, upper in pairwise(order):
        gap = paired(100 * np.stack(found[upper]), 100 * np.stack(found[lower]))
        said = "yes" if gap.low > 0 else "no, the other way" if gap.high < 0 else "not told apart"
        pair = {"lower": lower, "upper": upper, "upper minus lower": round(gap.mean, 2)}
        ends = {"95 % from": round(gap.low, 2), "95 % to": round(gap.high, 2)}
        rows.append(pair | ends | {"in this order": said})
    return rows


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--network", choices=list(PUBLISHED), default="mlp")
    options.add_argument("--width", type=float, default=1.0, help="a factor on units and channels")
    options.add_argument("--images", type=int, help="at most so many training images")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--out", type=Path, default=Path("gated"), help="a folder: rows, gated.json, gated.csv")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    files.folder(chosen.out)
    rights = run(chosen, images(chosen.data, chosen.images))
    rows = table(rights, chosen.network)
    report(f"{chosen.network}, unseen images, last of {chosen.epochs} epochs", rows, chosen.out / "gated.json")
    files.write_csv(rows, chosen.out / "gated.csv")
    report("the published order", steps(rights, chosen.network), chosen.out / "order.json")
