"""Building blocks of random networks: single layers and activations in every spelling, and what people do around them.

A block maps [B, *shape] to [B, *block.shape], float64. `draw` is a random.Random: the same one makes the same block.
Blocks that hold others are in `random_combinators.py`, those that no rule covers in `random_refusals.py`.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """What a test must know of a block, beside its forward.

    Attributes:
        shape: Of its output, without the batch.
        kept: The tensors that it keeps in a pass, in order.
        gradients: The gradients that it keeps in a backward pass.
        selects: Kinds of its calls that have a gradient of their own.
        refused: What a refusal must call its site; empty where the block is covered.
        seen: Whether Python sees the call, so that a refusal says which module makes it.
        trainable: Whether the bare block has a gradient: it has none where its ReLU's output is overwritten.
        traceable: Whether torch.fx can trace it.
    """

    selects = frozenset()
    refused = ""
    seen = True
    trainable = True
    traceable = True

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.kept, self.gradients = [], []


def layer(shape, out=None):
    """A convolution of images [C, H, W], or a linear layer."""
    out = shape[0] if out is None else out
    made = nn.Conv2d(shape[0], out, 3, padding=1) if len(shape) == 3 else nn.Linear(shape[0], out)
    return made.double()


# -- activations in their spellings --


def statement(call):
    """An in-place activation whose result is thrown away."""

    def spelled(z):
        call(z)
        return z

    return spelled


MODULES = {
    "nn.ReLU": nn.ReLU,
    "nn.ReLU6": nn.ReLU6,
    "nn.Hardtanh()": nn.Hardtanh,
    "nn.Hardtanh(-.3, .6)": partial(nn.Hardtanh, -0.3, 0.6),
    "nn.LeakyReLU(.2)": partial(nn.LeakyReLU, 0.2),
    "nn.Threshold(0, 0)": partial(nn.Threshold, 0, 0),
}
FUNCTIONS = {
    "F.relu(z)": F.relu,
    "F.relu(input=z)": lambda z: F.relu(input=z),
    "torch.relu(z)": torch.relu,
    "z.relu()": lambda z: z.relu(),
    "F.relu6(z)": F.relu6,
    "F.hardtanh(z, -.5, .8)": lambda z: F.hardtanh(z, -0.5, 0.8),
    "F.leaky_relu(z, .3)": lambda z: F.leaky_relu(z, 0.3),
    "z.clamp(min=0)": lambda z: z.clamp(min=0),
    "torch.clamp(z, 0)": lambda z: torch.clamp(z, 0),
    "torch.clip(z, min=0.0)": lambda z: torch.clip(z, min=0.0),
    "z.clip(0)": lambda z: z.clip(0),
    "z.clamp_min(0)": lambda z: z.clamp_min(0),
    "torch.clamp_min(z, 0.0)": lambda z: torch.clamp_min(z, 0.0),
    "torch.maximum(z, zeros)": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "z.maximum(zero)": lambda z: z.maximum(torch.zeros((), dtype=z.dtype)),
    "torch.max(zeros, z)": lambda z: torch.max(torch.zeros_like(z), z),
    "F.threshold(z, 0, 0)": lambda z: F.threshold(z, 0, 0),
    "torch.threshold(z, 0.0, 0.0)": lambda z: torch.threshold(z, 0.0, 0.0),
}
INPLACE = {
    "F.relu(z, True)": lambda z: F.relu(z, True),
    "F.relu(z, inplace=True)": lambda z: F.relu(z, inplace=True),
    "F.relu_(z)": F.relu_,
    "torch.relu_(z)": torch.relu_,
    "z.relu_()": lambda z: z.relu_(),
    "F.relu6(z, inplace=True)": lambda z: F.relu6(z, inplace=True),
    "F.hardtanh_(z, -.4, .4)": lambda z: F.hardtanh_(z, -0.4, 0.4),
    "F.leaky_relu_(z, .1)": lambda z: F.leaky_relu_(z, 0.1),
    "z.clamp_(min=0)": lambda z: z.clamp_(min=0),
    "torch.clamp_min_(z, 0)": lambda z: torch.clamp_min_(z, 0),
    "F.threshold(z, 0, 0, True)": lambda z: F.threshold(z, 0, 0, True),
}
RELUS = ["F.relu(z)", "F.relu(input=z)", "torch.relu(z)", "z.relu()"]
"""Those whose true backward pass needs the output and not the input."""
PLAIN = {name: {**FUNCTIONS, **INPLACE}[name] for name in (*RELUS, "F.relu(z, True)", "F.relu_(z)", "z.relu_()")}


class Spelled(Block):
    """A layer and a function of its output."""

    table = FUNCTIONS

    def __init__(self, draw, shape, table=None):
        super().__init__(shape)
        self.layer = layer(shape)
        self.spelling = draw.choice(sorted(table or self.table))

    def extra_repr(self):
        return self.spelling

    def activate(self, z):
        return self.table[self.spelling](z)

    def forward(self, x):
        return self.activate(self.layer(x))


class Function(Spelled):
    """Out of place."""


class InPlace(Spelled):
    table = INPLACE


class Statement(Spelled):
    table = INPLACE

    def activate(self, z):
        return statement(INPLACE[self.spelling])(z)


class Module(Spelled):
    """A module, in place or not."""

    table = MODULES

    def __init__(self, draw, shape):
        super().__init__(draw, shape)
        inplace = {"inplace": draw.random() < 0.5}
        self.act = MODULES[self.spelling](**inplace)

    def activate(self, z):
        return self.act(z)


class CReLU(Block):
    """relu(z) and relu(-z) side by side."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.after = layer(shape), layer((2 * shape[0], *shape[1:]), shape[0])

    def forward(self, x):
        z = self.layer(x)
        return self.after(F.relu(torch.cat([z, -z], 1)))


class Normed(Block):
    """A norm between layer and ReLU."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        size = shape[0]
        norms = [lambda: nn.GroupNorm(2, size), lambda: nn.LayerNorm(shape)]
        if len(shape) == 3:
            norms += 2 * [lambda: nn.BatchNorm2d(size)]
            norms += [lambda: nn.LocalResponseNorm(3)]
        else:
            norms += 2 * [lambda: nn.BatchNorm1d(size)]
        self.layer, self.norm = layer(shape), draw.choice(norms)().double()
        self.relu = nn.ReLU(inplace=draw.random() < 0.5)

    def forward(self, x):
        return self.relu(self.norm(self.layer(x)))


class Basic(Block):
    """A residual block as in ResNets: one in-place ReLU called twice, an in-place sum."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.first, self.second, self.relu = layer(shape), layer(shape), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.second(self.relu(self.first(x)))
        out += x
        return self.relu(out)


class Halves(Block):
    """One half of the channels through a ReLU, the other as it is."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.how = layer(shape), draw.choice(["chunk", "split", "unbind", "slice"])

    def extra_repr(self):
        return self.how

    def forward(self, x):
        z, half = self.layer(x), self.shape[0] // 2
        if self.how == "unbind":
            a, b = z.unflatten(1, (2, half)).unbind(1)
        elif self.how == "slice":
            a, b = z[:, :half], z[:, half:]
        else:
            a, b = z.chunk(2, 1) if self.how == "chunk" else z.split([half, self.shape[0] - half], 1)
        return torch.cat([torch.relu(a), b], 1)


class SliceInPlace(Block):
    """An in-place ReLU on a view of a part of its input."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.spelling = layer(shape), draw.choice(sorted(INPLACE))

    def extra_repr(self):
        return self.spelling

    def forward(self, x):
        z = self.layer(x)
        INPLACE[self.spelling](z[:, : self.shape[0] // 2])
        return z


class Views(Block):
    """The ReLU of a view of its input, looked at the same way round afterwards."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.spelling = layer(shape), draw.choice(sorted(FUNCTIONS))
        self.how = draw.choice(["transpose", "reshape", "last", "expand", "contiguous"])

    def extra_repr(self):
        return f"{self.how}, {self.spelling}"

    def forward(self, x):
        z, act = self.layer(x), FUNCTIONS[self.spelling]
        if self.how == "transpose":
            return act(z.transpose(0, 1)).transpose(0, 1)
        if self.how == "reshape":
            return act(z.reshape(-1)).view(z.shape)
        if self.how == "last":
            return act(z.movedim(1, -1)).movedim(-1, 1)
        if self.how == "expand":
            return act(z.unsqueeze(0).expand(2, *z.shape)).sum(0)
        return act(z.transpose(0, 1).contiguous()).transpose(0, 1)


ACTIVATIONS = [
    *(Function, Function, InPlace, InPlace, Statement, Module, Module, CReLU, Normed, Normed, Basic, Halves),
    *(SliceInPlace, Views),
]
