"""Running a network with given gates: its own bit for bit, any others affine in the input; controls of the gates."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from path_networks import RULE, images, network, some
from softgate import SoftgateError, UnreachableSites
from softgate.surrogate import choices as windows

NETWORKS = ("resnet18", "vgg11_bn", "densenet121")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*NETWORKS, "odd"])
def test_with_its_own_hard_gates_a_network_is_itself_bit_for_bit(name, dtype):
    net, size = some(name, dtype)
    x = images(3, size, dtype)
    own = sg.paths.record(net, x)
    assert own.hard
    assert torch.equal(sg.paths.run(net, x, own), net(x))


@pytest.mark.parametrize("rule", [None, RULE], ids=["hard", "soft"])
@pytest.mark.parametrize("name", [*NETWORKS, "odd"])
def test_with_given_gates_a_network_is_affine(name, rule):
    net, size = some(name)
    gates = sg.paths.record(net, images(2, size), rule)
    a, b = images(2, size, seed=1), images(2, size, seed=2)
    fa, fb, f = (sg.paths.run(net, x, gates) for x in (a, b, 0.3 * a + 0.7 * b))
    assert (f - 0.3 * fa - 0.7 * fb).abs().max() <= 1e-12 * fa.abs().max()
    assert not torch.allclose(fa, net(a))  # the gates are of other images


@pytest.mark.parametrize("name", NETWORKS)
def test_with_soft_gates_it_is_what_the_pullback_represents(name):
    net, size = some(name)
    x = images(2, size)
    run = sg.paths.run(net, x, sg.paths.record(net, x, RULE))
    expected = sg.representation(net, x, list(range(10)), RULE)
    assert (run - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_the_gradient_of_the_gated_network_is_the_pullback():
    net, size = some("vgg11_bn")
    x = images(2, size).requires_grad_()
    gates = sg.paths.record(net, x, RULE)
    (gradient,) = torch.autograd.grad(sg.paths.run(net, x, gates)[:, 3].sum(), x)
    assert torch.allclose(gradient, sg.pullback(net, x, 3, RULE), rtol=1e-10, atol=1e-14)


def test_the_slow_way_by_hand_gives_the_same_gates_and_values():
    torch.manual_seed(0)
    first, second, head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), head).double()
    x = torch.randn(3, 4).double()
    z1 = first(x)
    soft = sg.paths.record(net, x, RULE)
    assert torch.equal(soft.sites["1"].values, (z1 / 0.3).sigmoid())
    assert torch.equal(sg.paths.record(net, x).sites["1"].values, z1 > 0)
    g1, g2 = (soft.sites[name].values for name in ("1", "3"))
    by_hand = torch.stack([(head.weight * g2[i]) @ (second.weight * g1[i]) @ first.weight @ x[i] for i in range(3)])
    for bias, after in ((first.bias, (g1, g2)), (second.bias, (g2,)), (head.bias, ())):
        each = bias.expand(3, -1)
        if len(after) == 2:
            each = (each * g1) @ second.weight.T
        if len(after) >= 1:
            each = (each * g2) @ head.weight.T
        by_hand = by_hand + each
    assert torch.allclose(sg.paths.run(net, x, soft), by_hand, rtol=1e-12, atol=1e-12)


def test_each_call_of_a_module_is_a_site_of_its_own():
    net, size = some("odd")
    assert list(sg.paths.record(net, images(2, size)).sites) == [
        "relu", "(model).max_pool2d", "(model).relu6", "(model).max_pool2d#2", "relu#2", "(model).hardtanh",
        "(model).leaky_relu", "(model).adaptive_max_pool2d",
    ]  # fmt: skip


def test_only_sites_that_a_rule_governs_are_soft_and_scales_count():
    net, size = some("resnet18")
    x = images(4, size)
    chosen = sg.paths.record(net, x, sg.Surrogate(sites=sg.Select(names=("layer1.*",))))
    assert {name for name, site in chosen.sites.items() if not site.hard} == {
        name for name in chosen.sites if name.startswith("layer1.")
    }
    rule = sg.Surrogate(scale="channel")
    deviations = sg.calibrate(net, [x], rule)
    seen = {}
    with (
        sg.attach(net, None) as sites,
        sites.observing(lambda name, kind, z: seen.setdefault(name, z.clone())),
    ):
        net(x)
    expected = (seen["relu"] / deviations["relu"][:, None, None] / 0.3).sigmoid()
    assert torch.allclose(sg.paths.record(net, x, rule).sites["relu"].values, expected)


def test_attached_networks_in_training_are_left_as_they_were():
    net, size = some("resnet18")
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    with sg.attach(net, RULE) as sites:
        x = images(3, size)
        y = sg.paths.run(net, x, sg.paths.record(net, x, RULE))
        assert sites.rule is RULE
        assert net.training
        assert not sites.observers
    assert not y.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_chunks_do_not_matter_and_gates_of_one_image_serve_all():
    net, size = some("odd")
    x = images(5, size)
    whole, parts = sg.paths.record(net, x), sg.paths.record(net, x, chunk=2)
    assert all(torch.equal(site.values, parts.sites[name].values) for name, site in whole.sites.items())
    assert torch.allclose(sg.paths.run(net, x, whole), sg.paths.run(net, x, whole, chunk=3), rtol=1e-13)
    one = sg.paths.run(net, x, whole[:1])
    same = sg.paths.run(net, x, whole[torch.zeros(5, dtype=torch.long)])
    assert torch.allclose(one, same, rtol=1e-13)


def test_controls_are_what_they_say():
    net, size = some("resnet18")
    x = images(4, size)
    gates = sg.paths.record(net, x)
    mean, ones, shuffled = gates.mean(), gates.ones(), gates.shuffled(3)
    relu, pool = gates.sites["relu"], gates.sites["maxpool"]
    assert torch.equal(mean.sites["relu"].values[0], relu.values.float().mean(0))
    assert torch.equal(mean.sites["maxpool"].values[0], pool.weights().mean(0))
    assert torch.equal(pool.weights().sum(-3), torch.ones(pool.values.shape))
    assert bool((ones.sites["relu"].values == 1).all())
    a = F.avg_pool2d(relu.values.double(), 3, 2, 1)
    open_pool = windows.weigh(pool.window, relu.values.double(), ones.sites["maxpool"].values.double())
    assert torch.allclose(open_pool, a)
    for name, site in shuffled.sites.items():
        rows = [next(i for i in range(4) if torch.equal(row, gates.sites[name].values[i])) for row in site.values]
        assert sorted(rows) == [0, 1, 2, 3]
        assert all(i != row for i, row in enumerate(rows))


def test_what_cannot_be_gated_or_does_not_fit_is_refused():
    net, size = some("odd")
    x = images(3, size)
    gates = sg.paths.record(net, x)
    for wrong, words in (
        (lambda: sg.paths.run(net, x[:2], gates), "gates of 3 images for 2"),
        (lambda: sg.paths.run(net, images(3, 16), gates), "another image size"),
        (lambda: sg.paths.run(network("resnet18"), images(3, 33), gates), "no gates for relu|another network"),
        (lambda: sg.paths.record(net, x, sg.Surrogate(gain="matched")), "gain=matched"),
        (lambda: sg.paths.record(net, x[0, 0, 0]), "images"),
        (lambda: sg.paths.record(nn.Linear(4, 2), torch.ones(1, 4)), "no call site"),
        (lambda: gates[:1].shuffled(), "at least 2"),
    ):
        with pytest.raises(SoftgateError, match=words):
            wrong()
    with pytest.raises(UnreachableSites, match="hardshrink"):
        sg.paths.record(nn.Sequential(nn.Linear(4, 4), nn.Hardshrink()), torch.ones(2, 4))
    for norm in (nn.InstanceNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)):
        own = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).double()
        with pytest.raises(SoftgateError, match="statistics of its own input"):
            sg.paths.run(own, x, sg.paths.record(own, x))
        with pytest.raises(SoftgateError, match="statistics of its own input"):
            sg.paths.kernel(own, x, x)
    curved = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sigmoid())
    one = torch.ones(2, 4)
    with pytest.raises(SoftgateError, match="Sigmoid"):
        sg.paths.run(curved, one, sg.paths.record(curved, one))
