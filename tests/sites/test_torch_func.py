"""Under torch.func and batched gradients an attached model has the gradients of a loop."""

import pytest
import torch
from torch import func
from torch.autograd import grad
from torch.nn import functional as F

import reference
import softgate as sg
from mode_networks import (
    OTHER,
    RULE,
    Applied,
    Net,
    assert_close,
    functional_loss,
    gradients,
    images,
    soft_gradients,
    vectors,
)

RELU_ONLY = sg.Surrogate(pool=sg.pools.Hard())


def test_a_functional_call_with_other_parameters_is_gated(residual):
    other = {name: value.detach() * 1.1 for name, value in residual.named_parameters()}
    twin = Net().double().eval()
    twin.load_state_dict({**residual.state_dict(), **other})
    expected = soft_gradients(twin, images())[2:]
    with sg.attach(residual, RULE):
        other = {name: value.requires_grad_() for name, value in other.items()}
        found = grad(functional_loss(residual)(other, images()), list(other.values()))
    assert_close(found, expected)


def test_func_grad_is_the_gradient(residual):
    with sg.attach(residual, RELU_ONLY):
        expected = gradients(residual, images())[2:]
        found = func.grad(functional_loss(residual))(dict(residual.named_parameters()), images())
    assert_close(list(found.values()), expected)


@pytest.mark.parametrize("rule", [RELU_ONLY, sg.Surrogate(sg.gates.BSiLU(), sg.pools.Hard(), mix=0.5)], ids=repr)
def test_gradients_of_single_images_by_vmap_are_those_of_a_loop(residual, rule):
    loss, x = functional_loss(residual), images()
    parameters = dict(residual.named_parameters())
    with sg.attach(residual, rule):
        expected = [gradients(residual, one[None])[2:] for one in x]
        found = func.vmap(func.grad(lambda p, one: loss(p, one[None])), (None, 0))(parameters, x)
        for number, one in enumerate(expected):
            assert_close([value[number] for value in found.values()], one)


def test_jacobians_by_vmap_are_those_of_a_loop(residual):
    x = images(2, 3, 9, 9)
    with sg.attach(residual, RELU_ONLY):
        found = func.jacrev(residual)(x)
        for image in range(2):
            for output in range(5):
                expected = gradients(residual, x, lambda out, at=(image, output): out[at])[1]
                assert reference.distance(found[image, output], expected) <= 1e-12
        z = x.clone().requires_grad_()
        out = residual(z).sum(0)
        (batched,) = grad(out, z, torch.eye(5, dtype=out.dtype), is_grads_batched=True)
    assert_close([batched], [found.sum(0)])


def test_forward_mode_differentiation_is_refused_and_never_hard(residual):
    x = images()
    with sg.attach(residual, RULE), pytest.raises(NotImplementedError, match="jvp"):
        func.jvp(residual, (x,), (x,))


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
