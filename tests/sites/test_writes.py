"""Activations whose input or output is written to: the network trains as it does without softgate."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import softgate as sg
from reference import distance
from softgate.sites import classification

RULE = sg.Surrogate(gate=sg.gates.Sigmoid(0.4))


class Writing(nn.Module):
    """Linear, ReLU, linear; something writes into the pre-activation afterwards, or into a copy of it."""

    def __init__(self, write, apart=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        self.drop, self.relu, self.same = nn.Dropout(0.5, inplace=True), nn.ReLU(inplace=True), nn.Identity()
        self.write, self.apart = write, apart

    def forward(self, x):
        z = self.first(x)
        y = F.relu(z)
        z = z.clone() if self.apart else z
        self.write(self, z)
        return self.last(y) + z.sum()


def through_a_view_of_what_it_is_a_view_of(net, z):
    whole = z.view(-1)
    whole.view(5, 6)[:, :2].add_(1)


def in_a_chunk(net, z):
    first, _ = z.chunk(2)
    first.detach().mul_(0.5)


def after_an_in_place_call(net, z):
    same = z.add_(0.5)
    same.transpose(0, 1).mul_(2)


WRITES = {
    "view": lambda net, z: z.view(-1).add_(1),
    "slice": lambda net, z: z[:, 0].mul_(0.5),
    "view of a view": through_a_view_of_what_it_is_a_view_of,
    "chunk": in_a_chunk,
    "in-place twice": after_an_in_place_call,
    "flatten, by a module": lambda net, z: net.same(z).flatten().zero_(),
    "F.relu(z, True)": lambda net, z: F.relu(z, True),
    "an in-place module": lambda net, z: net.relu(z),
    "an in-place dropout": lambda net, z: net.drop(z),
    "+=": lambda net, z: z.__iadd__(1),
}


def vectors():
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


def slopes(net):
    torch.manual_seed(0)
    x = vectors()
    return torch.autograd.grad(net(x).sin().sum(), [x, *net.parameters()])


def assert_same(found, expected):
    assert all(distance(one, other) <= 1e-12 for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_pre_activation_may_be_written_to_in_whatever_way(write, share):
    apart = Writing(write, apart=True)
    with sg.attach(apart, RULE):
        expected = slopes(apart)
    net = Writing(write)
    slopes(net)  # PyTorch allows it
    with sg.attach(net, RULE, share=share) as sites:
        assert sites.table()[0].calls == 0  # the network was traced
        assert_same(slopes(net), expected)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_look_at_a_bare_network_allows_it_too(write):
    class Images(nn.Module):
        def __init__(self, apart):
            super().__init__()
            self.inner = Writing(write, apart)

        def forward(self, x):
            return self.inner(x.flatten(1))

    x = vectors().detach().view(5, 1, 2, 2)
    assert torch.equal(sg.pullback(Images(False), x, 1, RULE), sg.pullback(Images(True), x, 1, RULE))


def test_a_pre_activation_that_nobody_writes_to_is_not_copied():
    class Reading(Writing):
        def forward(self, x):
            x.add_(1)  # before the activation
            z = self.first(x)
            z += 1
            return self.last(F.relu(z)) + z.view(-1).sum()

    net = Reading(None)
    with sg.attach(net, RULE) as sites:
        assert sites._gating.overwritten == set()
        assert sites._gating.traced == {("(model).relu", True), ("(model).relu", False)}


def test_a_branch_that_the_trace_did_not_take_may_write_too():
    """Stochastic depth: a trace sees one throw of the dice."""

    class Skipping(Writing):
        def __init__(self, apart):
            super().__init__(WRITES["view"], apart)
            self.inner, self.taken = Writing(WRITES["view"], apart), False

        def forward(self, x):
            out = super().forward(x)
            return out + self.inner(x) if self.taken else out

    found = []
    for apart in (False, True):
        net = Skipping(apart)
        with sg.attach(net, RULE):
            net.taken = True
            found.append(slopes(net))
    assert_same(*found)


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.2, True), nn.Hardtanh(-0.5, 0.5, True), nn.ReLU6(True), nn.ReLU(True)])
@pytest.mark.parametrize("rule", [None, sg.Surrogate(gate=sg.gates.Hard()), RULE])
def test_an_in_place_activation_beside_a_hook_keeps_the_true_gradient(act, rule):
    """A hook makes in-place calls stay in place; of some activations the true gradient needs the input."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 3)).double()
    kept = []
    net[0].register_forward_hook(lambda module, given, returned: kept.append(returned))
    expected = slopes(net)
    bare = kept.pop().detach().clone()
    with sg.attach(net, rule):
        found = slopes(net)
        assert torch.equal(kept[0], bare)
    if rule is not RULE:
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_first_clamp_of_a_process_may_stand_in_a_checkpoint():
    class Clamped(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            torch.manual_seed(0)
            self.part, self.checkpointed = Clamp(), checkpointed

        def forward(self, x):
            return checkpoint(self.part, x, use_reentrant=False) if self.checkpointed else self.part(x)

    class Clamp(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 6).double()

        def forward(self, x):
            z = self.first(x)
            return z.clamp(min=0) if float(x.detach().sum()) < 1e9 else z  # no symbolic trace

    found = []
    for checkpointed in (True, False):
        classification._STEPS.clear()
        net = Clamped(checkpointed)
        with sg.attach(net, RULE):
            found.append(slopes(net))
    assert_same(*found)
