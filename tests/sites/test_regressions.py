"""Mistakes found by trying, each mended."""

import warnings

import pytest
import torch
from torch import func, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import grad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import reference
import softgate as sg
from mode_networks import OTHER, RULE, Net, functional_loss, gradients, images, soft_gradients


class Applied(nn.Module):
    """Linear, some function, linear."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(6, 8).double(), nn.Linear(8, 4).double(), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def vectors():
    return images(7, 6)


# -- silently hard, or wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("function", [F.relu_, F.leaky_relu_, lambda z: F.hardtanh_(z, -0.2, 0.2)])
def test_an_inplace_function_that_compile_hides_is_refused_there(function):
    torch._dynamo.reset()
    model = Applied(lambda z: function(z * 1))
    with sg.attach(model, RULE):
        gradients(model, vectors())
        with pytest.raises(sg.UnreachableSites, match=r"torch\.compile hides"):
            gradients(torch.compile(model, backend="aot_eager"), vectors())


def test_an_operator_out_of_reach_is_refused_before_anything_is_compiled():
    model = Applied(lambda z: F.relu(torch.ops.aten.relu(z) - 0.1))
    with pytest.raises(sg.UnreachableSites, match=r"aten\.relu"):
        sg.attach(model, RULE)


def test_a_model_that_cannot_be_traced_is_compiled_only_once_its_call_sites_are_known():
    torch._dynamo.reset()
    model = Applied(lambda z: F.relu(z) if float(z.detach().sum()) < 1e9 else z)
    with sg.attach(model, RULE):
        with pytest.raises(sg.SoftgateError, match="run one forward pass"):
            gradients(torch.compile(model, backend="aot_eager"), vectors())
        expected = gradients(model, vectors())[1]
        torch._dynamo.reset()
        assert reference.distance(gradients(torch.compile(model, backend="aot_eager"), vectors())[1], expected) <= 1e-12


class Checkpointed(nn.Module):
    """A network that checkpoints its own body, with and without a pooling in it."""

    def __init__(self, reentrant, pooling):
        super().__init__()
        torch.manual_seed(0)
        pool = nn.MaxPool2d(2) if pooling else nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Conv2d(4, 4, 3), nn.ReLU()).double()
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("how", ["use", "detach"])
def test_a_checkpointed_model_is_recomputed_under_the_rule_of_its_forward_pass_or_refuses(reentrant, pooling, how):
    model = Checkpointed(reentrant, pooling)
    with sg.attach(model, RULE) as sites:
        expected = gradients(model, images())[1]
        x = images().requires_grad_()
        loss = model(x).square().sum()
        if how == "use":
            sites.use(None)
        else:
            sites.detach()
        try:
            loss.backward()
        except sg.SoftgateError:
            return
    assert reference.distance(x.grad, expected) <= 1e-12


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_call_belongs_to_the_site_it_recomputes(reentrant):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(6, 6).double(), nn.Linear(6, 6).double(), nn.ReLU()

        def forward(self, x):
            return checkpoint(self.relu, self.b(self.relu(self.a(x))), use_reentrant=reentrant)

    with sg.attach(Shared(), RULE) as sites:
        gradients(sites.model, vectors())
        calls = {site.name: site.calls for site in sites.table()}
    assert calls["relu"] == 1
    assert calls["relu#2"] in (1, 2)


# -- errors where there should be none ----------------------------------------------------------------


@pytest.mark.parametrize("rule", [sg.Surrogate(gain="unit_rms"), sg.Surrogate(mix=0.5, gain="unit_rms")], ids=repr)
def test_unit_rms_gain_works_under_compile(rule):
    torch._dynamo.reset()
    model = Net().double().eval()
    with sg.attach(model, rule):
        expected = gradients(model, images())
        found = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), images())
    assert reference.distance(found[1], expected[1]) <= 1e-12


@pytest.mark.parametrize("pooling", [True, False])
def test_a_compiled_model_that_checkpoints_its_parts_has_the_eager_gradients(pooling):
    torch._dynamo.reset()
    model = Checkpointed(False, pooling)
    with sg.attach(model, RULE):
        expected = gradients(model, images())
        found = gradients(torch.compile(model, backend="aot_eager"), images())
    assert reference.distance(found[1], expected[1]) <= 1e-12


@pytest.mark.parametrize("compiled", [True, False])
def test_a_checkpointed_function_is_refused(compiled):
    torch._dynamo.reset()
    model = Applied(lambda z: checkpoint(F.relu, z, use_reentrant=False))
    with pytest.raises(sg.UnreachableSites, match="checkpoint a module instead"), sg.attach(model, RULE):
        gradients(torch.compile(model, backend="aot_eager") if compiled else model, vectors())


@pytest.mark.parametrize("rule", [RULE, OTHER], ids=["rule", "other"])
def test_gradients_of_single_images_by_vmap_reach_through_the_soft_pool(rule):
    net, x = Net().double().eval(), images()
    loss = functional_loss(net)
    parameters = dict(net.named_parameters())
    with sg.attach(net, rule):
        expected = [gradients(net, one[None])[2:] for one in x]
        found = func.vmap(func.grad(lambda p, one: loss(p, one[None])), (None, 0))(parameters, x)
        for number, one in enumerate(expected):
            for value, other in zip(found.values(), one, strict=True):
                assert reference.distance(value[number], other) <= 1e-12


def test_func_grad_reaches_through_the_soft_pool():
    net = Net().double().eval()
    expected = soft_gradients(net, images())[2:]
    with sg.attach(net, RULE):
        found = func.grad(functional_loss(net))(dict(net.named_parameters()), images())
    for value, other in zip(found.values(), expected, strict=True):
        assert reference.distance(value, other) <= 1e-12


@pytest.mark.parametrize("function", [F.relu6, F.leaky_relu, F.hardtanh])
def test_func_grad_reaches_through_every_activation(function):
    model = Applied(function)
    with sg.attach(model, RULE):
        expected = gradients(model, vectors())[2:]
        found = func.grad(functional_loss(model))(dict(model.named_parameters()), vectors())
    for value, other in zip(found.values(), expected, strict=True):
        assert reference.distance(value, other) <= 1e-12


def test_a_batch_of_upstream_gradients_goes_through_the_soft_pool_at_once():
    net = Net().double().eval()
    x = images().requires_grad_()
    with sg.attach(net, RULE):
        out = net(x).sum(0)
        units = torch.eye(5, dtype=out.dtype)
        expected = torch.stack([grad(out, x, unit, retain_graph=True)[0] for unit in units])
        (found,) = grad(out, x, units, is_grads_batched=True)
    assert reference.distance(found, expected) <= 1e-12


def test_fake_tensors_go_backward_through_the_soft_pool():
    with FakeTensorMode():
        model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), torch.randn(2, 3, 8, 8)
        with sg.attach(model, RULE):
            assert gradients(model, x)[1].shape == x.shape


# -- what is promised of attach -----------------------------------------------------------------------


def test_call_sites_are_known_before_the_first_forward_also_on_the_meta_device():
    with torch.device("meta"):
        model = Net()
    with sg.attach(model, RULE) as sites:
        assert (sites.count(), sites.count("max_pool2d")) == (4, 2)


@pytest.mark.parametrize("which", ["backward hook", "checkpoint"])
def test_attaching_warns_of_nothing(which):
    model = Checkpointed(True, False)
    if which == "backward hook":
        model = model.body
        model[1].register_full_backward_hook(lambda module, before, after: None)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        sg.attach(model, RULE).detach()
    assert [str(warning.message) for warning in heard] == []
