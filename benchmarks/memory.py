"""Bytes held for the backward pass and the peak of a step, against vanilla with in-place ReLU.

`uv run benchmarks/memory.py [--blocks]`
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # before torch is imported: the profiler is talkative

import torch
from common import BLOCK_NETWORKS, NETWORKS, arms_of, network, report
from torch.profiler import ProfilerActivity, profile


def balance(run) -> tuple[int, int]:
    """Bytes allocated and not freed by `run`, and the most that were at once; its result is alive at the end."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = run()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before + 0 * len(kept)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = run()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return total, peak + 0 * len(kept)


def measure(name: str, arm: str, size: int, batch: int) -> tuple[int, int]:
    """Bytes held after a forward pass, and the peak of a forward and backward pass."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net, x = network(name, size).to(device), torch.randn(batch, 3, size, size, device=device)

    def step() -> list[torch.Tensor]:
        net.zero_grad()
        out = net(x)
        out.sum().backward()
        return [out]

    with arms_of(name)[arm](net):
        step()
        return balance(lambda: [net(x)])[0], balance(step)[1]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--blocks", action="store_true", help="transformers and the like, under surrogate=semantic")
    options.add_argument("--networks", nargs="+")
    options.add_argument("--out", type=Path, default=Path("memory.json"))
    given = options.parse_args()
    rows = []
    for name in given.networks or (BLOCK_NETWORKS if given.blocks else NETWORKS):
        arms = arms_of(name)
        found = {arm: measure(name, arm, given.size, given.batch) for arm in arms}
        row: dict[str, object] = {"network": name}
        for what, index in (("held", 0), ("peak", 1)):
            row |= {f"{arm} {what}": found[arm][index] / found["vanilla"][index] for arm in arms if arm != "vanilla"}
        rows.append(row)
    report(f"bytes / vanilla, fp32, {given.size} px, batch {given.batch}", rows, given.out)
