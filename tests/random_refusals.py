"""Building blocks of random networks that no rule covers: each must be refused, with its site named."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint

from random_blocks import Block, layer

UNSUPPORTED = {
    "nn.GELU": (nn.GELU, "gelu"),
    "nn.SiLU": (nn.SiLU, "silu"),
    "nn.PReLU": (nn.PReLU, "prelu"),
    "nn.ELU(inplace)": (partial(nn.ELU, inplace=True), "elu"),
    "nn.Mish": (nn.Mish, "mish"),
    "nn.Hardswish": (nn.Hardswish, "hardswish"),
    "nn.Softshrink": (nn.Softshrink, "softshrink"),
    "nn.RReLU": (nn.RReLU, "rrelu"),
    "nn.Threshold(.1, .2)": (partial(nn.Threshold, 0.1, 0.2), "threshold"),
    "F.gelu": (F.gelu, "gelu"),
    "F.silu": (F.silu, "silu"),
    "F.selu": (F.selu, "selu"),
    "torch.celu": (torch.celu, "celu"),
    "F.glu": (lambda z: F.glu(torch.cat([z, z], 1), 1), "glu"),
}


class Unsupported(Block):
    """An activation that has no rule, as a module or a function."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.choice = layer(shape), draw.choice(sorted(UNSUPPORTED))
        made, self.refused = UNSUPPORTED[self.choice]
        self.act = made().double() if self.choice.startswith("nn.") else None

    def extra_repr(self):
        return self.choice

    def forward(self, x):
        z = self.layer(x)
        return self.act(z) if self.act is not None else UNSUPPORTED[self.choice][0](z)


class Recurrent(Block):
    """An RNN or its cell with a ReLU, which runs outside of Python."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        cell, size = draw.random() < 0.5, shape[-1]
        made = nn.RNNCell if cell else nn.RNN
        self.refused = "rnn_relu"
        self.inner = made(size, size, nonlinearity="relu").double()

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        out = self.inner(flat) if isinstance(self.inner, nn.RNNCell) else self.inner(flat[None])[0][0]
        return out.view(x.shape)


ATEN = torch.ops.aten
OPERATORS = {
    "relu": (ATEN.relu, "relu"),
    "relu.default": (ATEN.relu.default, "relu"),
    "relu_": (ATEN.relu_, "relu"),
    "relu6": (ATEN.relu6, "relu6"),
    "leaky_relu": (ATEN.leaky_relu, "leaky_relu"),
    "hardtanh": (ATEN.hardtanh, "hardtanh"),
    "clamp": (lambda z: ATEN.clamp(z, 0), "relu"),
    "clamp_min": (lambda z: ATEN.clamp_min(z, 0), "relu"),
    "clamp_min_": (lambda z: ATEN.clamp_min_(z, 0), "relu"),
    "maximum": (lambda z: ATEN.maximum(z, torch.zeros_like(z)), "relu"),
    "threshold": (lambda z: ATEN.threshold(z, 0, 0), "relu"),
    "gelu": (ATEN.gelu, "gelu"),
}


class Operator(Block):
    """An operator called past PyTorch's functions."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.how = layer(shape), draw.choice(sorted(OPERATORS))
        self.refused = OPERATORS[self.how][1]

    def extra_repr(self):
        return self.how

    def forward(self, x):
        return OPERATORS[self.how][0](self.layer(x))


class CheckpointedFunction(Block):
    """A function that is run again in the backward pass, by itself."""

    refused = "in a checkpointed function"

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.reentrant = layer(shape), draw.random() < 0.5

    def work(self, x):
        return F.relu(self.layer(x))

    def forward(self, x):
        return checkpoint.checkpoint(self.work, x, use_reentrant=self.reentrant)


HOWS = ["adaptive", "max_pool1d", "adaptive_max_pool1d", "max_pool3d"]


class UnequalWindows(Block):
    """An adaptive max pooling whose windows differ in size, or poolings of one dimension."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.how = (
            layer(shape),
            draw.choice(["adaptive", "max_pool1d", "adaptive_max_pool1d", "max_pool3d"]),
        )
        self.refused = "adaptive_max_pool2d" if self.how == "adaptive" else self.how

    def extra_repr(self):
        return self.how

    def forward(self, x):
        z = self.layer(x)
        flat = z.flatten(1)[:, None]
        if self.how == "adaptive":
            lines = flat[..., None]
            return z + F.adaptive_max_pool2d(F.pad(lines, (0, 0, 0, 1)), (2, 1)).mean()
        if self.how == "max_pool3d":
            return z + F.max_pool3d(flat[..., None, None], (2, 1, 1)).mean()
        pooled = F.max_pool1d(flat, 2) if self.how == "max_pool1d" else F.adaptive_max_pool1d(flat, 2)
        return z + pooled.mean()


class Composite(Block):
    """A function of PyTorch's that calls a ReLU inside, where no mode sees it."""

    seen = False
    refused = "relu"

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer = layer(shape)

    def forward(self, x):
        z = self.layer(x)
        return z + F.lp_pool1d(z.flatten(1)[:, None], 2.0, 2).mean()


REFUSED = [Unsupported, Unsupported, Unsupported, Recurrent, Operator, CheckpointedFunction, UnequalWindows, Composite]
