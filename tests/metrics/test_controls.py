"""The controls: each against what it is by definition."""

from functools import partial

import pytest
import torch
from torch import nn

import softgate as sg
from metric_cases import RULE, network, probe
from softgate import SoftgateError, metrics
from softgate.explainers import Pullback, smoothgrad
from softgate.metrics import controls, high_frequency
from softgate.sites.scales import scales_of

GRADIENT = Pullback(None, centred=True)


def test_the_blurred_gradient_has_the_pullbacks_share_of_high_frequencies():
    net, (x, labels) = network(), probe(4, size=32)
    smooth = partial(smoothgrad, samples=5, centred=True)
    goal = high_frequency(smooth(net, x, labels))
    blurred = controls.Blurred(GRADIENT, smooth)
    before, after = high_frequency(GRADIENT(net, x, labels)), high_frequency(blurred(net, x, labels))
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
    explain = controls.RandomWeights(x, GRADIENT)
    found = explain(net, x, labels)
    assert torch.equal(found, controls.RandomWeights(x, GRADIENT)(net, x, labels))
    assert not torch.allclose(found, GRADIENT(net, x, labels))
    other = network(1)
    assert torch.equal(explain(other, x, labels), controls.RandomWeights(x, GRADIENT)(other, x, labels))


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


def test_published_tables_keep_their_leaky_backward():
    found = controls.standard(RULE, probe()[0])["leaky backward"]
    assert found == Pullback(sg.Surrogate(gate=sg.gates.Leaky(slope=0.1), pool=sg.pools.Hard()), centred=True)


def test_a_randomised_network_has_scales_of_its_own():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        net[0].weight.mul_(100)
    sg.calibrate(net, [x])
    other = metrics.randomized(net, "all", x)
    sg.pullback(other, x, 1, sg.Surrogate(scale="channel"))  # a warning of scales of other weights would be an error
    found, expected = scales_of(other)["1"].variance, other[0](x).var((0, 2, 3), correction=0)
    torch.testing.assert_close(found, expected)
