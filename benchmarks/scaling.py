"""What softgate itself takes as a network grows: `uv run benchmarks/scaling.py [--depths 20 110 326 1202]`.

CIFAR's ResNets on images of 8 px, so that hardly any of the time is convolutions': seconds of the processor for
attaching, for the first and for a later forward and backward pass beyond the bare network's, for `sites.report()`, a
diagnosis, a recording of gates and a pullback. Each as milliseconds a call site, which should not grow with them.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import report

import softgate as sg
from softgate.models.small_images import CIFARResNet
from softgate.sites import diagnose


def spent(run: Callable[[], object], times: int = 1) -> float:
    """Seconds of the processor, the least of several times."""
    found = []
    for _ in range(times):
        begun = time.process_time()
        run()
        found.append(time.process_time() - begun)
    return min(found)


def row(depth: int) -> dict[str, object]:
    """Milliseconds a call site at one depth."""
    torch.manual_seed(0)
    net, x = CIFARResNet(depth), torch.randn(2, 3, 8, 8)
    sg.paths.record(CIFARResNet(8), x)  # what is imported and built once

    def step() -> None:
        net(x).sum().backward()

    bare = spent(step, 3)
    sites: list[sg.Sites] = []
    took = {"attach": spent(lambda: sites.append(sg.attach(net, sg.Surrogate())))}
    took["first step"] = spent(step) - bare
    took["later step"] = spent(step, 3) - bare
    took["report"] = spent(sites[0].report)
    took["diagnose"] = spent(lambda: diagnose(net, x, torch.tensor([0, 1]), sg.Surrogate()))
    took["record"] = spent(lambda: sg.paths.record(net, x))
    took["pullback"] = spent(lambda: sg.pullback(net, x, 0, sg.Surrogate()))
    took["detach"] = spent(sites[0].detach)
    count = len(sites[0])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each = {name: 1e3 * seconds / count for name, seconds in took.items()}
    return {"layers": depth, "sites": count, "bare step, s": f"{bare:.2f}"} | each | {"peak, MB": f"{memory:.0f}"}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--depths", type=int, nargs="+", default=[20, 110, 326, 1202])
    options.add_argument("--out", type=Path, default=Path("scaling.json"))
    given = options.parse_args()
    torch.set_num_threads(1)
    report("milliseconds of the processor for each call site", [row(depth) for depth in given.depths], given.out)
