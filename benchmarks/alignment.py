"""Cost of the callback `alignment` as a share of an epoch: `uv run benchmarks/alignment.py [--stem small]`.

An epoch is 9,469 images in steps of 64, its validation and data loading not counted. `--share 4` measures a quarter of
the probe images against a quarter of the epoch.
"""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from common import report

from softgate.surrogate.rule import Surrogate
from softgate.training import SoftgateModule
from softgate.training.callbacks import AlignmentCurves
from softgate.training.callbacks.config import AlignmentConfig

IMAGENETTE = 9469

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="resnet18")
    options.add_argument("--stem", default="imagenet", choices=("small", "imagenet"))
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--share", type=int, default=1)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path("alignment.json"))
    given = options.parse_args()
    torch.manual_seed(0)
    rule = Surrogate().to_dict()
    module = SoftgateModule({"name": given.model, "stem": given.stem}, rule, list("abcdefghij"), channels_last=True)
    batch = torch.randn(64, 3, given.size, given.size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(64) % 10
    optimizer = torch.optim.SGD(module.net.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module.net(batch), labels).backward()
        optimizer.step()

    usual = AlignmentConfig()
    images, few = usual.images // given.share, max(1, usual.few // given.share)
    options = AlignmentConfig(every_n_epochs=1, images=images, few=few)
    callback = AlignmentCurves(Surrogate(), options)
    x = torch.randn(images, 3, given.size, given.size)
    data = SimpleNamespace(
        sample=lambda count, seed: (x, torch.arange(count) % 10),
        classes=list(range(10)),
        class_means=lambda: torch.zeros(10, 3, given.size, given.size),
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    callback.prepare(data, module)
    step()
    rows = []
    for _ in range(given.rounds):
        times = []
        for work in (step, lambda: callback.measure(module), step):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        seconds = (times[0] + times[2]) / 2
        epoch = seconds * IMAGENETTE / 64
        whole = times[1] * given.share
        rows.append({"step s": seconds, "epoch s": epoch, "alignment s": whole, "share": whole / epoch})
    report(f"alignment / epoch, {given.model}, {given.stem} stem, {given.size} px", rows, given.out)
