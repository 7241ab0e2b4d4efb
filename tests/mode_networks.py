"""Networks and their gradients, attached and bare, that the tests of PyTorch's modes share."""

from __future__ import annotations

import torch
from torch import func, nn
from torch.nn import functional as F

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
