"""Time of one training step, as a ratio to vanilla: `uv run benchmarks/step.py [--size 64] [--rounds 8] [--blocks]`."""

import argparse
from contextlib import ExitStack
from pathlib import Path

import torch
from common import BLOCK_NETWORKS, NETWORKS, alternate, arms_of, network, ratio, report

ATTACHED = ("softgate", "share=False", "two passes")


def step(name: str, arm: str, size: int, batch: int):
    net, x, labels = network(name, size), torch.randn(batch, 3, size, size), torch.arange(batch) % 10
    arms = arms_of(name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def run() -> None:
        with ExitStack() as stack:
            if arm not in ATTACHED:  # softgate stays attached, as in training; the listing patches F for each step
                stack.enter_context(arms[arm](net))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()

    if arm in ATTACHED:
        arms[arm](net)
    return run


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--blocks", action="store_true", help="transformers and the like, under surrogate=semantic")
    options.add_argument("--networks", nargs="+")
    options.add_argument("--out", type=Path, default=Path("step.json"))
    given = options.parse_args()
    rows = []
    for name in given.networks or (BLOCK_NETWORKS if given.blocks else NETWORKS):
        arms = arms_of(name)
        times = alternate({arm: step(name, arm, given.size, given.batch) for arm in arms}, given.rounds)
        rows.append({"network": name} | {arm: ratio(times, arm) for arm in arms if arm != "vanilla"})
    report(f"training step / vanilla, fp32, {given.size} px, median of {given.rounds}", rows, given.out)
