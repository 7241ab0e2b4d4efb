"""Building blocks of random networks: products, sparse and computed weights, poolings, gradients of their own."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from random_blocks import Block, layer
from site_networks import OwnGate


class Products(Block):
    """Products of branches that have ReLUs."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.a, self.b, self.how = layer(shape), layer(shape), draw.choice(["*", "einsum", "square", "matmul"])

    def extra_repr(self):
        return self.how

    def forward(self, x):
        a, b = F.relu(self.a(x)), torch.relu(self.b(x))
        if self.how == "*":
            return a * b
        if self.how == "square":
            return a * a + b**2
        flat, other = a.flatten(1), b.flatten(1)
        if self.how == "einsum":
            return torch.einsum("bi,bj->bi", flat, other).view(a.shape) / other.shape[1]
        return (flat @ (other.t() @ other)).view(a.shape) / other.numel()


class Selecting(Block):
    """Calls that select or bend data with a gradient of their own."""

    KINDS = ("where", "abs", "sigmoid", "tanh", "topk", "softplus", "minimum", "sort", "clamp", "maximum", "amax")

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.kind = layer(shape), draw.choice(self.KINDS)
        self.selects = frozenset({self.kind} | ({"gt"} if self.kind == "where" else set()))

    def extra_repr(self):
        return self.kind

    def forward(self, x):
        z = self.layer(x)
        if self.kind == "where":
            return torch.where(z > 0, z, torch.zeros_like(z)) + F.relu(z)
        if self.kind == "abs":
            return F.relu(z.abs() - 0.1)
        if self.kind in ("sigmoid", "tanh"):
            return F.relu(z) * getattr(torch, self.kind)(z)
        if self.kind == "topk":
            return F.relu(z) * z.flatten(1).topk(2).values.sum(1).view(-1, *[1] * (z.dim() - 1))
        if self.kind == "softplus":
            return F.relu(F.softplus(z) - 0.5)
        if self.kind == "clamp":
            return F.relu(z.clamp(-0.5, 0.8) + 0.1)
        if self.kind == "maximum":
            return F.relu(torch.maximum(z, 0.1 - z) - 0.2)
        if self.kind == "amax":
            return F.relu(z - 0.5 * z.amax(1, keepdim=True))
        if self.kind == "minimum":
            return F.relu(torch.minimum(z, -z) + 0.3)
        return F.relu(z.sort(1).values)


class OwnFunction(Block):
    """An autograd Function with a gate of its own, beside a ReLU."""

    selects = frozenset({"autograd.Function"})

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer = layer(shape)

    def forward(self, x):
        z = self.layer(x)
        return F.relu(z) + OwnGate.apply(z)


class Sparse(Block):
    """A sparse matrix times the ReLU's output, as in graph networks."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.how = layer(shape), draw.choice(["mm", "sparse.mm", "@"])
        width = math.prod(shape)
        self.register_buffer("links", (torch.eye(width) + torch.eye(width).roll(1, 0)).double().to_sparse())

    def extra_repr(self):
        return self.how

    def forward(self, x):
        y = F.relu(self.layer(x))
        flat = y.flatten(1).t()
        if self.how == "mm":
            out = torch.mm(self.links, flat)
        else:
            out = torch.sparse.mm(self.links, flat) if self.how == "sparse.mm" else self.links @ flat
        return out.t().reshape(y.shape)


class OneByOne(Block):
    """Each example by itself, without a batch dimension."""

    traceable = False

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer = layer(shape)

    def forward(self, x):
        return torch.stack([F.relu(self.layer(each)) for each in x.unbind(0)])


class Dropped(Block):
    """Dropout behind a ReLU."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.relu = layer(shape), nn.ReLU(inplace=draw.random() < 0.5)
        self.drop = nn.Dropout2d(0.3) if len(shape) == 3 else nn.Dropout(0.3)

    def forward(self, x):
        return self.drop(self.relu(self.layer(x)))


class Tied(Block):
    """A layer and its transpose, of one weight."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.weight = layer(shape).weight

    def forward(self, x):
        if len(self.shape) == 3:
            return F.conv_transpose2d(F.relu(F.conv2d(x, self.weight, padding=1)), self.weight, padding=1)
        return F.linear(F.relu(F.linear(x, self.weight)), self.weight.t())


class Parametrized(Block):
    """Weights that are computed, by parametrisations."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        how = draw.choice([parametrizations.weight_norm, parametrizations.spectral_norm])
        self.layer, self.traceable = how(layer(shape)), how is parametrizations.weight_norm

    def forward(self, x):
        return F.relu(self.layer(x))


class Detached(Block):
    """A branch that gives no gradient back."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.other = layer(shape), layer(shape)

    def forward(self, x):
        return F.relu(self.layer(x)) + F.relu(self.other(x.detach())) * F.relu(self.other(x)).detach()


def _pooled(shape, pool):
    return tuple(pool(torch.zeros(1, *shape)).shape[1:])


WINDOWS = [
    *((2, 2, 0, 1, False), (3, 2, 1, 1, False), (3, 2, 0, 1, True), (2, 2, 0, 2, False)),
    ((3, 2), (2, 1), (1, 0), 1, True),
]
TINY_WINDOWS = [(2, 1, 1, 1, False)]
SMALL_WINDOWS = [*TINY_WINDOWS, (2, 1, 0, 1, False), ((1, 2), None, 0, 1, True)]


class MaxPool(Block):
    """A max pooling behind a layer and perhaps a ReLU: module, function or with indices."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.relu = layer(shape), draw.choice([nn.ReLU(), nn.ReLU(inplace=True), nn.Identity()])
        choices = WINDOWS if min(shape[1:]) > 4 else SMALL_WINDOWS if min(shape[1:]) > 1 else TINY_WINDOWS
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        self.settings = dict(zip(names, draw.choice(choices), strict=True))
        self.how = draw.choice(["module", "function", "torch", "indices", "one by one"])
        self.traceable = self.how != "one by one"
        self.pool = nn.MaxPool2d(**self.settings) if self.how == "module" else None
        self.shape = _pooled(shape, partial(F.max_pool2d, **self.settings))

    def extra_repr(self):
        return f"{self.how}, {self.settings}"

    def forward(self, x):
        x = self.relu(self.layer(x))
        if self.how == "module":
            return self.pool(x)
        if self.how == "function":
            return F.max_pool2d(x, **self.settings)
        if self.how == "torch":
            return torch.max_pool2d(x, **{key: value for key, value in self.settings.items() if value is not None})
        if self.how == "indices":
            values, indices = F.max_pool2d(x, **self.settings, return_indices=True)
            self.kept.append(indices)
            return values
        return torch.stack([F.max_pool2d(each, **self.settings) for each in x.unbind(0)])


class Unpooled(Block):
    """A max pooling and its inverse, by the indices."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.pool = layer(shape), nn.MaxPool2d((2, 1), return_indices=True)

    def forward(self, x):
        z = self.layer(x)
        values, indices = self.pool(F.pad(z, (0, 0, 0, 1)))
        size = [z.shape[2] + 1, z.shape[3]]
        return F.max_unpool2d(values, indices, (2, 1), output_size=size)[:, :, : z.shape[2]]


class AdaptiveMax(Block):
    """An adaptive max pooling into equal windows."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer = layer(shape)
        sizes = [n for n in (1, 2, 4) if shape[1] % n == 0 and shape[2] % n == 0]
        size = draw.choice([draw.choice(sizes), (draw.choice(sizes), None)])
        self.pool = nn.AdaptiveMaxPool2d(size) if draw.random() < 0.5 else None
        self.size, self.shape = size, _pooled(shape, nn.AdaptiveMaxPool2d(size))

    def extra_repr(self):
        return str(self.size)

    def forward(self, x):
        z = self.layer(x)
        return self.pool(z) if self.pool is not None else F.adaptive_max_pool2d(z, self.size, return_indices=True)[0]


class Amax(Block):
    """A maximum over rows, columns or both."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.how = layer(shape), draw.choice(["amax", "amax rows", "max", "both"])
        self.shape = {"amax": (shape[0], 1, 1), "amax rows": (shape[0], 1, shape[2])}.get(self.how, (*shape[:2], 1))
        self.shape = (shape[0], 1, 1) if self.how == "both" else self.shape

    def extra_repr(self):
        return self.how

    def forward(self, x):
        z = self.layer(x)
        if self.how == "amax":
            return z.amax((2, 3), keepdim=True)
        if self.how == "amax rows":
            return torch.amax(z, dim=-2, keepdim=True)
        if self.how == "max":
            return z.max(3, keepdim=True).values
        return z.max(-1)[0].amax(2)[..., None, None]


class Average(Block):
    """An average pooling behind a ReLU."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.pool = (
            layer(shape),
            draw.choice([nn.AvgPool2d((2, 1), ceil_mode=True), nn.AdaptiveAvgPool2d((2, 2))]),
        )
        self.shape = _pooled(shape, self.pool)

    def forward(self, x):
        return self.pool(F.relu(self.layer(x)))


class Attention(Block):
    """A transformer layer with a ReLU, two tokens of half the features each."""

    selects = frozenset({"multi_head_attention_forward"})
    traceable = False

    def __init__(self, draw, shape):
        super().__init__(shape)
        width = math.prod(shape) // 2
        self.inner = nn.TransformerEncoderLayer(width, 1, 2 * width, dropout=0.0, batch_first=True).double()

    def forward(self, x):
        return self.inner(x.reshape(len(x), 2, -1)).reshape(x.shape)


LAYERS = [Products, Sparse, OneByOne, Dropped, Tied, Parametrized, Detached]

OWN_GRADIENT = [Selecting, OwnFunction, Attention]
"""Those with calls that a warning must name; of vectors."""

ON_IMAGES = [MaxPool, MaxPool, Unpooled, AdaptiveMax, Amax, Average]
