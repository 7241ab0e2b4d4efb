"""Per-channel scales: their statistics against numpy's, their gradients against a slow reference, what they touch."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import reference
import softgate as sg
from softgate import SoftgateError
from softgate.sites.scales import LEAST, MOMENTUM, Scales, scales_of

RULE = sg.Surrogate(scale="channel")
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=5)


class Net(nn.Module):
    """Two convolutions with BatchNorm and dropout between them, a pooling and a linear layer: four call sites."""

    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, width, 3, bias=False).double(), nn.Conv2d(width, 5, 3).double()
        self.norm, self.drop = nn.BatchNorm2d(width).double(), nn.Dropout(0.3)
        self.relu, self.pool, self.head = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Linear(5, 6).double()

    def forward(self, x):
        x = self.pool(self.relu(self.norm(self.a(x) * 3 + 1)))
        return F.relu(self.head(F.relu(self.b(self.drop(x))).mean((2, 3))))


NAMES = ["relu", "pool", "(model).relu", "(model).relu#2"]


def images(count=6, seed=0, size=10):
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pre_activations(net, x):
    """What the four call sites of Net are given, by hand."""
    first = net.norm(net.a(x) * 3 + 1)
    pooled = F.max_pool2d(F.relu(first), 2)
    second = net.b(net.drop(pooled))
    return [first, F.relu(first), second, net.head(F.relu(second).mean((2, 3)))]


def moments(z):
    """Mean and biased variance of each channel, by numpy."""
    flat = np.moveaxis(z.detach().numpy(), 1, 0).reshape(z.shape[1], -1)
    return flat.mean(1), flat.var(1)


# -- statistics ---------------------------------------------------------------------------------------


@given(sizes, st.integers(0, 1000), st.floats(-100, 100))
def test_calibration_weighs_every_example_alike(batches, seed, offset):
    rng = np.random.default_rng(seed)
    data = [torch.from_numpy(rng.normal(offset, 1 + i, (count, 3, 4))) for i, count in enumerate(batches)]
    scales = Scales()
    for z in data:
        scales.observe("site", z, 1, share=None)
    mean, variance = moments(torch.cat(data))
    np.testing.assert_allclose(scales["site"].mean, mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scales["site"].variance, variance, rtol=1e-12, atol=1e-12 * offset**2)
    assert scales["site"].count == sum(batches)


@given(sizes, st.integers(0, 1000))
def test_training_mixes_each_batch_in_with_the_share_of_batchnorm(batches, seed):
    rng = np.random.default_rng(seed)
    scales, mean, square = Scales(), None, None
    for count in batches:
        z = torch.from_numpy(rng.normal(2, 3, (count, 3, 4)))
        scales.observe("site", z, 1)
        flat = np.moveaxis(z.numpy(), 1, 0).reshape(3, -1)
        first, second = flat.mean(1), (flat**2).mean(1)  # a mixture's raw moments are the mixture of raw moments
        mean = first if mean is None else (1 - MOMENTUM) * mean + MOMENTUM * first
        square = second if square is None else (1 - MOMENTUM) * square + MOMENTUM * second
    np.testing.assert_allclose(scales["site"].mean, mean, rtol=1e-12)
    np.testing.assert_allclose(scales["site"].variance, square - mean**2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        scales["site"].deviation(z, 1).flatten(),
        np.maximum(np.sqrt(scales["site"].variance.numpy()), LEAST),
        rtol=1e-12,
    )


def test_calibrate_finds_the_deviations_of_all_images_together():
    net, batches = Net().eval(), [images(4, 1), images(1, 2), images(7, 3)]
    found = sg.calibrate(net, [(x, None) for x in batches], RULE)
    assert list(found) == NAMES
    for name, z in zip(NAMES, pre_activations(net, torch.cat(batches)), strict=True):
        np.testing.assert_allclose(found[name], np.sqrt(moments(z)[1]), rtol=1e-12)


def test_calibrate_takes_so_many_batches_and_so_many_sites():
    net, batches = Net().eval(), [images(4, 1), images(1, 2)]
    assert sg.calibrate(net, batches, batches=1)["relu"].equal(sg.calibrate(net, batches[:1])["relu"])
    rule = sg.Surrogate(scale="channel", sites=sg.Select(kinds=("max_pool2d",)))
    assert list(sg.calibrate(net, batches, rule)) == ["pool"]


def test_half_precision_statistics_are_float32():
    scales = Scales()
    z = torch.full((4, 2, 300), 60000.0, dtype=torch.float16)
    scales.observe("site", z, 1)
    assert scales["site"].mean.dtype == torch.float32
    assert torch.isfinite(scales["site"].variance).all()


# -- gradients ----------------------------------------------------------------------------------------


def slow_gradients(net, x, deviations, temperature=0.3):
    """The gradients with every temperature times its channel's deviation, written out."""

    def unit(name, z):
        return deviations[name].clamp_min(LEAST).view(1, -1, *[1] * (z.dim() - 2))

    def relu(name, z):
        return reference.relu(z, lambda value: reference.sigmoid(value / unit(name, z), temperature))

    h = relu("relu", net.norm(net.a(x) * 3 + 1))
    scale = unit("pool", h)
    h = reference.max_pool2d(h / scale, 2, temperature=temperature) * scale
    h = relu("(model).relu", net.b(net.drop(h)))
    out = relu("(model).relu#2", net.head(h.mean((2, 3))))
    return grad(out.square().sum(), list(net.parameters()))


def agree(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) <= 1e-10


def test_gradients_after_calibration_have_temperatures_in_deviations_of_each_channel():
    net, x = Net().eval(), images()
    deviations = sg.calibrate(net, [images(8, 5)], RULE)
    expected = slow_gradients(net, x, deviations)
    with sg.attach(net, RULE):
        agree(grad(net(x).square().sum(), list(net.parameters())), expected)
    with sg.attach(net, sg.Surrogate()):
        other = grad(net(x).square().sum(), list(net.parameters()))
    assert reference.distance(other[0], expected[0]) > 1e-3  # the global temperature is another rule


def test_gradients_in_training_use_the_running_deviations_with_this_batch_in_them():
    net = Net().train()
    net.drop.p = 0.0
    twin = copy.deepcopy(net)
    with sg.attach(net, RULE) as sites:
        for seed in range(3):
            x = images(seed=seed)
            found = grad(net(x).square().sum(), list(net.parameters()))
            deviations = {name: scale.variance.sqrt() for name, scale in sites.scales.items()}
            agree(found, slow_gradients(twin, x, deviations))


def test_a_channel_that_never_moves_is_gated_hard():
    net, x = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 1)).double(), images(2, size=4)
    with torch.no_grad():
        net[0].weight[0] = 0.0
        net[0].bias[0] = 0.5
    true = grad(net(x).sum(), net[0].bias)[0]
    with sg.attach(net.train(), RULE):
        soft = grad(net(x).sum(), net[0].bias)[0]
    assert torch.equal(soft[0], true[0])
    assert torch.isfinite(soft).all()
    assert not torch.equal(soft[1], true[1])


# -- what is touched, and what is refused -------------------------------------------------------------


def test_the_state_dict_is_that_of_the_bare_model():
    net, bare = Net(), Net()
    with sg.attach(net, RULE):
        net.train()
        net(images()).sum().backward()
        state = net.state_dict()
    with torch.no_grad():
        bare.train()
        torch.manual_seed(0)
        bare(images())
    expected = bare.state_dict()
    assert list(state) == list(expected)
    for key, value in state.items():
        if "running" not in key or "norm" not in key:
            assert torch.equal(value, expected[key]), key
    assert torch.equal(state["norm.running_var"], expected["norm.running_var"])


@pytest.mark.parametrize("move", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies_keep_scales_of_their_own(move):
    net = Net().eval()
    sg.calibrate(net, [images()], RULE)
    other = move(net)
    expected = sg.pullback(net, images(2, 3), 1, RULE)
    assert torch.equal(sg.pullback(other, images(2, 3), 1, RULE), expected)
    sg.calibrate(other, [images(3, 9) * 5], RULE)
    assert torch.equal(sg.pullback(net, images(2, 3), 1, RULE), expected)
    assert not torch.equal(sg.pullback(other, images(2, 3), 1, RULE), expected)


def test_the_scales_state_is_plain_data_and_comes_back(tmp_path):
    net, other = Net().eval(), Net().eval()
    sg.calibrate(net, [images()], RULE)
    torch.save(scales_of(net).state_dict(), tmp_path / "scales.pt")
    scales_of(other).load_state_dict(torch.load(tmp_path / "scales.pt", weights_only=True))
    assert torch.equal(sg.pullback(net, images(2, 3), 1, RULE), sg.pullback(other, images(2, 3), 1, RULE))


@pytest.mark.parametrize("attached", [None, sg.Surrogate(), RULE], ids=["bare", "global", "channel"])
def test_calibrating_leaves_the_model_its_modes_and_the_random_state(attached):
    net = Net().train()
    net.drop.eval()
    sites = None if attached is None else sg.attach(net, attached)
    state, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    random = torch.get_rng_state()
    sg.calibrate(net, torch.utils.data.DataLoader(images(), batch_size=4, shuffle=True), RULE)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    if sites is None:
        assert "forward" not in vars(net)
    else:
        assert sites.rule == attached
        assert sites.attached


def test_a_read_out_without_statistics_is_refused_by_name():
    net = Net()
    with pytest.raises(SoftgateError, match=r"scale=channel: no statistics of relu yet; run softgate\.calibrate"):
        sg.pullback(net, images(2), 1, RULE)
    assert "forward" not in vars(net)
    with torch.no_grad(), sg.attach(net.eval(), RULE):
        net(images(2))  # without gradients there is nothing to scale


def test_another_number_of_channels_is_refused():
    net, wider = Net().eval(), Net(width=7).eval()
    sg.calibrate(net, [images()], RULE)
    scales_of(wider).load_state_dict(scales_of(net).state_dict())
    with pytest.raises(SoftgateError, match=r"relu had 4 channels and has 7 now; calibrate again"):
        sg.pullback(wider, images(2), 1, RULE)


@pytest.mark.parametrize(
    ("loader", "message"), [([], "the loader yields no batch"), (["x"], "yields str; images are needed")]
)
def test_a_loader_without_images_is_refused_and_the_former_scales_stay(loader, message):
    net = Net().eval()
    former = sg.calibrate(net, [images()], RULE)
    with pytest.raises(SoftgateError, match=message):
        sg.calibrate(net, loader, RULE)
    assert all(torch.equal(scale.variance.sqrt(), former[name]) for name, scale in scales_of(net).items())
    assert list(scales_of(net)) == NAMES


def test_calibrating_for_a_global_rule_is_refused():
    with pytest.raises(SoftgateError, match=r"rule\.scale=global: only scale=channel"):
        sg.calibrate(Net(), [images()], sg.Surrogate())
    with pytest.raises(SoftgateError, match=r"batches=0: at least 1"):
        sg.calibrate(Net(), [images()], RULE, batches=0)


def test_two_processes_average_their_moments(tmp_path):
    script = Path(__file__).parents[1] / "scales_process.py"
    line = [sys.executable, str(script)]
    running = [subprocess.Popen([*line, str(rank), str(tmp_path)], stderr=subprocess.PIPE) for rank in range(2)]
    for process in running:
        assert process.wait(timeout=120) == 0, process.stderr.read().decode()
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("a", "b"):
        for key in ("mean", "variance"):
            expected = (one["own"][name][key] + two["own"][name][key]) / 2
            assert not torch.equal(one["own"][name][key], expected)
            for averaged in (one["averaged"], two["averaged"]):
                torch.testing.assert_close(averaged[name][key], expected, rtol=1e-14, atol=0)


# -- matched gain -------------------------------------------------------------------------------------

MATCHED = sg.Surrogate(gain="matched")
LAYERS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "max_pool2d": nn.MaxPool2d(3, 2, 1),
    "leaky_relu": nn.LeakyReLU(0.1),
}


def through(layer, z, upstream, rule):
    """The gradient at one site, of which the model is made."""
    z = z.detach().clone().requires_grad_()
    with sg.attach(nn.Sequential(nn.Identity(), layer), rule) as sites:
        return grad(sites.model(z), z, upstream)[0]


@pytest.mark.parametrize("scale", ["global", "channel"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), size=st.floats(0.1, 20))
def test_matched_gain_gives_each_example_the_norm_of_its_true_gradient(layer, scale, seed, size):
    generator = torch.Generator().manual_seed(seed)
    z = size * torch.randn(4, 3, 7, 7, dtype=torch.float64, generator=generator)
    upstream = torch.randn(layer(z).shape, dtype=torch.float64, generator=generator)
    upstream[2] = 0.0
    rule = sg.Surrogate(gain="matched", scale=scale)
    found, hard = through(layer, z, upstream, rule), through(layer, z, upstream, None)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), hard.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
    assert torch.equal(found[2], torch.zeros_like(found[2]))
    assert not torch.equal(found, hard)
    raw = through(layer, z, upstream, sg.Surrogate(scale=scale))
    cosine = F.cosine_similarity(found.flatten(1), raw.flatten(1))
    torch.testing.assert_close(cosine[[0, 1, 3]], torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_matched_gain_of_an_example_does_not_depend_on_the_batch_it_is_in(layer):
    z = torch.randn(5, 3, 7, 7, dtype=torch.float64)
    upstream = torch.randn(layer(z).shape, dtype=torch.float64)
    whole = through(layer, z, upstream, MATCHED)
    for i in range(5):
        alone = through(layer, z[i : i + 1], upstream[i : i + 1], MATCHED)
        assert reference.distance(alone, whole[i : i + 1]) <= 1e-14


def test_a_true_gradient_of_nothing_leaves_nothing():
    z = -torch.rand(2, 3, 4, dtype=torch.float64)  # a dead layer: the true gradient is zero
    found = through(nn.ReLU(), z, torch.ones_like(z), MATCHED)
    assert torch.equal(found, torch.zeros_like(found))
