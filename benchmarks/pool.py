"""Time of the max pool's backward pass against the unfold formulation: `uv run benchmarks/pool.py`.

With `--large`, large windows instead, against vanilla: eager, and compiled with how long the first step takes.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from common import alternate, published_pool, ratio, report
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate.surrogate import functional, pools

CASES = {"k3 s2 p1, 64 ch, 112 px": (64, 112, (3, 2, 1)), "k2 s2, 64 ch, 112 px": (64, 112, (2, 2, 0))}
ARMS = {
    "vanilla": F.max_pool2d,
    "softgate": lambda x, *sizes: functional.max_pool2d(x, *sizes, pool=pools.LSE()),
    "softgate full": lambda x, *sizes: functional.max_pool2d(x, *sizes, pool=pools.SoftmaxFull()),
    "unfold": published_pool,
}


LARGE = {
    "adaptive to 1 x 1, 56 px": (nn.AdaptiveMaxPool2d(1), 56),
    "adaptive to 1 x 1, 14 px": (nn.AdaptiveMaxPool2d(1), 14),
    "adaptive to 2 x 2, 56 px": (nn.AdaptiveMaxPool2d(2), 56),
    "k14 s14, 28 px": (nn.MaxPool2d(14), 28),
    "k14 s7, 28 px": (nn.MaxPool2d(14, 7), 28),
    "k13 s1 p6, 20 px": (nn.MaxPool2d(13, 1, 6), 20),
}


def step(net, x):
    """One forward and backward pass."""

    def run():
        x.grad = None
        net(x).sum().backward()

    return run


def large(layer, size, batch, rounds):
    """A row: milliseconds bare, eager and compiled, and seconds of the first compiled step."""
    x = torch.randn(batch, 64, size, size, requires_grad=True)
    net = nn.Sequential(nn.Identity(), layer)
    bare = alternate({"bare": step(net, x)}, rounds)["bare"]
    torch._dynamo.reset()
    with sg.attach(net, sg.Surrogate()):
        eager = alternate({"eager": step(net, x)}, rounds)["eager"]
        compiled = step(torch.compile(net), x)
        begun = time.perf_counter()
        compiled()
        first = time.perf_counter() - begun
        fused = alternate({"compiled": compiled}, rounds)["compiled"]
    middle = {"bare": bare, "eager": eager, "compiled": fused}
    found = {f"{name}, ms": f"{1e3 * statistics.median(times):.1f}" for name, times in middle.items()}
    return found | {"first compiled step, s": f"{first:.1f}"}


def backward(pool, x, sizes):
    out = pool(x, *sizes)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, x, grad, retain_graph=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--channels-last", action="store_true")
    options.add_argument("--large", action="store_true")
    options.add_argument("--out", type=Path, default=Path("pool.json"))
    given = options.parse_args()
    if given.large:
        rows = [{"pooling": name} | large(*case, given.batch, given.rounds) for name, case in LARGE.items()]
        report(f"max pooling over large windows, forward and backward, median of {given.rounds}", rows, given.out)
        raise SystemExit
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
