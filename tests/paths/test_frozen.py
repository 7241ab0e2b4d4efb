"""Training with the gates of a frozen network: its own gates change nothing, others are masks by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import softgate as sg
from path_networks import images, some
from softgate import SoftgateError


def gradients(net, logits):
    labels = torch.arange(len(logits)) % logits.shape[1]
    net.zero_grad()
    F.cross_entropy(logits, labels).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.slow), "odd"])
def test_with_the_gates_of_its_own_weights_a_network_trains_as_it_does_by_itself(name, dtype):
    net, size = some(name, dtype)
    x = images(4, size, dtype)
    expected = net(x)
    true = gradients(net, expected)
    with sg.attach(net, None) as sites:
        given = sg.paths.FrozenGates(sites, net)
        found = given(x)
        assert torch.equal(found, expected)
        mine = gradients(net, found)
    exact = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    assert all((mine[key] - true[key]).abs().max() <= exact * true[key].abs().max().clamp_min(1e-3) for key in true)


class Masked(nn.Module):
    """Two convolutions, a ReLU and a 2 x 2 max pooling each, whose masks are another's."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 6)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.head(F.relu(self.conv2(x)).mean((2, 3)))


def by_hand(net, other, x):
    """The logits of `net` with each ReLU a product by 1[z > 0] and each pooling a pick of `other`."""
    z = other.conv1(x)
    first = (z > 0).double()
    pooled, places = F.max_pool2d(z * first, 2, return_indices=True)
    second = (other.conv2(pooled) > 0).double()
    out = net.conv1(x) * first
    out = out.flatten(2).gather(2, places.flatten(2)).view_as(places)
    return net.head((net.conv2(out) * second).mean((2, 3)))


def test_with_the_gates_of_another_network_it_is_the_masks_by_hand():
    torch.manual_seed(0)
    net, other = Masked().double(), Masked().double()
    x = torch.randn(5, 3, 10, 10, dtype=torch.float64, requires_grad=True)
    expected = by_hand(net, other, x)
    true = gradients(net, expected)
    to_images = x.grad.clone()
    x.grad = None
    with sg.attach(net, sg.Surrogate()) as sites:  # a rule in force plays no part
        given = sg.paths.FrozenGates(sites, other)
        assert not torch.allclose(net(x), expected)
        found = given(x)
        assert torch.allclose(found, expected, rtol=1e-13, atol=1e-14)
        mine = gradients(net, found)
    assert all(torch.allclose(mine[key], true[key], rtol=1e-12, atol=1e-14) for key in true)
    assert torch.allclose(x.grad, to_images, rtol=1e-12, atol=1e-14)


def test_the_frozen_network_stays_as_it_is_while_the_other_one_learns():
    net, size = some("resnet18", torch.float32)
    x = images(4, size, torch.float32)
    with sg.attach(net.train(), None) as sites:
        given = sg.paths.FrozenGates(sites, net)
        before = copy.deepcopy(given.state_dict())
        first = given.gates(x)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        gradients(net, given(x))
        optimizer.step()
        assert net.training
        assert all(torch.equal(value, given.state_dict()[key]) for key, value in before.items())
        again = given.gates(x)
        assert all(torch.equal(site.values, again.sites[key].values) for key, site in first.sites.items())
        changed = sg.paths.record(net, x)
        assert any(not torch.equal(site.values, changed.sites[key].values) for key, site in first.sites.items())


def test_gates_that_do_not_fit_and_recomputed_parts_are_refused():
    net, _ = some("odd", torch.float32)
    with sg.attach(net, None) as sites, pytest.raises(SoftgateError, match="of another network"):
        sg.paths.FrozenGates(sites, some("resnet18", torch.float32)[0])(images(2, 33, torch.float32))
    curved = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sigmoid())
    with sg.attach(curved, None) as sites, pytest.raises(SoftgateError, match="Sigmoid"):
        sg.paths.FrozenGates(sites, curved).check(torch.ones(2, 4))

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))

        def forward(self, x):
            return checkpoint(self.part, x, use_reentrant=False)

    saving = Saving()
    with sg.attach(saving, None) as sites, pytest.raises(SoftgateError, match="activation checkpointing"):
        sg.paths.FrozenGates(sites, saving)(torch.ones(2, 4))
