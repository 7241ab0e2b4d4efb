"""Time of the max pool's backward pass against the unfold formulation: `uv run benchmarks/pool.py`."""

import argparse
from pathlib import Path

import torch
from common import alternate, published_pool, ratio, report
from torch.nn import functional as F

from softgate.surrogate import functional, pools

CASES = {"k3 s2 p1, 64 ch, 112 px": (64, 112, (3, 2, 1)), "k2 s2, 64 ch, 112 px": (64, 112, (2, 2, 0))}
ARMS = {
    "vanilla": F.max_pool2d,
    "softgate": lambda x, *sizes: functional.max_pool2d(x, *sizes, pool=pools.LSE()),
    "softgate full": lambda x, *sizes: functional.max_pool2d(x, *sizes, pool=pools.SoftmaxFull()),
    "unfold": published_pool,
}


def backward(pool, x, sizes):
    out = pool(x, *sizes)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, x, grad, retain_graph=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--channels-last", action="store_true")
    options.add_argument("--out", type=Path, default=Path("pool.json"))
    given = options.parse_args()
    rows = []
    for name, (channels, size, sizes) in CASES.items():
        x = torch.randn(given.batch, channels, size, size)
        if given.channels_last:
            x = x.to(memory_format=torch.channels_last)
        x.requires_grad_()
        times = alternate({arm: backward(pool, x, sizes) for arm, pool in ARMS.items()}, given.rounds)
        rows.append(
            {"pooling": name} | {f"{arm} / unfold": ratio(times, arm, "unfold") for arm in ARMS if arm != "unfold"}
        )
    report(f"max-pool backward / unfold formulation, fp32, median of {given.rounds}", rows, given.out)
