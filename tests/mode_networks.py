"""Networks and their gradients, attached and bare, that the tests of PyTorch's modes share."""

from __future__ import annotations

import torch
from torch import func, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import reference
import softgate as sg

RULE = sg.Surrogate()


OTHER = sg.Surrogate(gate=sg.gates.NormalCDF(), pool=sg.pools.SoftmaxFull(), mix=0.5)


class Net(nn.Module):
    """Batch norm, a pooling of each spelling, a residual block with one ReLU for both of its calls."""

    def __init__(self, norm=True):
        super().__init__()
        torch.manual_seed(0)
        norms = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), norms, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.relu(self.b(self.relu(self.a(x))) + x)
        x = F.max_pool2d(x, 2, ceil_mode=True)
        return self.head(F.relu(x.mean((2, 3)) - 0.1))


def images(*shape, seed=1, dtype=torch.float64):
    shape = shape or (4, 3, 9, 9)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(model, x, loss=None):
    """[output, input gradient, parameter gradients...] by `backward`, which also re-entrant checkpoints allow."""
    model.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = model(x)
    (loss or (lambda out: out.square().sum()))(out).backward()
    found = [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    return [tensor.clone() for tensor in found]


def soft_gradients(model, x):
    """The same of a model that is not attached, by the reference, under `RULE`."""
    with reference.patched(reference.sigmoid, 0.3):
        return gradients(model, x)


def functional_loss(model):
    buffers = dict(model.named_buffers())

    def loss(parameters, x):
        return func.functional_call(model, (parameters, buffers), (x,)).square().sum()

    return loss


def assert_close(found, expected, within=1e-12):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) <= within


class Applied(nn.Module):
    """Linear, some function, linear."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(6, 8).double(), nn.Linear(8, 4).double(), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def vectors():
    return images(7, 6)


class CheckpointedBody(nn.Module):
    """A network that checkpoints its own body, with and without a pooling in it."""

    def __init__(self, reentrant, pooling):
        super().__init__()
        torch.manual_seed(0)
        pool = nn.MaxPool2d(2) if pooling else nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Conv2d(4, 4, 3), nn.ReLU()).double()
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)
