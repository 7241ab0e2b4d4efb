"""Networks with call sites in every spelling, and their gradients attached and bare, that the tests of sites share."""

import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import reference
import softgate as sg

RULE = sg.Surrogate()


class Spelled(nn.Module):
    """Linear, a ReLU in one of its spellings, linear."""

    def __init__(self, spelling):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()
        self.relu, self.relu_inplace = nn.ReLU(), nn.ReLU(inplace=True)
        self.spelling = spelling

    def forward(self, x):
        return self.last(self.spelling(self, self.first(x)))


def out_of_sight(function, *args):
    """A function called as modules in C++ call it: no mode sees it, the autograd graph alone shows it."""
    with torch._C.DisableTorchFunction():
        return function(*args)


class OwnGate(torch.autograd.Function):
    """A ReLU whose author has written its backward pass, which is hard under every rule."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return F.relu(z)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0] > 0)


def statement(call):
    """An in-place ReLU used as a statement: its result is thrown away."""

    def spelling(model, z):
        call(model, z)
        return z

    return spelling


SPELLINGS = {
    "nn.ReLU()": lambda model, z: model.relu(z),
    "nn.ReLU(inplace=True)": lambda model, z: model.relu_inplace(z),
    "F.relu(z)": lambda model, z: F.relu(z),
    "F.relu(input=z)": lambda model, z: F.relu(input=z),
    "F.relu(z, True)": lambda model, z: F.relu(z, True),
    "F.relu(z, inplace=True)": lambda model, z: F.relu(z, inplace=True),
    "F.relu_(z)": lambda model, z: F.relu_(z),
    "torch.relu(z)": lambda model, z: torch.relu(z),
    "torch.relu_(z)": lambda model, z: torch.relu_(z),
    "z.relu()": lambda model, z: z.relu(),
    "z.relu_()": lambda model, z: z.relu_(),
    "torch.Tensor.relu(z)": lambda model, z: torch.Tensor.relu(z),
    "nn.ReLU(inplace=True) as a statement": statement(lambda model, z: model.relu_inplace(z)),
    "F.relu(z, inplace=True) as a statement": statement(lambda model, z: F.relu(z, inplace=True)),
    "F.relu_(z) as a statement": statement(lambda model, z: F.relu_(z)),
    "torch.relu_(z) as a statement": statement(lambda model, z: torch.relu_(z)),
    "z.relu_() as a statement": statement(lambda model, z: z.relu_()),
}


class Net(nn.Module):
    """Modules and functions, in-place and not, a module used twice, and a pooling of each spelling."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.pool(self.stem(x))
        out = self.relu(self.a(x))
        x = self.relu(self.b(out) + x)
        x = F.max_pool2d(F.relu(x * 2 - 0.5), 2, ceil_mode=True)
        return self.head(x.mean((2, 3)))


NET_SITES = ["stem.2", "pool", "relu", "relu#2", "(model).relu", "(model).max_pool2d"]


class Branching(nn.Module):
    """A model that cannot be traced: its branch depends on the data."""

    def __init__(self, tail=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()
        self.tail = tail or nn.Identity()

    def forward(self, x):
        z = self.first(x)
        z = F.relu(z) if z.sum() > -1e9 else z
        return self.last(self.tail(z))


def vectors():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def images():
    return torch.randn(4, 3, 11, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(model, x):
    """[output, input gradient, parameter gradients...] of a fixed mix of the outputs."""
    x = x.detach().clone().requires_grad_()
    out = model(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *grad((out * weights).sum(), [x, *model.parameters()])]


def soft_gradients(model, x):
    """The same by the reference. Only for models whose activations go through F.relu and F.max_pool2d."""
    with reference.patched(reference.sigmoid, 0.3):
        return gradients(model, x)


def assert_close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) <= 1e-12


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def differ(found, expected):
    """Whether the gradients are another rule's; the outputs are equal."""
    return torch.equal(found[0], expected[0]) and reference.distance(found[1], expected[1]) > 1e-3


def footprint(model):
    """Everything in every module's __dict__: names, values by identity, containers by content; and the flags."""
    return [
        {
            key: list(value.items()) if isinstance(value, dict) else id(value)
            for key, value in module.__dict__.items()
            if key not in ("inplace", "training")
        }
        | {key: module.__dict__.get(key) for key in ("inplace", "training")}
        for module in model.modules()
    ]


class Pooled(nn.Module):
    def __init__(self, spelling):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.spelling = nn.Conv2d(3, 4, 3).double(), spelling
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)

    def forward(self, x):
        return self.spelling(self, self.conv(x))
