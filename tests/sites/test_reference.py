"""Whole torchvision models against the reference, and what is known about their call sites."""

from functools import cache

import pytest
import torch
import torchvision
from torch import nn

import reference
import softgate as sg

RELUS = {"resnet18": 17, "vgg11_bn": 10, "densenet121": 121, "googlenet": 57, "squeezenet1_1": 26, "inception_v3": 94}
POOLS = {"resnet18": 1, "vgg11_bn": 5, "densenet121": 1, "googlenet": 13, "squeezenet1_1": 3, "inception_v3": 4}
TEMPERATURE, POOL_TEMPERATURE = 0.25, 0.4


def build(name):
    """The model in eval mode and float64, with running statistics that make its pre-activations unit scale."""
    torch.manual_seed(0)
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = getattr(torchvision.models, name)(num_classes=10, **settings)
    if name == "vgg11_bn":  # the same layers, with a head of 0.1 million parameters in the place of 100 million
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier[0], model.classifier[3] = nn.Linear(512, 64), nn.Linear(64, 64)
        model.classifier[6] = nn.Linear(64, 10)
    model.eval().double()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        with torch.no_grad():
            model(images(name))
    return model.eval()


def images(name):
    size = 96 if name == "inception_v3" else 64
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(model, x):
    """Logits, input gradient and parameter gradients (those there are) of a fixed mix of the logits."""
    x = x.clone().requires_grad_()
    logits = model(x)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    named = dict(model.named_parameters())
    found = torch.autograd.grad((logits * weights).sum(), [x, *named.values()], allow_unused=True)
    parts = {name: part for name, part in zip(named, found[1:], strict=True) if part is not None}
    return logits.detach(), found[0], parts


@cache
def results(name):
    """Bare, softgate's and the reference's results on one model, and its sites as they were after one forward."""
    model, x = build(name), images(name)
    bare = gradients(model, x)
    with sg.attach(model, sg.Surrogate(sg.gates.Sigmoid(TEMPERATURE), sg.pools.LSE(POOL_TEMPERATURE))) as sites:
        before = sites.count("relu"), sites.count("max_pool2d")
        soft = gradients(model, x)
        table = sites.table()
    with reference.patched(lambda z: reference.sigmoid(z, TEMPERATURE), POOL_TEMPERATURE):
        expected = gradients(model, x)
    after = gradients(model, x)
    return bare, soft, expected, after, before, table


@pytest.mark.parametrize("name", RELUS)
def test_forward_is_bit_equal_to_the_bare_model(name):
    bare, soft, expected, *_ = results(name)
    assert torch.equal(soft[0], bare[0])
    assert torch.equal(expected[0], bare[0])  # else the reference would say nothing about this model


@pytest.mark.parametrize("name", RELUS)
def test_input_gradient_is_the_references(name):
    bare, soft, expected, *_ = results(name)
    assert reference.distance(soft[1], expected[1]) <= 1e-10
    assert reference.distance(bare[1], expected[1]) > 1e-2  # the rule makes a difference here


@pytest.mark.parametrize("name", RELUS)
def test_parameter_gradients_are_the_references(name):
    bare, soft, expected, *_ = results(name)
    assert soft[2].keys() == expected[2].keys() == bare[2].keys()
    assert {key: far for key in soft[2] if (far := reference.distance(soft[2][key], expected[2][key])) > 1e-10} == {}


@pytest.mark.parametrize("name", RELUS)
def test_after_detach_the_model_is_the_bare_model(name):
    bare, _, _, after, *_ = results(name)
    assert torch.equal(after[0], bare[0])
    assert torch.equal(after[1], bare[1])


@pytest.mark.parametrize("name", RELUS)
def test_every_call_site_is_known_before_the_first_forward_and_run_once_in_it(name):
    *_, before, table = results(name)
    assert before == (RELUS[name], POOLS[name])
    assert all(site.covered and site.calls == 1 for site in table)
    assert len(table) == RELUS[name] + POOLS[name]
