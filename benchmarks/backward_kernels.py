"""The backward pass of one ReLU and one max pooling: bytes moved, the time that they take at least, the time measured.

`uv run benchmarks/backward_kernels.py [--toy]`. Bytes are counted, not timed: every tensor that an operation of the
backward pass reads or writes, views left out, as eager PyTorch moves them. *least* is what any implementation must
move, the gradient that comes in, what was kept, the gradient that goes out, over the copy bandwidth that is measured
first. Compiled, operations are one kernel, whose bytes are not seen from here; its time is.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from common import DEVICE, PublishedReLU, alternate, published_pool, report
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softgate.surrogate import functional, gates, pools

GATE, POOL = gates.Sigmoid(), pools.LSE()
RELU: dict[str, Callable[[Tensor], Tensor]] = {
    "vanilla": F.relu,
    "softgate": lambda z: functional.relu(z, GATE),
    "published": PublishedReLU.apply,
}
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "vanilla": lambda x: F.max_pool2d(x, 3, 2, 1),
    "softgate": lambda x: functional.max_pool2d(x, 3, 2, 1, pool=POOL),
    "published": lambda x: published_pool(x, 3, 2, 1),
}


class Moved(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations read and write; a view moves none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        read = {id(one): one for one in tree_leaves((args, kwargs or {})) if isinstance(one, Tensor)}
        written = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        storages = {one.untyped_storage().data_ptr() for one in read.values()}
        in_place = any(argument.alias_info and argument.alias_info.is_write for argument in function._schema.arguments)
        view = not in_place and all(one.untyped_storage().data_ptr() in storages for one in written)
        if not view:
            self.bytes += sum(one.numel() * one.element_size() for one in [*read.values(), *written])
        return out


def backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """What computes the gradient to `x`, as often as it is called."""
    out = function(x)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, x, grad, retain_graph=True)[0]


def bandwidth(elements: int) -> float:
    """Bytes a second of a copy, those read and those written."""
    here, there = torch.randn(elements, device=DEVICE), torch.empty(elements, device=DEVICE)
    times = alternate({"copy": lambda: there.copy_(here)}, 10)["copy"]
    return 2 * 4 * elements / statistics.median(times)


def rows(what: str, arms: dict[str, Callable[[Tensor], Tensor]], given: argparse.Namespace, speed: float):
    """A row for each arm, eager and, of softgate's, compiled."""
    x = torch.randn(given.batch, given.channels, given.size, given.size, device=DEVICE, requires_grad=True)
    passes, moved = {}, {}
    for arm, function in arms.items():
        passes[arm] = backward(function, x)
        with Moved() as mode:
            passes[arm]()
        moved[arm] = mode.bytes
    if given.compile:
        torch._dynamo.reset()
        passes["softgate, compiled"] = backward(torch.compile(arms["softgate"]), x)
    times = alternate(passes, given.rounds)
    outgoing = arms["vanilla"](x.detach())
    least = (2 * x.numel() + outgoing.numel()) * x.element_size()
    for arm, found in times.items():
        yield {
            "layer": what,
            "backward": arm,
            "bytes / least": moved[arm] / least if arm in moved else "-",
            "least, ms": f"{1e3 * least / speed:.3f}",
            "measured, ms": f"{1e3 * statistics.median(found):.3f}",
            "measured / least": statistics.median(found) * speed / least,
            "measured / vanilla": statistics.median(a / b for a, b in zip(found, times["vanilla"], strict=True)),
        }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--channels", type=int, default=64)
    options.add_argument("--size", type=int, default=112)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--compile", action="store_true", help="softgate's compiled too")
    options.add_argument("--toy", action="store_true", help="small tensors, to try the command out")
    options.add_argument("--out", type=Path, default=Path("backward_kernels.json"))
    given = options.parse_args()
    if given.toy:
        given.batch, given.channels, given.size, given.rounds = 2, 4, 16, 2
    speed = bandwidth(10_000 if given.toy else 256_000_000 if DEVICE == "cuda" else 16_000_000)
    found = [*rows("ReLU", RELU, given, speed), *rows("max pool 3 x 3, stride 2", POOLS, given, speed)]
    shape = f"{given.batch} x {given.channels} x {given.size} x {given.size}"
    report(f"backward passes, fp32, {shape}; a copy moves {speed / 1e9:.0f} GB/s", found, given.out)
