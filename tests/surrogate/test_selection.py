"""Which call sites a rule governs, and that the others keep exactly their true gradient."""

import json
import pickle
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import reference
import softgate as sg
from softgate import Select, SoftgateError
from softgate.surrogate.selection import Kind

names = st.lists(st.sampled_from(["*", "layer1.*", "stem", "*pool*", "layer?.relu", "zzz"]), max_size=3)
selections = st.builds(
    Select,
    names=names.filter(bool),
    exclude=names,
    kinds=st.lists(st.sampled_from(["relu", "max_pool2d"]), max_size=2),
    depth=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
SITES = [
    ("stem", "relu"),
    ("maxpool", "max_pool2d"),
    ("layer1.relu", "relu"),
    ("layer1.pool", "max_pool2d"),
    ("layer2.relu", "relu"),
]


@given(selections)
def test_a_site_is_chosen_where_it_passes_all_four_tests(select):
    expected = set()
    for place, (name, kind) in enumerate(SITES):
        wanted = any(fnmatchcase(name, pattern) for pattern in select.names)
        spared = any(fnmatchcase(name, pattern) for pattern in select.exclude)
        deep = select.depth[0] <= place / 4 <= select.depth[1]
        if wanted and not spared and deep and (kind in select.kinds or not select.kinds):
            expected.add(name)
    unmatched = [
        pattern
        for pattern in (*select.names, *select.exclude)
        if not any(fnmatchcase(name, pattern) for name, _ in SITES)
    ]
    if unmatched or not expected:
        with pytest.raises(SoftgateError, match=r"surrogate\.sites"):
            select.choose(SITES)
    else:
        assert select.choose(SITES) == expected


@given(selections)
def test_a_selection_comes_back_from_its_dict_from_json_and_from_pickle(select):
    rule = sg.Surrogate(sites=select)
    assert sg.Surrogate.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert hash(pickle.loads(pickle.dumps(rule))) == hash(rule)


def test_a_selection_by_kinds_of_the_enum_is_written_as_plain_strings():
    rule = sg.Surrogate(sites=Select(kinds=(Kind.RELU,)))
    assert [type(kind) for kind in rule.to_dict()["sites"]["kinds"]] == [str]


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ("layer1", ["surrogate.sites=layer1", "a dict"]),
        ({"name": ["*"]}, ["surrogate.sites=name", "Did you mean 'names'"]),
        ({"names": "layer1.*"}, ["surrogate.sites.names=layer1.*", "a list of strings"]),
        ({"names": []}, ["surrogate.sites.names=[]", "'*' is every site"]),
        ({"names": None}, ["surrogate.sites.names=None", "a list of strings"]),
        ({"exclude": [3]}, ["surrogate.sites.exclude=[3]", "a list of strings"]),
        ({"kinds": ["pool"]}, ["surrogate.sites.kinds=pool", "max_pool2d"]),
        ({"depth": 0.5}, ["surrogate.sites.depth=0.5", "two numbers"]),
        ({"depth": [0.5, 0.1]}, ["surrogate.sites.depth=[0.5, 0.1]", "least <= greatest"]),
        ({"depth": [0, "1"]}, ["surrogate.sites.depth=[0, '1']", "two numbers"]),
    ],
)
def test_a_mistake_in_plain_data_names_the_option_the_value_and_what_is_allowed(plain, said):
    with pytest.raises(SoftgateError) as error:
        sg.Surrogate.from_dict({"sites": plain})
    for words in said:
        assert words in str(error.value)


class Net(nn.Module):
    """Three ReLUs and a pooling, by modules and by functions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1).double() for _ in range(3))
        self.first, self.second = nn.ReLU(), nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(self.first(self.a(x)))
        x = self.second(self.b(x))
        return F.relu(self.c(x)).sum((1, 2, 3))


class Untraceable(Net):
    """The same with a branch that a symbolic trace cannot take."""

    def forward(self, x):
        return super().forward(x if x.sum() > -1e9 else -x)


def by_hand(net, x, chosen):
    """The parameters' gradients with soft rules at the chosen sites and true ones at the others."""

    def relu(name, z):
        return reference.relu(z, reference.sigmoid) if name in chosen else F.relu(z)

    h = relu("first", net.a(x))
    h = reference.max_pool2d(h, 2) if "pool" in chosen else F.max_pool2d(h, 2)
    h = relu("second", net.b(h))
    return grad(relu("(model).relu", net.c(h)).sum(), list(net.parameters()))


CHOICES = [
    (Select(), {"first", "pool", "second", "(model).relu"}),
    (Select(names=("first", "*relu")), {"first", "(model).relu"}),
    (Select(exclude=("second",)), {"first", "pool", "(model).relu"}),
    (Select(kinds=("max_pool2d",)), {"pool"}),
    (Select(depth=(0.0, 0.4)), {"first", "pool"}),
    (Select(depth=(0.5, 1.0), kinds=("relu",)), {"second", "(model).relu"}),
]


@pytest.mark.parametrize("kind", [Net, Untraceable])
@pytest.mark.parametrize(("select", "chosen"), CHOICES, ids=[str(sorted(c)) for _, c in CHOICES])
def test_chosen_sites_have_the_soft_gradient_and_the_others_exactly_the_true_one(kind, select, chosen):
    net, x = kind(), torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = by_hand(net, x, chosen)
    with sg.attach(net, None) as sites:
        net(x)  # so that the order of an untraceable network's sites is known
        sites.use(sg.Surrogate(sites=select))
        found = grad(net(x).sum(), list(net.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) <= 1e-12


def test_spared_sites_alone_give_the_true_gradient_bit_for_bit():
    net, x = Net(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    true = grad(net(x).sum(), list(net.parameters()))
    with sg.attach(net, sg.Surrogate(sites=Select(names=("*",), kinds=("relu",), exclude=("*relu", "first")))):
        found = grad(net(x).sum(), list(net.parameters()))
    assert torch.equal(found[4], true[4])  # the last convolution lies behind spared sites only
    assert torch.equal(found[5], true[5])
    assert not torch.equal(found[0], true[0])


@pytest.mark.parametrize("select", [Select(names=("layer9.*",)), Select(exclude=("layer9.*",))])
def test_a_pattern_that_matches_no_site_is_named_and_the_model_left_as_it_was(select):
    net, x = Net(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    with pytest.raises(SoftgateError, match=r"surrogate\.sites\.\w+=layer9\.\*: no call site matches; there are first"):
        sg.attach(net, sg.Surrogate(sites=select))
    for name, module in net.named_modules():
        assert vars(module).keys() == before[name].keys()
    assert net.second.inplace
    with sg.attach(net, None) as sites:
        with pytest.raises(SoftgateError, match=r"layer9"):
            sites.use(sg.Surrogate(sites=select))
        assert sites.rule is None
        net(x)


def test_a_network_that_cannot_be_traced_goes_by_names_and_asks_for_a_pass_where_the_order_matters():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    net = Untraceable()
    with sg.attach(net, sg.Surrogate(sites=Select(names=("first",)))):
        found = grad(net(x).sum(), net.a.weight)[0]
    bare = Net()
    with sg.attach(bare, sg.Surrogate(sites=Select(names=("first",)))):
        assert torch.equal(found, grad(bare(x).sum(), bare.a.weight)[0])
    with pytest.raises(SoftgateError, match=r"surrogate\.sites\.depth.*cannot be traced"):
        sg.attach(net, sg.Surrogate(sites=Select(depth=(0.0, 0.5))))
    assert "forward" not in vars(net)
