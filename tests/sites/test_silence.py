"""Nothing runs hard in silence: other spellings of ReLU and pooling are covered, what selects data is named."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from reference import distance
from site_networks import OwnGate
from softgate.surrogate.functional import PiecewiseLinear, gated, relu

RULE = sg.Surrogate(gate=sg.gates.Sigmoid(0.3), pool=sg.pools.LSE(0.4))
MIXED = sg.Surrogate(gate=sg.gates.Sigmoid(0.3), pool=sg.pools.LSE(0.4), mix=0.25)


class Spelled(nn.Module):
    """A convolution, a function under test, a linear head."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        out = self.function(self.conv(x))
        return self.head(out.flatten(1).unflatten(1, (4, -1)).mean(2))


def model(function):
    torch.manual_seed(0)
    return Spelled(function).double().eval()


def images():
    return torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(net, x):
    x = x.clone().requires_grad_()
    out = net(x)
    found = torch.autograd.grad(out.sin().sum(), [x, *net.parameters()])
    return out.detach(), torch.cat([gradient.flatten() for gradient in found])


RECTIFIERS = {
    "clamp": lambda z: z.clamp(min=0),
    "clamp_": lambda z: z.clamp_(min=0),
    "torch.clamp": lambda z: torch.clamp(z, 0),
    "torch.clamp_": lambda z: torch.clamp_(z, min=0),
    "clip": lambda z: z.clip(0.0),
    "clamp_min": lambda z: torch.clamp_min(z, 0),
    "clamp_min_": lambda z: z.clamp_min_(0.0),
    "maximum": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "maximum, zero first": lambda z: torch.maximum(torch.zeros(1, dtype=z.dtype), z),
    "max of two": lambda z: z.max(torch.zeros((), dtype=z.dtype)),
    "threshold": lambda z: F.threshold(z, 0, 0),
    "threshold_": lambda z: F.threshold_(z, 0.0, 0.0),
    "nn.Threshold": nn.Threshold(0, 0, inplace=True),
}


@pytest.mark.parametrize("rule", [RULE, MIXED, sg.Surrogate(gain="matched")], ids=["soft", "mixed", "matched"])
@pytest.mark.parametrize("name", RECTIFIERS)
def test_other_spellings_of_relu_are_covered_and_have_its_gradient(name, rule):
    net, plain, x = model(RECTIFIERS[name]), model(F.relu), images()
    bare = net(x)
    with sg.attach(plain, rule):
        expected = gradients(plain, x)
    with sg.attach(net, rule) as sites:
        found = gradients(net, x)
        assert [site.kind for site in sites.table() if site.calls] == ["relu"]
        assert sites.unaffected == []
    assert torch.equal(found[0], bare)
    assert distance(found[1], expected[1]) <= 1e-12


@pytest.mark.parametrize("name", ["clamp", "clip", "clamp_min", "maximum", "maximum, zero first", "threshold"])
@pytest.mark.parametrize("gain", ["raw", "unit_rms"])
def test_the_true_share_of_a_mixed_gradient_is_pytorchs_also_exactly_on_the_kink(name, gain):
    function = RECTIFIERS[name]
    z = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    (true,) = torch.autograd.grad(function(z).sum(), z)
    step = true.unique().item()
    rule = sg.Surrogate(gate=sg.gates.Sigmoid(0.3), mix=0.25, gain=gain)
    net = nn.Identity()
    net.forward = function
    with sg.attach(net, rule):
        (found,) = torch.autograd.grad(net(z).sum(), z)
    expected = (0.25 * 0.5 + 0.75 * step) / rule.rms
    assert torch.allclose(found, torch.full_like(z, expected))


@pytest.mark.parametrize("function", [F.relu6, lambda z: F.hardtanh(z, 0.0, 6.0)], ids=["relu6", "hardtanh"])
def test_relu6_exactly_at_six_has_its_true_gradient_in_the_mix(function):
    z = torch.tensor([0.0, 6.0], dtype=torch.float64, requires_grad=True)
    net = nn.Identity()
    net.forward = function  # nn.ReLU6 calls hardtanh
    with sg.attach(net, sg.Surrogate(gate=sg.gates.Sigmoid(0.3), mix=0.25)):
        (found,) = torch.autograd.grad(net(z).sum(), z)
    soft = torch.sigmoid(z.detach() / 0.3) - torch.sigmoid((z.detach() - 6) / 0.3)
    assert torch.allclose(found, 0.25 * soft)  # PyTorch's own gradient is 0 at both ends


NO_RELUS = {
    "clamp with an upper end": lambda z: torch.clamp(z, 0, 0.5),
    "clamp with an upper end, by name": lambda z: z.clamp(min=0.0, max=0.5),
    "clamp above another number": lambda z: z.clamp(min=-0.1),
    "maximum with more zeros": lambda z: torch.maximum(z, torch.zeros(2, *z.shape, dtype=z.dtype)).sum(0),
    "maximum with another number": lambda z: torch.maximum(z, torch.full_like(z, 0.1)),
}


@pytest.mark.parametrize("name", NO_RELUS)
def test_what_is_only_nearly_a_relu_keeps_its_forward_and_gradient_and_is_named(name):
    between, x = NO_RELUS[name], images()
    net, by_hand = model(lambda z: F.relu(between(z))), model(lambda z: relu(between(z), RULE))
    with pytest.warns(sg.SoftgateWarning, match=name.split()[0]), sg.attach(net, RULE) as sites:
        found = gradients(net, x)
    assert [site.kind for site in sites.table() if site.calls] == ["relu"]  # the one behind it
    expected = gradients(by_hand, x)
    assert torch.equal(found[0], expected[0])
    assert distance(found[1], expected[1]) <= 1e-12


POOLINGS = {
    "amax": (lambda z: z.amax((2, 3)), (2, 3)),
    "amax, negative": (lambda z: torch.amax(z, (-1, -2), keepdim=True), (2, 3)),
    "amax, one": (lambda z: z.amax(3), (3,)),
    "amax, rows": (lambda z: z.amax(dim=2), (2,)),
    "max": (lambda z: z.flatten(2).max(2)[0], (2, 3)),
    "max, keepdim": (lambda z: torch.max(z, dim=3, keepdim=True).values, (3,)),
}


@pytest.mark.parametrize(
    "rule", [RULE, MIXED, sg.Surrogate(pool=sg.pools.SoftmaxFull(0.4))], ids=["lse", "mix", "full"]
)
@pytest.mark.parametrize("name", POOLINGS)
def test_spatial_maxima_are_covered_poolings_over_their_whole_window(name, rule):
    function, dims = POOLINGS[name]
    net, x = model(function), images()
    bare, own = gradients(net, x)

    def injected(z):  # the formulas, by forward gradient injection
        depth = ((z - z.amax(dims, keepdim=True)) / rule.pool.temperature).detach()
        weights = depth.exp() / depth.exp().sum(dims, keepdim=True)
        if isinstance(rule.pool, sg.pools.SoftmaxFull):
            weights = weights * (1 + depth - (weights * depth).sum(dims, keepdim=True))
        soft = (z * weights).sum(dims, keepdim=True)
        soft = soft - soft.detach() + z.amax(dims, keepdim=True).detach()
        shaped = soft.reshape(function(z.detach()).shape)
        return rule.mix * shaped + (1 - rule.mix) * function(z)

    reference, expected = gradients(model(injected), x)
    with sg.attach(net, rule) as sites:
        found, gradient = gradients(net, x)
        assert [site.kind for site in sites.table() if site.calls] == ["amax"]
    assert torch.equal(found, bare)
    assert torch.allclose(reference, bare)
    assert distance(gradient, expected) <= 1e-12
    assert distance(gradient, own) > 1e-3


def test_equal_maxima_share_the_true_part_of_the_gradient_as_in_amax():
    z = torch.ones(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    net = nn.Identity()
    net.forward = lambda z: z.amax((2, 3))
    with sg.attach(net, MIXED):
        (found,) = torch.autograd.grad(net(z).sum(), z)
    assert torch.allclose(found, torch.full_like(z, 0.25))


def test_indices_of_a_spatial_maximum_are_the_true_ones():
    seen = []

    def function(z):
        values, indices = z.flatten(2).max(2)
        seen.append(indices)
        return values

    net, x = model(function), images()
    net(x)
    with sg.attach(net, RULE):
        net(x)
    assert torch.equal(seen[0], seen[-1])


def test_gates_of_other_spellings_are_recorded_and_run():
    net, x = model(lambda z: z.clamp(min=0).amax((2, 3))), images()
    gates = sg.paths.record(net, x)
    assert torch.equal(sg.paths.run(net, x, gates), net(x))
    with sg.attach(net, RULE):
        soft = sg.paths.record(net, x, RULE)
    inside = sg.representation(net, x, 0, RULE)
    assert torch.allclose(sg.paths.run(net, x, soft)[:, 0], inside)


SELECTING = {
    "where": lambda z: torch.where(z > 0, z, 0),
    "gt": lambda z: z * (z > 0),
    "abs": lambda z: (z + z.abs()) / 2,
    "max": lambda z: F.unfold(z, 2).max(1)[0],
    "amax": lambda z: z.amax(1),
    "topk": lambda z: z.topk(3, -1)[0],
    "sort": lambda z: z.sort(-1)[0],
    "softplus": F.softplus,
    "sigmoid": lambda z: z * torch.sigmoid(z),
    "hardsigmoid": lambda z: z * F.hardsigmoid(z),
    "tanh": nn.Tanh(),
    "softsign": F.softsign,
    "logsigmoid": nn.LogSigmoid(),
    "clamp": lambda z: z.clamp(-1, 1),
    "maximum": lambda z: torch.maximum(z, z.mean()),
    "autograd.Function": OwnGate.apply,
}


@pytest.mark.parametrize("name", SELECTING)
def test_what_selects_or_bends_data_is_named_once_and_refused_where_the_user_is_strict(name):
    head = SELECTING[name]
    net, x = model(lambda z: head(F.relu(z)).flatten(1)[:, :4]), images()
    bare = net(x)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", sg.SoftgateWarning)
        with sg.attach(net, RULE) as sites:
            out = net(x)
            net(x)
            named = sites.unaffected
    said = [str(warning.message) for warning in seen if warning.category is sg.SoftgateWarning]
    assert torch.equal(out, bare)
    assert any(entry.startswith(name) for entry in named)
    assert sum(f"{name} in " in message for message in said) == 1
    assert f"{name} in " in sites.report()
    with pytest.raises(sg.UnreachableSites, match="strict"), sg.attach(net, RULE, strict=True):
        net(x)
    with pytest.raises(sg.UnreachableSites, match="strict"), sg.attach(net, sg.Surrogate(strict=True)):
        net(x)


def test_a_threshold_other_than_zero_is_refused_as_ever():
    with pytest.raises(sg.UnreachableSites, match="threshold"):
        sg.attach(model(lambda z: F.relu(F.threshold(z, 0.1, 0.0))), RULE)


def test_nothing_is_said_under_the_true_gradient_and_of_what_has_no_gradient():
    net, x = model(lambda z: F.relu(z) + z.detach().abs()), images()
    hard = model(lambda z: F.relu(z).abs())
    with warnings.catch_warnings():
        warnings.simplefilter("error", sg.SoftgateWarning)
        with sg.attach(hard, None):
            hard(x)
        torch.manual_seed(0)
        net.train()
        net(x)


def test_strict_is_plain_data_that_rules_of_before_do_not_have():
    rule = sg.Surrogate(strict=True)
    assert sg.Surrogate.from_dict(rule.to_dict()) == rule
    assert "strict" not in sg.Surrogate().to_dict()
    with pytest.raises(sg.SoftgateError, match=r"surrogate\.strict=1: true or false"):
        sg.Surrogate(strict=1)


# -- tensors that somebody keeps -----------------------------------------------------------------------


def features():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers).double().eval()


def hooked(net, kept):
    return [net[i].register_forward_hook(lambda module, given, out: kept.append(out)) for i in (0, 2)]


@pytest.mark.parametrize("rule", [None, RULE], ids=["hard", "soft"])
@pytest.mark.parametrize("when", ["before", "after", "global"])
def test_what_a_hook_keeps_holds_what_it_holds_in_the_bare_network(rule, when):
    x, bare, kept = images(), [], []
    net = features()
    hooked(net, bare)
    net(x)
    net = features()
    if when == "before":
        hooked(net, kept)
    with sg.attach(net, rule):
        if when == "after":
            hooked(net, kept)
        if when == "global":
            convolutions = lambda module, given, out: kept.append(out) if isinstance(module, nn.Conv2d) else None  # noqa: E731  (one hook, used twice)
            handle = nn.modules.module.register_module_forward_hook(convolutions)
        try:
            net(x)
        finally:
            if when == "global":
                handle.remove()
        loss = sum(tensor.square().sum() for tensor in kept)
        found = torch.autograd.grad(loss, net[0].weight)[0]
    assert all(torch.equal(a, b) for a, b in zip(kept, bare, strict=True))
    if rule is None:
        expected = torch.autograd.grad(sum(tensor.square().sum() for tensor in bare), _weight_of(bare))
        assert torch.allclose(found, expected[0])


def _weight_of(kept):
    node = kept[0].grad_fn
    while not hasattr(node, "variable") or node.variable.dim() != 4:
        node = next(n for n, _ in reversed(node.next_functions) if n is not None and _leads_to_weight(n))
    return node.variable


def _leads_to_weight(node):
    if hasattr(node, "variable"):
        return node.variable.dim() == 4
    return any(n is not None and _leads_to_weight(n) for n, _ in node.next_functions)


@pytest.mark.parametrize("rule", [None, RULE], ids=["hard", "soft"])
def test_what_a_forward_pass_keeps_in_an_attribute_holds_what_it_holds_in_the_bare_network(rule):
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.kept = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), {"maps": []}

        def forward(self, x):
            z = self.conv(x)
            self.kept["maps"].append(z)
            return self.relu(z).mean((2, 3))

    torch.manual_seed(0)
    net, x = Keeping().double().eval(), images()
    net(x)
    with sg.attach(net, rule):
        net(x)
    assert len(net.kept["maps"]) == 2
    assert torch.equal(*net.kept["maps"])


def test_hooks_that_read_weights_only_cost_nothing():
    from softgate.sites.checks import reads_by_hooks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    assert not reads_by_hooks(net.modules())
    net.register_forward_pre_hook(lambda module, given: None)
    assert reads_by_hooks(net.modules())


def test_a_kink_without_a_step_on_it_is_left_alone():
    z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    shape = PiecewiseLinear(0.0, ((1.0, 0.0),))
    (found,) = torch.autograd.grad(gated(z, F.relu, shape, sg.Surrogate(mix=0.5)).sum(), z)
    assert torch.allclose(found, torch.full_like(z, 0.25))
