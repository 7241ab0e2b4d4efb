"""One rule for each call site, whoever asks: gradients, recordings of gates, path kernels, diagnostics."""

import copy
import zlib
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.autograd import grad

import reference
import softgate as sg

RULES = {
    "sigmoid": sg.Surrogate(),
    "random": sg.Surrogate(sg.gates.Random()),
    "random, mixed": sg.Surrogate(sg.gates.Random(seed=5), mix=0.6, gain="unit_rms"),
    "random, some sites": sg.Surrogate(sg.gates.Random(), sites=sg.Select(exclude=("4",))),
    "random, channel": sg.Surrogate(sg.gates.Random(), scale="channel"),
    "shuffled": sg.Surrogate(sg.gates.Shuffled()),
}


def network():
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 3)).double().eval()


def images():
    return torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_gradient_of_the_recorded_gates_is_the_pullback(rule):
    net, x = network(), images()
    if rule.scale == "channel":
        sg.calibrate(net, [x])
    gates = sg.paths.record(net, x, rule)
    z = x.clone().requires_grad_()
    (found,) = grad(sg.paths.run(net, z, gates)[:, 1].sum(), z)
    assert reference.distance(found, sg.pullback(net, x, 1, rule)) < 1e-14


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_mean_gates_of_a_diagnosis_are_those_of_the_recording(rule):
    net, x = network(), images()
    if rule.scale == "channel":
        sg.calibrate(net, [x])
    recorded = sg.paths.record(net, x, rule).sites
    for site in sg.diagnose(net, x, torch.zeros(5, dtype=torch.long), rule):
        if site.kind == "relu":
            assert site.gate_mean == pytest.approx(float(recorded[site.name].weights().mean()), rel=1e-6)


def test_random_gates_of_two_sites_are_drawn_by_their_names():
    net, x = network(), images()
    gate = sg.gates.Random(seed=3)
    recorded = sg.paths.record(net, x, sg.Surrogate(gate)).sites
    for name in ("1", "4", "7"):
        values = recorded[name].values
        own = replace(gate, seed=zlib.crc32(name.encode(), 3))
        assert torch.equal(values, own(values))
        assert not torch.equal(values, gate(values))


def test_the_path_kernel_of_random_gates_is_that_of_the_gates_of_each_site():
    net, x = copy.deepcopy(network()), images()
    for module in (net[0], net[3], net[6], net[8]):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    rule = sg.Surrogate(sg.gates.Random(), sg.pools.LSE())
    gates = sg.paths.record(net, x, rule)
    squared = gates.map(lambda site: replace(site, values=site.weights().square()))
    expected = sg.paths.run(net, x.square(), squared).mean(1)
    torch.testing.assert_close(sg.paths.kernel(net, x, rule=rule).diagonal(), expected, rtol=1e-12, atol=0)
