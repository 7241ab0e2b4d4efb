"""Which rule a network with smooth activations is read out with, and that a look has no rule but its own."""

import pytest
import torch
from torch import nn

import softgate as sg
from softgate.explainers.completion import completed_for


class Net(nn.Module):
    """A convolution, an activation and a linear layer; its forward goes by a public method, as timm's do."""

    def __init__(self, activation):
        super().__init__()
        self.conv, self.activation, self.last = nn.Conv2d(3, 4, 3), activation, nn.Linear(4, 5)

    def forward_features(self, x):
        return self.activation(self.conv(x))

    def forward(self, x):
        return self.last(self.forward_features(x).mean((2, 3)))


def net(activation):
    torch.manual_seed(0)
    return Net(activation).double().eval()


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("attached", [None, sg.Surrogate.none(), sg.Surrogate.semantic(), "not"])
@pytest.mark.parametrize("kind", [nn.GELU, nn.SiLU, nn.Hardswish])
def test_a_rule_for_relus_is_completed_where_there_are_smooth_activations(kind, attached):
    model, rule = net(kind()), sg.Surrogate()
    if attached != "not":
        sg.attach(model, attached)
    found, why = completed_for(model, rule, images()[:1])
    assert found.gate == rule.gate
    assert found.activation == sg.activations.SelfGate()
    assert "as surrogate=semantic" in why or "surrogate=semantic has" in why
    with pytest.raises(sg.UnreachableSites):
        sg.pullback(model, images(), 0, rule)
    assert torch.equal(sg.pullback(model, images(), 0, found), sg.pullback(net(kind()), images(), 0, found))


@pytest.mark.parametrize("rule", [sg.Surrogate(), sg.Surrogate.none(), sg.Surrogate(scale="channel")])
def test_a_network_of_relus_keeps_the_rule_that_was_chosen(rule):
    for model in (net(nn.ReLU()), net(nn.Identity())):
        assert completed_for(model, rule, images()[:1]) == (rule, None)


def test_what_was_chosen_for_smooth_activations_stays():
    rule = sg.Surrogate(activation=sg.activations.SelfGate(gelu=2.0))
    assert completed_for(net(nn.GELU()), rule, images()[:1]) == (rule, None)


@pytest.mark.parametrize("rule", [None, sg.Surrogate(), sg.Surrogate.sugar()])
def test_a_look_at_an_attached_network_with_public_methods_is_under_its_own_rule(rule):
    """The copy that is looked at had the attached network's stand-ins for its methods, and with them its rule."""
    model = net(nn.ReLU())
    expected = sg.pullback(model, images(), 0, rule)
    with sg.attach(model, sg.Surrogate.normal_cdf()):
        assert torch.equal(sg.pullback(model, images(), 0, rule), expected)
