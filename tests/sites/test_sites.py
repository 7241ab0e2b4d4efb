import copy
import io
import pickle
import threading

import pytest
import torch
import torchvision
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import reference
import softgate as sg

RULE = sg.Surrogate()


# -- models -------------------------------------------------------------------------------------------


class Spelled(nn.Module):
    """Linear, a ReLU in one of its spellings, linear."""

    def __init__(self, spelling):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()
        self.relu, self.relu_inplace = nn.ReLU(), nn.ReLU(inplace=True)
        self.spelling = spelling

    def forward(self, x):
        return self.last(self.spelling(self, self.first(x)))


def statement(call):
    """An in-place ReLU used as a statement: its result is thrown away."""

    def spelling(model, z):
        call(model, z)
        return z

    return spelling


SPELLINGS = {
    "nn.ReLU()": lambda model, z: model.relu(z),
    "nn.ReLU(inplace=True)": lambda model, z: model.relu_inplace(z),
    "F.relu(z)": lambda model, z: F.relu(z),
    "F.relu(input=z)": lambda model, z: F.relu(input=z),
    "F.relu(z, True)": lambda model, z: F.relu(z, True),
    "F.relu(z, inplace=True)": lambda model, z: F.relu(z, inplace=True),
    "F.relu_(z)": lambda model, z: F.relu_(z),
    "torch.relu(z)": lambda model, z: torch.relu(z),
    "torch.relu_(z)": lambda model, z: torch.relu_(z),
    "z.relu()": lambda model, z: z.relu(),
    "z.relu_()": lambda model, z: z.relu_(),
    "torch.Tensor.relu(z)": lambda model, z: torch.Tensor.relu(z),
    "nn.ReLU(inplace=True) as a statement": statement(lambda model, z: model.relu_inplace(z)),
    "F.relu(z, inplace=True) as a statement": statement(lambda model, z: F.relu(z, inplace=True)),
    "F.relu_(z) as a statement": statement(lambda model, z: F.relu_(z)),
    "torch.relu_(z) as a statement": statement(lambda model, z: torch.relu_(z)),
    "z.relu_() as a statement": statement(lambda model, z: z.relu_()),
}


class Net(nn.Module):
    """Modules and functions, in-place and not, a module used twice, and a pooling of each spelling."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.pool(self.stem(x))
        out = self.relu(self.a(x))
        x = self.relu(self.b(out) + x)
        x = F.max_pool2d(F.relu(x * 2 - 0.5), 2, ceil_mode=True)
        return self.head(x.mean((2, 3)))


NET_SITES = ["stem.2", "pool", "relu", "relu#2", "(model).relu", "(model).max_pool2d"]


class Branching(nn.Module):
    """A model that cannot be traced: its branch depends on the data."""

    def __init__(self, tail=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()
        self.tail = tail or nn.Identity()

    def forward(self, x):
        z = self.first(x)
        z = F.relu(z) if z.sum() > -1e9 else z
        return self.last(self.tail(z))


@torch.jit.script
def hidden_relu(x):
    return torch.relu(x) * 2


class Hidden(nn.Module):
    """One ReLU in sight, and one inside of a scripted function."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.relu = nn.Linear(6, 8).double(), nn.Linear(8, 4).double(), nn.ReLU()

    def forward(self, x):
        return self.last(self.relu(hidden_relu(self.first(x))))


def vectors():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def images():
    return torch.randn(4, 3, 11, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def net():
    return Net().double().eval()


def gradients(model, x):
    """[output, input gradient, parameter gradients...] of a fixed mix of the outputs."""
    x = x.detach().clone().requires_grad_()
    out = model(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *grad((out * weights).sum(), [x, *model.parameters()])]


def soft_gradients(model, x):
    """The same by the reference. Only for models whose activations go through F.relu and F.max_pool2d."""
    with reference.patched(reference.sigmoid, 0.3):
        return gradients(model, x)


def assert_close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) <= 1e-12


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def differ(found, expected):
    """Whether the gradients are another rule's; the outputs are equal."""
    return torch.equal(found[0], expected[0]) and reference.distance(found[1], expected[1]) > 1e-3


def footprint(model):
    """Everything in every module's __dict__: names, values by identity, containers by content; and the flags."""
    return [
        {
            key: list(value.items()) if isinstance(value, dict) else id(value)
            for key, value in module.__dict__.items()
            if key not in ("inplace", "training")
        }
        | {key: module.__dict__.get(key) for key in ("inplace", "training")}
        for module in model.modules()
    ]


# -- every spelling is a call site --------------------------------------------------------------------


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


class Pooled(nn.Module):
    def __init__(self, spelling):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.spelling = nn.Conv2d(3, 4, 3).double(), spelling
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)

    def forward(self, x):
        return self.spelling(self, self.conv(x))


@pytest.mark.parametrize(
    "spelling",
    [
        lambda model, x: model.pool(x),
        lambda model, x: F.max_pool2d(x, 3, 2, 1, 1, True),
        lambda model, x: F.max_pool2d(input=x, kernel_size=(3, 3), stride=[2], padding=1, ceil_mode=True),
        lambda model, x: torch.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda model, x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True, return_indices=False),
    ],
)
def test_every_spelling_of_max_pool2d_keeps_its_forward_and_gets_soft_weights(spelling):
    model, x = Pooled(spelling), images()
    bare = gradients(model, x)
    expected = soft_gradients(Pooled(lambda model, x: model.pool(x)), x)
    with sg.attach(model, RULE) as sites:
        assert (sites.count("max_pool2d"), sites.count("relu")) == (1, 0)
        found = gradients(model, x)
    assert torch.equal(found[0], bare[0])
    assert differ(bare, found)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("tail", "same"),
    [
        (
            lambda m, x: F.relu(F.max_pool2d(m.conv(x), 2), inplace=True),
            lambda m, x: F.relu(F.max_pool2d(m.conv(x), 2)),
        ),
        (lambda m, x: F.max_pool2d(m.conv(x), 2).mul_(2), lambda m, x: F.max_pool2d(m.conv(x), 2) * 2),
    ],
    ids=["relu", "mul_"],
)
def test_a_pooling_whose_output_is_overwritten_trains_as_it_does_without_softgate(tail, same):
    class Model(nn.Module):
        def __init__(self, run):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.run = nn.Conv2d(3, 4, 3).double(), run

        def forward(self, x):
            return self.run(self, x)

    x = images()
    bare = gradients(Model(tail), x)  # PyTorch allows it
    model = Model(tail)
    with sg.attach(model, RULE):
        found = gradients(model, x)
    assert torch.equal(found[0], bare[0])
    assert_close(found, soft_gradients(Model(same), x))


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


# -- nothing is left behind ---------------------------------------------------------------------------


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


# -- other activations and poolings -------------------------------------------------------------------


def step(z, kink):
    return torch.sigmoid((z - kink) / 0.3)


PIECEWISE = {
    "nn.ReLU6()": (nn.ReLU6(), lambda z: step(z, 0) - step(z, 6)),
    "nn.ReLU6(inplace=True)": (nn.ReLU6(inplace=True), lambda z: step(z, 0) - step(z, 6)),
    "F.relu6(z)": (F.relu6, lambda z: step(z, 0) - step(z, 6)),
    "F.hardtanh_(z)": (lambda z: F.hardtanh_(z), lambda z: step(z, -1) - step(z, 1)),
    "nn.Hardtanh(-2, 0.5)": (nn.Hardtanh(-2, 0.5), lambda z: step(z, -2) - step(z, 0.5)),
    "nn.LeakyReLU(0.2)": (nn.LeakyReLU(0.2), lambda z: 0.2 + 0.8 * step(z, 0)),
    "F.leaky_relu_(z, 0.1)": (lambda z: F.leaky_relu_(z, 0.1), lambda z: 0.1 + 0.9 * step(z, 0)),
}


@pytest.mark.parametrize("name", PIECEWISE)
def test_every_kink_of_a_piecewise_linear_activation_gets_the_gate(name):
    activation, factor = PIECEWISE[name]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.activation = activation

        def forward(self, x):
            return self.activation(x * 1)

    x = (torch.linspace(-9, 9, 400, dtype=torch.float64)).requires_grad_()
    model = Model()
    flag = getattr(activation, "inplace", None)
    expected = model(x)
    (hard,) = torch.autograd.grad(expected.sum(), x)
    soft = factor(x.detach())
    for rule, wanted in ((RULE, soft), (sg.Surrogate(mix=0.5), 0.5 * hard + 0.5 * soft)):
        with sg.attach(model, rule) as sites:
            out = model(x)
            assert torch.equal(out, expected)
            (found,) = torch.autograd.grad(out.sum(), x)
            assert [site.covered for site in sites.table()] == [True]
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert getattr(activation, "inplace", None) == flag


def test_mobilenets_relu6_sites_are_covered_and_its_forward_is_bit_equal():
    net = torchvision.models.mobilenet_v2(num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = net(x)
    with sg.attach(net, RULE) as sites:
        assert sites.count("relu6") == 35
        assert torch.equal(net(x), expected)


def test_pooling_with_indices_keeps_the_true_ones_and_softens_the_gradient():
    class Unpools(nn.Module):
        def forward(self, x):
            y, where = F.max_pool2d(F.relu(x), 2, return_indices=True)
            return F.max_unpool2d(y, where, 2)

    model, x = Unpools(), torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    expected = model(x)
    with sg.attach(model, RULE) as sites:
        out = model(x)
        assert torch.equal(out, expected)
        assert sites.count("max_pool2d") == 1
        (found,) = torch.autograd.grad(out.sum(), x)
    y = reference.max_pool2d(reference.relu(x, reference.sigmoid), 2)
    (wanted,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("size", "window"), [(4, 2), ((2, 8), (4, 1)), ((None, 4), (1, 2))])
def test_adaptive_pooling_into_equal_windows_is_plain_pooling(size, window):
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveMaxPool2d(size))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    expected = model(x)
    with sg.attach(model, RULE):
        out = model(x)
        assert torch.equal(out, expected)
        (found,) = torch.autograd.grad(out.sum(), x)
    y = reference.max_pool2d(reference.relu(x, reference.sigmoid), window)
    (wanted,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_adaptive_pooling_into_unequal_windows_is_refused_by_name():
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveMaxPool2d(3))
    with sg.attach(model, RULE), pytest.raises(sg.UnreachableSites, match=r"1 \(adaptive_max_pool2d\)"):
        model(torch.randn(1, 2, 8, 8))


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.GELU(), ["1 (gelu)"]),
        (nn.SiLU(), ["1 (silu)"]),
        (nn.PReLU(), ["1 (prelu)"]),
        (nn.ELU(inplace=True), ["1 (elu)"]),
        (nn.Hardswish(), ["1 (hardswish)"]),
        (nn.MaxPool1d(2), ["1 (max_pool1d)"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_activations_without_a_rule_are_refused_by_name_when_attaching(layer, said):
    class First(nn.Module):
        def forward(self, x):
            return x[0] if isinstance(x, tuple) else x

    model = nn.Sequential(nn.ReLU(), layer, First())
    before = footprint(model)
    with pytest.raises(sg.UnreachableSites) as error:
        sg.attach(model, RULE)
    for words in ["Sequential", *said]:
        assert words in str(error.value)
    assert footprint(model) == before


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (F.gelu, "gelu"),
        (F.silu, "silu"),
        (torch.selu, "selu"),
        (lambda x: F.max_pool1d(x[None], 2), "max_pool1d"),
    ],
)
@pytest.mark.parametrize("traceable", [True, False])
def test_functions_without_a_rule_are_refused_by_name_at_once_or_at_the_first_forward(call, name, traceable):
    class Uses(nn.Module):
        def forward(self, x):
            x = F.relu(x)
            if not traceable:
                x = x if float(x.detach().sum()) > -1 else -x
            return call(x)

    model = Uses()
    if traceable:
        with pytest.raises(sg.UnreachableSites) as error:
            sg.attach(model, RULE)
    else:
        with sg.attach(model, RULE), pytest.raises(sg.UnreachableSites) as error:
            model(torch.rand(4, 4))
    assert f"(model).{name}" in str(error.value)


def test_an_activation_without_a_rule_is_tolerated_without_one_and_refused_once_a_rule_is_used():
    model = nn.Sequential(nn.ReLU(), nn.GELU())
    with sg.attach(model, None) as sites:
        model(vectors())
        assert [site.covered for site in sites.table()] == [True, False]
        assert "NO" in sites.report()
        sites.use(RULE)
        with pytest.raises(sg.UnreachableSites, match="gelu"):
            model(vectors())


@pytest.mark.parametrize("model", [nn.Linear(6, 2), nn.Sequential(nn.Linear(6, 2), nn.Tanh()), nn.Identity()])
def test_a_model_without_call_sites_takes_no_rule_but_can_be_attached_to_none(model):
    before = footprint(model)
    with pytest.raises(sg.NoCallSites, match=type(model).__name__):
        sg.attach(model, RULE)
    assert footprint(model) == before
    with sg.attach(model, None) as sites:
        model(torch.ones(2, 6))
        sites.use(RULE)
        with pytest.raises(sg.NoCallSites):
            model(torch.ones(2, 6))
    assert footprint(model) == before


@pytest.mark.parametrize("wrong", [None, F.relu, {"relu": 1}])
def test_what_is_no_module_is_refused(wrong):
    with pytest.raises(sg.SoftgateError, match=r"torch\.nn\.Module"):
        sg.attach(wrong, RULE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Branching selects:softgate.SoftgateWarning")
@pytest.mark.parametrize("traceable", [True, False])
def test_a_scripted_model_or_part_is_refused_and_left_as_it_was(traceable):
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).double())
    with pytest.raises(sg.SoftgateError, match="scripted"):
        sg.attach(scripted, RULE)
    model = Spelled(lambda model, z: model.part(F.relu(z))) if traceable else Branching(scripted)
    model.part = scripted
    expected = gradients(model, vectors())
    names = [sorted(module.__dict__) for module in model.modules()]
    for look in (sg.attach, lambda model, rule: sg.pullback(model, torch.zeros(1, 1, 1, 6).double(), 0, rule)):
        with pytest.raises(sg.SoftgateError) as error:
            look(model, RULE)
        if look is sg.attach:
            assert "part" in str(error.value) or "tail" in str(error.value)
        assert [sorted(module.__dict__) for module in model.modules()] == names
    assert_close(gradients(model, vectors()), expected)


def test_a_compiled_model_is_refused_and_left_as_it_was(net):
    compiled = torch.compile(net, backend="eager")
    before = footprint(net)
    with pytest.raises(sg.SoftgateError, match="compiled already"):
        sg.attach(compiled, RULE)
    assert footprint(net) == before
    net.compile(backend="eager")
    before = footprint(net)
    with pytest.raises(sg.SoftgateError, match="compiled already"):
        sg.attach(net, RULE)
    assert footprint(net) == before


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_part_is_refused_or_gated_and_counted_but_never_hard(how):
    torch._dynamo.reset()
    part = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).double()
    model = Spelled(lambda model, z: model.part(F.relu(z)))
    model.part = part
    x = vectors()
    expected, bare = soft_gradients(model, x), gradients(model, x)
    if how == "wrapped":
        model.part = torch.compile(part, backend="aot_eager")
    else:
        part.compile(backend="aot_eager")
    assert_close(gradients(model, x), bare)  # compiled for hard gates by now
    try:
        sites = sg.attach(model, RULE)
    except sg.SoftgateError as error:
        assert "compiled" in str(error)  # noqa: PT017  (refusing is one of two good outcomes)
    else:
        assert_close(gradients(model, x), expected)
        assert sites.count() == 2
        sites.detach()
    assert_close(gradients(model, x), bare)


def test_a_second_attach_to_a_model_its_part_or_its_whole_is_refused_and_changes_nothing(net):
    whole = nn.Sequential(net)
    sites = sg.attach(net, RULE)
    before, expected = footprint(whole), soft_gradients(Net().double().eval(), images())
    for model, where in ((net, "it is attached"), (net.stem, "it is attached"), (whole, "'0'")):
        with pytest.raises(sg.SoftgateError, match="attached already") as error:
            sg.attach(model, sg.Surrogate(mix=0.5))
        assert where in str(error.value)
    assert footprint(whole) == before
    assert sites.rule is RULE
    assert_close(gradients(net, images()), expected)
    sites.detach()
    with sg.attach(whole, RULE):
        assert_close(gradients(whole, images()), expected)


@pytest.mark.parametrize("grad_first", [True, False])
@pytest.mark.parametrize("rule", [RULE, sg.Surrogate(pool=sg.pools.Hard()), sg.Surrogate(mix=0.5)], ids=repr)
def test_a_relu_hidden_in_a_scripted_function_is_refused_at_the_first_forward_with_grad(rule, grad_first):
    model = Hidden()
    with sg.attach(model, rule):
        if not grad_first:
            with torch.no_grad():
                model(vectors())
        with pytest.raises(sg.UnreachableSites, match="outside of Python"):
            model(vectors())


@pytest.mark.parametrize("first", [sg.Surrogate(mix=0.0), sg.Surrogate(sg.gates.Hard(), sg.pools.Hard())], ids=repr)
def test_a_hidden_relu_is_refused_also_when_a_harder_rule_ran_first(first):
    model = Hidden()
    with sg.attach(model, first) as sites:
        model(vectors())
        sites.use(RULE)
        with pytest.raises(sg.UnreachableSites, match="outside of Python"):
            model(vectors())


def test_a_hidden_relu_is_refused_also_in_every_later_forward():
    model = Hidden()
    with sg.attach(model, RULE):
        for _ in range(3):
            with pytest.raises(sg.UnreachableSites):
                model(vectors())


def test_hard_gates_outside_of_the_model_are_nobodys_fault():
    model, encoder = Spelled(SPELLINGS["F.relu(z)"]), nn.Linear(6, 6).double()
    with sg.attach(model, RULE):
        F.relu(model(F.relu(encoder(vectors())))).sum().backward()
    assert encoder.weight.grad.any()


def test_a_branch_with_an_uncovered_activation_is_refused_under_compile_too():
    class Branch(nn.Module):
        def forward(self, x):
            x = F.relu(x)
            return F.gelu(x) if x.shape[0] > 1 else x

    model = Branch()
    with sg.attach(model, RULE):
        model(torch.randn(1, 6, requires_grad=True))
        with pytest.raises(Exception, match=r"gelu|Unsupported|UnreachableSites"):
            torch.compile(model, fullgraph=True, backend="aot_eager")(
                torch.randn(3, 6, requires_grad=True)
            ).sum().backward()


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


# -- copies, threads, compilation ---------------------------------------------------------------------


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("through", [copy.deepcopy, through_pickle, through_file])
def test_a_copy_of_an_attached_model_is_attached_on_its_own(net, through):
    x = images()
    bare, soft = gradients(net, x), soft_gradients(net, x)
    sites = sg.attach(net, RULE)
    twin = through(net)
    assert_close(gradients(twin, x), soft)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    sites.use(None)
    assert_equal(gradients(net, x), bare)  # its own weights, its own rule
    twin.load_state_dict(net.state_dict())
    assert_close(gradients(twin, x), soft)
    sites.detach()
    assert_close(gradients(twin, x), soft)
    sg.detach(twin)
    assert_equal(gradients(twin, x), bare)
    assert [sorted(module.__dict__) for module in twin.modules()] == [sorted(m.__dict__) for m in net.modules()]
    assert all(module.inplace for module in twin.modules() if isinstance(module, nn.ReLU))


def test_two_threads_on_one_attached_model_both_get_soft_gates(net):
    x = [images(), -images()]
    expected = [soft_gradients(net, one) for one in x]
    start, results = threading.Barrier(2), [[], []]

    def work(mine):
        start.wait()
        for _ in range(20):
            results[mine].append(gradients(net, x[mine]))

    with sg.attach(net, RULE) as sites:
        threads = [threading.Thread(target=work, args=(mine,)) for mine in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [site.name for site in sites.table()] == NET_SITES
    for mine in (0, 1):
        assert len(results[mine]) == 20
        for found in results[mine]:
            assert_close(found, expected[mine])


def test_a_thread_without_the_model_is_not_gated_while_another_is_inside_of_it():
    inside, done, seen = threading.Event(), threading.Event(), []

    class Waiting(Spelled):
        def forward(self, x):
            inside.set()
            done.wait(60)
            return super().forward(x)

    def bystander():
        inside.wait(60)
        z = -torch.ones(3, requires_grad=True)
        seen.append(grad(F.relu(z).sum(), z)[0])
        done.set()

    model = Waiting(SPELLINGS["F.relu(z)"])
    done.set()  # for the trace
    sites = sg.attach(model, RULE)
    inside.clear()
    done.clear()
    thread = threading.Thread(target=bystander)
    thread.start()
    with sites:
        model(vectors())
    thread.join()
    assert torch.equal(seen[0], torch.zeros(3))


@pytest.mark.parametrize("wrap", ["wrapper", "in place"])
def test_a_compiled_attached_model_equals_eager_and_follows_use(net, wrap):
    torch._dynamo.reset()
    x = images()
    bare, soft = gradients(net, x), soft_gradients(net, x)
    with sg.attach(net, RULE) as sites:
        if wrap == "wrapper":
            compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        else:
            net.compile(fullgraph=True, backend="aot_eager")
            compiled = net
        assert_close(gradients(compiled, x), soft)
        sites.use(None)
        assert_close(gradients(compiled, x), bare)
        with sites.use(sg.Surrogate(mix=0.5)):
            half = gradients(compiled, x)
        assert differ(half, bare)
        assert differ(half, soft)
        sites.use(RULE)
        assert_close(gradients(compiled, x), soft)


def test_a_compiled_model_in_training_mode_equals_eager(net):
    torch._dynamo.reset()
    twin, x = copy.deepcopy(net).train(), images()
    net.train()
    expected = soft_gradients(twin, x)
    with sg.attach(net, RULE):
        assert_close(gradients(torch.compile(net, fullgraph=True, backend="aot_eager"), x), expected)
