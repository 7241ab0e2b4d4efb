"""Whole networks, traceable or not: their sites are listed, their gates are soft, and `use` changes the rule."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import reference
import softgate as sg
from site_networks import (
    NET_SITES,
    RULE,
    SPELLINGS,
    Branching,
    Pooled,
    Spelled,
    assert_close,
    assert_equal,
    differ,
    gradients,
    images,
    soft_gradients,
    vectors,
)


def test_a_whole_net_gets_soft_gates_and_its_sites_are_named_in_order(net):
    x = images()
    bare, expected = gradients(net, x), soft_gradients(net, x)
    with sg.attach(net, RULE) as sites:
        assert [site.name for site in sites.table()] == NET_SITES
        assert all(site.covered and site.calls == 0 for site in sites.table())
        for passes in (1, 2):
            found = gradients(net, x)
            assert torch.equal(found[0], bare[0])
            assert_close(found, expected)
            assert [site.calls for site in sites.table()] == [passes] * len(NET_SITES)
    assert differ(bare, found)


def test_training_mode_is_gated_and_updates_batch_statistics_as_the_bare_model_does(net):
    twin, x = copy.deepcopy(net).train(), images()
    net.train()
    bare = gradients(twin, x)
    with sg.attach(net, RULE):
        found = gradients(net, x)
    assert torch.equal(found[0], bare[0])
    assert differ(bare, found)
    for (name, one), (_, other) in zip(net.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def test_attaching_leaves_batch_statistics_alone(net):
    net.train()
    before = copy.deepcopy(net.state_dict())
    with sg.attach(net, RULE):
        pass
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_module_used_twice_has_two_call_sites_and_one_under_two_names_is_gated():
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Linear(6, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 2)).double()
    expected = soft_gradients(model, vectors())
    with sg.attach(model, RULE) as sites:
        assert sites.count() == 2
        assert [site.name for site in sites.table()] == ["1", "1#2"]
        assert_close(gradients(model, vectors()), expected)
    assert relu.inplace


def test_the_report_lists_every_site_with_its_calls_and_a_sum(net):
    with sg.attach(net, RULE) as sites:
        net(images())
        lines = sites.report().splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == NET_SITES
    assert all(line.split()[1:] in (["relu", "1", "yes"], ["max_pool2d", "1", "yes"]) for line in lines[1:-1])
    assert lines[-1] == "6 of 6 covered: 4 relu, 2 max_pool2d"


@pytest.mark.parametrize("part", [lambda net: net.stem, lambda net: net.stem[2]])
def test_a_submodule_called_by_itself_is_gated_too(net, part):
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(part(net)(x.clone()))
    with reference.patched(reference.sigmoid, 0.3):
        (expected,) = grad(part(net)(x.clone()), x, upstream)
    with sg.attach(net, RULE):
        (found,) = grad(part(net)(x.clone()), x, upstream)
    assert reference.distance(found, expected) <= 1e-12


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("what", ["module", "method"])
def test_activation_checkpointing_changes_no_gradient(reentrant, what):
    class Checkpointed(Spelled):
        def inner(self, z):
            return F.relu(z) * 1.5

        def forward(self, x):
            z = self.first(x)
            inner = self.relu if what == "module" else self.inner
            return self.last(checkpoint(inner, z, use_reentrant=reentrant) if self.spelling else inner(z))

    def run(model):
        model.zero_grad()
        out = model(vectors())
        out.square().sum().backward()
        return [out.detach(), *(p.grad for p in model.parameters())]

    with sg.attach(Checkpointed(False), RULE) as sites:
        expected = run(sites.model)
    try:
        with sg.attach(Checkpointed(True), RULE) as sites:
            found = run(sites.model)
    except sg.SoftgateError:
        return  # refusing is honest; another gradient without a word is not
    assert_close(found, expected)


def test_a_gradient_taken_inside_of_the_forward_is_gated_and_counted_once():
    class Energy(Pooled):
        def forward(self, x):
            x = x.detach().requires_grad_()
            energy = F.max_pool2d(F.relu(self.conv(x)), 2).sum()
            return grad(energy, x, create_graph=True)[0]

    model = Energy(None)
    with reference.patched(reference.sigmoid, 0.3):
        expected = model(images())
    for rule in (RULE, sg.Surrogate(mix=0.999999999999999)):  # a mix below 1 asks torch for indices, on its own account
        with sg.attach(model, rule) as sites:
            found = model(images())
            assert [site.calls for site in sites.table()] == [1, 1]
        assert reference.distance(found, expected) <= 1e-12


# -- rules --------------------------------------------------------------------------------------------


def test_use_as_a_call_puts_a_rule_in_force_until_further_notice(net):
    x = images()
    bare, soft = gradients(net, x), soft_gradients(net, x)
    with sg.attach(net, None) as sites:
        assert_equal(gradients(net, x), bare)
        sites.use(RULE)
        assert sites.rule is RULE
        assert_close(gradients(net, x), soft)
        sites.use(None)
        assert_equal(gradients(net, x), bare)


def test_use_as_a_context_manager_puts_the_former_rule_back_also_after_an_exception(net):
    x = images()
    bare, soft = gradients(net, x), soft_gradients(net, x)
    with sg.attach(net, RULE) as sites:
        with sites.use(None) as same:
            assert same is sites
            assert_equal(gradients(net, x), bare)
            with sites.use(sg.Surrogate(mix=0.5)):
                half = gradients(net, x)
            assert_equal(gradients(net, x), bare)
        assert_close(gradients(net, x), soft)
        assert differ(half, bare)
        assert differ(half, soft)
        with pytest.raises(KeyError), sites.use(None):
            raise KeyError
        assert sites.rule is RULE
        assert sites.attached


@pytest.mark.parametrize(
    "rule", [None, sg.Surrogate(mix=0.0), sg.Surrogate(gate=sg.gates.Hard(), pool=sg.pools.Hard())], ids=str
)
def test_a_rule_that_changes_nothing_gives_the_bare_gradient_bit_for_bit(net, rule):
    bare = gradients(net, images())
    with sg.attach(net, rule):
        assert_equal(gradients(net, images()), bare)


@pytest.mark.parametrize("soft", ["gate", "pool"])
def test_gate_and_pool_can_be_soft_without_each_other(net, soft):
    x = images()
    rule = sg.Surrogate(pool=sg.pools.Hard()) if soft == "gate" else sg.Surrogate(gate=sg.gates.Hard())
    with pytest.MonkeyPatch.context() as patch:
        if soft == "gate":
            patch.setattr(F, "relu", lambda z, inplace=False: reference.relu(z, reference.sigmoid))
        else:
            patch.setattr(F, "max_pool2d", _soft_pool)
        expected = gradients(net, x)
    with sg.attach(net, rule):
        assert_close(gradients(net, x), expected)


def _soft_pool(x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    return reference.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, temperature=0.3)


# -- models that cannot be traced ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Branching selects:softgate.SoftgateWarning")
def test_an_untraceable_model_is_gated_and_its_sites_are_known_after_the_first_forward():
    model, x = Branching(), vectors()
    bare, expected = gradients(model, x), soft_gradients(model, x)
    with sg.attach(model, RULE) as sites:
        assert sites.table() == []
        assert "no call sites seen yet" in sites.report()
        found = gradients(model, x)
        assert [(site.name, site.calls, site.covered) for site in sites.table()] == [("(model).relu", 1, True)]
    assert torch.equal(found[0], bare[0])
    assert_close(found, expected)


def test_an_untraceable_model_without_call_sites_is_refused_at_the_first_forward():
    class Bare(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    model = Bare()
    with sg.attach(model, RULE), pytest.raises(sg.NoCallSites, match="Bare"):
        model(vectors())


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_relu_is_gated_in_an_untraceable_model(name):
    def branching(model, z):
        return SPELLINGS[name](model, z if float(z.detach().sum()) > -1e9 else -z)

    model, x = Spelled(branching), vectors()
    bare, expected = gradients(model, x), soft_gradients(Spelled(lambda model, z: F.relu(z)), x)
    with sg.attach(model, RULE) as sites:
        assert sites.table() == []
        found = gradients(model, x)
    assert torch.equal(found[0], bare[0])
    assert_close(found, expected)
