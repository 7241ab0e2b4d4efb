"""A classifier and its input gradients, plain and by the reference, that the tests of pullbacks share."""

import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg

RULE = sg.Surrogate()
CLASSES = 5


class Classifier(nn.Module):
    """Two convolutions with BatchNorm, dropout, a max pooling and an in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            nn.Dropout(0.5),
        )
        self.conv = nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.conv(self.body(x))).mean((2, 3)))


def everything(model):
    """All that a look at a model must leave alone: states, grads, modes, attributes, hooks, random state."""
    modules = list(model.modules())
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "grads": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "needs": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in modules],
        "inplace": [getattr(module, "inplace", None) for module in modules],
        "names": [sorted(module.__dict__) for module in modules],
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
    }


def assert_same(now, before):
    for what, value in before.items():
        if what in ("state", "grads", "random"):
            torch.testing.assert_close(now[what], value, rtol=0, atol=0, msg=what)
        else:
            assert now[what] == value, what
