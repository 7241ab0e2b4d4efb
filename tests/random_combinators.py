"""Building blocks of random networks that hold others: branches, shared and checkpointed parts, parts of one mode."""

from collections import namedtuple
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils import checkpoint

from random_blocks import Block, layer


class Holding(Block):
    """Holds bodies that keep the shape.

    Attributes:
        mode: "train" or "eval" where the bodies run in that mode only, "never" where no gradient flows through them.
    """

    mode = "both"

    def __init__(self, draw, shape, *bodies):
        super().__init__(shape)
        self.body = bodies[0]
        self.bodies = nn.ModuleList(bodies[1:])


class Residual(Holding):
    def forward(self, x):
        return x + self.body(x)


class Minus(Holding):
    def forward(self, x):
        return self.body(x) - x


class Concatenated(Holding):
    """Two branches side by side."""

    count = 2

    def __init__(self, draw, shape, *bodies):
        super().__init__(draw, shape, *bodies)
        self.after = layer((2 * shape[0], *shape[1:]), shape[0])

    def forward(self, x):
        return self.after(torch.cat([self.body(x), self.bodies[0](x)], 1))


class Shared(Holding):
    """One part called twice."""

    def forward(self, x):
        return self.body(self.body(x))


class Checkpointed(Holding):
    """A part that is run again in the backward pass."""

    reentrant = False

    def forward(self, x):
        return checkpoint.checkpoint(self.body, x, use_reentrant=self.reentrant)


class Reentrant(Checkpointed):
    reentrant = True


class TrainOnly(Holding):
    mode = "train"

    def forward(self, x):
        return self.body(x) if self.training else x


class EvalOnly(Holding):
    mode = "eval"

    def forward(self, x):
        return x if self.training else self.body(x)


class Functional(Holding):
    """A part whose weights are given to it."""

    def forward(self, x):
        weights = {name: 0.9 * value for name, value in self.body.named_parameters()}
        return torch.func.functional_call(self.body, weights, (x,))


class Frozen(Holding):
    """A part that does not learn."""

    def __init__(self, draw, shape, *bodies):
        super().__init__(draw, shape, *bodies)
        self.body.requires_grad_(False)

    def forward(self, x):
        return self.body(x)


class NoGrad(Holding):
    """A branch without gradient beside one with it."""

    mode = "never"

    def __init__(self, draw, shape, *bodies):
        super().__init__(draw, shape, *bodies)
        self.layer = layer(shape)

    def forward(self, x):
        with torch.no_grad():
            beside = self.body(x)
        return torch.relu(self.layer(x)) + beside


class ByValue(Holding):
    """A branch that depends on the data."""

    count = 2
    traceable = False

    def forward(self, x):
        return self.body(x) if float(x.detach().sum()) > 0 else self.bodies[0](x)


class Skipped(Holding):
    """Stochastic depth: training leaves the part out at random."""

    def forward(self, x):
        if self.training and float(torch.rand(())) < 0.5:
            return x
        return x + self.body(x)


Pair = namedtuple("Pair", "out more")


@dataclass
class Outputs:
    """What a part, or the network, returns."""

    logits: torch.Tensor
    more: list = field(default_factory=list)


class Packed(Holding):
    """A part that returns its result in a container and is given its input by name."""

    class Inner(nn.Module):
        def __init__(self, how, body):
            super().__init__()
            self.how, self.body = how, body

        def forward(self, *, images):
            out = self.body(images)
            if self.how == "dict":
                return {"out": out, "more": [images]}
            if self.how == "dataclass":
                return Outputs(out, [images])
            return Pair(out, images) if self.how == "namedtuple" else (out, [images])

    def __init__(self, draw, shape, *bodies):
        super().__init__(draw, shape, *bodies)
        self.how = draw.choice(["dict", "dataclass", "namedtuple", "tuple"])
        self.body = self.Inner(self.how, self.body)

    def extra_repr(self):
        return self.how

    def forward(self, x):
        found = self.body(images=x)
        if self.how == "dict":
            return found["out"]
        return found.logits if self.how == "dataclass" else found[0]


COMBINATORS = [
    *(Residual, Residual, Minus, Concatenated, Shared, Checkpointed, Reentrant, TrainOnly, EvalOnly, Functional),
    *(Frozen, NoGrad, ByValue, Skipped, Packed),
]
