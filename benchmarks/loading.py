"""What real images cost: `uv run benchmarks/loading.py --root data [--files]`.

The loader alone, training on its batches, and training on one batch held in memory, in turns. `--files` decodes every
image anew in each epoch, as for data that do not fit in memory.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path

import torch
from common import alternate, network, ratio, report
from torch.nn import functional as F

import softgate as sg
from softgate.data import ImageData

SETTINGS = {
    "name": "imagenette",
    "archive": "160px",
    "augment": {"crop_scale": [0.35, 1.0], "flip": True},
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


class Place:
    """Counts the epochs of a loader used by hand."""

    def __init__(self) -> None:
        self.epoch = -1

    def __call__(self) -> tuple[int, int]:
        self.epoch += 1
        return self.epoch, 0


def endless(loader) -> Iterator:
    while True:
        yield from loader


def measure(given: argparse.Namespace) -> list[dict[str, object]]:
    options = {**SETTINGS, "root": given.root, "size": given.size, "batch_size": given.batch}
    begun = time.perf_counter()
    data = ImageData({**options, "cache": not given.files, "num_workers": given.workers})
    data.setup("fit")
    start = time.perf_counter() - begun
    loader = data.train_dataloader()
    loader._position = Place()
    net = network("resnet18")
    sg.attach(net, sg.Surrogate())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    alone, real, held = endless(loader), endless(loader), repeat(next(iter(loader)))
    if given.files:  # two iterators of one set of workers would disturb each other
        other = data.train_dataloader()
        other._position = Place()
        real = endless(other)

    def train(batches: Iterator) -> None:
        for x, labels in islice(batches, given.batches):
            optimizer.zero_grad()
            F.cross_entropy(net(x), labels).backward()
            optimizer.step()

    def load() -> None:
        for _ in islice(alone, given.batches):
            pass

    arms = {"loader": load, "real": lambda: train(real), "held": lambda: train(held)}
    times = alternate(arms, given.rounds)
    images = given.batch * given.batches
    rates = {f"{arm} images/s": images / statistics.median(times[arm]) for arm in arms}
    shares = {"loader / training": ratio(times, "held", "loader"), "real / held": ratio(times, "held", "real")}
    kind = f"files, {loader._files.num_workers} workers" if given.files else "in memory"
    return [{"images": kind, "size": given.size, **rates, **shares, "start s": start}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data", help="holds imagenette2-160/")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--files", action="store_true", help="decode anew in every epoch")
    parser.add_argument("--out", type=Path, default=Path("loading.json"))
    chosen = parser.parse_args()
    report("training on real images, resnet18, median of rounds", measure(chosen), chosen.out)
