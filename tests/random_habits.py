"""Building blocks of random networks: writes, hooks and attributes around an activation, modules in odd places."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from random_blocks import FUNCTIONS, RELUS, Block, layer


class WritesOutput(Block):
    """Writes into a ReLU's output; the true backward pass needs what was there."""

    trainable = False

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.after = layer(shape), layer(shape)
        self.how, self.spelling = draw.choice(["+=", "mul_", "view", "twice"]), draw.choice(RELUS)

    def extra_repr(self):
        return f"{self.how}, {self.spelling}"

    def forward(self, x):
        y = FUNCTIONS[self.spelling](self.layer(x))
        if self.how == "+=":
            y += 1
        elif self.how == "mul_":
            y.mul_(0.5)
        elif self.how == "view":
            y[:, 0] += 1
        else:
            y = F.relu_(y - 0.1)
            y -= 0.2
        return self.after(y)


class WritesInput(Block):
    """Writes into a ReLU's input after the ReLU."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.after = layer(shape), layer(shape)
        self.how, self.spelling = draw.choice(["+=", "mul_", "zero_", "view", "inplace"]), draw.choice(RELUS)
        self.relu = nn.ReLU(inplace=True)

    def extra_repr(self):
        return f"{self.how}, {self.spelling}"

    def forward(self, x):
        z = self.layer(x)
        y = FUNCTIONS[self.spelling](z)
        if self.how == "+=":
            z += 1
        elif self.how == "mul_":
            z.mul_(0.5)
        elif self.how == "zero_":
            z.zero_()
        elif self.how == "view":
            z.view(-1).add_(1)
        else:
            z -= 0.1
            z = self.relu(z)
        return self.after(y) + z


class Keep:
    """A hook that keeps what a module is given or returns."""

    def __init__(self, kept, what):
        self.kept, self.what = kept, what

    def __call__(self, module, given, returned=None):
        self.kept.append(given[0] if self.what == "given" else returned)


class Hooked(Block):
    """Forward hooks and pre-hooks keep tensors around an activation, which may be in place."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.relu = layer(shape), nn.ReLU(inplace=draw.random() < 0.6)
        self.after = layer(shape)
        self.where = draw.choice(["layer", "relu", "relu given", "after given", "closure", "kwargs"])
        if self.where == "layer":
            self.layer.register_forward_hook(Keep(self.kept, "returned"))
        elif self.where == "relu":
            self.relu.register_forward_hook(Keep(self.kept, "returned"))
        elif self.where == "relu given":
            self.relu.register_forward_pre_hook(Keep(self.kept, "given"))
        elif self.where == "after given":
            self.after.register_forward_hook(Keep(self.kept, "given"))
        elif self.where == "closure":
            kept = self.kept
            self.layer.register_forward_hook(lambda module, given, returned: kept.append(returned))
        else:
            self.relu.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, module, args, kwargs):
        self.kept.append(args[0])

    def extra_repr(self):
        return self.where

    def forward(self, x):
        return self.after(self.relu(self.layer(x)))


def _halved(module, given, returned):
    return returned / 2


def _shifted(module, given):
    return (given[0] + 0.1,)


class HookChanges(Block):
    """Hooks that put something else in the place of what a module is given or returns."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.relu = layer(shape), nn.ReLU(inplace=draw.random() < 0.5)
        self.relu.register_forward_pre_hook(_shifted)
        if draw.random() < 0.5:
            self.layer.register_forward_hook(_halved)
        else:
            self.relu.register_forward_hook(_halved)

    def forward(self, x):
        return self.relu(self.layer(x))


class GradientHooks(Block):
    """Gradients kept by hooks of tensors and modules."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.relu = layer(shape), nn.ReLU()
        self.how = draw.choice(["tensor", "output", "module"])
        if self.how == "module":
            self.relu.register_full_backward_hook(self.keep)

    def extra_repr(self):
        return self.how

    def keep(self, module, given, returned):
        self.gradients += [returned[0], given[0]]

    def forward(self, x):
        z = self.layer(x)
        y = self.relu(z)
        tensor = {"tensor": z, "output": y}.get(self.how)
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            tensor.register_hook(self.gradients.append)
        return y


class Attributes(Block):
    """Keeps its pre-activation or its output in an attribute, a list or a dict, perhaps before an in-place ReLU."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.relu = layer(shape), nn.ReLU(inplace=draw.random() < 0.6)
        self.what, self.where = draw.choice(["z", "y"]), draw.choice(["attribute", "list", "dict"])
        self.features, self.by_name = None, {}

    def extra_repr(self):
        return f"{self.what} in {self.where}"

    def keep(self, tensor):
        if self.where == "attribute":
            self.features = tensor
        elif self.where == "dict":
            self.by_name["features"] = tensor
        else:
            self.kept.append(tensor)

    def forward(self, x):
        z = self.layer(x)
        if self.what == "z":
            self.keep(z)
        y = self.relu(z)
        if self.what == "y":
            self.keep(y)
        return y


class InList(Block):
    """Activations in a list, a dict or a tuple, none of them registered, called by index."""

    traceable = False  # torch.fx looks for every module's name

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layers = nn.ModuleList([layer(shape), layer(shape)])
        relus = [nn.ReLU(), nn.LeakyReLU(0.1)]
        self.acts = draw.choice([list, tuple, lambda pair: dict(enumerate(pair))])(relus)

    def forward(self, x):
        for i, each in enumerate(self.layers):
            x = self.acts[i](each(x))
        return x


class InClosure(Block):
    """A function that holds the layer and the activation."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.relu = layer(shape), nn.ReLU()
        if draw.random() < 0.5:
            inner, relu = self.layer, self.relu
            self.run = lambda x: relu(inner(x))
        else:
            self.run = partial(self.both, self.relu)

    def both(self, relu, x):
        return relu(self.layer(x))

    def forward(self, x):
        return self.run(x)


class Again(Block):
    """One layer and one activation, called three times."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.act = layer(shape), draw.choice([nn.ReLU, nn.ReLU6])()

    def forward(self, x):
        for _ in range(3):
            x = self.act(self.layer(x))
        return x


class Methods(Block):
    """Its work is done in another method, and by a part whose forward is called by name."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer, self.relu = layer(shape), nn.ReLU()

    def work(self, x, scale=1.0):
        return self.relu.forward(scale * F.relu(self.layer.forward(x)) - 0.1)

    def forward(self, x):
        return self.work(x, scale=0.7)


class Counting(Block):
    """Buffers that a pass writes, and the ReLU of whole numbers and of constants, which have no gradient."""

    def __init__(self, draw, shape):
        super().__init__(shape)
        self.layer = layer(shape)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))

    def forward(self, x):
        z = self.layer(x)
        if self.training:
            self.count += 1
            self.mean = 0.9 * self.mean + 0.1 * z.detach().mean(0)
        return F.relu(z) + F.relu(self.mean) + F.relu(self.count - 1)


HABITS = [
    *(WritesOutput, WritesInput, Hooked, Hooked, HookChanges, GradientHooks, Attributes),
    *(InList, InClosure, Again, Methods, Counting),
]
