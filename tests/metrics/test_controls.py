"""The controls: each against what it is by definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reference
import softgate as sg
from metric_cases import CLASSES, RULE, network, probe
from softgate import SoftgateError
from softgate.metrics import controls, high_frequency
from softgate.metrics.noise import draws


def centred(net, x, target):
    logits = net(x)
    return logits[range(len(x)), target] - logits.mean(1)


def derivative(net, x, target):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(centred(net, x, target).sum(), x)[0]


def test_the_gradient_and_the_pullback_are_those_of_the_centred_logit():
    net, (x, labels) = network(), probe()
    assert torch.allclose(controls.gradient()(net, x, labels), derivative(net, x, labels))
    every = sg.pullback(net, x, list(range(CLASSES)), RULE)
    expected = every[range(len(x)), labels] - every.mean(1)
    assert torch.allclose(controls.Pullback(RULE)(net, x, labels), expected, atol=1e-12)


def test_leaky_backward_is_the_gradient_with_a_leak():
    net, (x, labels) = network(), probe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "relu", lambda z, inplace=False: reference.relu(z, lambda z: reference.leaky(z, 0.1)))
        expected = derivative(net, x, labels)
    assert torch.allclose(controls.leaky_backward(0.1)(net, x, labels), expected, atol=1e-10)


def test_smoothgrad_is_the_mean_over_noisy_copies():
    net, (x, labels) = network(), probe()
    noise, expected = draws(x, 3, 0), torch.zeros_like(x)
    for i in range(len(x)):
        for j in range(3):
            spread = float(x[i].max() - x[i].min())
            noisy = x[i : i + 1] + 0.15 * spread * noise[j, i]
            expected[i] += derivative(net, noisy, labels[i : i + 1])[0] / 3
    assert torch.allclose(controls.SmoothGrad(3)(net, x, labels), expected, atol=1e-10)


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
    attr = pytest.importorskip("captum.attr")
    net, (x, labels) = Modules(), probe()
    found = controls.GuidedBackprop()(net, x, labels)
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
        controls.GuidedBackprop()(net, x, labels % 3)


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
    assert torch.allclose(controls.GuidedBackprop()(net, x, labels), expected, atol=1e-12)
    with sg.attach(net, RULE):
        assert torch.allclose(controls.GuidedBackprop()(net, x, labels), expected, atol=1e-12)


def test_the_blurred_gradient_has_the_pullbacks_share_of_high_frequencies():
    net, (x, labels) = network(), probe(4, size=32)
    smooth = controls.Blurred(controls.gradient(), controls.SmoothGrad(5))
    goal = high_frequency(controls.SmoothGrad(5)(net, x, labels))
    before, after = high_frequency(controls.gradient()(net, x, labels)), high_frequency(smooth(net, x, labels))
    for b, a, g in zip(before, after, goal, strict=True):
        assert float(a) == pytest.approx(float(min(b, g)), rel=0.02)


def test_the_edge_filter_knows_neither_model_nor_target_and_sees_an_edge():
    x = torch.zeros(1, 3, 8, 8)
    x[..., 4:] = 1
    maps = controls.EdgeFilter()(nn.Identity(), x, torch.tensor([0]))
    assert maps[..., 3:5].eq(4).all()
    assert not maps[..., :3].any()
    assert not maps[..., 5:].any()


def test_random_weights_are_the_same_each_time_and_not_the_trained_ones():
    net, (x, labels) = network(), probe()
    explain = controls.RandomWeights(x, controls.gradient())
    found = explain(net, x, labels)
    assert torch.equal(found, controls.RandomWeights(x, controls.gradient())(net, x, labels))
    assert not torch.allclose(found, controls.gradient()(net, x, labels))
    other = network(1)
    assert torch.equal(explain(other, x, labels), controls.RandomWeights(x, controls.gradient())(other, x, labels))


def test_controls_leave_the_model_as_it_was():
    net, (x, labels) = network().train(), probe()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with sg.attach(net, RULE) as sites:
        for explain in controls.standard(RULE, x, passes=2).values():
            maps = explain(net, x, labels)
            assert maps.shape == x.shape
            assert not maps.requires_grad
        assert sites.rule == RULE
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_hard_rule_makes_no_control_table():
    with pytest.raises(SoftgateError, match="readout"):
        controls.standard(sg.Surrogate(sg.gates.Hard(), sg.pools.Hard()), probe()[0])
