"""Operators called past PyTorch's functions, as torch.ops.aten.relu, are refused or named as the functions are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg

ATEN = torch.ops.aten
RULE = sg.Surrogate(pool=sg.pools.LSE(0.4))

SITES = {
    "relu": (ATEN.relu, "relu"),
    "relu.default": (ATEN.relu.default, "relu"),
    "relu_": (ATEN.relu_, "relu"),
    "relu_.default": (ATEN.relu_.default, "relu"),
    "clamp": (lambda z: ATEN.clamp(z, 0), "relu"),
    "clamp, by name": (lambda z: ATEN.clamp(self=z, min=0), "relu"),
    "clamp_": (lambda z: ATEN.clamp_(z, 0), "relu"),
    "clip": (lambda z: ATEN.clip(z, 0.0), "relu"),
    "clamp_min": (lambda z: ATEN.clamp_min(z, 0), "relu"),
    "clamp_min.default": (lambda z: ATEN.clamp_min.default(z, 0), "relu"),
    "clamp_min_": (lambda z: ATEN.clamp_min_(z, 0), "relu"),
    "maximum": (lambda z: ATEN.maximum(z, torch.zeros_like(z)), "relu"),
    "max.other": (lambda z: ATEN.max.other(torch.zeros_like(z), z), "relu"),
    "threshold": (lambda z: ATEN.threshold(z, 0, 0), "relu"),
    "threshold_, no relu": (lambda z: ATEN.threshold_(z, 0.1, 0), "threshold"),
    "hardtanh": (ATEN.hardtanh, "hardtanh"),
    "relu6": (ATEN.relu6, "relu6"),
    "leaky_relu": (ATEN.leaky_relu, "leaky_relu"),
    "max_pool2d": (lambda z: ATEN.max_pool2d(z, [2, 2]), "max_pool2d"),
    "max_pool2d_with_indices": (lambda z: ATEN.max_pool2d_with_indices(z, 2)[0], "max_pool2d"),
    "adaptive_max_pool2d": (lambda z: ATEN.adaptive_max_pool2d(z, [2, 2])[0], "adaptive_max_pool2d"),
    "amax": (lambda z: ATEN.amax(z, [2, 3], True), "amax"),
    "max.dim": (lambda z: ATEN.max.dim(z, 3, True)[0], "amax"),
    "max_pool1d": (lambda z: ATEN.max_pool1d(z.flatten(2), 2), "max_pool1d"),
    "gelu": (ATEN.gelu, "gelu"),
    "silu_": (ATEN.silu_, "silu"),
    "_prelu_kernel": (lambda z: ATEN._prelu_kernel(z, torch.ones(1, 1, 1, 1)), "_prelu_kernel"),
}
SELECTING = {
    "sigmoid": ATEN.sigmoid,
    "abs": ATEN.abs.default,
    "where": lambda z: ATEN.where(z.detach() > 0, z, 0 * z),
    "clamp": lambda z: ATEN.clamp(z, -1, 1),
    "maximum": lambda z: ATEN.maximum(z, 1 - z),
    "amax": lambda z: ATEN.amax(z, [1], True),
}


class Net(nn.Module):
    """A ReLU, then a function under test, which a symbolic trace shows or does not."""

    def __init__(self, function, traceable):
        super().__init__()
        self.conv, self.function, self.traceable = nn.Conv2d(3, 4, 3), function, traceable

    def forward(self, x):
        out = F.relu(self.conv(x)) - 0.1
        if not self.traceable and float(out.detach().sum()) > 1e9:
            return out
        return self.function(out).flatten(1)


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("name", SITES)
def test_an_operator_that_is_a_call_site_is_refused_by_name(name, traceable):
    function, kind = SITES[name]
    net, operator = Net(function, traceable), name.split(".")[0].split(",")[0]
    with (
        pytest.raises(sg.UnreachableSites, match=rf"\({kind} called as torch\.ops\.aten\.{operator}\)"),
        sg.attach(net, RULE),
    ):
        net(images())
    with pytest.raises(sg.UnreachableSites, match=kind):
        sg.paths.record(net, images())


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("name", SELECTING)
def test_an_operator_that_selects_or_bends_data_is_named_as_its_function_is(name, traceable):
    net = Net(SELECTING[name], traceable)
    with pytest.warns(sg.SoftgateWarning, match=f"{name} in "), sg.attach(net, RULE) as sites:
        net(images())
    assert [entry.split(" in ")[0] for entry in sites.unaffected] == [name]


@pytest.mark.filterwarnings("error::softgate.SoftgateWarning")
def test_an_operator_that_is_neither_is_left_alone():
    net = Net(lambda z: ATEN.mul(z, 2) + ATEN.threshold_backward(z.detach(), z.detach(), 0), traceable=True)
    bare = net(images())
    with sg.attach(net, RULE) as sites:
        assert torch.equal(net(images()), bare)
    assert sites.count() == 1


def test_an_operator_where_only_poolings_are_governed_is_not_refused():
    net = Net(lambda z: F.max_pool2d(ATEN.relu(z), 2), traceable=True)
    with sg.attach(net, sg.Surrogate(pool=sg.pools.LSE(0.4), sites=sg.Select(kinds=("max_pool2d",)))):
        net(images())
    net = Net(lambda z: F.relu(ATEN.max_pool2d(z, 2)), traceable=True)
    with sg.attach(net, sg.Surrogate(pool=sg.pools.LSE(0.4), sites=sg.Select(kinds=("relu",)))):
        net(images())
