"""What the benchmarks share: the networks, the arms, alternating timing, a table and a JSON file."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import softgate as sg
from softgate import files
from softgate.tables import Table, console

WIDE = 240
"""Columns that a table is drawn for where it goes to a file or a pipe."""

NETWORKS = ("resnet18", "resnet50", "vgg11_bn", "densenet121")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

BLOCK_NETWORKS = ("vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0")
"""Networks that `surrogate=semantic` is for."""


class PublishedReLU(torch.autograd.Function):
    """Listing 1 of arXiv 2507.22832, written from its formula: save z, multiply by sigmoid(z / 0.3)."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        """relu(z)."""
        ctx.save_for_backward(z)
        return torch.relu(z)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """Gate times upstream gradient."""
        (z,) = ctx.saved_tensors
        return grad * torch.sigmoid(z / 0.3)


def published_pool(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False) -> Tensor:
    """Listing 2, written from its formula: softmax over unfolded windows, the true maximum by detaching."""
    batch, channels, *_ = x.shape
    hard = F.max_pool2d_with_indices(x, kernel_size, stride, padding, dilation, ceil_mode)[0]
    windows = F.unfold(x, kernel_size, padding=padding, stride=stride).view(batch, channels, -1, hard[0, 0].numel())
    soft = (windows * (windows / 0.3).softmax(2)).sum(2).view_as(hard)
    return hard.detach() + (soft - soft.detach())


@contextmanager
def published():
    """Puts the published formulation in the place of F.relu and F.max_pool2d."""

    def relu(z: Tensor, inplace: bool = False) -> Tensor:
        return PublishedReLU.apply(z)

    with mock.patch.object(F, "relu", relu), mock.patch.object(F, "max_pool2d", published_pool):
        yield


ARMS: dict[str, Callable[[nn.Module], AbstractContextManager]] = {
    "vanilla": lambda net: nullcontext(),
    "softgate": lambda net: sg.attach(net, sg.Surrogate()),
    "share=False": lambda net: sg.attach(net, sg.Surrogate(), share=False),
    "published": lambda net: published(),
}


BLOCK_ARMS: dict[str, Callable[[nn.Module], AbstractContextManager]] = {
    "vanilla": ARMS["vanilla"],
    "softgate": lambda net: sg.attach(net, sg.Surrogate.semantic()),
    "two passes": lambda net: sg.attach(net, sg.Surrogate.semantic(attention=sg.attentions.TwoPass())),
}


def arms_of(name: str) -> dict[str, Callable[[nn.Module], AbstractContextManager]]:
    """The arms that a network of that name is measured with."""
    return BLOCK_ARMS if name in BLOCK_NETWORKS else ARMS


def network(name: str, size: int = 64, device: str = "cpu") -> nn.Module:
    """A fresh torchvision network in train mode, a ViT for images of `size` pixels."""
    torch.manual_seed(0)
    settings = {"image_size": size} if name.startswith("vit") else {}
    return torchvision.models.get_model(name, num_classes=10, **settings).to(device)


def settle() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times each arm once a round, A B C A B C ..., after one round that does not count; seconds."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, run in arms.items():
            settle()
            started = time.perf_counter()
            run()
            settle()
            if turn:
                found[name].append(time.perf_counter() - started)
    return found


def ratio(times: dict[str, list[float]], arm: str, base: str = "vanilla") -> float:
    """The median over rounds of arm / base, pair by pair, so that a drift of the machine cancels."""
    return statistics.median(a / b for a, b in zip(times[arm], times[base], strict=True))


def report(title: str, rows: list[dict[str, object]], path: Path) -> None:
    """Prints a table and writes it with the machine it was measured on."""
    names = list(rows[0])
    cells = [[f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows]
    console(WIDE).print(Table(names, cells, title).rich())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    about = {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    files.write_json({"title": title, **about, "rows": rows}, path)
    print(f"written: {path}")
