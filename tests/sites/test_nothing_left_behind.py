"""Attaching and detaching leave a model, its hooks and its states as they were, also after an exception."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import softgate as sg
from site_networks import (
    RULE,
    Net,
    Spelled,
    assert_close,
    assert_equal,
    differ,
    footprint,
    gradients,
    images,
    soft_gradients,
    vectors,
)


class Boom(nn.Module):
    """Raises where armed; symbolic tracing runs it, too."""

    def __init__(self):
        super().__init__()
        self.armed = False

    def forward(self, x):
        if self.armed:
            raise KeyError("boom")
        return x


def test_detach_leaves_nothing_behind(net):
    before, keys = footprint(net), list(net.state_dict())
    sites = sg.attach(net, RULE)
    assert list(net.state_dict()) == keys
    gradients(net, images())
    assert sites.attached
    sites.detach()
    assert footprint(net) == before
    sites.detach()
    assert footprint(net) == before
    assert not sites.attached


def test_detach_by_model_leaves_nothing_behind_and_refuses_a_second_time(net):
    before = footprint(net)
    sites = sg.attach(net, RULE)
    sg.detach(net)
    assert footprint(net) == before
    assert not sites.attached
    with pytest.raises(sg.SoftgateError, match="Net is not attached"):
        sg.detach(net)


def test_an_exception_in_the_block_leaves_nothing_behind(net):
    def block():
        with sg.attach(net, RULE):
            net(images())
            raise KeyError

    before = footprint(net)
    with pytest.raises(KeyError):
        block()
    assert footprint(net) == before


def test_after_an_exception_in_forward_the_next_forward_is_gated_and_nothing_is_left_behind(net):
    model, x = nn.Sequential(net, Boom()), images()
    before, expected, bare = footprint(model), soft_gradients(model, x), gradients(model, x)
    with sg.attach(model, RULE):
        model[1].armed = True
        with pytest.raises(KeyError, match="boom"):
            model(x)
        z = torch.ones(3, requires_grad=True)
        assert torch.equal(grad(F.relu(-z).sum(), z)[0], torch.zeros(3))  # no mode is left on
        model[1].armed = False
        assert_close(gradients(model, x), expected)
    assert footprint(model) == before
    assert_equal(gradients(model, x), bare)


def test_an_exception_in_attach_leaves_nothing_behind(net):
    model = nn.Sequential(net, nn.GELU())
    before = footprint(model)
    with pytest.raises(sg.UnreachableSites):
        sg.attach(model, RULE)
    assert footprint(model) == before
    with sg.attach(net, RULE):
        pass


def test_a_model_whose_forward_raises_can_be_attached_and_detached(net):
    model = nn.Sequential(net, Boom())
    model[1].armed = True
    before = footprint(model)
    with sg.attach(model, RULE), pytest.raises(KeyError):
        model(images())
    assert footprint(model) == before


def test_attaching_leaves_what_a_model_remembers_of_its_last_forward():
    class Remembering(Spelled):
        def forward(self, x):
            self.features = F.relu(self.first(x))
            return self.last(self.features)

    model = Remembering(None)
    model(vectors())
    features = model.features
    with sg.attach(model, RULE):
        assert model.features is features
        copy.deepcopy(model.features.detach())
    assert model.features is features


def test_attaching_leaves_buffers_and_containers_that_a_forward_writes_to():
    class Counting(Spelled):
        def __init__(self):
            super().__init__(None)
            self.register_buffer("passes", torch.zeros(2))
            self.shapes, self.last_by_name, self.kinds = ["bare"], {"bare": [0]}, {"bare"}

        def forward(self, x):
            self.passes += 1
            self.shapes.append("one more")
            self.last_by_name["bare"].append(1)
            self.last_by_name["z"] = 2
            self.kinds.add("relu")
            return self.last(F.relu(self.first(x)))

    model = Counting()
    kept = model.passes, model.shapes, model.last_by_name, model.kinds
    with sg.attach(model, RULE) as sites:
        assert sites.count() == 1
        assert kept == (model.passes, model.shapes, model.last_by_name, model.kinds)
        assert model.passes.tolist() == [0, 0]
        assert (model.shapes, model.last_by_name, model.kinds) == (["bare"], {"bare": [0]}, {"bare"})
        model(vectors())
    assert model.passes.tolist() == [1, 1]


def test_attaching_fires_none_of_the_users_hooks(net):
    seen = []
    for module in net.modules():
        module.register_forward_hook(lambda module, inputs, out: seen.append(out))
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with sg.attach(net, RULE):
        assert seen == []
        net(images())
    assert len(seen) > 10


def test_users_hooks_see_the_same_values_with_and_without_a_rule(net):
    seen = []
    net.relu.register_forward_hook(lambda module, inputs, out: seen.append(out.detach().clone()))
    net.head.register_full_backward_hook(lambda module, gin, gout: seen.append(None))
    net(images())
    count = len(seen)
    with sg.attach(net, RULE):
        gradients(net, images())
    found = [value for value in seen[count:] if value is not None]
    assert len(found) >= 2
    for one, other in zip(found[-2:], seen[:2], strict=True):
        assert torch.equal(one, other)
    assert any(value is None for value in seen[count:])


def test_inplace_flags_are_off_where_nobody_needs_them_and_back_on_afterwards(net):
    assert net.stem[2].inplace
    assert net.relu.inplace
    with sg.attach(net, RULE):
        assert not net.stem[2].inplace
        assert not net.relu.inplace
    assert net.stem[2].inplace
    assert net.relu.inplace


def test_a_forward_put_on_an_instance_by_another_tool_still_runs_and_is_put_back(net):
    calls = []
    original = net.stem.forward

    def forward(x):
        calls.append(1)
        return original(x)

    net.stem.forward = forward
    bare = gradients(net, images())
    with sg.attach(net, RULE):
        calls.clear()
        found = gradients(net, images())
        assert calls == [1]
    assert differ(found, bare)
    assert net.stem.forward is forward


def test_state_dicts_load_in_both_directions(net):
    keys = list(net.state_dict())
    bare = Net().double().eval()
    with sg.attach(net, RULE):
        assert list(net.state_dict()) == keys
        assert [name for name, _ in net.named_modules()] == [name for name, _ in bare.named_modules()]
        bare.load_state_dict(net.state_dict())
        net.load_state_dict({key: value + 1 for key, value in bare.state_dict().items()})
    assert torch.equal(net.head.bias, bare.head.bias + 1)
