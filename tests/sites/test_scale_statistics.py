"""Per-channel scales where statistics must not be taken, go stale or move on: bad batches, copies, checkpoints."""

import copy
import warnings
from unittest import mock

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.utils.checkpoint import checkpoint

import reference
import softgate as sg
from softgate import SoftgateError
from softgate.sites.scales import Scales, scales_of


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double().train()


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double().train()


CHANNEL = sg.Surrogate(scale="channel")


def test_an_empty_batch_leaves_the_statistics_as_they_were():
    net, x = small(), torch.randn(4, 3, 8, 8).double()
    with sg.attach(net, CHANNEL) as sites:
        net[2](net[0](x))
        before = sites.scales["2"].variance.clone()
        net[2](net[0](x[:0])).sum().backward()
        assert torch.equal(sites.scales["2"].variance, before)


def test_a_pixel_that_is_not_finite_is_said_once_and_leaves_the_statistics_as_they_were():
    net, x = plain(), torch.randn(4, 3, 8, 8).double()
    bad = x.clone()
    bad[0, 0, 0, 0] = float("inf")
    with sg.attach(net, CHANNEL) as sites:
        net(x)
        before = sites.scales["1"].variance.clone()
        with pytest.warns(sg.SoftgateWarning, match="not finite; the batch is left out"):
            net(bad)
        net(bad)  # a second warning would be an error
        assert torch.equal(sites.scales["1"].variance, before)
        net(x)
        assert sites.scales["1"].variance.isfinite().all()


def test_statistics_are_not_taken_within_transforms():
    net, x = plain(), torch.randn(4, 3, 8, 8).double()
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    with sg.attach(net, CHANNEL):
        net(x)

        def loss(weights):
            return torch.func.functional_call(net, weights, (x,)).square().sum()

        torch.func.grad(loss)(parameters)
        copied = copy.deepcopy(net)
        net(x)
        assert copied(x).isfinite().all()


@pytest.mark.parametrize(
    ("bad", "said"), [("empty", "batch 1 of the loader is empty"), ("nan", "batch 1 of the loader has .* not finite")]
)
def test_calibration_names_the_batch_it_cannot_use(bad, said):
    net, x = small(), torch.randn(4, 3, 8, 8).double()
    wrong = x[:0] if bad == "empty" else torch.full_like(x, float("nan"))
    before = sg.calibrate(net, [x])
    with pytest.raises(sg.SoftgateError, match=said):
        sg.calibrate(net, [x, wrong])
    assert torch.equal(sg.calibrate(net, [x])["2"], before["2"])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_batch_that_is_not_finite_changes_nothing_compiled_or_not(compiled):
    scales, x = Scales(), torch.randn(4, 3, 8).double()
    bad = x.clone()
    bad[0, 1, 0] = float("inf")
    with mock.patch.object(torch.compiler, "is_compiling", return_value=compiled), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for z in (bad, x, bad, 2 * x):
            scales.observe("site", z, 1)
    expected = Scales()
    for z in (x, 2 * x):
        expected.observe("site", z, 1)
    torch.testing.assert_close(scales["site"].variance, expected["site"].variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(scales["site"].mean, expected["site"].mean, rtol=1e-12, atol=1e-15)


def test_a_first_batch_that_gives_no_statistics_is_refused_with_the_reason():
    net, x = plain(), torch.randn(4, 3, 8, 8).double()
    bad = x.clone()
    bad[0, 0, 0, 0] = float("inf")
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    with sg.attach(net, CHANNEL):
        with pytest.warns(sg.SoftgateWarning), pytest.raises(SoftgateError, match="given is not finite"):
            net(bad)

        def loss(weights):
            return torch.func.functional_call(net, weights, (x,)).square().sum()

        with pytest.raises(SoftgateError, match=r"no statistics of 1 yet \(none are taken within torch\.func\)"):
            torch.func.grad(loss)(parameters)


def read(net, x):
    """A gradient in eval mode, which uses the scales."""
    return grad(net.eval()(x).sum(), list(net.parameters()))


def moving_average(net, steps=60):
    """A moving average of the weights of a network that are growing, made when its scales were still small."""
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    yield average
    for _ in range(steps):
        with torch.no_grad():
            net[0].weight.mul_(1.05)
        net(torch.randn(4, 3, 8, 8).double())
        average.update_parameters(net)
    yield average


def test_a_moving_average_of_weights_says_that_its_scales_are_old_or_follows_the_models():
    net, x = plain(), torch.randn(4, 3, 8, 8).double()
    with sg.attach(net, CHANNEL) as sites:
        net(x)
        steps = moving_average(net)
        average, others = next(steps), next(moving_average(net))
        sg.follow_scales(average, net)
        next(steps)
        mine, live = scales_of(average.module)["1"].variance, sites.scales["1"].variance
        assert torch.equal(mine, live)
        read(average.module, x)  # a warning would be an error
        others.update_parameters(net)
        stale = scales_of(others.module)["1"].variance
        assert float((live / stale).min()) > 50
        with pytest.warns(sg.SoftgateWarning, match="a deep copy whose weights have changed"):
            read(others.module, x)
        read(others.module, x)  # it is said once
        with pytest.raises(SoftgateError, match="the model itself"):
            sg.follow_scales(net, net)


def test_a_deep_copy_that_stays_as_it_is_or_is_calibrated_is_quiet():
    net, x = plain(), torch.randn(4, 3, 8, 8).double()
    sg.calibrate(net, [x])
    snapshot, other = copy.deepcopy(net), copy.deepcopy(net)
    with sg.attach(snapshot, CHANNEL):
        read(snapshot, x)
    with torch.no_grad():
        other[0].weight.mul_(2)
    sg.calibrate(other, [x])
    with sg.attach(other, CHANNEL):
        read(other, x)


class Checkpointed(nn.Module):
    """Two blocks of which the second is computed again in the backward pass."""

    def __init__(self, checkpointed, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU())
        self.checkpointed, self.reentrant = checkpointed, reentrant

    def forward(self, x):
        h = self.stem(x)
        if not self.checkpointed:
            return self.block(h).mean((2, 3))
        return checkpoint(self.block, h, use_reentrant=self.reentrant).mean((2, 3))


@pytest.mark.parametrize("reentrant", [False, True])
def test_several_forward_passes_before_one_backward_pass_keep_the_statistics_of_each(reentrant):
    found = []
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for checkpointed in (False, True):
        net = Checkpointed(checkpointed, reentrant).double()
        with sg.attach(net, CHANNEL):
            net(x)
            losses = [net(factor * x).square().sum() for factor in (1, 3, 9)]
            (losses[0] + losses[2]).backward(retain_graph=True)
            losses[1].backward()
        found.append(torch.cat([weight.grad.flatten() for weight in net.parameters()]))
    assert reference.distance(found[1], found[0]) < 1e-12
