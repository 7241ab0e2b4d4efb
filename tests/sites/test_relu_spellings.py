"""Every spelling of ReLU is a call site, in place or not, and keeps its forward pass."""

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import softgate as sg
from site_networks import (
    RULE,
    SPELLINGS,
    Spelled,
    assert_close,
    assert_equal,
    differ,
    gradients,
    soft_gradients,
    vectors,
)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_relu_keeps_its_forward_and_gets_soft_gates(name):
    model, x = Spelled(SPELLINGS[name]), vectors()
    bare = gradients(model, x)
    expected = soft_gradients(Spelled(lambda model, z: F.relu(z)), x)
    with sg.attach(model, RULE) as sites:
        found = gradients(model, x)
        assert torch.equal(found[0], bare[0])
        assert_close(found, expected)
        assert [(site.kind, site.covered, site.calls) for site in sites.table()] == [("relu", True, 1)]
    assert differ(bare, found)
    assert_equal(gradients(model, x), bare)


@pytest.mark.parametrize("first", SPELLINGS)
def test_an_inplace_statement_is_honoured_next_to_a_relu_that_needs_no_inplace(first):
    def two_calls(model, z):
        z = SPELLINGS[first](model, z - 0.5)
        return F.relu(model.first(z[:, :6]), inplace=True)

    model, x = Spelled(two_calls), vectors()
    bare = gradients(model, x)
    expected = soft_gradients(Spelled(lambda m, z: F.relu(m.first(F.relu(z - 0.5)[:, :6]))), x)
    with sg.attach(model, RULE):
        found = gradients(model, x)
    assert torch.equal(found[0], bare[0])
    assert_close(found, expected)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_tensor_read_again_after_an_inplace_relu_is_the_rectified_one(inplace):
    def residual(model, z):
        before = z * 1
        out = model.relu_inplace(before) if inplace else F.relu_(before)
        return out * 0.5 + before

    model, x = Spelled(residual), vectors()
    bare = gradients(model, x)
    with sg.attach(model, RULE):
        found = gradients(model, x)
    assert torch.equal(found[0], bare[0])
    assert_close(found, soft_gradients(Spelled(lambda model, z: F.relu(z) * 1.5), x))


@pytest.mark.parametrize(
    "view",
    [
        lambda z: z[:, :4],
        lambda z: z.chunk(2, 1)[0],
        lambda z: z.view(-1),
        lambda z: z.t(),
        lambda z: z,
        lambda z: z.detach(),
    ],
)
def test_an_inplace_relu_on_a_view_writes_through_to_its_base(view):
    def through_view(model, z):
        base = z * 1
        F.relu_(view(base))
        return base

    model, x = Spelled(through_view), vectors()
    with torch.no_grad():
        bare = model(x)
        with sg.attach(model, RULE):
            assert torch.equal(model(x), bare)


ALIASING = {
    "Identity": nn.Identity(),
    "Flatten": nn.Flatten(),
    "Unflatten": nn.Unflatten(1, (2, 4)),
    "Dropout": nn.Dropout(),
    "Dropout1d": nn.Dropout1d(),
    "Dropout2d": nn.Dropout2d(),
    "Dropout3d": nn.Dropout3d(),
    "AlphaDropout": nn.AlphaDropout(),
    "FeatureAlphaDropout": nn.FeatureAlphaDropout(),
}


@pytest.mark.parametrize("name", ALIASING)
@pytest.mark.filterwarnings("ignore:dropout2d")
def test_an_inplace_relu_behind_a_module_that_returns_its_own_input_keeps_the_forward(name):
    layer = ALIASING[name]

    def aliased(model, z):
        rectified = model.relu_inplace(layer(z))
        return rectified.reshape(z.shape) + z  # z has been overwritten, or the forward is another one

    model = Spelled(aliased).eval()
    model.layer = layer.eval()
    bare = model(vectors())
    with sg.attach(model, RULE):
        assert torch.equal(model(vectors()), bare)


def test_a_forward_that_differs_between_training_and_evaluation_keeps_both_forwards():
    def by_mode(model, z):
        if model.training:
            return F.relu(z, inplace=True)
        F.relu(z, inplace=True)  # the same call site by name, but here z is read again
        return z

    for attach_in_training in (True, False):
        model = Spelled(by_mode)
        bare = model.eval()(vectors())
        model.train(attach_in_training)
        with sg.attach(model, RULE):
            assert torch.equal(model.train()(vectors()), bare)
            assert torch.equal(model.eval()(vectors()), bare)


def test_dropout_called_with_a_keyword_before_an_inplace_relu_can_be_attached():
    model = Spelled(lambda model, z: model.relu_inplace(model.dropout(input=z)))
    model.dropout = nn.Dropout()
    model.eval()
    bare = gradients(model, vectors())
    with sg.attach(model, RULE) as sites:
        assert sites.count() == 1
        assert torch.equal(gradients(model, vectors())[0], bare[0])


def test_a_pre_activation_that_is_overwritten_later_trains_as_it_does_without_softgate():
    def pre_activation_block(model, z):
        z = z * 1
        z += 2 * F.relu(z)
        return z

    x = vectors()
    bare = gradients(Spelled(pre_activation_block), x)  # PyTorch allows it
    model = Spelled(pre_activation_block)
    with sg.attach(model, RULE):
        found = gradients(model, x)
    assert torch.equal(found[0], bare[0])
    assert_close(found, soft_gradients(Spelled(lambda model, z: z + 2 * F.relu(z)), x))


def test_a_constant_that_is_rectified_and_overwritten_later_trains_as_it_does_without_softgate():
    class Gain(nn.Module):  # no parameter, so its ReLU is of no symbol, and the trace does not show what comes after
        def __init__(self, in_place):
            super().__init__()
            self.gain, self.in_place = torch.linspace(-1, 1, 6, dtype=torch.float64, requires_grad=True), in_place

        def forward(self, x):
            gain = self.gain * 1
            positive = F.relu(gain)
            if self.in_place:
                gain += 1
            return F.relu(x * positive)

    found = []
    for in_place in (True, False):
        model = Gain(in_place)
        with sg.attach(model, RULE) as sites:
            assert sites.count() == 2
            found.append(grad(model(vectors()).sum(), model.gain)[0])
    assert torch.equal(*found)
