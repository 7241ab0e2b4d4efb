"""Deep gated networks: slow references, the twin of a ReLU network, what each regime freezes, what is refused."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import SoftgateError, models
from softgate.explainers import guided_backprop
from softgate.explainers.completion import completed_for
from softgate.models import GatedNetwork, Gating, small_images

FIXED = Gating(regime="fixed_learnt")
RULES = (None, sg.Surrogate(), sg.Surrogate.normal_cdf(), sg.Surrogate(gain="unit_rms", mix=0.5))


def mlp(seed, dtype=torch.float64):
    torch.manual_seed(seed)
    net = small_images.MLP(12, 7, 4, 5).to(dtype)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.bias, 0, 0.3)
    return net


class Small(nn.Module):
    """Convolutions, a BatchNorm, a shortcut, a functional and a repeated ReLU; pooling if it is asked for."""

    def __init__(self, seed, pools=True):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 6, 3),
        )
        self.norm, self.relu, self.head, self.pools = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Linear(6, 5), pools
        self.norm.running_mean.normal_(0, 0.2)
        self.norm.running_var.uniform_(0.5, 1.5)
        self.double().eval()

    def forward(self, x):
        x = self.relu(self.norm(self.conv1(x)))
        x = self.relu(self.conv2(x) + x)
        if self.pools:
            x = F.max_pool2d(x, 3, 2, padding=1)
        return self.head(F.relu_(self.conv3(x)).mean((2, 3)))


def images(count=4, size=8, dtype=torch.float64):
    return torch.randn(count, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(9))


def gate(u, options):
    return (u > 0).to(u.dtype) if options.hard else 1.1 / (1 + torch.exp(-options.beta * u))


def mlp_by_hand(feature, value, x, options):
    """The recurrence of the two networks, layer by layer, of weights and biases."""
    u, h = x.flatten(1), x.flatten(1)
    h = torch.ones_like(h) if options.value_input == "ones" else h
    for f, v in zip(feature.hidden[::2], value.hidden[::2], strict=True):
        u = u @ f.weight.T + f.bias
        h = gate(u, options) * (h @ v.weight.T + v.bias)
        u = u.clamp(min=0) if options.gating == "relu" else u
    return h @ value.fc.weight.T + value.fc.bias


def average(x):
    """3 x 3 windows, stride 2, of which elements in the padding do not count."""
    size = F.avg_pool2d(F.pad(torch.ones_like(x), (1, 1, 1, 1)), 3, 2)
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2) / size


def small_by_hand(feature, value, x, options):
    u, h = x, torch.ones_like(x) if options.value_input == "ones" else x
    act = torch.relu if options.gating == "relu" else lambda z: z
    pool = (lambda z: F.max_pool2d(z, 3, 2, padding=1)) if options.gating == "relu" else average
    z = feature.norm(feature.conv1(u))
    h, u = gate(z, options) * value.norm(value.conv1(h)), act(z)
    z = feature.conv2(u) + u
    h, u = gate(z, options) * (value.conv2(h) + h), act(z)
    z = feature.conv3(pool(u))
    h = gate(z, options) * value.conv3(average(h))
    return value.head(h.mean((2, 3)))


CASES = [
    Gating(gating=gating, gates=gates, regime=regime, value_input=fed, beta=beta)
    for gating in ("relu", "linear")
    for gates, regime, fed, beta in (
        ("soft", "decoupled", "image", 4.0),
        ("soft", "decoupled", "ones", 2.5),
        ("hard", "fixed_random", "image", 4.0),
        ("soft", "fixed_learnt", "image", 1.0),
    )
]
NAMED = [f"{o.gating}-{o.gates}-{o.regime}-{o.value_input}" for o in CASES]


@pytest.mark.parametrize("options", CASES, ids=NAMED)
@pytest.mark.parametrize("kind", ["mlp", "convolutions"])
def test_it_is_the_recurrence_by_hand_with_its_gradients(kind, options):
    make, by_hand, x = (mlp, mlp_by_hand, images(4, 2)) if kind == "mlp" else (Small, small_by_hand, images())
    net = GatedNetwork(make(0), make(1), x.shape[1:], options).eval()
    other = copy.deepcopy(net)
    expected = by_hand(other.feature, other.value, x, options)
    found = net(x)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
    found.square().sum().backward()
    expected.square().sum().backward()
    learnt = 0
    for (name, mine), true in zip(net.named_parameters(), other.parameters(), strict=True):
        assert mine.requires_grad == (name.startswith("value.") or not (options.frozen or name.startswith(LAST))), name
        if mine.requires_grad:
            assert torch.allclose(mine.grad, true.grad, rtol=1e-10, atol=1e-12), name
            learnt += bool(mine.grad.abs().sum() > 0)
        else:
            assert mine.grad is None
    assert learnt >= (8 if options.frozen else 14) - 2 * (options.value_input == "ones")


LAST = ("feature.fc.", "feature.head.")
"""Layers behind the last gate."""


def without_pooling(name):
    """A network and images: in float64, but for DenseNet."""
    if name == "mlp":
        return mlp(0), images(3, 2)
    if name == "convolutions":
        return Small(0, pools=False), images(3)
    torch.manual_seed(0)
    if name == "shortcuts":
        return small_images.CIFARResNet(8, 5).double().eval(), images(2, 16)
    net = models.build("densenet121", 5).eval()
    net.features.pool0 = nn.Identity()
    return net, images(1, 32, torch.float32)


@pytest.mark.parametrize(
    "name", ["mlp", "convolutions", "shortcuts", pytest.param("densenet121", marks=pytest.mark.slow)]
)
def test_with_its_own_gates_a_twin_is_the_network_bit_for_bit(name):
    net, x = without_pooling(name)
    twin = GatedNetwork(copy.deepcopy(net), copy.deepcopy(net), x.shape[1:], FIXED).eval()
    assert torch.equal(twin(x), net(x))
    for rule in RULES:
        mine, theirs = sg.pullback(twin, x, 1, rule), sg.pullback(net, x, 1, rule)
        assert torch.equal(mine, theirs) or (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max() * (
            x.dtype == torch.float32
        )
    mine, theirs = sg.paths.record(twin, x, RULES[1]), sg.paths.record(net, x, RULES[1])
    assert all(site.startswith("value.") for site in mine.sites)
    pairs = zip(mine.sites.values(), theirs.sites.values(), strict=True)
    assert all(torch.equal(a.values, b.values) for a, b in pairs)
    assert torch.equal(sg.paths.run(twin, x, mine), sg.paths.run(net, x, theirs))


@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_whatever_reads_gates_reads_those_of_a_twin(name):
    net, x = without_pooling(name)
    twin = GatedNetwork(copy.deepcopy(net), copy.deepcopy(net), x.shape[1:], FIXED).eval()
    for look in (
        lambda model: guided_backprop(model, x, 1),
        lambda model: sg.paths.kernel(model, x),
        lambda model: torch.stack(sg.paths.paired_kernel(model, x, x.flip(0))),
        lambda model: sg.paths.kernel_distance(model, x, x.flip(0), RULES[1]),
        lambda model: sg.representation(model, x, 1, RULES[1]),
        lambda model: sg.ascend(model, x.clamp(-1, 1), 1, RULES[1], steps=2).image,
    ):
        assert torch.equal(look(twin), look(net))


def test_training_steps_of_the_twin_under_a_rule_are_those_of_the_network():
    x, labels = images(6), torch.arange(6) % 5
    net = Small(0, pools=False)
    twin = GatedNetwork(copy.deepcopy(net), copy.deepcopy(net), (3, 8, 8), FIXED)
    with sg.attach(net, sg.Surrogate()), sg.attach(twin, sg.Surrogate()) as sites:
        F.cross_entropy(net(x), labels).backward()
        F.cross_entropy(twin(x), labels).backward()
        assert len(sites) == 3
    pairs = zip(net.parameters(), twin.value.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-12, atol=1e-15) for a, b in pairs)


def test_a_pullback_reads_the_gates_of_the_features_and_the_weights_of_the_values():
    x, rule = images(3, 2), sg.Surrogate()
    net = GatedNetwork(mlp(0), mlp(1), (3, 2, 2), Gating(regime="fixed_random")).eval()
    u, grad = x.flatten(1), None
    softs = []
    for f in net.feature.hidden[::2]:
        z = u @ f.weight.T + f.bias
        softs.append(torch.sigmoid(z / 0.3))
        u = z.clamp(min=0)
    grad = net.value.fc.weight[2].expand(3, -1)
    for v, soft in zip(reversed(net.value.hidden[::2]), reversed(softs), strict=True):
        grad = (grad * soft) @ v.weight
    assert torch.allclose(sg.pullback(net, x, 2, rule).flatten(1), grad, rtol=1e-12, atol=1e-14)
    value = sg.representation(net, x, 2, rule)
    assert value.shape == (3,)


def test_soft_gates_held_constant_leave_an_affine_network_that_the_pullback_represents():
    x, rule = images(3, 2), sg.Surrogate.semantic()
    net = GatedNetwork(mlp(0), mlp(1), (3, 2, 2), Gating()).eval()
    with torch.no_grad():
        gates = [g.soft for g in net.gates(x)]
    grad = net.value.fc.weight[2].expand(3, -1)
    for v, soft in zip(reversed(net.value.hidden[::2]), reversed(gates), strict=True):
        grad = (grad * soft) @ v.weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held, true = sg.pullback(net, x, 2, rule), sg.pullback(net, x, 2)
    assert torch.allclose(held.flatten(1), grad, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(held, true, rtol=0.1)  # a soft gate has a gradient of its own


def test_the_gates_of_a_linear_gating_network_are_half_spaces():
    net = GatedNetwork(Small(0), Small(1), (3, 8, 8), Gating(gating="linear")).eval()
    a, b = images(2).split(1)
    weights = torch.tensor([0.0, 1.0, 0.3, -2.0, 5.0]).double()
    line = [torch.cat([a + t * (b - a) for t in weights])]
    with torch.no_grad():
        for one in net.gates(line[0]):
            u = one.of.flatten(1)
            assert torch.allclose(u, u[0] + weights[:, None] * (u[1] - u[0]), rtol=1e-10, atol=1e-12)
        curved = GatedNetwork(Small(0), Small(1), (3, 8, 8), Gating()).eval().gates(line[0])[-1].of.flatten(1)
    assert not torch.allclose(curved, curved[0] + weights[:, None] * (curved[1] - curved[0]), rtol=1e-2)


@pytest.mark.parametrize("gating", ["relu", "linear"])
def test_for_given_gates_values_are_affine_in_the_image_and_linear_in_each_layers_weights(gating):
    net = GatedNetwork(Small(0), Small(1), (3, 8, 8), Gating(gating=gating, regime="fixed_random")).eval()
    x, other = images(3), images(6)[3:]
    gates = sg.paths.record(net, x)
    with torch.no_grad():
        at = [sg.paths.run(net, z, gates) for z in (x, other, 0.3 * x + 0.7 * other)]
        assert torch.allclose(at[2], 0.3 * at[0] + 0.7 * at[1], rtol=1e-10, atol=1e-12)
        for layer in (net.value.conv1, net.value.conv2, net.value.conv3, net.value.head):
            first, second = layer.weight.clone(), torch.randn_like(layer.weight)
            found = []
            for weight in (first, second, 0.3 * first + 0.7 * second):
                layer.weight.copy_(weight)
                found.append(net(x))
            layer.weight.copy_(first)
            assert torch.allclose(found[2], 0.3 * found[0] + 0.7 * found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("regime", ["decoupled", "fixed_learnt", "fixed_random"])
def test_a_regime_freezes_what_it_says(regime):
    net = GatedNetwork(Small(0), Small(1), (3, 8, 8), Gating(regime=regime)).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    F.cross_entropy(net(images()), torch.arange(4)).backward()
    optimizer.step()
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("value.") for key in moved)
    assert "value.norm.running_mean" in moved
    assert net.value.training
    if regime == "decoupled":
        assert {"feature.conv1.weight", "feature.conv3.bias", "feature.norm.running_mean"} <= moved
        assert not any(key.startswith("feature.head") for key in moved)
    else:
        assert not any(key.startswith("feature.") for key in moved)
        assert not net.feature.training


@pytest.mark.parametrize("options", [FIXED, Gating(), Gating(gating="linear", value_input="ones")], ids=str)
def test_copies_pickles_and_state_dicts_are_those_of_any_module(options):
    net = GatedNetwork(Small(0), Small(1), (3, 8, 8), options).eval()
    x = images()
    assert {key.split(".")[0] for key in net.state_dict()} == {"feature", "value"}
    assert all(torch.equal(each(x), net(x)) for each in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))))
    other = GatedNetwork(Small(2), Small(3), (3, 8, 8), options).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


def test_nothing_of_it_draws_random_numbers_or_changes_modes_or_buffers():
    feature, value = Small(0).train(), Small(1).train()
    state, before = torch.get_rng_state(), copy.deepcopy(value.state_dict())
    net = GatedNetwork(feature, value, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert feature.training
    assert value.training
    assert all(torch.equal(a, b) for a, b in zip(value.state_dict().values(), before.values(), strict=True))


def test_a_rule_for_relus_is_refused_where_there_are_none_and_gates_are_soft():
    net = GatedNetwork(mlp(0), mlp(1), (3, 2, 2), Gating(gating="linear"))
    with pytest.raises(sg.NoCallSites, match="no call site"):
        sg.attach(net, sg.Surrogate())
    with sg.attach(net, None):
        net(images(2, 2)).sum().backward()
    rule, why = completed_for(net, sg.Surrogate(), images(1, 2))
    assert "semantic" in why
    assert sg.pullback(net, images(2, 2), 0, rule).abs().sum() > 0


class Excited(nn.Module):
    """Squeeze-and-excitation: a gate of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x).relu()
        x = x * torch.sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "it has no ReLU"),
        (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(72, 5)), "the network has gelu"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(72, 5)),
            "the network has relu6",
        ),
        (Excited, "the value network is not affine"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.LayerNorm(5)), "is not affine"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.MaxPool2d(2, dilation=2), nn.Flatten()),
            "a dilated max pooling",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten()),
            "windows of different sizes",
        ),
    ],
)
def test_what_no_gated_network_can_be_made_of_is_refused_in_one_sentence(make, said):
    torch.manual_seed(0)
    with pytest.raises(SoftgateError, match=said) as error:
        GatedNetwork(make(), make(), (3, 8, 8))
    assert "\n" not in str(error.value)


def test_two_architectures_are_refused():
    with pytest.raises(SoftgateError, match="must be of one architecture"):
        GatedNetwork(small_images.MLP(12, 7, 4, 5), small_images.MLP(12, 8, 4, 5), (3, 2, 2))
    with pytest.raises(SoftgateError, match=r"2 gates, and the value network calls"):
        GatedNetwork(small_images.MLP(12, 7, 3, 5), small_images.MLP(12, 7, 4, 5), (3, 2, 2))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gates": "hard"}, "a step has no gradient"),
        ({"gates": "hard", "regime": "fixed_random", "beta": 2.0}, "slope of soft gates"),
        ({"value_weights": "dependent"}, "it is for model.regime=fixed_random"),
        ({"value_input": "ones", "regime": "fixed_learnt"}, "with hard gates the network is constant"),
        ({"gating": "rely"}, "model.gating=rely"),
        ({"beta": 0}, "a number > 0"),
        ({"regime": "fixed"}, "model.regime=fixed"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, said):
    with pytest.raises(SoftgateError, match=said):
        Gating.read(given)
