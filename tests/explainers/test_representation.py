"""f_Lambda(x) = <v, x> + constants: against the network run as the affine map it is, with its gates written down."""

from contextlib import contextmanager
from functools import cache
from unittest import mock

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import reference
import softgate as sg
from softgate import SoftgateError
from softgate.explainers.representation import read, representation

MODELS = ("resnet18", "vgg11_bn", "densenet121", "squeezenet1_1", "googlenet")
RULE = sg.Surrogate(sg.gates.Sigmoid(0.25), sg.pools.LSE(0.4))


def randomized(model):
    """Constants that matter: biases, and statistics and affine parts of every norm, all drawn anew."""
    torch.manual_seed(0)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval().double()


@cache
def build(name):
    torch.manual_seed(0)
    settings = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(num_classes=10, **settings)
    if name == "vgg11_bn":
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier[0], model.classifier[3] = nn.Linear(512, 64), nn.Linear(64, 64)
        model.classifier[6] = nn.Linear(64, 10)
    return randomized(model)


def images(size=48, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@contextmanager
def recording(gate, temperature, gates):
    """Runs a true forward pass and keeps the gates it would have, in the order of the calls."""

    def relu(z, inplace=False):
        gates.append(gate(z))
        return reference.TRUE_RELU(z)

    def pool(x, *geometry, return_indices=False, **settings):
        spread = reference.windows(x, *geometry, **settings)
        gates.append((spread / temperature).flatten(-2).softmax(-1).view_as(spread))
        return spread.amax((-2, -1))

    with mock.patch.object(F, "relu", relu), mock.patch.object(F, "max_pool2d", pool):
        yield


@contextmanager
def replaying(gates):
    """Runs the affine network: each relu multiplies by its gate, each pooling sums with its weights."""
    left = iter(gates)

    def relu(z, inplace=False):
        return next(left) * z

    def pool(x, *geometry, return_indices=False, **settings):
        spread = reference.windows(x, *geometry, **settings)
        return (next(left) * spread.where(spread > -torch.inf, 0.0)).sum((-2, -1))

    with mock.patch.object(F, "relu", relu), mock.patch.object(F, "max_pool2d", pool):
        yield


@torch.no_grad()
def gated_linear_forward(model, x, gate, temperature):
    gates = []
    with recording(gate, temperature, gates):
        model(x)
    with replaying(gates):
        return model(x)


@pytest.mark.parametrize("name", MODELS)
def test_with_hard_gates_it_is_the_logit(name):
    model, x = build(name), images()
    found = representation(model, x, [3, 7])
    logits = model(x).detach()[:, [3, 7]]
    assert ((found - logits) / logits).abs().max() <= 1e-10
    bare = (sg.pullback(model, x, [3, 7]) * x[:, None]).flatten(2).sum(2)
    assert ((bare - logits) / logits).abs().min() > 1e-3  # the constants matter here


@pytest.mark.parametrize("name", MODELS)
def test_with_soft_gates_it_is_the_gated_linear_network(name):
    model, x = build(name), images()
    found = representation(model, x, [3, 7], RULE)
    expected = gated_linear_forward(model, x, lambda z: reference.sigmoid(z, 0.25), 0.4)[:, [3, 7]]
    assert ((found - expected) / expected).abs().max() <= 1e-8
    logits = model(x).detach()[:, [3, 7]]
    assert ((found - logits) / logits).abs().max() > 1e-3


def test_a_centred_logit_is_represented_by_the_centred_sum():
    model, x = build("resnet18"), images()
    every = representation(model, x, list(range(10)), RULE)
    found = representation(model, x, [4, 2], RULE, centred=True)
    assert torch.allclose(found, every[:, [4, 2]] - every.mean(1, keepdim=True), rtol=1e-10)


def test_reading_out_gives_logits_and_pullbacks_of_the_same_pass():
    model, x = build("squeezenet1_1"), images()
    target = torch.tensor([1, 9])
    found = read(model, x, target, RULE)
    assert torch.equal(found.outputs, model(x).detach())
    assert torch.equal(found.logit, found.outputs[[0, 1], target])
    assert torch.allclose(found.pullback, sg.pullback(model, x, target, RULE), rtol=1e-12, atol=1e-14)


def test_it_works_on_an_attached_model_and_leaves_no_trace():
    model, x = build("resnet18").train(), images()
    with sg.attach(model, RULE) as sites:
        found = representation(model, x, 0, None)
        assert sites.rule is RULE
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model.eval()
    assert torch.allclose(found, model(x)[:, 0].detach(), rtol=1e-10)


class Functional(nn.Module):
    """Constants by every road: functional calls, a module used twice, parameters added by hand, numbers."""

    def __init__(self):
        super().__init__()
        self.once, self.twice = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.shift = nn.Parameter(torch.randn(6, 1, 1))
        self.head = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5))
        self.head_weight, self.head_bias = self.head

    def forward(self, x):
        y = torch.nn.functional.relu(self.norm(self.once(2 - x)) + self.shift)
        for _ in range(2):
            y = self.act(self.twice(y) * 0.5 - 0.3)
        y = y * 2
        y += 0.1
        y -= 0.2
        y = torch.add(y, self.shift, alpha=2).relu()
        y = torch.max_pool2d(y, 2).mean((2, 3))
        return F.linear(y, self.head_weight, self.head_bias) - 1


def test_functional_calls_reused_modules_and_constants_added_by_hand_are_all_seen():
    model = randomized(Functional())
    x = images(8, 3)
    assert torch.allclose(representation(model, x, 2), model(x)[:, 2].detach(), rtol=1e-10)


class Then(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(3, 4, 3), layer, nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(torch.relu(self.conv(x))).mean((2, 3)))


class Squared(nn.Module):
    def forward(self, x):
        return x * x


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.GroupNorm(2, 4), "GroupNorm"),
        (nn.LayerNorm([4, 6, 6]), "LayerNorm"),
        (nn.BatchNorm2d(4, track_running_stats=False), "statistics of its own input"),
        (nn.InstanceNorm2d(4), "statistics of its own input"),
        (nn.Softmax(1), "Softmax"),
        (Squared(), "product"),
    ],
)
@pytest.mark.parametrize("rule", [None, RULE])
def test_layers_that_are_not_linear_with_gates_held_are_refused_by_name(layer, named, rule):
    with pytest.raises(SoftgateError, match=named):
        representation(Then(layer).eval(), torch.randn(2, 3, 8, 8), 0, rule)


def test_a_rule_that_rescales_gradients_by_their_norm_is_refused():
    with pytest.raises(SoftgateError, match="gain=matched"):
        representation(build("resnet18"), images(), 0, sg.Surrogate(gain="matched"))
