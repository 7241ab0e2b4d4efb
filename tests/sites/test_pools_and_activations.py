"""Every spelling of max pooling, and the activations with a kink elsewhere than at zero."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import reference
import softgate as sg
from site_networks import RULE, Pooled, assert_close, differ, gradients, images, soft_gradients


@pytest.mark.parametrize(
    "spelling",
    [
        lambda model, x: model.pool(x),
        lambda model, x: F.max_pool2d(x, 3, 2, 1, 1, True),
        lambda model, x: F.max_pool2d(input=x, kernel_size=(3, 3), stride=[2], padding=1, ceil_mode=True),
        lambda model, x: torch.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda model, x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True, return_indices=False),
    ],
)
def test_every_spelling_of_max_pool2d_keeps_its_forward_and_gets_soft_weights(spelling):
    model, x = Pooled(spelling), images()
    bare = gradients(model, x)
    expected = soft_gradients(Pooled(lambda model, x: model.pool(x)), x)
    with sg.attach(model, RULE) as sites:
        assert (sites.count("max_pool2d"), sites.count("relu")) == (1, 0)
        found = gradients(model, x)
    assert torch.equal(found[0], bare[0])
    assert differ(bare, found)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("tail", "same"),
    [
        (
            lambda m, x: F.relu(F.max_pool2d(m.conv(x), 2), inplace=True),
            lambda m, x: F.relu(F.max_pool2d(m.conv(x), 2)),
        ),
        (lambda m, x: F.max_pool2d(m.conv(x), 2).mul_(2), lambda m, x: F.max_pool2d(m.conv(x), 2) * 2),
    ],
    ids=["relu", "mul_"],
)
def test_a_pooling_whose_output_is_overwritten_trains_as_it_does_without_softgate(tail, same):
    class Model(nn.Module):
        def __init__(self, run):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.run = nn.Conv2d(3, 4, 3).double(), run

        def forward(self, x):
            return self.run(self, x)

    x = images()
    bare = gradients(Model(tail), x)  # PyTorch allows it
    model = Model(tail)
    with sg.attach(model, RULE):
        found = gradients(model, x)
    assert torch.equal(found[0], bare[0])
    assert_close(found, soft_gradients(Model(same), x))


def step(z, kink):
    return torch.sigmoid((z - kink) / 0.3)


PIECEWISE = {
    "nn.ReLU6()": (nn.ReLU6(), lambda z: step(z, 0) - step(z, 6)),
    "nn.ReLU6(inplace=True)": (nn.ReLU6(inplace=True), lambda z: step(z, 0) - step(z, 6)),
    "F.relu6(z)": (F.relu6, lambda z: step(z, 0) - step(z, 6)),
    "F.hardtanh_(z)": (lambda z: F.hardtanh_(z), lambda z: step(z, -1) - step(z, 1)),
    "nn.Hardtanh(-2, 0.5)": (nn.Hardtanh(-2, 0.5), lambda z: step(z, -2) - step(z, 0.5)),
    "nn.LeakyReLU(0.2)": (nn.LeakyReLU(0.2), lambda z: 0.2 + 0.8 * step(z, 0)),
    "F.leaky_relu_(z, 0.1)": (lambda z: F.leaky_relu_(z, 0.1), lambda z: 0.1 + 0.9 * step(z, 0)),
}


@pytest.mark.parametrize("name", PIECEWISE)
def test_every_kink_of_a_piecewise_linear_activation_gets_the_gate(name):
    activation, factor = PIECEWISE[name]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.activation = activation

        def forward(self, x):
            return self.activation(x * 1)

    x = (torch.linspace(-9, 9, 400, dtype=torch.float64)).requires_grad_()
    model = Model()
    flag = getattr(activation, "inplace", None)
    expected = model(x)
    (hard,) = torch.autograd.grad(expected.sum(), x)
    soft = factor(x.detach())
    for rule, wanted in ((RULE, soft), (sg.Surrogate(mix=0.5), 0.5 * hard + 0.5 * soft)):
        with sg.attach(model, rule) as sites:
            out = model(x)
            assert torch.equal(out, expected)
            (found,) = torch.autograd.grad(out.sum(), x)
            assert [site.covered for site in sites.table()] == [True]
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert getattr(activation, "inplace", None) == flag


def test_mobilenets_relu6_sites_are_covered_and_its_forward_is_bit_equal():
    net = torchvision.models.mobilenet_v2(num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = net(x)
    with sg.attach(net, RULE) as sites:
        assert sites.count("relu6") == 35
        assert torch.equal(net(x), expected)


def test_pooling_with_indices_keeps_the_true_ones_and_softens_the_gradient():
    class Unpools(nn.Module):
        def forward(self, x):
            y, where = F.max_pool2d(F.relu(x), 2, return_indices=True)
            return F.max_unpool2d(y, where, 2)

    model, x = Unpools(), torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    expected = model(x)
    with sg.attach(model, RULE) as sites:
        out = model(x)
        assert torch.equal(out, expected)
        assert sites.count("max_pool2d") == 1
        (found,) = torch.autograd.grad(out.sum(), x)
    y = reference.max_pool2d(reference.relu(x, reference.sigmoid), 2)
    (wanted,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("size", "window"), [(4, 2), ((2, 8), (4, 1)), ((None, 4), (1, 2))])
def test_adaptive_pooling_into_equal_windows_is_plain_pooling(size, window):
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveMaxPool2d(size))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    expected = model(x)
    with sg.attach(model, RULE):
        out = model(x)
        assert torch.equal(out, expected)
        (found,) = torch.autograd.grad(out.sum(), x)
    y = reference.max_pool2d(reference.relu(x, reference.sigmoid), window)
    (wanted,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_adaptive_pooling_into_unequal_windows_is_refused_by_name():
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveMaxPool2d(3))
    with sg.attach(model, RULE), pytest.raises(sg.UnreachableSites, match=r"1 \(adaptive_max_pool2d\)"):
        model(torch.randn(1, 2, 8, 8))
