"""Networks and images that the tests of gate patterns share."""

from __future__ import annotations

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import reference
import softgate as sg

RULE = sg.Surrogate(sg.gates.Sigmoid(0.3), sg.pools.LSE(0.3))


def network(name, size=10, dtype=torch.float64):
    """A torchvision network with BatchNorms that do something."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=size).to(dtype)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return net.eval()


class Odd(nn.Module):
    """Every kind of call site, in place and not, a module called twice, pooling with padding, dilation and ceil."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Linear(6, 5)

    def forward(self, x):
        x = F.max_pool2d(self.relu(self.norm(self.conv1(x))), 3, 2, padding=1, ceil_mode=True)
        x = x + F.relu6(self.conv2(x) * 8)
        x = F.max_pool2d(x, (2, 3), (1, 2), dilation=(2, 1))
        x = self.relu(self.conv2(x)) - F.hardtanh(x, -0.25, 0.5)
        x = F.adaptive_max_pool2d(F.leaky_relu(x, 0.1, inplace=True), (1, None))
        return self.head(x.flatten(2).mean(2))


def odd(dtype=torch.float64):
    torch.manual_seed(1)
    return Odd().to(dtype).eval()


def images(count, size, dtype=torch.float64, seed=0):
    return torch.randn(count, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some(name, dtype=torch.float64):
    return (odd(dtype), 12) if name == "odd" else (network(name, dtype=dtype), 33)


class _ByHand(TorchFunctionMode):
    """Runs a network twice: first its gates are written down, then each relu multiplies by them."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.gates, self.place = rule, [], None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.relu:
            return func(*args, **(kwargs or {}))
        if self.place is None:
            self.gates.append(reference.sigmoid(args[0], self.rule.gate.temperature))
            return func(*args)
        self.place += 1
        return self.gates[self.place - 1] * args[0]


@torch.no_grad()
def run_by_hand(model, x, rule):
    """f_Gamma(x) of a network whose only gates are calls of torch.relu, under sigmoid gates."""
    with _ByHand(rule) as mode:
        model(x)
        mode.place = 0
        return model(x)
