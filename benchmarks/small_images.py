"""What makes training on images of 32 px fast on one thread: `uv run benchmarks/small_images.py [--compile]`.

Steps of SGD on one batch held in memory, in float32 and under bfloat16 autocast, contiguous and channels last, with the
true gradient, unit_rms and matched, in turns; images/s, and the ratio to the true gradient in float32, contiguous.
`benchmarks/framework.py` then compares train.py's path with such a loop.
"""

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import statistics

import torch
from common import alternate, ratio, report
from torch.nn import functional as F

import softgate as sg
from softgate.models import networks

ARMS = {"true gradient": None, "unit_rms": sg.Surrogate(gain="unit_rms"), "matched": sg.Surrogate(gain="matched")}
PRECISIONS = ("float32", "bfloat16")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def steps(name: str, arm: str, precision: str, layout: str, compiled: bool, count: int, batch: int) -> Callable:
    """So many steps of a fresh network."""
    torch.manual_seed(0)
    net = networks.build(name, 10).to(memory_format=LAYOUTS[layout])
    if ARMS[arm] is not None:
        sg.attach(net, ARMS[arm])
    if compiled:
        net.compile()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=LAYOUTS[layout])
    labels = torch.randint(10, (batch,))

    def run() -> None:
        for _ in range(count):
            with torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext():
                loss = F.cross_entropy(net(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def measure(name: str, given: argparse.Namespace) -> list[dict[str, object]]:
    kinds = [(*kind, False) for kind in product(ARMS, PRECISIONS, LAYOUTS)]
    if given.compile:
        kinds += [(arm, "bfloat16", "channels last", True) for arm in ("true gradient", "unit_rms")]
    arms = {kind: steps(name, *kind, given.steps, given.batch) for kind in kinds}
    times = alternate(arms, given.rounds)
    return [
        {
            "network": name,
            "gradient": kind[0],
            "precision": kind[1],
            "layout": kind[2] + ", compiled" * kind[3],
            "images/s": round(given.steps * given.batch / statistics.median(times[kind])),
            "speed": 1 / ratio(times, kind, kinds[0]),
        }
        for kind in kinds
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=["plain8", "resnet20"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compiled networks too; takes a minute to start")
    parser.add_argument("--out", type=Path, default=Path("small_images.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    report(
        "training steps at 32 px, one thread, median of rounds",
        [row for name in chosen.networks for row in measure(name, chosen)],
        chosen.out,
    )
