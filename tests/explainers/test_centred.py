"""Explainers of the centred logit, the logit minus the mean logit: each against what it is by definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reference
import softgate as sg
from metric_cases import CLASSES, RULE, network, probe
from softgate import explainers
from softgate.explainers.noise import draws


def centred(net, x, target):
    logits = net(x)
    return logits[range(len(x)), target] - logits.mean(1)


def derivative(net, x, target):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(centred(net, x, target).sum(), x)[0]


def test_the_gradient_and_the_pullback_are_those_of_the_centred_logit():
    net, (x, labels) = network(), probe()
    assert torch.allclose(explainers.gradient(net, x, labels, centred=True), derivative(net, x, labels))
    every = sg.pullback(net, x, list(range(CLASSES)), RULE)
    expected = every[range(len(x)), labels] - every.mean(1)
    assert torch.allclose(explainers.Pullback(RULE, centred=True)(net, x, labels), expected, atol=1e-12)


def test_a_semantic_pullback_climbs_the_centred_logit():
    net, (x, labels) = network(), probe()
    found = explainers.SemanticPullback(RULE, steps=2, centred=True)(net, x, labels)
    torch.testing.assert_close(found, explainers.SemanticPullback(RULE, steps=2)(Centred(net), x, labels))
    assert not torch.allclose(found, explainers.SemanticPullback(RULE, steps=2)(net, x, labels))


def test_leaky_backward_is_the_gradient_with_a_leak():
    net, (x, labels) = network(), probe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "relu", lambda z, inplace=False: reference.relu(z, lambda z: reference.leaky(z, 0.1)))
        expected = derivative(net, x, labels)
    assert torch.allclose(explainers.leaky_backward(net, x, labels, 0.1, centred=True), expected, atol=1e-10)


def test_smoothgrad_is_the_mean_over_noisy_copies():
    net, (x, labels) = network(), probe()
    noise, expected = draws(x, 3, 0), torch.zeros_like(x)
    for i in range(len(x)):
        for j in range(3):
            spread = float(x[i].max() - x[i].min())
            noisy = x[i : i + 1] + 0.15 * spread * noise[j, i]
            expected[i] += derivative(net, noisy, labels[i : i + 1])[0] / 3
    assert torch.allclose(explainers.smoothgrad(net, x, labels, 3, centred=True), expected, atol=1e-10)


class Modules(nn.Sequential):
    """A network of modules, which backward hooks can reach; its logits are centred."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
        )  # fmt: skip
        self.double().eval()


class Centred(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        logits = self.net(x)
        return logits - logits.mean(1, keepdim=True)


def test_guided_backprop_is_captums():
    attr = pytest.importorskip("captum.attr", reason="the extra explain is not installed")
    net, (x, labels) = Modules(), probe()
    found = explainers.guided_backprop(net, x, labels, centred=True)
    for module in net:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = attr.GuidedBackprop(Centred(net)).attribute(x.clone(), target=labels)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.LeakyReLU(0.1), nn.GELU()])
def test_guided_backprop_is_not_the_gradient_under_another_name(activation):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Flatten(), nn.LazyLinear(3)).double()
    x, labels = probe()
    net(x)
    with pytest.raises(sg.SoftgateError, match="guided_backprop: Sequential has"):
        explainers.guided_backprop(net, x, labels % 3, centred=True)


def test_guided_backprop_reaches_functional_calls_and_drops_negative_gradients():
    net, (x, labels) = network(), probe()

    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z.clamp_min(0)

        @staticmethod
        def backward(ctx, grad):
            return torch.where((ctx.saved_tensors[0] > 0) & (grad > 0), grad, 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "relu", lambda z, inplace=False: Guided.apply(z))
        expected = derivative(net, x, labels)
    assert torch.allclose(explainers.guided_backprop(net, x, labels, centred=True), expected, atol=1e-12)
    with sg.attach(net, RULE):
        assert torch.allclose(explainers.guided_backprop(net, x, labels, centred=True), expected, atol=1e-12)


@pytest.mark.parametrize("name", sorted(explainers.KNOWN.keys() - {"excitation_pullback", "semantic_pullback"}))
def test_every_explainer_of_the_centred_logit_is_that_of_a_network_with_centred_logits(name):
    net, (x, labels) = network(), probe()
    explain = explainers.by_name(name)
    found = explain(net, x, labels, centred=True)
    torch.testing.assert_close(found, explain(Centred(net), x, labels), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(found, explain(net, x, labels))


def test_the_pullbacks_of_all_classes_are_those_of_each_and_come_with_the_logits():
    net, (x, _) = network(), probe()
    for centred in (False, True):
        explain = explainers.Pullback(RULE, centred)
        maps, outputs = explain.all(net, x, [3, 0])
        assert torch.allclose(maps, torch.stack([explain(net, x, 3), explain(net, x, 0)], 1), atol=1e-12)
        assert torch.equal(outputs, net(x).detach())
